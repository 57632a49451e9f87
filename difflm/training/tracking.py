"""Boards that receive every row of metrics.jsonl as well: TensorBoard, Weights & Biases, trackio; none unless asked.

A run has one entry on each board, however often it is resumed, and no step stands there twice: TensorBoard forgets what
a resumed run computes again; of the other two, which cannot, a resumed run skips what they have (the numbers are the
same). tracking.json in the run folder remembers the entries, and from which row on a board has nothing: a resumed run
sends that first. A board that fails is left alone, the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from difflm.checkpoints.folders import replace_text
from difflm.errors import CheckpointError, ConfigError, Interrupted
from difflm.plots import read_rows
from difflm.training.config import TrainConfig
from difflm.training.config_io import Tree, config_to_tree
from difflm.training.metrics import Metrics

RECORD = "tracking.json"
SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)

RowKey = tuple[int, str]
"""Optimiser step and kind: what tells one row of metrics.jsonl from another."""


class Tracker(Protocol):
    """An entry on a board."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values at an optimiser step; steps never go back."""
        ...

    def close(self, *, failed: bool) -> None:
        """Send what is left; `failed` says that the run ended with an error."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a board is told about a run.

    Attributes:
        folder: of the run.
        project: to which the entry belongs.
        name: as it is shown.
        identity: of the entry, the same in every resumed run.
        known: whether the entry was there before.
        step: optimiser steps that are behind the run.
        config: the run's configuration.
    """

    folder: Path
    project: str
    name: str
    identity: str
    known: bool
    step: int
    config: Tree


class TensorBoard:
    """Event files in the folder tensorboard/ of the run, written out with every row."""

    def __init__(self, entry: Entry) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers forget the steps from `purge` on: those that an interrupted run did after its last checkpoint.
        purge = (entry.step + 1 if entry.step else 0) if entry.known else None
        self.writer = SummaryWriter(str(entry.folder / "tensorboard"), purge_step=purge)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the values."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; sends neither source code nor the terminal's output."""

    def __init__(self, entry: Entry) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        settings = wandb.Settings(console="off", disable_git=True, save_code=False, disable_code=True)
        self.run = wandb.init(
            project=entry.project,
            name=entry.name,
            id=entry.identity,
            resume="allow",
            dir=str(entry.folder),
            config=entry.config,
            settings=settings,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values."""
        self.run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run there."""
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of trackio, which keeps it on this machine and knows it by its name: part of the identity is in that."""

    def __init__(self, entry: Entry) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run = trackio.init(
            project=entry.project,
            name=f"{entry.name}-{entry.identity[:8]}",
            resume="allow",
            config=entry.config,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the values."""
        self.run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run there."""
        self.run.finish()


TRACKERS: dict[str, Callable[[Entry], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def flat_values(row: Metrics) -> dict[str, float]:
    """Return the numbers of a row of metrics.jsonl under the names that boards show.

    Names of inner values are joined by "/" and those of block sizes begin with "block_"; all but training rows have
    their kind in front: loss, loss_by_mask_rate/0.0-0.1, validation/perplexity/block_8.

    Args:
        row: as recorded; texts and values that were not measured are left out.
    """
    front = "" if row["kind"] == "train" else f"{row['kind']}/"
    return dict(_numbers({key: value for key, value in row.items() if key not in ("kind", "step")}, front))


def _numbers(values: Mapping[str, Any], front: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{front}block_{key}" if key.isdigit() else f"{front}{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def require_package(board: str) -> None:
    """Refuse a board whose package is not there.

    Args:
        board: a name of `TRACKERS`.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        if board == "tensorboard":
            import tensorboard  # noqa: F401
        elif board == "wandb":
            import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
        else:
            import trackio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception as error:  # a package that is broken is as good as absent, whatever it raises
        raise ConfigError(
            f"train.tracking.{board}: true, but the package {board} cannot be imported ({shown(error)}); "
            f"run pip install 'difflm[{board}]', or set it to false"
        ) from None


def shown(error: BaseException) -> str:
    """Return an error in a line for the user, without the values of secrets among the environment variables."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def quiet() -> contextlib.redirect_stdout[Any]:
    """Return a context in which what a board prints goes to stderr: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


@dataclass(slots=True)
class Remembered:
    """A board's part of tracking.json.

    Attributes:
        identity: of the entry.
        lacks: the first row that it was not sent; None if it has all.
        ahead: rows that it was sent and that were then cut off metrics.jsonl: the run computes them again.
    """

    identity: str
    lacks: RowKey | None = None
    ahead: list[RowKey] = field(default_factory=list)

    def has(self, rows: list[dict[str, Any]]) -> set[RowKey]:
        """Return which rows it was sent, of those in metrics.jsonl and those that were there."""
        keys = [_key(row) for row in rows]
        return {*self.ahead, *(keys[: keys.index(self.lacks)] if self.lacks in keys else keys)}


class Boards:
    """The boards of a run; does nothing if none is asked for.

    Args:
        config: the run.
        say: receives a line for the user.

    Raises:
        ConfigError: a package that is not installed.
    """

    def __init__(self, config: TrainConfig, *, say: Callable[[str], None]) -> None:
        settings = config.tracking
        asked = {"tensorboard": settings.tensorboard, "wandb": settings.wandb, "trackio": settings.trackio}
        self.config, self.say = config, say
        self.asked = [board for board, wanted in asked.items() if wanted]
        for board in self.asked:
            require_package(board)
        self.path = config.output / RECORD
        self.memory: dict[str, Remembered] = {}
        self.active: dict[str, Tracker] = {}
        self.has: dict[str, set[RowKey]] = {}

    def __enter__(self) -> Boards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupted run goes on some time.
        self.close(failed=error is not None and not isinstance(error, Interrupted))

    def open(self, step: int) -> None:
        """Begin or continue the entries and send what they lack; before metrics.jsonl is cut to the checkpoint.

        Args:
            step: optimiser steps of the checkpoint that the run continues from.

        Raises:
            ConfigError: a board does not start.
            CheckpointError: tracking.json cannot be read or written.
        """
        self.memory = self._remembered()
        if not self.asked and not self.memory:
            return
        metrics = self.config.output / "metrics.jsonl"
        rows = read_rows(metrics) if metrics.exists() else []
        behind = [row for row in rows if row["step"] <= step and step > 0]
        self.has = {board: memory.has(rows) for board, memory in self.memory.items()}
        for board in self.asked:
            known = board in self.memory
            memory = self.memory.setdefault(board, Remembered(uuid.uuid4().hex))
            self._remember()  # before it starts: a run that is killed now goes on in that entry
            self.active[board] = self._start(board, known=known, step=step)
            memory.lacks = None
            had = self.has.get(board, set())
            # TensorBoard has forgotten the others.
            self.has[board] = had & {_key(row) for row in behind} if board == "tensorboard" else had
            for row in behind:
                self._send(board, row)
        for board, memory in self.memory.items():
            memory.ahead = sorted(self.has[board] - {_key(row) for row in behind})
        self._remember()

    def log(self, row: Metrics) -> None:
        """Send a row of metrics.jsonl; a board that fails is not used again."""
        for board in self.asked:
            self._send(board, row)
        for board in self.memory.keys() - set(self.asked):
            self._miss(board, row)

    def close(self, *, failed: bool = False) -> None:
        """Send what is left and end the entries; once is enough.

        Args:
            failed: the run ended with an error.
        """
        while self.active:
            board, tracker = self.active.popitem()
            try:
                with quiet():
                    tracker.close(failed=failed)
            except Exception as error:  # whatever a board does, the run is not its affair
                self.say(f"tracking: {board} could not be closed ({shown(error)}); metrics.jsonl has every row")

    def _start(self, board: str, *, known: bool, step: int) -> Tracker:
        settings = self.config.tracking
        entry = Entry(
            folder=self.config.output,
            project=settings.project,
            name=settings.name or self.config.output.resolve().name,
            identity=self.memory[board].identity,
            known=known,
            step=step,
            config=config_to_tree(self.config),
        )
        try:
            with quiet():
                return TRACKERS[board](entry)
        except Exception as error:
            raise ConfigError(
                f"train.tracking.{board}: true, but it does not start ({shown(error)}); mend that, or set it to false"
            ) from None

    def _send(self, board: str, row: Metrics) -> None:
        if board not in self.active:
            self._miss(board, row)
        elif _key(row) not in self.has[board]:
            try:
                self.active[board].log(flat_values(row), row["step"])
            except Exception as error:  # a network that is gone, a disk that is full: not the run's affair
                self.say(
                    f"tracking: {board} failed at step {row['step']} ({shown(error)}); the run goes on without it, "
                    "metrics.jsonl has every row"
                )
                tracker = self.active.pop(board)
                self._miss(board, row)
                with contextlib.suppress(Exception), quiet():
                    tracker.close(failed=False)

    def _miss(self, board: str, row: Metrics) -> None:
        """Remember the first row that a board does not get."""
        if self.memory[board].lacks is None and _key(row) not in self.has.get(board, ()):
            self.memory[board].lacks = _key(row)
            self._remember()

    def _remembered(self) -> dict[str, Remembered]:
        try:
            tree = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
            return {
                board: Remembered(
                    identity=each["identity"],
                    lacks=_pair(each["lacks"]) if each["lacks"] else None,
                    ahead=[_pair(key) for key in each["ahead"]],
                )
                for board, each in tree.items()
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise CheckpointError(
                f"{self.path}: cannot be read; remove it, and the run begins new entries on its boards"
            ) from None

    def _remember(self) -> None:
        tree = {board: asdict(each) for board, each in self.memory.items()}
        try:
            replace_text(self.path, json.dumps(tree, indent=1) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror}); free space and resume") from None


def _pair(key: Any) -> RowKey:
    step, kind = key
    return step, kind


def _key(row: Metrics) -> RowKey:
    return row["step"], row["kind"]
