"""`difflm tune`: the fastest block size and threshold that cost no more than a given loss, as a model's defaults."""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from difflm.checkpoints.fields import merged, read_optional_json
from difflm.checkpoints.folders import replace_text
from difflm.checkpoints.manifest import MANIFEST
from difflm.decode.request import SamplingParams
from difflm.errors import CheckpointError, ConfigError, DataError
from difflm.evaluation.intervals import bootstrap
from difflm.evaluation.sweep import Plan, Point, Watcher, grid, sweep
from difflm.evaluation.tasks import Item

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

THRESHOLDS = (0.99, 0.95, 0.9, 0.85, 0.8)
CAREFUL = 1.0  # nothing is above it: one token a forward
GENERATION = "generation_config.json"
ROUNDING = 1e-9
AS_FAST = 1.05  # what timings of one machine differ by anyhow: within it, quality decides


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts without answers, one JSON object a line with "prompt" or "text": scored by likeness to given answers.

    The score is the share of words, in order, that two answers have in common: twice the common ones over all of both.

    Attributes:
        path: the file.
        answers: to its prompts, in order; empty before there are any.
    """

    path: Path
    answers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path, and whether there are answers."""
        return f"{self.path} ({'likeness to the most careful answers' if self.answers else 'prompts'})"

    def items(self, n: int | None, seed: int) -> list[Item]:
        """Return the first n prompts; all of them if n is None. The seed has no say.

        Raises:
            DataError: a line that is no such object, or no line.
        """
        found: list[Item] = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{self.path}, line {number}: no JSON ({error.msg}); write one object a line") from None
            texts = [record[key] for key in ("prompt", "text") if key in record] if isinstance(record, dict) else []
            if not texts or not isinstance(texts[0], str) or not texts[0]:
                raise DataError(f'{self.path}, line {number}: it needs a text "prompt" (or "text")')
            found.append(Item(prompt=texts[0], reference=""))
        if not found:
            raise DataError(f"{self.path}: it has no prompts; write one JSON object a line")
        found = found[:n]
        answers = self.answers or [""] * len(found)
        return [replace(item, reference=answer) for item, answer in zip(found, answers, strict=True)]

    def score(self, item: Item, text: str) -> float:
        """Return how like the answer of the item a text is, 0 to 1."""
        return likeness(text, item.reference)


def likeness(one: str, other: str) -> float:
    """Return the share of words that two texts have in common, in order; 1 for equal texts."""
    words = [re.findall(r"\S+", text) for text in (one, other)]
    return difflib.SequenceMatcher(None, *words, autojunk=False).ratio()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found.

    Attributes:
        careful: the most careful setting, which the others are held against.
        points: the others, as they were measured.
        chosen: of those that lose no more than they may and are within 5 % of the fastest in tokens per second, the one
            with the best score, the first of equal ones; maybe the careful one.
    """

    careful: Point
    points: list[Point]
    chosen: Point

    def loss(self, point: Point) -> tuple[float, float, float]:
        """Return the mean loss of a point against the careful one, and its 95 % interval, item by item."""
        pairs = zip(self.careful.measured.scores, point.measured.scores, strict=True)
        losses = [before - after for before, after in pairs]
        return sum(losses) / len(losses), *bootstrap(losses)


def tune(
    loaded: LoadedModel,
    plan: Plan,
    *,
    max_loss: float,
    thresholds: Sequence[float] = (),
    block_sizes: Sequence[int] = (),
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> Tuned:
    """Measure the grid and choose the fastest setting within the loss.

    The most careful setting decides one token a forward, in the model's own block size.

    Args:
        loaded: the model.
        plan: task, items and lengths; a task of `Prompts` takes the careful setting's answers as right.
        max_loss: mean score that may be lost against the most careful setting.
        thresholds: to try; none is .99, .95, .9, .85, .8.
        block_sizes: to try; none is the model's own, half and twice of it.
        folder: keeps the points, for a repeated call; None keeps none.
        watcher: is told of points and items.

    Raises:
        ConfigError: a loss below 0.
        RequestError: a setting or item that does not fit the model.
    """
    if max_loss < 0:
        raise ConfigError(f"--max-loss: {max_loss} is below 0; give the score that may be lost, e.g. 0.01")
    own = SamplingParams().resolved_block_size({}, loaded.config.block_size)
    sizes = block_sizes or sorted({max(own // 2, 1), own, min(2 * own, loaded.config.model.max_positions)})
    with tempfile.TemporaryDirectory() as spare:
        place = Path(spare) if folder is None else folder
        (careful,) = sweep(loaded, grid(thresholds=[CAREFUL], block_sizes=[own]), plan, place, watcher=watcher)
        if isinstance(plan.task, Prompts):
            measured = replace(careful.measured, scores=[1.0] * len(careful.measured.answers))
            careful = replace(careful, measured=measured)
            plan = replace(plan, task=replace(plan.task, answers=tuple(measured.answers)))
        settings = grid(thresholds=thresholds or THRESHOLDS, block_sizes=sizes)
        points = sweep(loaded, settings, plan, place, watcher=watcher)
    found = Tuned(careful=careful, points=points, chosen=careful)
    within = [point for point in (careful, *points) if found.loss(point)[0] <= max_loss + ROUNDING]
    fastest = max(point.measured.tokens_per_second for point in within)
    near = [point for point in within if point.measured.tokens_per_second * AS_FAST >= fastest]
    return replace(found, chosen=max(near, key=lambda point: point.measured.score))


def check_writable(path: Path) -> None:
    """Refuse a checkpoint whose defaults cannot be written.

    Raises:
        CheckpointError: it is no folder, or one that a manifest seals.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no folder, so there is no {GENERATION} to write; convert it first, or --dry-run"
        )
    if (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: {MANIFEST} seals this checkpoint of a run; difflm merge it first, or --dry-run")


def write_defaults(path: Path, chosen: Point) -> None:
    """Write block size and threshold into a checkpoint's generation_config.json; the other fields stay.

    Args:
        path: folder of the checkpoint.
        chosen: of `Tuned`.

    Raises:
        CheckpointError: as `check_writable`, or a generation_config.json that is none.
    """
    check_writable(path)
    file = path / GENERATION
    updates = {"block_size": chosen.setting.block_size, "threshold": chosen.setting.threshold}
    replace_text(file, json.dumps(merged(read_optional_json(file), updates), indent=2, ensure_ascii=False) + "\n")


def describe(found: Tuned) -> str:
    """Return one line with what was chosen, and what it costs and gains."""
    loss, low, high = found.loss(found.chosen)
    speed, before = found.chosen.measured.tokens_per_second, found.careful.measured.tokens_per_second
    return (
        f"block_size {found.chosen.setting.block_size}, threshold {found.chosen.setting.threshold}: "
        f"{speed:.1f} tokens/s, {speed / before:.2f} times the most careful setting; "
        f"score lost {loss:.3f} ({low:.3f} to {high:.3f})"
    )
