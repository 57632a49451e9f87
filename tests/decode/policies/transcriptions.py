"""The decoding rules of docs/decoding.md as plain loops over a row of tokens; a driver for policies without a model.

The logits of a block are random, and a function of the row's tokens up to the block's end: what a model is to a policy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difflm.decode.events import Denoised, Edited, Event
from difflm.decode.policies.base import Policy, Proposal
from difflm.decode.sampling import Rows
from difflm.decode.sequences import BlockDecoding, decoding_of
from difflm.decode.work import Outcome
from tests.decode.test_runner import request_of
from tests.decode.tiny import following

VOCAB, MASK, EOS = 9, 8, 7
Logits = Callable[[list[int], int], Tensor]


def random_logits(seed: int, *, sharpness: float, mask_bonus: float = 0.0) -> Logits:
    """Return a function of (row up to the block's end, first position of the block): logits [B, V], float64."""

    def logits(row: list[int], start: int) -> Tensor:
        generator = torch.Generator().manual_seed(random.Random(f"{seed} {row}").getrandbits(60))
        values = sharpness * torch.randn(len(row) - start, VOCAB, generator=generator, dtype=torch.float64)
        values[:, MASK] += mask_bonus
        return values

    return logits


def fixed_logits(table: dict[int, list[float]]) -> Logits:
    """Return logits by position, whatever the row holds."""
    return lambda row, start: torch.tensor([table[place] for place in range(start, len(row))], dtype=torch.float64)


@dataclass
class Run:
    """What a decoding returned and did; `trace` holds (filled positions, edited positions) of every forward."""

    tokens: list[int]
    forwards: int
    trace: list[tuple[list[int], list[int]]]
    outcome: Outcome | None = None


def drive(policy: Policy, prompt: list[int], logits: Logits, *, size: int, new: int, seed: int = 0) -> Run:
    """Decode with the state machine and the policy's rule, without a model."""
    request = request_of(
        prompt=tuple(prompt),
        max_new_tokens=new,
        block_size=size,
        policy=policy,
        rule=policy.rule((MASK,)),
        eos_ids=frozenset({EOS}),
        mask_id=MASK,
    )
    state = decoding_of(request)
    assert isinstance(state, BlockDecoding)
    generator, memory = torch.Generator().manual_seed(seed), {}
    events: list[Event] = state.begin()
    for _ in range(5000):
        if state.outcome is not None:
            break
        work = following(state)
        proposal = Proposal()
        if work.kind == "denoise":
            start = work.start + work.num_clean
            memory = {} if work.fresh else memory
            rows = Rows(
                places=[place - start for place in work.places],
                block_length=size,
                left=[work.left_of(place) for place in work.places],
                generator=generator,
                memory=memory,
            )
            block = logits(list(state.draft.tokens), start)
            made = request.rule(block[[place - start for place in work.places]], [rows])
            proposal = Proposal(tokens=made.token_M.tolist(), confidences=made.confidence_M.tolist())
        events += state.absorb(work, proposal)
    assert state.outcome is not None, "the decoding does not end"
    trace: list[tuple[list[int], list[int]]] = []
    for event in events:
        if isinstance(event, Denoised):
            trace.append((sorted((*event.positions, *event.wasted)), []))
        elif isinstance(event, Edited):
            trace[-1] = (trace[-1][0], list(event.positions))
    return Run(state.outcome.tokens, state.outcome.forwards.denoise, trace, state.outcome)


def softmax(row: list[float]) -> list[float]:
    """Return probabilities."""
    peak = max(row)
    weight = [math.exp(value - peak) for value in row]
    return [each / sum(weight) for each in weight]


def best(row: list[float]) -> tuple[int, float]:
    """Return (arg-max, its probability)."""
    token = row.index(max(row))
    return token, softmax(row)[token]


def top(confidence: dict[int, float], count: int) -> list[int]:
    """Return the `count` most confident positions, the lowest first among equals."""
    return sorted(sorted(confidence, key=lambda i: (-confidence[i], i))[:count])


def cut(row: list[int], start: int, stop: int) -> list[int]:
    """Return row[start:stop] up to and including its first EOS."""
    part = row[start:stop]
    return part[: part.index(EOS) + 1] if EOS in part else part


def whole(prompt: list[int], size: int, new: int) -> tuple[list[int], range]:
    """Return the row padded with masks to whole blocks, and the numbers of the blocks to decode."""
    blocks = -(-(len(prompt) + new) // size)
    return prompt + [MASK] * (blocks * size - len(prompt)), range(len(prompt) // size, blocks)


def hf20(
    prompt: list[int], logits: Logits, *, size: int, new: int, steps: int, threshold: float, early: bool, least: int = 1
) -> Run:
    """Section 1.1 with the arg-max: `hf20-greedy`."""
    row, blocks = whole(prompt, size, new)
    count, trace = min(steps, new // least), []
    for block in blocks:
        start, stop = block * size, (block + 1) * size
        for step in range(count):
            masked = [i for i in range(start, stop) if row[i] == MASK]
            if not masked:
                break
            block_logits = logits(row[:stop], start).tolist()
            guess = {i: best(block_logits[i - start]) for i in masked}
            quota = size // count + (1 if step < size % count else 0)
            high = [i for i in masked if guess[i][1] > threshold]
            take = high if len(high) >= quota else top({i: guess[i][1] for i in masked}, min(quota, len(masked)))
            for i in take:
                row[i] = guess[i][0]
            trace.append((take, []))
            if early and any(guess[i][0] == EOS for i in take):
                first = row[:stop].index(EOS)
                if MASK not in row[len(prompt) : first]:
                    return Run(row[len(prompt) : first + 1], len(trace), trace)
        if EOS in row[len(prompt) : stop]:
            break
    return Run(cut(row, len(prompt), len(prompt) + new), len(trace), trace)


def hf21(
    prompt: list[int],
    logits: Logits,
    *,
    size: int,
    new: int,
    threshold: float,
    edit: float,
    post_steps: int,
    early: bool,
    transfer: int = 1,
) -> Run | None:
    """Section 1.3; None where it does not end in 300 forwards of a block."""
    row, blocks = whole(prompt, size, new)
    trace: list[tuple[list[int], list[int]]] = []
    for block in blocks:
        start, stop, post = block * size, (block + 1) * size, 0
        for forward in range(301):
            if forward == 300:
                return None
            masked = [i for i in range(start, stop) if row[i] == MASK]
            post += not masked
            if post > post_steps:
                break
            block_logits = logits(row[:stop], start).tolist()
            guess = {i: best(block_logits[i - start]) for i in range(start, stop)}
            high = [i for i in masked if guess[i][1] > threshold]
            few = top({i: guess[i][1] for i in masked}, min(transfer, len(masked)))
            take = high if len(high) >= transfer else few
            edits = [
                i
                for i in range(start, stop)
                if i not in masked and i >= len(prompt) and guess[i][1] > edit and guess[i][0] != row[i]
            ]
            for i in (*take, *edits):
                row[i] = guess[i][0]
            trace.append((take, edits))
            if not masked and not edits:
                break
        if early and MASK not in row[len(prompt) : stop] and EOS in row[len(prompt) : stop]:
            break
    return Run(cut(row, len(prompt), len(prompt) + new), len(trace), trace)


def sglang_low(prompt: list[int], logits: Logits, *, size: int, new: int, threshold: float) -> Run:
    """Section 1.4, LowConfidence; the forward that writes the final keys and values is not counted."""
    row, blocks = whole(prompt, size, new)
    trace: list[tuple[list[int], list[int]]] = []
    for block in blocks:
        start, stop = block * size, (block + 1) * size
        for _ in range(size):
            masked = [i for i in range(start, stop) if row[i] == MASK]
            if not masked:
                break
            block_logits = logits(row[:stop], start).tolist()
            guess = {i: best(block_logits[i - start]) for i in masked}
            take = [i for i in masked if guess[i][1] > threshold] or top({i: guess[i][1] for i in masked}, 1)
            for i in take:
                row[i] = guess[i][0]
            trace.append((take, []))
        if EOS in row[len(prompt) : stop]:
            break
    return Run(cut(row, len(prompt), len(prompt) + new), len(trace), trace)


def sglang_joint(
    prompt: list[int],
    logits: Logits,
    *,
    size: int,
    new: int,
    threshold: float,
    edit: float,
    post_steps: int,
    penalty: float,
) -> Run:
    """Section 1.4, JointThreshold."""
    row, blocks = whole(prompt, size, new)
    trace: list[tuple[list[int], list[int]]] = []
    for block in blocks:
        start, stop, post = block * size, (block + 1) * size, 0
        fixed = [i for i in range(start, stop) if row[i] != MASK]
        for _ in range(size + post_steps):
            block_logits = logits(row[:stop], start).tolist()
            for i in range(start + 1, stop):
                block_logits[i - start][row[i - 1]] -= penalty
            guess = {i: best(block_logits[i - start]) for i in range(start, stop)}
            masked = [i for i in range(start, stop) if row[i] == MASK]
            take: list[int] = []
            if masked:
                take = [i for i in masked if guess[i][1] > threshold] or top({i: guess[i][1] for i in masked}, 1)
            else:
                post += 1
                if post > post_steps:
                    trace.append(([], []))
                    break
            edits = [
                i
                for i in range(start, stop)
                if i not in masked and i not in fixed and guess[i][1] > edit and guess[i][0] != row[i]
            ]
            trace.append((take, edits))
            if not take and not edits:
                break
            for i in (*take, *edits):
                row[i] = guess[i][0]
        if EOS in row[len(prompt) : stop]:
            break
    return Run(cut(row, len(prompt), len(prompt) + new), len(trace), trace)


def dinfer(prompt: list[int], logits: Logits, *, size: int, new: int, early: bool = True, **decoder: Any) -> Run | None:
    """Section 1.5; None where it does not end in 100 forwards of a block."""
    row, blocks = whole(prompt, size, new)
    trace: list[tuple[list[int], list[int]]] = []
    for block in blocks:
        start, stop = block * size, (block + 1) * size
        credit: dict[tuple[int, int], float] = {}
        for forward in range(101):
            if forward == 100:
                return None
            masked = [i for i in range(start, stop) if row[i] == MASK]
            if not masked:
                break
            block_logits = logits(row[:stop], start).tolist()
            rows = {i: block_logits[i - start] for i in masked}
            if decoder.get("alpha"):
                credit = {key: value * decoder["beta"] for key, value in credit.items()}
                for i in masked:
                    token, p = best(rows[i])
                    credit[i, token] = credit.get((i, token), 0.0) + p ** decoder["gamma"]
                    rows[i] = [
                        z + decoder["alpha"] * math.log(1 + credit.get((i, v), 0.0)) for v, z in enumerate(rows[i])
                    ]
            guess = {i: best(rows[i]) for i in masked}
            take = hierarchy(guess, **decoder) if "low" in decoder else near(guess, decoder["threshold"])
            for i in take:
                row[i] = guess[i][0]
            trace.append((take, []))
        if early and EOS in row[max(start, len(prompt)) : stop]:
            break
    part = cut(row, len(prompt), len(prompt) + new)
    return Run(part[:-1] if part[-1:] == [EOS] else part, len(trace), trace)


def near(guess: dict[int, tuple[int, float]], threshold: float) -> list[int]:
    """Return the positions whose token is no mask and that reach the threshold or nearly the best."""
    known = {i: p for i, (token, p) in guess.items() if token != MASK}
    least = min(threshold, max(known.values(), default=math.inf) - 1e-5)
    return [i for i, p in known.items() if p >= least]


def hierarchy(guess: dict[int, tuple[int, float]], *, threshold: float, low: float) -> list[int]:
    """Return the best of every run of masks if above `low`, those above the threshold, and the best of all."""
    take = set(top({i: p for i, (_, p) in guess.items()}, 1)) | {i for i, (_, p) in guess.items() if p > threshold}
    for i, (_, p) in guess.items():
        left = right = i
        while left - 1 in guess:
            left -= 1
        while right + 1 in guess:
            right += 1
        if p > low and p == max(guess[j][1] for j in range(left, right + 1)):
            take.add(i)
    return sorted(take)
