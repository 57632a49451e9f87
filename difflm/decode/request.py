"""What goes into decoding and what comes out of it: parameters, requests, events, completions. No tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from difflm.errors import RequestError

Decoding = Literal["block", "next_token"]
FinishReason = Literal["stop", "length"]
ForwardKind = Literal["prefill", "denoise", "commit"]

DEFAULT_BLOCK_SIZE = 32
DEFAULT_THRESHOLD = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request is decoded.

    Attributes:
        max_new_tokens: tokens to generate at most, >= 1.
        block_size: tokens per diffusion block; None takes generation_config's, then config's, then 32.
        threshold: a proposal is kept when its probability is strictly above it; >= 0. From 1 on nothing is
            above it, so that each forward decides `min_accept` tokens. None takes generation_config's, then 0.95.
        min_accept: tokens decided per forward at least (the most confident ones), >= 1.
        temperature: 0 is arg-max; above 0, tokens are drawn from softmax(logits / temperature) and that
            distribution also gives the confidence.
        seed: of the request's own generator; used when temperature > 0.
        ignore_eos: treat EOS as an ordinary token and always generate `max_new_tokens`.
        decoding: "block" (block diffusion) or "next_token" (left to right under a causal mask, one token per
            forward: for the AR parent and AR controls; block_size, threshold and min_accept are not used).

    Raises:
        RequestError: for a value outside these ranges.
    """

    max_new_tokens: int = 128
    block_size: int | None = None
    threshold: float | None = None
    min_accept: int = 1
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    decoding: Decoding = "block"

    def __post_init__(self) -> None:
        _check_integer("max_new_tokens", self.max_new_tokens, minimum=1, unit="tokens")
        if self.block_size is not None:
            _check_integer("block_size", self.block_size, minimum=1, unit="tokens")
        if self.threshold is not None:
            _check_number("threshold", self.threshold)
        _check_integer("min_accept", self.min_accept, minimum=1, unit="tokens per forward")
        _check_number("temperature", self.temperature)
        _check_integer("seed", self.seed, minimum=0, unit="a 63-bit integer")
        if self.seed >= 2**63:
            raise RequestError(f"seed: {self.seed} does not fit; give an integer below 2**63")
        if self.ignore_eos not in (True, False):
            raise RequestError(f"ignore_eos: {self.ignore_eos!r} is not a boolean; give True or False")
        if self.decoding not in ("block", "next_token"):
            raise RequestError(f"decoding: {self.decoding!r} is unknown; choose 'block' or 'next_token'")

    def resolved_block_size(self, generation: Mapping[str, Any], config_block_size: int | None) -> int:
        """Return the block size in tokens: of the request, of generation_config, of config, or 32."""
        if self.block_size is not None:
            return self.block_size
        if generation.get("block_size") is not None:
            field = "generation_config.json: block_size"
            _check_integer(field, generation["block_size"], minimum=1, unit="tokens")
            return generation["block_size"]
        return DEFAULT_BLOCK_SIZE if config_block_size is None else config_block_size

    def resolved_threshold(self, generation: Mapping[str, Any]) -> float:
        """Return the threshold: of the request, of generation_config, or 0.95."""
        if self.threshold is not None:
            return float(self.threshold)
        if generation.get("threshold") is not None:
            _check_number("generation_config.json: threshold", generation["threshold"])
            return float(generation["threshold"])
        return DEFAULT_THRESHOLD


def _check_integer(field: str, value: object, *, minimum: int, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise RequestError(f"{field}: {value!r} cannot be used; give an integer >= {minimum} ({unit})")


def _check_number(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise RequestError(f"{field}: {value!r} cannot be used; give a finite number >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An admitted request: a checked prompt and every decision that its decoding needs.

    Attributes:
        id: number of the request in its engine.
        prompt: token ids, never MASK.
        max_new_tokens: tokens to generate at most.
        block_size: tokens per block; 1 for next-token decoding.
        threshold, min_accept, temperature, seed: see `SamplingParams`.
        eos_ids: ids that end the completion; empty when they are ignored.
        mask_id: input id of an undecided position; None for next-token decoding.
        logit_shift: token i is read at row i-1.
        clean_causal: prefill and commit rows are token-causal instead of block-causal.
        noisy_causal: rows of the noisy block see only earlier rows of it.
        fused: a finished block is committed in the forward that first denoises the next one.
    """

    id: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    block_size: int
    threshold: float
    min_accept: int
    temperature: float
    seed: int
    eos_ids: frozenset[int]
    mask_id: int | None
    logit_shift: bool
    clean_causal: bool
    noisy_causal: bool
    fused: bool = True

    @property
    def limit(self) -> int:
        """Position behind the last token that may be generated."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def capacity(self) -> int:
        """Rows of keys and values that the request can ever hold: its tokens, up to a whole block."""
        return math.ceil(self.limit / self.block_size) * self.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwards:
    """Forward passes of one request.

    Attributes:
        prefill: passes over prompt tokens that decide nothing (one at most).
        denoise: passes that decide tokens. A pass that also commits the previous block, or that also reads the
            prompt (next-token decoding), counts once, here.
        commit: passes that only write the keys and values of a finished block (none when fused).
    """

    prefill: int = 0
    denoise: int = 0
    commit: int = 0

    def counting(self, kind: ForwardKind) -> Forwards:
        """Return the counts with one more forward of this kind."""
        return replace(
            self,
            prefill=self.prefill + (kind == "prefill"),
            denoise=self.denoise + (kind == "denoise"),
            commit=self.commit + (kind == "commit"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a request produced.

    Attributes:
        tokens: generated ids, without the prompt, cut before the first EOS, at most `max_new_tokens`.
        text: the decoded tokens; None without a tokenizer.
        forwards: forward passes by kind.
        finish_reason: "stop" (an EOS) or "length".
        num_tokens: tokens up to and including the first EOS (if it was not ignored), none beyond it or beyond
            `max_new_tokens`; what rates are counted in.
        seconds: wall-clock time from the request's first forward to its end.
    """

    tokens: list[int]
    text: str | None
    forwards: Forwards
    finish_reason: FinishReason
    num_tokens: int
    seconds: float

    @property
    def tokens_per_forward(self) -> float:
        """TPF: `num_tokens` / (denoise + commit forwards). Prefill is apart; EOS fill does not count."""
        return self.num_tokens / (self.forwards.denoise + self.forwards.commit)

    @property
    def tokens_per_second(self) -> float:
        """TPS: `num_tokens` / `seconds`, prefill included."""
        return self.num_tokens / self.seconds if self.seconds > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """A forward decided tokens. Provisional: they do not change, but an EOS before them may cut them off.

    Attributes:
        request_id: number of the request.
        block: number of the block, counted from the start of the prompt.
        positions: positions decided now, counted from the start of the prompt, ascending.
        tokens: their ids.
        confidences: their probabilities.
        open_positions: positions of the block that are still to be decided.
    """

    request_id: int
    block: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    open_positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A block is final. The tokens of a request's `Committed` events, joined, are its completion's tokens.

    Attributes:
        request_id: number of the request.
        block: number of the block, counted from the start of the prompt.
        tokens: its generated tokens, without prompt tokens, EOS and anything behind it; never empty.
    """

    request_id: int
    block: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request is done; its last event.

    Attributes:
        request_id: number of the request.
        completion: the result.
    """

    request_id: int
    completion: Completion


Event = Denoised | Committed | Finished
