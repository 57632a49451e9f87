"""A run on preference pairs: its reference, and the figures of rewards under TRL's names.

Shape legend: see `difflm.types`; P pairs, K samples of the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.data.rows import PackedRows
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import Objective
from difflm.diffusion.preference import DirectPreference
from difflm.errors import ConfigError
from difflm.models.attention import AttentionChoice
from difflm.models.transformer import Transformer
from difflm.scoring import score_input
from difflm.training.config import PreferenceConfig, TrainConfig
from difflm.types import ModelInput, TokenScores


@dataclass(frozen=True, slots=True)
class Reference:
    """What a policy is compared with.

    Attributes:
        model: a frozen copy of its own; None: the policy itself with its adapter off.
        chunk: rows that meet the head at once.
        backend: of the attention.
    """

    model: Transformer | None
    chunk: int
    backend: AttentionChoice

    @torch.no_grad()
    def score(self, policy: Transformer, inputs: ModelInput) -> tuple[TokenScores, ...]:
        """Return the reference's scores of an input, without gradient."""
        chosen, adapter = (policy, False) if self.model is None else (self.model, True)
        return score_input(chosen, inputs, chunk=self.chunk, backend=self.backend, adapter=adapter)

    def given(self, policy: Transformer, objective: DirectPreference, inputs: ModelInput) -> ModelInput:
        """Return an input that knows what the reference gives its answers."""
        return replace(inputs, reference_P2K=objective.elbos(self.score(policy, inputs), inputs).detach())


def open_reference(config: TrainConfig, loaded: LoadedModel) -> Reference | None:
    """Return the reference of a run; None for an objective without one.

    Args:
        config: of the run.
        loaded: the model that it starts from, with its adapter.

    Raises:
        ConfigError: a reference with another vocabulary or another way to be read than the policy.
    """
    chosen = config.objective
    if not isinstance(chosen, PreferenceConfig):
        return None
    own = None
    if chosen.reference is not None or config.lora is None:
        path = chosen.reference or config.model
        found = load_model(
            path,
            device=config.device,
            dtype=config.dtype,
            rope_scaling=config.rope_scaling,
            revision=config.revision if chosen.reference is None else None,
        )
        ours, theirs = ((each.config.model.vocab_size, each.config.parametrisation) for each in (loaded, found))
        if ours != theirs or loaded.config.mask_token_id != found.config.mask_token_id:
            raise ConfigError(
                f"train.objective.reference: {path} is read otherwise than {config.model} (vocabulary, mask token or "
                "parametrisation); give a checkpoint of the same family, such as the one that the run starts from"
            )
        own = found.model.requires_grad_(False).eval()
    return Reference(model=own, chunk=config.head_chunk_rows, backend=config.attention)


@dataclass(slots=True)
class PreferenceTally:
    """Sums over the pairs of a step or of a validation; nothing for other objectives.

    Attributes:
        sums: name -> sum over pairs.
        pairs: pairs.
        samples: K.
    """

    sums: dict[str, float] = field(default_factory=dict[str, float])
    pairs: int = 0
    samples: int = 1

    def add(self, objective: DirectPreference, scores: tuple[TokenScores, ...], inputs: ModelInput) -> None:
        """Take in one micro-batch."""
        assert inputs.pairs is not None, "an input of preference pairs"
        with torch.no_grad():
            gain_P2K = objective.beta * objective.advantages(scores, inputs).double().cpu()
            elbo_P2 = objective.elbos(scores, inputs).double().cpu().mean(2)
            loss = float(objective.loss(scores, inputs)[0])
        reward_P2 = gain_P2K.mean(2)
        margin_PK = gain_P2K[:, 0] - gain_P2K[:, 1]
        margin_P = margin_PK.mean(1)
        self.pairs += len(margin_P)
        self.samples = inputs.pairs.samples
        tokens_P2 = inputs.pairs.tokens_P2.double()
        variance_P = margin_PK.var(1) / self.samples if self.samples > 1 else torch.zeros_like(margin_P)
        values: dict[str, Tensor] = {
            "chosen": reward_P2[:, 0],
            "rejected": reward_P2[:, 1],
            "margins": margin_P,
            "accuracies": (margin_P > 0).double(),
            "logps_chosen": elbo_P2[:, 0],
            "logps_rejected": elbo_P2[:, 1],
            "tokens_chosen": tokens_P2[:, 0],
            "tokens_rejected": tokens_P2[:, 1],
            "variance": variance_P,
        }
        for name, value_P in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value_P.sum())
        self.sums["loss"] = self.sums.get("loss", 0.0) + loss

    def row(self) -> dict[str, Any]:
        """Return the means over pairs, under the names of metrics.jsonl; nothing without pairs."""
        if not self.pairs:
            return {}
        mean = {name: value / self.pairs for name, value in self.sums.items()}
        sides = ("chosen", "rejected")
        return {
            "rewards": {name: mean[name] for name in (*sides, "accuracies", "margins")},
            "logps": {side: mean[f"logps_{side}"] for side in sides},
            "answer_tokens": {side: mean[f"tokens_{side}"] for side in sides},
            "margin_variance": mean["variance"] if self.samples > 1 else None,
            "pairs": self.pairs,
        }

    def text(self) -> str:
        """Return the figures as a line for the user."""
        row, loss = self.row(), self.sums["loss"] / self.pairs
        noise = (
            ""
            if row["margin_variance"] is None
            else f", variance {row['margin_variance']:.3g} ({self.samples} samples)"
        )
        return (
            f"preferences: loss {loss:.4f}, accuracy {row['rewards']['accuracies']:.1%}, "
            f"margin {row['rewards']['margins']:.4f}{noise}, {self.pairs} pairs"
        )


class Preferences:
    """What a run on pairs needs beside its objective: the reference, and the figures of each step. Others need nothing.

    Args:
        config: of the run.
        loaded: the model that it starts from, with its adapter.

    Raises:
        ConfigError: see `open_reference`.
    """

    def __init__(self, config: TrainConfig, loaded: LoadedModel) -> None:
        self.settings = config.validation
        self.reference = open_reference(config, loaded)
        self.tally = PreferenceTally()

    def restart(self) -> None:
        """Begin a step."""
        self.tally = PreferenceTally()

    def compared(
        self, policy: Transformer, objective: Objective, scores: tuple[TokenScores, ...], inputs: ModelInput
    ) -> ModelInput:
        """Return a micro-batch that knows what the reference gives it, and take in its figures."""
        if self.reference is None or not isinstance(objective, DirectPreference):
            return inputs
        inputs = self.reference.given(policy, objective, inputs)
        self.tally.add(objective, scores, inputs)
        return inputs

    def row(self) -> dict[str, Any]:
        """Return the figures of the step under the names of metrics.jsonl."""
        return self.tally.row()

    @torch.no_grad()
    def validate(
        self,
        policy: Transformer,
        rows: PackedRows,
        objective: Objective,
        *,
        mask_id: int | None,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Return the figures of held-out pairs under the validation's noise; nothing for other objectives.

        Args:
            policy: the model.
            rows: packed rows of pairs.
            objective: of the run's last stage.
            mask_id: the mask token.
            say: is told the figures in one line.
        """
        reference, settings = self.reference, self.settings
        if reference is None or not isinstance(objective, DirectPreference):
            return {}
        tally, last = PreferenceTally(), min(settings.rows or len(rows), len(rows))
        for start in range(0, last, settings.rows_per_batch):
            batch = rows.batch(range(start, min(start + settings.rows_per_batch, last)))
            inputs = objective.prepare(batch, mask_id=mask_id, noise=RowNoise(settings.seed))
            inputs = reference.given(policy, objective, inputs)
            scores = score_input(policy, inputs, chunk=reference.chunk, backend=reference.backend)
            tally.add(objective, scores, inputs)
        say(tally.text())
        return {"preference_loss": tally.sums["loss"] / tally.pairs, **tally.row()}
