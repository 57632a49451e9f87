"""Tiny models for the decoding tests: random weights in float64, and a scripted one; no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from difflm.checkpoints.config import CheckpointConfig
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.work import Decoding, Work
from difflm.models.cache import PackedAttention
from difflm.models.config import ModelConfig, RopeConfig
from difflm.models.transformer import Attend, Transformer
from difflm.types import CleanAttention, NoisyAttention, Parametrisation

VOCAB = 13
MASK = 12


def architecture(vocab_size: int = VOCAB, max_positions: int = 96) -> ModelConfig:
    """Return a two-layer decoder with grouped heads."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        norm_eps=1e-6,
        rope=RopeConfig(),
        max_positions=max_positions,
    )


def random_transformer(config: ModelConfig, seed: int) -> Transformer:
    """Return a float64 model whose weights are large enough for varied answers."""
    model = Transformer(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() == 1:
                parameter.copy_(1.0 + 0.5 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
    return model


def tiny(
    seed: int = 0,
    *,
    logit_shift: bool = False,
    clean: CleanAttention = "block",
    noisy: NoisyAttention = "bidirectional",
    mask_id: int | None = MASK,
    eos: Sequence[int] = (),
    block_size: int | None = 4,
    unassigned: Sequence[int] = (),
    generation: Mapping[str, Any] | None = None,
    bos: int | None = None,
) -> LoadedModel:
    """Return a random tiny model without a tokenizer."""
    model = random_transformer(architecture(), seed)
    config = CheckpointConfig(
        family="llama",
        model=model.config,
        mask_token_id=mask_id,
        block_size=block_size,
        parametrisation=Parametrisation(logit_shift=logit_shift, clean_attention=clean, noisy_attention=noisy),
        eos_token_ids=tuple(eos),
        bos_token_id=bos,
        unassigned_token_ids=tuple(unassigned),
        generation=generation or {},
    )
    return LoadedModel(model, None, config, Path("tiny"))


def following(decoding: Decoding) -> Work:
    """Return the next forward of a request that has room."""
    work = decoding.next_work(1000)
    assert work is not None
    return work


class ScriptedModel(nn.Module):
    """Stands in for a transformer: the logits of a row are a function of its position.

    Args:
        script: position -> logits, as a list of the vocabulary's length.
    """

    def __init__(self, script: Callable[[int], Sequence[float]]) -> None:
        super().__init__()
        self.config = architecture()
        self.embedding = nn.Embedding(VOCAB, 1)
        self.adapter_gate, self.draft_head = "all", None
        self.script = script
        self.head_rows: list[list[int]] = []
        self.forward_rows: list[list[int]] = []

    def forward(self, token_BN: Tensor, position_BN: Tensor, attend: Attend) -> Tensor:
        """Return hidden states that carry the position."""
        assert isinstance(attend, PackedAttention)
        self.forward_rows.append(token_BN[0].tolist())
        return position_BN[..., None].float()

    def head(self, hidden_MD: Tensor) -> Tensor:
        """Return the scripted logits of the rows."""
        positions = [int(value) for value in hidden_MD[:, 0].tolist()]
        self.head_rows.append(positions)
        return torch.tensor([list(self.script(position)) for position in positions])


def scripted(script: Callable[[int], Sequence[float]], *, logit_shift: bool = False, **facts: Any) -> LoadedModel:
    """Return a loaded model that follows a script."""
    loaded = tiny(logit_shift=logit_shift, **facts)
    loaded.model = cast("Transformer", ScriptedModel(script))
    return loaded


def certain(token: int, confidence: float = 0.99) -> list[float]:
    """Return logits under which `token` has this probability (MASK set aside) and is the arg-max."""
    others = VOCAB - 2
    rest = torch.log(torch.tensor((1.0 - confidence) / others))
    logits = [float(rest)] * VOCAB
    logits[token] = float(torch.log(torch.tensor(confidence)))
    return logits
