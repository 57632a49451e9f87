"""A slow decoder to compare with: no cache, no engine code, every step recomputed from scratch in plain loops.

Each step lays the row out as in training, [noisy | clean] of 2L tokens with L a whole number of blocks, under a
dense mask written cell by cell, and reads the logits of the current block from it. The clean half of the current
block holds filler, which nothing that is read may see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel
from difflm.diffusion.noise import RowNoise

FILLER = 0


@dataclass
class DenseAttend:
    """Attention by definition: scores, mask, softmax, sum; key/value heads repeated."""

    visible_NN: Tensor

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        repeat = query_BHNE.shape[1] // key_BGNE.shape[1]
        key, value = key_BGNE.repeat_interleave(repeat, 1), value_BGNE.repeat_interleave(repeat, 1)
        score = query_BHNE @ key.transpose(-1, -2) / math.sqrt(query_BHNE.shape[-1])
        return score.masked_fill(~self.visible_NN, -math.inf).softmax(-1) @ value


def training_layout_mask(length: int, size: int, clean_causal: bool, noisy_causal: bool) -> Tensor:
    """Eq. 3 cell by cell, with the two options; rows and columns are [noisy 0..L-1 | clean 0..L-1]."""
    visible = torch.zeros(2 * length, 2 * length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            same, earlier = q // size == k // size, q // size > k // size
            visible[q, k] = same and (k <= q or not noisy_causal)
            visible[q, length + k] = earlier
            visible[length + q, length + k] = k <= q if clean_causal else same or earlier
    return visible


def layout_logits(loaded: LoadedModel, noisy: list[int], clean: list[int], size: int) -> Tensor:
    """Logits [2L, V] of [noisy | clean]."""
    config, length = loaded.config, len(clean)
    visible = training_layout_mask(length, size, config.clean_attention == "causal", config.noisy_attention == "causal")
    token = torch.tensor([noisy + clean])
    position = torch.arange(length).repeat(2)[None]
    with torch.no_grad():
        return loaded.model.head(loaded.model(token, position, DenseAttend(visible)))[0]


def propose_row(loaded: LoadedModel, row: list[float], temperature: float, uniform: float) -> tuple[int, float]:
    """Token and confidence at one row of raw logits (a list)."""
    row = list(row)
    for token in loaded.config.suppressed_token_ids:
        row[token] = -math.inf
    heat = temperature or 1.0
    peak = max(row)
    weight = [math.exp((z - peak) / heat) for z in row]
    probability = [w / sum(weight) for w in weight]
    if not temperature:
        token = row.index(peak)
        return token, probability[token]
    total = 0.0
    for token, p in enumerate(probability):
        total += p
        if total > uniform:
            return token, p
    raise AssertionError("the uniform number is at least the total")


def keyed_row(loaded: LoadedModel, row: list[float], temperature: float, seed: int, place: int) -> int:
    """Token at one row of raw logits (a list), by the noise of its position."""
    if not temperature:
        return propose_row(loaded, row, 0.0, 0.0)[0]
    generator = RowNoise(seed).generator(place, 0)
    uniform = torch.rand(len(row), dtype=torch.float64, generator=generator).tolist()
    banned = loaded.config.suppressed_token_ids
    noisy = [
        -math.inf if token in banned else z / temperature - math.log(-math.log(u))
        for token, (z, u) in enumerate(zip(row, uniform, strict=True))
    ]
    return noisy.index(max(noisy))


def choice_margin(confidence: dict[int, float], threshold: float, min_accept: int) -> float:
    """How far the nearest decision of `choose` is from turning out otherwise."""
    near = min(abs(value - threshold) for value in confidence.values())
    if sum(value > threshold for value in confidence.values()) >= min_accept or len(confidence) <= min_accept:
        return near
    ranked = sorted(confidence.values(), reverse=True)
    return min(near, ranked[min_accept - 1] - ranked[min_accept])


def choose(confidence: dict[int, float], threshold: float, min_accept: int) -> list[int]:
    """Positions (keys of `confidence`) to fill."""
    high = [place for place in confidence if confidence[place] > threshold]
    if len(high) >= min_accept:
        return high
    return sorted(confidence, key=lambda place: (-confidence[place], place))[:min_accept]


@dataclass
class Reference:
    """What the slow decoder did; `margin` is the distance of its closest acceptance decision from a change."""

    tokens: list[int]
    num_tokens: int
    finish_reason: str
    prefill: int
    denoise: int
    blocks: int
    margin: float


def decode_blocks(
    loaded: LoadedModel,
    prompt: list[int],
    *,
    max_new_tokens: int,
    size: int,
    threshold: float,
    min_accept: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    ignore_eos: bool = False,
) -> Reference:
    """Block decoding, recomputed from scratch at every step."""
    config, shift = loaded.config, loaded.config.logit_shift
    mask, limit = config.mask_token_id, len(prompt) + max_new_tokens
    generator = torch.Generator().manual_seed(seed)
    assert mask is not None
    text = dict(enumerate(prompt))
    stop: int | None = None
    denoise, block, margin = 0, len(prompt) // size, math.inf
    while True:
        first, last = block * size, (block + 1) * size
        while True:
            end = limit if stop is None else stop
            still = [i for i in range(first, min(last, end)) if i not in text]
            if not still:
                break
            noisy = [FILLER] * first + [text.get(i, mask) for i in range(first, last)]
            clean = [text[i] for i in range(first)] + [FILLER] * size
            logits = layout_logits(loaded, noisy, clean, size)
            denoise += 1
            proposal = {}
            uniform = torch.rand(len(still), dtype=torch.float64, generator=generator) if temperature else still
            for i, u in zip(still, uniform, strict=True):
                row = i if not shift else (i - 1 if i > first else last + i - 1)
                proposal[i] = propose_row(loaded, logits[row].tolist(), temperature, float(u))
            confidence = {i: p for i, (_, p) in proposal.items()}
            margin = min(margin, choice_margin(confidence, threshold, min_accept))
            for i in choose(confidence, threshold, min_accept):
                text[i] = proposal[i][0]
                if text[i] in config.eos_token_ids and not ignore_eos and (stop is None or i < stop):
                    stop = i
        end = limit if stop is None else stop
        if end <= last:
            return Reference(
                tokens=[text[i] for i in range(len(prompt), end)],
                num_tokens=end - len(prompt) + (stop is not None),
                finish_reason="length" if stop is None else "stop",
                prefill=int(len(prompt) >= size),
                denoise=denoise,
                blocks=block - len(prompt) // size + 1,
                margin=margin,
            )
        block += 1


def decode_next_token(
    loaded: LoadedModel, prompt: list[int], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> tuple[list[int], str]:
    """Left-to-right decoding, recomputed from scratch at every token."""
    text = list(prompt)
    while len(text) < len(prompt) + max_new_tokens:
        length = len(text)
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        with torch.no_grad():
            hidden = loaded.model(torch.tensor([text]), torch.arange(length)[None], DenseAttend(visible))
            row = loaded.model.head(hidden)[0, -1].tolist()
        text.append(keyed_row(loaded, row, temperature, seed, length))
        if text[-1] in loaded.config.eos_token_ids:
            return text[len(prompt) : -1], "stop"
    return text[len(prompt) :], "length"
