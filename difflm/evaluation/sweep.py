"""`difflm sweep`: thresholds, block sizes and policies on the items of a task, what is finished kept on disk.

A folder holds points.jsonl (one line a point, written when it is done; a repeated sweep takes the points that it finds
there), and, of the whole sweep, sweep.csv, sweep.json and sweep.png.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from difflm.bench.environment import environment
from difflm.checkpoints.adapter import adapter_of
from difflm.checkpoints.folders import replace_text
from difflm.decode.events import DraftCounts, Forwards
from difflm.decode.policies.named import policy_settings
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from difflm.evaluation.measuring import NEXT_TOKEN, VERIFIED, Measured, Setting, measure
from difflm.plots import read_rows

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.evaluation.tasks import Task

THRESHOLDS, BLOCK_SIZES = (0.85, 0.9, 0.95), (16, 32, 64)
BLOCK_SIZE, THRESHOLD = 32, 0.95
POINTS = "points.jsonl"
COLUMNS = (
    "policy", "block_size", "threshold", "items", "score", "low", "high", "tpf", "tps", "num_tokens", "seconds",
    "prefill", "denoise", "commit", "tokens_per_cycle", "acceptance", "stuck", "pareto",
)  # fmt: skip


class Watcher(Protocol):
    """What sees a sweep go on."""

    def begin(self, label: str, items: int) -> None:
        """A point begins."""
        ...

    def item(self) -> None:
        """An item of it is decoded."""
        ...

    def end(self, line: str) -> None:
        """It is done, or was found."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A setting and what it gave.

    Attributes:
        setting: how the items were decoded.
        measured: what came of it.
    """

    setting: Setting
    measured: Measured

    def row(self) -> dict[str, Any]:
        """Return the figures as JSON values, under the names of `COLUMNS`."""
        low, high = self.measured.interval
        return {
            "policy": self.setting.label,
            "block_size": self.setting.block_size,
            "threshold": self.setting.threshold,
            "items": len(self.measured.scores),
            "score": self.measured.score,
            "low": low,
            "high": high,
            "tpf": self.measured.tokens_per_forward,
            "tps": self.measured.tokens_per_second,
            "num_tokens": self.measured.num_tokens,
            "seconds": self.measured.seconds,
            **asdict(self.measured.forwards),
            "tokens_per_cycle": self.measured.tokens_per_cycle,
            "acceptance": self.measured.acceptance,
            "stuck": self.measured.stuck,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every point of a sweep shares.

    Attributes:
        task: what is asked.
        items: how many; None is all that the task has.
        seed: of the items.
        params: length and stop strings of the answers.
        max_requests: requests that run together.
        chat_template: whether a prompt is a user's turn.
        place: where it runs - device, dtype, threads - as it is to be recorded.
    """

    task: Task
    items: int | None
    seed: int
    params: SamplingParams
    max_requests: int = 1
    chat_template: bool = False
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def key(self, loaded: LoadedModel, setting: Setting) -> dict[str, Any]:
        """Return what a finished point must have been measured with to be taken again; JSON values."""
        return {
            **self.place_key(loaded),
            "policy": setting.label,
            "task": self.task.name,
            "items": self.items,
            "seed": self.seed,
            "max_new_tokens": self.params.max_new_tokens,
            "stop": list(self.params.stop),
            "max_requests": self.max_requests,
            "chat_template": self.chat_template,
        }

    def place_key(self, loaded: LoadedModel) -> dict[str, Any]:
        """Return which model it is, and where it runs; JSON values."""
        digest = adapter_digest(loaded)
        own = {} if digest is None else {"adapter": digest}
        return {"model": str(loaded.path), "files": fingerprint(loaded.path), **own, **self.place}


def grid(
    policies: Sequence[str] = (), thresholds: Sequence[float] = (), block_sizes: Sequence[int] = ()
) -> list[Setting]:
    """Return the settings of a sweep, each once.

    Without thresholds and block sizes: .85, .90 and .95 at block 32, and blocks of 16, 32 and 64 at .95. Else each of
    the thresholds (.95) with each of the block sizes (32).

    Args:
        policies: NAME:SETTING=VALUE,...; none is ours. What one sets itself is kept. Left to right ("next_token",
            "verified:...") there is nothing to sweep.
        thresholds: to try.
        block_sizes: to try, tokens.

    Raises:
        RequestError: a line that is no policy.
    """
    if thresholds or block_sizes:
        pairs = [(threshold, size) for size in block_sizes or (BLOCK_SIZE,) for threshold in thresholds or (THRESHOLD,)]
    else:
        pairs = [(threshold, BLOCK_SIZE) for threshold in THRESHOLDS] + [(THRESHOLD, size) for size in BLOCK_SIZES]
    found: dict[str, Setting] = {}
    for text in policies or ("native",):
        for threshold, size in pairs:
            made = setting_of(text, threshold, size)
            found.setdefault(made.label, made)
    return list(found.values())


def setting_of(text: str, threshold: float = THRESHOLD, block_size: int = BLOCK_SIZE) -> Setting:
    """Return the setting of a policy with this threshold and block size, unless it has its own.

    Args:
        text: NAME:SETTING=VALUE,...
        threshold: confidence above which a token is kept.
        block_size: tokens.

    Raises:
        RequestError: as `difflm.policy`.
    """
    name, own = policy_settings(text)
    if name in (NEXT_TOKEN, VERIFIED):
        return _left_to_right(name, own)
    sized = "block_size" if name == "sglang" else "block_length"
    swept: dict[str, Any] = {sized: block_size}
    if not {"fixed", "entropy_bound"} & own.keys():
        swept["threshold"] = threshold
    settings = swept | own
    made = Setting(
        policy=name,
        settings=tuple(settings.items()),
        block_size=settings[sized],
        threshold=settings.get("threshold"),
    )
    made.params(SamplingParams())  # a setting that the policy does not take is said before the work
    return made


def _left_to_right(name: str, own: Mapping[str, Any]) -> Setting:
    """Return the setting of a decoding without blocks."""
    if name == NEXT_TOKEN and own:
        raise RequestError(f"policy {name}: it has no setting {sorted(own)[0]!r}; leave it out")
    made = Setting(policy=name, settings=tuple(own.items()))
    made.params(SamplingParams())
    return made


def sweep(
    loaded: LoadedModel,
    settings: Sequence[Setting],
    plan: Plan,
    folder: Path,
    *,
    parent: LoadedModel | None = None,
    watcher: Watcher | None = None,
) -> list[Point]:
    """Measure every setting, take what the folder already holds, and write the results into it.

    Args:
        loaded: the model.
        settings: see `grid`.
        plan: what they share.
        folder: for the results; made if absent.
        parent: AR model that is decoded left to right on the same items, the last point.
        watcher: is told of points and items.

    Raises:
        RequestError: a setting or an item that does not fit the model.
        DataError: a points.jsonl that is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(loaded, setting) for setting in settings]
    if parent is not None:
        pairs.append((parent, Setting(policy=NEXT_TOKEN)))
    known, items = read_points(folder), plan.task.items(plan.items, plan.seed)
    points: list[Point] = []
    for model, setting in pairs:
        key = plan.key(model, setting)
        measured = next((found for other, found in known if other == key), None)
        if watcher is not None:
            watcher.begin(setting.label, 0 if measured else len(items))
        if measured is None:
            measured = measure(
                model,
                plan.task,
                items,
                setting.params(plan.params),
                max_requests=plan.max_requests,
                chat_template=plan.chat_template,
                each=watcher.item if watcher is not None else lambda: None,
            )
            with (folder / POINTS).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps({'key': key, 'measured': asdict(measured)})}\n")
        points.append(Point(setting=setting, measured=measured))
        if watcher is not None:
            watcher.end(describe(points[-1]))
    write_results(folder, points, plan, model=str(loaded.path), parent=None if parent is None else str(parent.path))
    return points


def rows_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the row of each point, with "pareto": whether no other one beats it."""
    best = {point.setting.label for point in pareto(points)}
    return [point.row() | {"pareto": point.setting.label in best} for point in points]


def describe(point: Point) -> str:
    """Return one line with what a point gave."""
    low, high = point.measured.interval
    return (
        f"{point.setting.label}: score {point.measured.score:.3f} ({low:.3f}-{high:.3f}), "
        f"{point.measured.tokens_per_forward:.2f} tokens per forward, {point.measured.tokens_per_second:.1f} tokens/s"
    )


def read_points(folder: Path) -> list[tuple[dict[str, Any], Measured]]:
    """Return keys and results of the finished points; a line that an interruption cut short is removed.

    Raises:
        DataError: a line before the last is not JSON.
    """
    path = folder / POINTS
    if not path.is_file():
        return []
    rows = read_rows(path)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if text != path.read_text(encoding="utf-8"):
        replace_text(path, text)
    return [(row["key"], _measured(row["measured"])) for row in rows]


def _measured(row: dict[str, Any]) -> Measured:
    """Return what a line says; older ones say nothing of drafts."""
    drafts: dict[str, Any] = row.get("drafts", {})
    given: dict[str, Any] = drafts | {key: tuple(drafts.get(key, ())) for key in ("verified_at", "accepted_at")}
    counts = DraftCounts(**given)
    return Measured(**row | {"forwards": Forwards(**row["forwards"]), "drafts": counts})


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in score and tokens per forward; by tokens per forward, descending.

    Of equal ones the first is kept. The AR parent takes part like the others.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.measured.tokens_per_forward, -each.measured.score)):
        if not best or point.measured.score > best[-1].measured.score:
            best.append(point)
    return best


def write_results(folder: Path, points: Sequence[Point], plan: Plan, *, model: str, parent: str | None) -> None:
    """Write sweep.csv and sweep.json.

    Args:
        folder: where to.
        points: all of them.
        plan: what they share.
        model: where it is from.
        parent: where the AR parent is from, if there is one.
    """
    rows = rows_of(points)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row[name] for name in COLUMNS] for row in rows)
    replace_text(folder / "sweep.csv", table.getvalue())
    whole = {
        "schema": "difflm.sweep/1",
        "model": model,
        "parent": parent,
        "task": plan.task.name,
        "seed": plan.seed,
        "max_new_tokens": plan.params.max_new_tokens,
        "stop": list(plan.params.stop),
        "max_requests": plan.max_requests,
        "chat_template": plan.chat_template,
        **plan.place,
        "environment": environment(),
        "points": rows,
        "pareto": [point.setting.label for point in pareto(points)],
    }
    replace_text(folder / "sweep.json", json.dumps(whole, indent=1) + "\n")


def fingerprint(path: Path) -> str:
    """Return what changes when the files of a checkpoint do: names, sizes and times of its weights and settings."""
    files = (
        [path]
        if path.is_file()
        else sorted(each for each in path.glob("*") if each.suffix in _LOADED and each.name != "generation_config.json")
    )
    # tune writes generation_config.json; what a point depends on of it is in the point's own settings
    facts = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def adapter_digest(loaded: LoadedModel) -> str | None:
    """Return a hash of the adapter that a model carries, None without one: its path and files are the base's."""
    if loaded.adapter is None:
        return None
    total = hashlib.sha256()
    for name, tensor in sorted(adapter_of(loaded.model, loaded.adapter).tensors.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


_LOADED = {".safetensors", ".gguf", ".json"}
