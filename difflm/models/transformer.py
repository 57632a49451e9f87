"""The one decoder: tokens and positions in, hidden states out. The head is applied elsewhere, to chosen rows.

Who sees whom is not the model's business: an `Attend` object receives each layer's queries, keys and values
(`difflm.models.attention` for training and scoring, `difflm.models.cache` for decoding).

Shape legend: see `difflm.types`; H query heads, G key/value heads, E head dimension.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from difflm.models.config import ModelConfig
from difflm.models.draft_head import DraftHead
from difflm.models.lora import AdapterGate, AdapterRows, Linear, LowRank, TokenRows
from difflm.models.mlp import MLP
from difflm.models.moe import MoE, RouterProbe
from difflm.models.rope import rotary_frequencies, rotary_scale, rotary_table, rotate
from difflm.models.stacking import SharedInput


class Attend(Protocol):
    """Attention of one layer, with visibility (and a cache, if any) decided by the object."""

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [B, H, N, E]."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in float32 (float64 stays), cast back, then the weight (the order of Llama)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class Attention(SharedInput):
    """Grouped-query attention with rotary positions and optional query/key norms."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.key = Linear(config.hidden_size, narrow, bias=config.qkv_bias)
        self.value = Linear(config.hidden_size, narrow, bias=config.qkv_bias)
        self.output = Linear(width, config.hidden_size, bias=config.output_bias)
        norm = RMSNorm if config.qk_norm else None
        self.query_norm = norm(config.head_dim, config.norm_eps) if norm else nn.Identity()
        self.key_norm = norm(config.head_dim, config.norm_eps) if norm else nn.Identity()

    @property
    def maps(self) -> tuple[Linear, ...]:
        """Return the maps of the layer's input."""
        return self.query, self.key, self.value

    def forward(
        self, hidden_BND: Tensor, table: tuple[Tensor, Tensor], attend: Attend, adapter: AdapterRows = True
    ) -> Tensor:
        """Return the attention branch, [B, N, D]."""
        shape = (-1, self.head_dim)
        query, key, value = (each.unflatten(-1, shape) for each in self.mapped(hidden_BND, adapter))
        query, key = self.query_norm(query).transpose(1, 2), self.key_norm(key).transpose(1, 2)
        value = value.transpose(1, 2)
        mixed = attend(self.layer, rotate(query, table), rotate(key, table), value)
        return self.output(mixed.transpose(1, 2).flatten(2), adapter)


class DecoderLayer(nn.Module):
    """Pre-norm residual layer: attention, then feed-forward (one, or a mixture of experts)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        sparse = config.moe is not None and layer not in config.moe.dense_layers
        self.mlp = MoE(config) if sparse else MLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(
        self,
        hidden_BND: Tensor,
        table: tuple[Tensor, Tensor],
        attend: Attend,
        probe: RouterProbe | None = None,
        adapter: AdapterRows = True,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return (the layer's output [B, N, D], what the probe measured on its router, if there are both)."""
        hidden_BND = hidden_BND + self.attention(self.attention_norm(hidden_BND), table, attend, adapter)
        normed_BND = self.mlp_norm(hidden_BND)
        if isinstance(self.mlp, MoE):
            branch_BND, measured = self.mlp(normed_BND, probe, adapter)
            return hidden_BND + branch_BND, measured
        return hidden_BND + self.mlp(normed_BND, adapter), ()


class Transformer(nn.Module):
    """Decoder-only transformer. `head` maps hidden rows to logits and is applied by the caller.

    Args:
        config: architecture; build under `torch.device("meta")` to allocate nothing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.hidden_size)
        # On the meta device there is nothing to draw, and asking for it would import torch's compiler (seconds).
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table if table.is_meta else None)
        self.token_rows: TokenRows | None = None
        self.draft_head: DraftHead | None = None
        self.adapter_gate: AdapterGate = "all"
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()
        # Kept as a plain attribute: always float32, never cast or saved with the weights.
        with torch.device("cpu"):
            self.frequency_F = rotary_frequencies(config.rope, config.head_dim)
        self.rotary_scale = rotary_scale(config.rope)

    def tie(self) -> None:
        """Make the head share the embedding's parameter where the architecture ties them."""
        if self.config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def stored_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, by name: every parameter (tied ones once) and the experts' biases.

        Parameters of an adapter are not among them; `difflm.models.adapters` knows those.
        """
        adapters = {
            name for name, module in self.named_modules() if isinstance(module, LowRank | TokenRows | DraftHead)
        }
        every = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: tensor for name, tensor in every.items() if name.rpartition(".")[0] not in adapters}

    def head_rows(self, adapter: bool = True) -> tuple[Tensor, Tensor] | None:
        """Return (token ids [T], rows [T, D]) that an adapter puts into a head that is the embedding; None: no such.

        The head is the base's under an adapter for noisy rows: which rows meet it, it does not know.
        """
        if self.token_rows is None or not self.config.tied_embeddings or not adapter or self.adapter_gate == "noisy":
            return None
        return torch.tensor(self.token_rows.token_ids, device=self.head.weight.device), self.token_rows.weight

    def head_weight(self, adapter: bool = True) -> Tensor:
        """Return the weight of the head, [V, D], with the rows of `head_rows`: a copy where there are any."""
        rows = self.head_rows(adapter)
        return self.head.weight if rows is None else self.head.weight.index_copy(0, *rows)

    def forward(
        self,
        token_BN: Tensor,
        position_BN: Tensor,
        attend: Attend,
        *,
        embedding_noise_BND: Tensor | None = None,
        activation_checkpointing: bool = False,
        probe: RouterProbe | None = None,
        adapter: AdapterRows | None = None,
    ) -> Tensor:
        """Return the final, normalised hidden states, [B, N, D].

        Args:
            token_BN: int64 token ids.
            position_BN: int64 positions (rotary), one per token; repeated positions are allowed.
            attend: visibility and cache.
            embedding_noise_BND: added to the output of the embedding layer (LLaDA2.0 report, section 7.1).
            activation_checkpointing: keep only each layer's input and compute the layer again in the backward pass:
                the same loss and gradients, less memory, about a third more time.
            probe: measures every router, once.
            adapter: rows on which the model's low-rank adapter acts, if it has one: True is all of them, False none,
                a slice those places of every row of the batch, bool [B, N] some; on the others every map is bit for
                bit that of the model without adapter. None: all rows, or none under an adapter for noisy rows, which
                acts only where rows are said to be noisy.
        """
        adapter = self.adapter_gate == "all" if adapter is None else adapter
        hidden_BND = self.embedding(token_BN)
        if self.token_rows is not None and adapter is not False:
            hidden_BND = self.token_rows(hidden_BND, token_BN, adapter)
        if embedding_noise_BND is not None:
            hidden_BND = hidden_BND + embedding_noise_BND.to(hidden_BND)
        frequency_F = self.frequency_F.to(token_BN.device)
        table = rotary_table(position_BN, frequency_F, hidden_BND.dtype, scale=self.rotary_scale)
        for number, layer in enumerate(self.layers):
            given = (hidden_BND, table, attend, probe, adapter)
            if activation_checkpointing:
                # Nothing in a layer is random, so there is no generator state to restore.
                hidden_BND, measured = checkpoint(layer, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden_BND, measured = layer(*given)
            if probe is not None and measured:
                probe.record(number, measured)
        return self.norm(hidden_BND)
