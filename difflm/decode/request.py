"""What goes into decoding: parameters and admitted requests. No tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from difflm.errors import RequestError

if TYPE_CHECKING:
    from difflm.decode.policies.base import Policy
    from difflm.decode.sampling import Rule

Decoding = Literal["block", "next_token"]

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
        policy: from `difflm.policy`: the rules of another system, or other strategies of ours. It brings its own
            block size, threshold, least number and temperature; `max_new_tokens` holds where it has no gen_length.
            None is the native policy with the fields above.

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
    policy: Policy | None = None

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
        if self.policy is not None:
            self._check_alone()

    def _check_alone(self) -> None:
        """Refuse parameters that a policy decides."""
        given = {
            "block_size": self.block_size,
            "threshold": self.threshold,
            "min_accept": self.min_accept,
            "temperature": self.temperature,
            "decoding": self.decoding,
        }
        for each in fields(self):
            if each.name in given and given[each.name] != each.default:
                raise RequestError(
                    f"{each.name}: {given[each.name]!r} has no effect beside a policy; "
                    "leave it out, or give the policy's own setting to difflm.policy"
                )

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
        prompt: token ids; MASK only under the policies that take it.
        max_new_tokens: tokens to generate at most.
        block_size: tokens per block; 1 for next-token decoding.
        policy: decides what is filled and when it ends; None for next-token decoding.
        rule: how rows become proposals.
        seed: of the request's generator.
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
    policy: Policy | None
    rule: Rule
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
