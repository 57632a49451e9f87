"""The systems that `difflm bench decode` compares: who decodes a prompt, and with what it was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from difflm.checkpoints.hf_generate import TransformersGenerator
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.admission import admit, decoding_for, decodings_of
from difflm.decode.engine import Engine
from difflm.decode.events import DraftCounts
from difflm.decode.policies.verified import Verified
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError

CONVERTED = "converted"
VERIFIED = "converted, verified"
CONVERTED_AR = "converted, next token, difflm"
PARENT_ENGINE = "parent, next token, difflm"
PARENT_TRANSFORMERS = "parent, next token, transformers"
SYSTEMS = (CONVERTED, PARENT_ENGINE, PARENT_TRANSFORMERS)
"""Those of a model that was made for blocks alone."""
AR_SYSTEMS = (CONVERTED_AR, PARENT_ENGINE, PARENT_TRANSFORMERS)

Kept = dict[tuple[Path, str], LoadedModel]
"""Loaded models by file and dtype."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system made of one prompt.

    Attributes:
        tokens: generated ids, without EOS.
        num_tokens: tokens up to and including the first EOS.
        prefill, denoise, commit: forwards by kind.
        drafts: what became of them, where some were verified.
    """

    tokens: tuple[int, ...]
    num_tokens: int
    prefill: int
    denoise: int
    commit: int
    drafts: DraftCounts | None = None


class System(Protocol):
    """Decodes a prompt."""

    def __call__(self, prompt: Sequence[int]) -> Answer:
        """Return the answer to a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSystem:
    """A model in our engine.

    Attributes:
        engine: with the model.
        params: how to decode.
    """

    engine: Engine
    params: SamplingParams

    def __call__(self, prompt: Sequence[int]) -> Answer:
        """Return the answer to a prompt."""
        done = self.engine.generate([prompt], self.params)[0]
        counts = done.forwards.prefill, done.forwards.denoise, done.forwards.commit
        return Answer(tuple(done.tokens), done.num_tokens, *counts, drafts=done.drafts)


@dataclass(frozen=True, slots=True)
class TransformersSystem:
    """A model in transformers' `generate`; every token is one forward, the first one reads the prompt.

    Attributes:
        generate: the model.
        max_new_tokens: tokens at most.
        eos: ids that end an answer.
    """

    generate: TransformersGenerator
    max_new_tokens: int
    eos: frozenset[int]

    def __call__(self, prompt: Sequence[int]) -> Answer:
        """Return the answer to a prompt."""
        tokens = self.generate(prompt, self.max_new_tokens)
        stopped = bool(tokens) and tokens[-1] in self.eos
        return Answer(tuple(tokens[: len(tokens) - stopped]), len(tokens), 0, len(tokens), 0)


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes systems of the two checkpoints.

    Attributes:
        converted, parent: folders or GGUF files.
        params: of the converted model; max_new_tokens and ignore_eos hold for the parent too. Where they name neither a
            decoding nor a policy, every one takes part that the model was made for.
        systems: that take part, the converted model's first.
    """

    converted: Path
    parent: Path
    params: SamplingParams
    systems: tuple[str, ...] = SYSTEMS

    def build(self, system: str, dtype: str, kept: Kept) -> System:
        """Return a system with its model loaded.

        Args:
            system: one of `systems`.
            dtype: of the weights.
            kept: models that are loaded already; this one is added.
        """
        path = self.converted if system in (CONVERTED, VERIFIED, CONVERTED_AR) else self.parent
        if (path, dtype) not in kept:
            kept[path, dtype] = load_model(path, dtype=dtype)
        loaded = kept[path, dtype]
        if system != PARENT_TRANSFORMERS:
            return EngineSystem(Engine(loaded), self.params_of(system))
        eos = frozenset[int]() if self.params.ignore_eos else frozenset(loaded.config.eos_token_ids)
        return TransformersSystem(TransformersGenerator(loaded, ends=eos), self.params.max_new_tokens, eos)

    def params_of(self, system: str) -> SamplingParams:
        """Return the sampling parameters of a system of ours.

        AR systems take the arg-max; beside verified drafts they draw as those do, so that answers can be equal.

        Args:
            system: one of `systems`.
        """
        params = self.params
        if system == CONVERTED:
            return replace(params, decoding="block") if params.policy is None and params.decoding is None else params
        if system == VERIFIED:
            if params.policy is not None:
                return params
            return replace(params, decoding="verified", editing_threshold=None)
        if isinstance(params.policy, Verified):
            draw = asdict(params.policy.draw) | {"logit_bias": dict(params.policy.draw.logit_bias) or None}
            own = {name: value for name, value in draw.items() if name not in ("suppressed", "entropy", "keyed")}
            params = replace(params, policy=None, min_tokens=params.policy.min_tokens, **own)
        params = replace(params, policy=None, decoding="next_token", editing_threshold=None)
        return params if VERIFIED in self.systems else replace(params, temperature=0.0)


def systems_of(loaded: LoadedModel, params: SamplingParams) -> tuple[str, ...]:
    """Return the systems that take part: the converted model's first, then the AR ones.

    Weights that were trained as a whole are their own yardstick of equality; the text of an adapter that drafts is that
    of the parent.

    Args:
        loaded: the converted model.
        params: as asked for.
    """
    made_for = decodings_of(loaded)
    blocks, verified = "verified" not in made_for or "block" in made_for, "verified" in made_for
    if params.decoding is not None or params.policy is not None:
        verified = decoding_for(loaded, params) == "verified"
        blocks = not verified
    own = [*([CONVERTED] if blocks else []), *([VERIFIED] if verified else [])]
    return (*own, *([CONVERTED_AR] if verified and "block" in made_for else []), PARENT_ENGINE, PARENT_TRANSFORMERS)


def opened(
    converted: Path, parent: Path, prompts: Sequence[str | Sequence[int]], params: SamplingParams
) -> tuple[Builder, list[list[int]]]:
    """Return the builder, and the prompts as ids, refused here if either model cannot take one.

    Args:
        converted: see `Builder`.
        parent: see `Builder`.
        prompts: texts or token ids.
        params: see `Builder`.

    Raises:
        RequestError: no prompts, or one that does not fit.
    """
    if not prompts:
        raise RequestError("prompts: there are none; give at least one")
    model, other = load_model(converted, dtype="bfloat16"), load_model(parent, dtype="bfloat16")
    builder = Builder(converted, parent, params, systems_of(model, params))
    first = builder.params_of(builder.systems[0])
    ids = [list(admit(model, each, first, request_id=0, fused=True).prompt) for each in prompts]
    for each in ids:
        for system in builder.systems[1:]:
            place = model if system in (VERIFIED, CONVERTED_AR) else other
            admit(place, each, builder.params_of(system), request_id=0, fused=True)
    return builder, ids
