"""The systems that `difflm bench decode` compares: who decodes a prompt, and with what it was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from difflm.checkpoints.hf_generate import TransformersGenerator
from difflm.checkpoints.loading import load_model
from difflm.decode.admission import admit
from difflm.decode.engine import Engine
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError

CONVERTED = "converted"
PARENT_ENGINE = "parent, next token, difflm"
PARENT_TRANSFORMERS = "parent, next token, transformers"
SYSTEMS = (CONVERTED, PARENT_ENGINE, PARENT_TRANSFORMERS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system made of one prompt.

    Attributes:
        tokens: generated ids, without EOS.
        num_tokens: tokens up to and including the first EOS.
        prefill, denoise, commit: forwards by kind.
    """

    tokens: tuple[int, ...]
    num_tokens: int
    prefill: int
    denoise: int
    commit: int


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
        forwards = done.forwards
        return Answer(tuple(done.tokens), done.num_tokens, forwards.prefill, forwards.denoise, forwards.commit)


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


@dataclass(slots=True)
class Builder:
    """Makes systems of the two checkpoints, loading each at one dtype at a time.

    Attributes:
        converted, parent: folders or GGUF files.
        params: of the converted model; max_new_tokens and ignore_eos hold for the parent too.
    """

    converted: Path
    parent: Path
    params: SamplingParams

    def build(self, system: str, dtype: str) -> System:
        """Return a system with its model loaded.

        Args:
            system: one of `SYSTEMS`.
            dtype: of the weights.
        """
        if system == CONVERTED:
            return EngineSystem(Engine(load_model(self.converted, dtype=dtype)), self.params)
        loaded = load_model(self.parent, dtype=dtype)
        if system == PARENT_ENGINE:
            return EngineSystem(Engine(loaded), self.parent_params)
        eos = frozenset[int]() if self.params.ignore_eos else frozenset(loaded.config.eos_token_ids)
        return TransformersSystem(TransformersGenerator(loaded, ends=eos), self.params.max_new_tokens, eos)

    @property
    def parent_params(self) -> SamplingParams:
        """Sampling parameters of the parent: next token, arg-max."""
        return replace(self.params, decoding="next_token", temperature=0.0)

    def check(self, prompts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """Return the prompts as ids, refused here if either model cannot take one.

        Args:
            prompts: texts or token ids.

        Raises:
            RequestError: no prompts, or one that does not fit.
        """
        if not prompts:
            raise RequestError("prompts: there are none; give at least one")
        converted, parent = load_model(self.converted, dtype="bfloat16"), load_model(self.parent, dtype="bfloat16")
        ids = [list(admit(converted, each, self.params, request_id=0, fused=True).prompt) for each in prompts]
        for each in ids:
            admit(parent, each, self.parent_params, request_id=0, fused=True)
        return ids
