"""What a server offers: how its model can be decoded, what it does by itself, and the bounds of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from difflm.checkpoints.grammars import installed
from difflm.decode.admission import decoding_for, decodings_of
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.serving.limits import Defaults, Limits

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

BLOCK_POLICIES = ("hf20", "hf20-greedy", "hf21", "sglang", "dinfer")
"""Policies of other systems; the native one is decoding "block" itself."""

CONSTRAINTS = ("json_object", "json_schema", "regex", "choice", "grammar")
"""What an answer can be made to match, where the library for it is there."""


def constrainable(loaded: LoadedModel) -> bool:
    """Return whether answers can be made to match something.

    Args:
        loaded: the model.
    """
    tokenizer = loaded.tokenizer
    return tokenizer is not None and tokenizer.is_fast and installed() and bool(loaded.config.eos_token_ids)


def offering(loaded: LoadedModel, defaults: Defaults, limits: Limits, questions: Sequence[str] = ()) -> dict[str, Any]:
    """Return what /v1/models says under `diffusion`.

    Args:
        loaded: the model.
        defaults: what requests do not say.
        limits: bounds of a request.
        questions: that suit the model.
    """
    config, params = loaded.config, SamplingParams(decoding=defaults.decoding)
    decodings = decodings_of(loaded)
    policies = BLOCK_POLICIES if "block" in decodings else ()
    size = params.resolved_block_size(config.generation, config.block_size)
    threshold = params.resolved_threshold(config.generation)
    return {
        "decodings": list(decodings),
        "decoding": decoding_for(loaded, params),
        "policies": {name: _settings(name) for name in policies},
        "policy": defaults.policy[0] if defaults.policy else None,
        "block_size": defaults.block_size or size,
        "most_block_size": min(limits.block_size, config.model.max_positions),
        "threshold": threshold if defaults.threshold is None else defaults.threshold,
        "least_threshold": limits.least_threshold,
        "temperature": defaults.temperature,
        "most_tokens": min(limits.new_tokens, config.model.max_positions),
        "constraints": list(CONSTRAINTS) if constrainable(loaded) else [],
        "chat": loaded.tokenizer is not None and bool(loaded.tokenizer.chat_template),
        "questions": list(questions),
    }


def _settings(name: str) -> list[str]:
    made: Any = policy(name)
    return sorted(each.name for each in fields(made))
