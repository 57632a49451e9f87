"""What is tried with a model that drafts: windows, each with what rows and drafting add to a forward here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from difflm.checkpoints.fields import read_optional_json
from difflm.checkpoints.folders import replace_text
from difflm.decode.admission import admit, decodings_of
from difflm.decode.policies.verified import Verified
from difflm.decode.request import DEFAULT_BLOCK_SIZE, Request, SamplingParams
from difflm.decode.runner import Runner
from difflm.decode.work import Work
from difflm.errors import ConfigError
from difflm.evaluation.measuring import NEXT_TOKEN, VERIFIED, Setting
from difflm.evaluation.sweep import grid, setting_of

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

CACHED = 256
"""Tokens in the cache of the forwards that are timed, where the context has room for them."""
ROUNDS = 9
WINDOWS = (2, 4, 8, 16, 32)
COSTS = "drafting_costs.json"


class Costs(NamedTuple):
    """What is added to a forward of one row, in such forwards; settings of "verified" have the same names.

    Attributes:
        row_cost: by a row more.
        draft_cost: by MASK rows beside that, however many they are.
    """

    row_cost: float
    draft_cost: float


def drafting_costs(
    loaded: LoadedModel, window: int, *, rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> Costs:
    """Return what rows and drafting add to a forward: the least squares of 1 + r (n - 1), and d more with MASK rows.

    The forwards are the engine's own, behind a cache: of the last token alone, with the drafts of a window (a
    verification), with a window of MASK rows (a draft), and with both. Each is timed several times, in turns, and its
    fastest time counts.

    Args:
        loaded: a model that drafts.
        window: places that one forward drafts.
        rounds: times that each forward is timed.
        clock: seconds, monotonic.

    Raises:
        RequestError: the model does not draft, or not so many places.
    """
    most = loaded.config.model.max_positions
    cached = max(1, min(CACHED, most - 2 * window - 1))
    prompt = [int(loaded.config.mask_token_id == 0)] * (cached + 1)
    params = SamplingParams(max_new_tokens=min(2 * window, most - cached - 1), policy=Verified(window=window))
    request = admit(loaded, prompt, params, request_id=0, fused=True)
    runner = Runner(loaded.model, max_tokens=request.capacity + 2)
    room = request.limit - cached
    shapes = [(0, 0), (window - 1, 0), (0, window - 1), (window - 1, window)]
    shapes = [shape for shape in shapes if 1 + sum(shape) <= room]
    works = [_forward(request, cached, *shape) for shape in shapes]
    read = tuple(prompt[:cached])
    runner.run([Work(request=request, kind="prefill", start=0, tokens=read, num_clean=cached)])
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for kept, work in zip(seconds, works, strict=True):
            started = clock()
            runner.run([work])
            if turn:  # the first one allocates
                kept.append(clock() - started)
    return fitted(shapes, [min(kept) for kept in seconds])


def fitted(shapes: Sequence[tuple[int, int]], seconds: Sequence[float]) -> Costs:
    """Return the least squares, neither below 0, of seconds over those of the first forward.

    Args:
        shapes: (drafts that are verified, MASK rows) of each forward; the first has neither.
        seconds: of each forward.
    """
    excess = np.array([each / seconds[0] - 1.0 for each in seconds[1:]])
    both = np.array([(checked + masks, masks > 0) for checked, masks in shapes[1:]], dtype=float).reshape(-1, 2)
    best, least = [0.0, 0.0], float(excess @ excess)
    for used in ([0, 1], [0], [1]):
        solved = np.linalg.lstsq(both[:, used], excess, rcond=None)[0]
        left = excess - both[:, used] @ solved
        if (solved >= 0.0).all() and float(left @ left) < least:
            best, least = [0.0, 0.0], float(left @ left)
            for place, value in zip(used, solved.tolist(), strict=True):
                best[place] = value
    return Costs(round(best[0], 4), round(best[1], 4))


def _forward(request: Request, cached: int, checked: int, masks: int) -> Work:
    """Return a forward of the last token, so many drafts that it verifies, and MASK rows."""
    token, mask_id = request.prompt[0], request.mask_id
    assert mask_id is not None, "drafting needs a mask id"
    drafted = max(0, masks - (not request.noisy_shift))
    return Work(
        request=request,
        kind="denoise",
        start=cached,
        tokens=(*[token] * (1 + checked), *[mask_id] * masks),
        num_clean=1 + checked,
        places=tuple(range(cached + 1, cached + 2 + checked + drafted)),
        fresh=False,
        drafts=(token,) * checked,
    )


def costs_of_windows(
    loaded: LoadedModel,
    windows: Sequence[int],
    folder: Path,
    *,
    key: Mapping[str, Any],
    measure: Callable[[LoadedModel, int], Costs] = drafting_costs,
) -> dict[int, Costs]:
    """Return the costs at each window; what the folder holds of the same model and place is taken, so points are kept.

    Args:
        loaded: a model that drafts.
        windows: places that one forward drafts.
        folder: keeps them.
        key: what must be the same for costs to be taken again; JSON values.
        measure: see `drafting_costs`.
    """
    file = folder / COSTS
    found = read_optional_json(file)
    known: dict[str, list[float]] = found.get("costs", {}) if found.get("key") == key else {}
    for window in windows:
        if str(window) not in known:
            known[str(window)] = list(measure(loaded, window))
    replace_text(file, json.dumps({"key": dict(key), "costs": known}, indent=1) + "\n")
    return {window: Costs(*known[str(window)]) for window in windows}


def windows_of(loaded: LoadedModel) -> list[int]:
    """Return the windows to try with a model that drafts: 2, 4, 8, 16, 32 up to its block, and the block below 32."""
    block = min(loaded.config.block_size or DEFAULT_BLOCK_SIZE, loaded.config.model.max_positions)
    return sorted({*(window for window in WINDOWS if window <= block), *([block] if 2 <= block <= WINDOWS[-1] else [])})


def left_to_right(windows: Sequence[int], costs: Mapping[int, Costs] | None = None) -> list[Setting]:
    """Return next-token decoding, and drafts that are verified, at each window, the widest ones from the start, too.

    Args:
        windows: places that one forward drafts.
        costs: what is added to a forward, by window; None are the policy's own defaults.
    """
    found = [Setting(policy=NEXT_TOKEN)]
    for window in windows:
        told = {} if costs is None else costs[window]._asdict()
        cost = "".join(f",{name}={value}" for name, value in told.items())
        found.append(setting_of(f"{VERIFIED}:window={window}{cost}"))
        if window > Verified().start:  # short answers end before a window has grown
            found.append(setting_of(f"{VERIFIED}:window={window},start={window}{cost}"))
    return found


def settings_for(
    loaded: LoadedModel,
    policies: Sequence[str] = (),
    thresholds: Sequence[float] = (),
    block_sizes: Sequence[int] = (),
) -> list[Setting]:
    """Return the settings of a sweep of a model: `grid`, and where nothing is asked for and it drafts, left to right.

    Args:
        loaded: the model; one that only drafts has no blocks.
        policies: see `grid`.
        thresholds: see `grid`.
        block_sizes: see `grid`.

    Raises:
        ConfigError: thresholds or block sizes of a model that has no blocks.
        RequestError: a line that is no policy.
    """
    offered = decodings_of(loaded)
    if policies or VERIFIED not in offered:
        return grid(policies, thresholds, block_sizes)
    if "block" not in offered:
        refuse_blocks(loaded, thresholds, block_sizes)
        return left_to_right(windows_of(loaded))
    blocks = grid(policies, thresholds, block_sizes)
    return blocks if thresholds or block_sizes else [*blocks, *left_to_right(windows_of(loaded))]


def refuse_blocks(loaded: LoadedModel, thresholds: Sequence[float], block_sizes: Sequence[int]) -> None:
    """Refuse thresholds and block sizes for a model whose adapter only drafts.

    Raises:
        ConfigError: there are some.
    """
    for option, values in (("--threshold", thresholds), ("--block-size", block_sizes)):
        if values:
            raise ConfigError(
                f"{option}: {values[0]} is for blocks, but the adapter on {loaded.path} only drafts what is verified; "
                "leave it out"
            )
