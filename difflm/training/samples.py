"""Completions that a run writes of itself: what produces them is given from above, training knows no decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch

from difflm.checkpoints.loading import LoadedModel
from difflm.models.transformer import Transformer
from difflm.training.config_run import SamplesConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A completion, and what it cost.

    Attributes:
        prompt: what was completed.
        text: the completion, without the prompt and without EOS.
        tokens: tokens up to and including the first EOS.
        forwards: forwards of decoding that produced them, the one that reads the prompt left out.
    """

    prompt: str
    text: str
    tokens: int
    forwards: int

    @property
    def tokens_per_forward(self) -> float:
        """TPF: `tokens` / `forwards`."""
        return self.tokens / max(self.forwards, 1)


class Sampler(Protocol):
    """Completes prompts with a model as it is now."""

    def __call__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[str],
        *,
        block_size: int | None,
        max_new_tokens: int,
        threshold: float,
    ) -> list[Sample]:
        """Return one sample per prompt, in their order; the arg-max, so that a run repeats its samples.

        Args:
            loaded: the model, in evaluation mode; not to be changed.
            prompts: texts.
            block_size: tokens of a diffusion block; None: decode left to right (a next-token run).
            max_new_tokens: longest completion, tokens.
            threshold: of acceptance, probability.
        """
        ...


@torch.no_grad()
def take_samples(
    sampler: Sampler, loaded: LoadedModel, working: Transformer, settings: SamplesConfig, *, block_size: int | None
) -> list[Sample]:
    """Return the samples of a moment of the run; nothing of the run changes, whatever the sampler does.

    Args:
        sampler: completes prompts.
        loaded: the run's model with its tokenizer.
        working: the weights that compute (in the run's dtype).
        settings: prompts and how they are completed.
        block_size: tokens of a diffusion block; None for a next-token run.
    """
    training = working.training
    # Training draws from generators of its own, but a sampler may use torch's: it gets a copy.
    with torch.random.fork_rng(devices=[]):
        try:
            return sampler(
                replace(loaded, model=working.eval()),
                settings.prompts,
                block_size=block_size,
                max_new_tokens=settings.max_new_tokens,
                threshold=settings.threshold,
            )
        finally:
            working.train(training)


def sample_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the samples as rows of samples.jsonl."""
    return [{**asdict(each), "tokens_per_forward": each.tokens_per_forward} for each in samples]


def summary_row(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the figures of a moment's samples for metrics.jsonl: all tokens over all forwards."""
    tokens, forwards = sum(each.tokens for each in samples), sum(each.forwards for each in samples)
    return {
        "samples": len(samples),
        "generated_tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": tokens / max(forwards, 1),
    }
