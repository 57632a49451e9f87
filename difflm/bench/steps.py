"""Training steps on random weights and tokens: what `difflm bench train` and the GPU check measure.

The numbers of a model do not matter for its speed, so nothing is downloaded and a published shape needs no weights.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from difflm.checkpoints.architectures import ARCHITECTURES, architecture
from difflm.checkpoints.families import model_config
from difflm.checkpoints.rules import stored_dtype
from difflm.checkpoints.source import open_checkpoint
from difflm.diffusion.masks import document_positions
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from difflm.models.attention import AttentionChoice
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer
from difflm.scoring import score_input
from difflm.types import Batch, ModelInput

INIT_STD = 0.02
"""Standard deviation of the random weights."""


def shape_of(model: str, *, layers: int = 0) -> ModelConfig:
    """Return the architecture of a published name, a checkpoint folder or a GGUF file.

    Args:
        model: see above; of a checkpoint only the facts are read, not the weights.
        layers: decoder layers to keep; 0 = all.

    Raises:
        ConfigError: neither a known name nor a path.
        CheckpointError: a checkpoint that cannot be used.
    """
    if model.lower() in ARCHITECTURES:
        config = architecture(model)
    elif Path(model).exists():
        source = open_checkpoint(model)
        config = model_config(source.raw, source.where)
    else:
        raise ConfigError(f"model: {model!r} is neither a path nor one of {', '.join(ARCHITECTURES)}")
    if not 0 <= layers <= config.num_layers:
        raise ConfigError(
            f"layers: {layers}, the model has {config.num_layers}; use 1 to {config.num_layers}, 0 for all"
        )
    return replace(config, num_layers=layers or config.num_layers)


def random_model(
    config: ModelConfig, *, device: str | torch.device, dtype: torch.dtype, seed: int = 0, std: float = INIT_STD
) -> Transformer:
    """Return a model with normal weights and biases of experts (norms are 1), the same numbers on every device.

    Args:
        config: architecture.
        device: of the parameters.
        dtype: of the parameters.
        seed: of the CPU generator that draws them.
        std: standard deviation of the matrices.
    """
    with torch.device("meta"):
        model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, parameter in model.stored_tensors().items():
        drawn = torch.ones(parameter.shape)
        if parameter.dim() > 1 or name.endswith(".expert_bias"):
            drawn.normal_(std=std, generator=generator)
        state[name] = drawn.to(device=device, dtype=stored_dtype(name, dtype))
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    return model.train()


def random_batch(
    config: ModelConfig, *, rows: int, length: int, documents: int, padding: int = 0, seed: int = 0
) -> Batch:
    """Return rows of equally long documents of random tokens, all trainable, the last token id unused.

    Args:
        config: for the vocabulary.
        rows: B.
        length: L, tokens.
        documents: in each row; the last one takes what a division leaves over.
        padding: tokens at the end of each row that are padding.
        seed: of the tokens.
    """
    if not 1 <= documents <= length - padding:
        raise ConfigError(f"documents: {documents} in {length - padding} tokens; use 1 to {length - padding}")
    part = (length - padding) // documents
    document_L = (torch.arange(length) // part).clamp(max=documents - 1)
    document_L[length - padding :] = -1
    document_BL = document_L.expand(rows, length).contiguous()
    token_BL = torch.randint(0, config.vocab_size - 1, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Batch(
        token_BL=token_BL,
        document_BL=document_BL,
        position_BL=document_positions(document_BL),
        trainable_BL=document_BL >= 0,
        row_B=torch.arange(rows),
        epoch_B=torch.zeros(rows, dtype=torch.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Loss and gradients of one batch under block diffusion.

    Attributes:
        objective: with its block size.
        batch: packed rows.
        attention: backend.
        activation_checkpointing: see `Transformer.forward`.
    """

    objective: BlockDiffusion
    batch: Batch
    attention: AttentionChoice = "auto"
    activation_checkpointing: bool = False

    def inputs(self, model: Transformer) -> ModelInput:
        """Return the model input; the noise is the same at each call."""
        return self.objective.prepare(self.batch, mask_id=model.config.vocab_size - 1, noise=RowNoise(0))

    def loss(self, model: Transformer, inputs: ModelInput | None = None) -> Tensor:
        """Return the normalised loss, nats per token, ready for backward.

        Args:
            model: to score.
            inputs: of `inputs`, where preparing them is not to be measured; None prepares them.
        """
        inputs = self.inputs(model) if inputs is None else inputs
        scores = score_input(
            model, inputs, backend=self.attention, activation_checkpointing=self.activation_checkpointing
        )
        sums = self.objective.loss(scores, inputs)
        return torch.stack(
            [term.scale / float(term.count) * value for term, value in zip(inputs.terms, sums, strict=True)]
        ).sum()


def synchronise(device: str | torch.device) -> None:
    """Wait for the work of an accelerator; nothing on CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], object], device: str | torch.device, *, quick: bool) -> float:
    """Return the median time of a few calls, after some that are not counted.

    Args:
        work: what is timed.
        device: that is waited for.
        quick: fewer calls.
    """
    seconds = list[float]()
    for index in range(3 if quick else 9):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        if index >= (1 if quick else 2):
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
