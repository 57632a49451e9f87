"""`difflm tune`: the fastest way to decode a model that costs no more than a given loss, as the model's defaults."""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difflm.checkpoints.fields import merged, read_optional_json
from difflm.checkpoints.folders import replace_text
from difflm.checkpoints.manifest import MANIFEST
from difflm.decode.admission import decodings_of
from difflm.decode.request import SamplingParams
from difflm.errors import CheckpointError, ConfigError, DataError
from difflm.evaluation.drafting import costs_of_windows, left_to_right, refuse_blocks, windows_of
from difflm.evaluation.intervals import bootstrap
from difflm.evaluation.measuring import NEXT_TOKEN, VERIFIED, Setting
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
    windows: Sequence[int] = (),
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> Tuned:
    """Measure the grid and choose the fastest setting within the loss.

    The most careful setting decides one token a forward: in the model's own block size, or, where the model does
    nothing but draft, left to right. A model that drafts is also tried left to right: without drafts, at each window.

    Args:
        loaded: the model.
        plan: task, items and lengths; a task of `Prompts` takes the careful setting's answers as right.
        max_loss: mean score that may be lost against the most careful setting.
        thresholds: to try; none is .99, .95, .9, .85, .8.
        block_sizes: to try; none is the model's own, half and twice of it.
        windows: of drafts that are verified, to try; none is 2, 4, 8, 16, 32 up to the model's block.
        folder: keeps the points, for a repeated call; None keeps none.
        watcher: is told of points and items.

    Raises:
        ConfigError: a loss below 0, windows of a model that does not draft, thresholds or block sizes of one that has
            no blocks.
        RequestError: a setting or item that does not fit the model.
    """
    if max_loss < 0:
        raise ConfigError(f"--max-loss: {max_loss} is below 0; give the score that may be lost, e.g. 0.01")
    careful_setting, blocks = _blocks(loaded, thresholds, block_sizes)
    tried = _windows(loaded, windows)
    with tempfile.TemporaryDirectory() as spare:
        place = Path(spare) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        drafting = _drafting(loaded, tried, plan, place, watcher)
        settings = [*blocks, *(setting for setting in drafting if setting != careful_setting)]
        (careful,) = sweep(loaded, [careful_setting], plan, place, watcher=watcher)
        if isinstance(plan.task, Prompts):
            measured = replace(careful.measured, scores=[1.0] * len(careful.measured.answers))
            careful = replace(careful, measured=measured)
            plan = replace(plan, task=replace(plan.task, answers=tuple(measured.answers)))
        points = sweep(loaded, settings, plan, place, watcher=watcher)
    found = Tuned(careful=careful, points=points, chosen=careful)
    within = [point for point in (careful, *points) if found.loss(point)[0] <= max_loss + ROUNDING]
    fastest = max(point.measured.tokens_per_second for point in within)
    near = [point for point in within if point.measured.tokens_per_second * AS_FAST >= fastest]
    return replace(found, chosen=max(near, key=lambda point: point.measured.score))


def _blocks(
    loaded: LoadedModel, thresholds: Sequence[float], block_sizes: Sequence[int]
) -> tuple[Setting, list[Setting]]:
    """Return the most careful setting, and those in blocks, the careful one apart if it was not asked for."""
    offered = decodings_of(loaded)
    if VERIFIED in offered and "block" not in offered:
        refuse_blocks(loaded, thresholds, block_sizes)
        return Setting(policy=NEXT_TOKEN), []
    own = SamplingParams().resolved_block_size({}, loaded.config.block_size)
    sizes = block_sizes or sorted({max(own // 2, 1), own, min(2 * own, loaded.config.model.max_positions)})
    (careful,) = grid(thresholds=[CAREFUL], block_sizes=[own])
    return careful, grid(thresholds=thresholds or THRESHOLDS, block_sizes=sizes)


def _windows(loaded: LoadedModel, windows: Sequence[int]) -> list[int]:
    """Return the windows to try; none where the model does not draft."""
    if VERIFIED in decodings_of(loaded):
        return sorted(windows) or windows_of(loaded)
    if windows:
        raise ConfigError(
            f"--window: {windows[0]} is for drafts that are verified, and {loaded.path} is read with clean_attention "
            "'block', or without a mask token; leave it out"
        )
    return []


def _drafting(
    loaded: LoadedModel, windows: Sequence[int], plan: Plan, place: Path, watcher: Watcher | None
) -> list[Setting]:
    """Return the settings left to right, drafts with the costs of their rows on this machine."""
    if not windows:
        return []
    key = plan.place_key(loaded)
    costs = costs_of_windows(loaded, windows, place, key=key)
    if watcher is not None:
        told = ", ".join(f"{row} and {draft} at window {window}" for window, (row, draft) in costs.items())
        watcher.end(f"a row more and drafting cost, in forwards of one row: {told}")
    return left_to_right(windows, costs)


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
        raise CheckpointError(
            f"{path}: {MANIFEST} seals this checkpoint of a run; difflm merge {path} --output FOLDER first and tune "
            "FOLDER, or --dry-run"
        )


def write_defaults(path: Path, chosen: Point) -> Path:
    """Write what was chosen into a checkpoint's generation_config.json and return that file; its other fields stay.

    That is `block_size` and `threshold`; or left to right `decoding`, and with drafts `verified`: its window and what
    rows and drafting cost here.

    Args:
        path: folder of the checkpoint.
        chosen: of `Tuned`.

    Raises:
        CheckpointError: as `check_writable`, or a generation_config.json that is none.
    """
    check_writable(path)
    file = path / GENERATION
    before, setting = read_optional_json(file), chosen.setting
    updates: dict[str, Any] = {"decoding": setting.policy}
    if setting.policy == VERIFIED:
        updates[VERIFIED] = dict(setting.settings)
    elif setting.policy != NEXT_TOKEN:
        updates = {"block_size": setting.block_size, "threshold": setting.threshold}
        updates |= {"decoding": "block"} if "decoding" in before else {}
    replace_text(file, json.dumps(merged(before, updates), indent=2, ensure_ascii=False) + "\n")
    return file


def describe(found: Tuned) -> str:
    """Return one line with what was chosen, and what it costs and gains."""
    loss, low, high = found.loss(found.chosen)
    speed, before = found.chosen.measured.tokens_per_second, found.careful.measured.tokens_per_second
    setting = found.chosen.setting
    named = [("decoding", setting.policy), *setting.settings]
    if setting.policy not in (NEXT_TOKEN, VERIFIED):
        named = [("block_size", setting.block_size), ("threshold", setting.threshold)]
    said = ", ".join(f"{name} {value}" for name, value in named)
    return (
        f"{said}: {speed:.1f} tokens/s, {speed / before:.2f} times the most careful setting; "
        f"score lost {loss:.3f} ({low:.3f} to {high:.3f})"
    )
