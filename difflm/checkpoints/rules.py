"""Names of tensors on disk and in `Transformer`: one table per family, read in both directions.

A rule maps a group of disk tensors to a group of model tensors: mostly one to one; the experts of a layer are many to
one, a fused query/key/value matrix is one to many.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from difflm.checkpoints.buffers import buffer, joined
from difflm.models.config import ModelConfig

Shape = tuple[int, ...]


class Change(Protocol):
    """What happens to the tensors of a rule between disk and model; every change is invertible bit for bit."""

    def to_model(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the model's tensors."""
        ...

    def to_disk(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the disk's tensors."""
        ...

    def disk_shapes(self, shapes: Sequence[Shape], config: ModelConfig) -> list[Shape]:
        """Return the shapes on disk for parameters of these shapes."""
        ...


@dataclass(frozen=True, slots=True)
class Rename:
    """The same tensor under another name."""

    def to_model(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the tensors as they are."""
        return list(tensors)

    def to_disk(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the tensors as they are."""
        return list(tensors)

    def disk_shapes(self, shapes: Sequence[Shape], config: ModelConfig) -> list[Shape]:
        """Return the shapes as they are."""
        return list(shapes)


@dataclass(frozen=True, slots=True)
class InterleaveRotary:
    """Rows of a query or key projection: half-split pairs in the model, adjacent pairs on disk (GGUF llama).

    Within each head, model row i is rotated with row i + E/2; on disk the two are neighbours (2i, 2i + 1).

    Attributes:
        of: which projection, so that the number of heads is known.
    """

    of: str

    def _heads(self, config: ModelConfig) -> int:
        return config.num_heads if self.of == "query" else config.num_kv_heads

    def to_model(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the rows in half-split order."""
        heads, half = self._heads(config), config.head_dim // 2
        return [each.unflatten(0, (heads, half, 2)).transpose(1, 2).flatten(0, 2) for each in tensors]

    def to_disk(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the rows in interleaved order."""
        heads, half = self._heads(config), config.head_dim // 2
        return [each.unflatten(0, (heads, 2, half)).transpose(1, 2).flatten(0, 2) for each in tensors]

    def disk_shapes(self, shapes: Sequence[Shape], config: ModelConfig) -> list[Shape]:
        """Return the shapes as they are."""
        return list(shapes)


@dataclass(frozen=True, slots=True)
class FusedQKV:
    """Query, key and value as one matrix (or bias) on disk: all query heads, all key heads, all value heads."""

    def to_model(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the three parts."""
        narrow = config.num_kv_heads * config.head_dim
        return list(tensors[0].split([config.num_heads * config.head_dim, narrow, narrow]))

    def to_disk(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the parts below each other."""
        return [joined(tensors)]

    def disk_shapes(self, shapes: Sequence[Shape], config: ModelConfig) -> list[Shape]:
        """Return the shape of the whole."""
        return [(sum(shape[0] for shape in shapes), *shapes[0][1:])]


@dataclass(frozen=True, slots=True)
class StackExperts:
    """One matrix per expert (and part) on disk, expert by expert; in the model one tensor, its parts in the same rows.

    Attributes:
        parts: matrices of an expert that lie below each other in the model's tensor (gate and up: 2).
    """

    parts: int = 1

    def to_model(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the stack."""
        rows, columns = tensors[0].shape
        dtype = functools.reduce(torch.promote_types, (each.dtype for each in tensors))
        shape = (len(tensors) // self.parts, self.parts * rows, columns)
        stack = buffer(shape, dtype, tensors[0].device)
        # One copy, part by part: a layer of a large model is gigabytes.
        for place, part in zip(stack.view(-1, rows, columns), tensors, strict=True):
            place.copy_(part)
        return [stack]

    def to_disk(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the matrices of each expert."""
        return [part for expert in tensors[0] for part in expert.chunk(self.parts)]

    def disk_shapes(self, shapes: Sequence[Shape], config: ModelConfig) -> list[Shape]:
        """Return the shape of each matrix."""
        count, rows, columns = shapes[0]
        return [(rows // self.parts, columns)] * (count * self.parts)


@dataclass(frozen=True, slots=True)
class FuseExperts:
    """Gate and up of all experts as two stacks on disk, [E, I, D] each; in the model one, [E, 2I, D], gate first."""

    def to_model(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the two below each other, expert by expert."""
        return [joined(tensors, dim=1)]

    def to_disk(self, tensors: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
        """Return the two stacks."""
        return list(tensors[0].chunk(2, dim=1))

    def disk_shapes(self, shapes: Sequence[Shape], config: ModelConfig) -> list[Shape]:
        """Return the shape of each stack."""
        count, rows, columns = shapes[0]
        return [(count, rows // 2, columns)] * 2


@dataclass(frozen=True, slots=True)
class KeyRule:
    """One line of a table; `{l}` stands for the number of a decoder layer, `{e}` for that of an expert.

    Attributes:
        disk: names in the file; with `{e}`, all of them once per expert.
        model: names of tensors of `Transformer`. A rule applies to the models that have them.
        change: what happens in between.
    """

    disk: tuple[str, ...]
    model: tuple[str, ...]
    change: Change = Rename()


def key_map(rules: Sequence[KeyRule], parameters: Mapping[str, Shape], config: ModelConfig) -> list[KeyRule]:
    """Return the rules with layer numbers filled in, for exactly the parameters that the model has.

    Args:
        rules: a family's table.
        parameters: shape of every tensor of the model that is stored, tied ones once.
        config: architecture, for the number of layers and experts.
    """
    filled = []
    for rule in rules:
        layers = range(config.num_layers) if "{l}" in rule.model[0] else range(1)
        for layer in layers:
            disk = tuple(name.replace("{l}", str(layer)) for name in _per_expert(rule.disk, config))
            model = tuple(name.replace("{l}", str(layer)) for name in rule.model)
            if all(name in parameters for name in model):
                filled.append(KeyRule(disk, model, rule.change))
    covered = {name for rule in filled for name in rule.model}
    assert covered == set(parameters), f"no rule for {sorted(set(parameters) - covered)}"
    return filled


def stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a tensor of a model of some dtype: biases of experts are never narrower than float32.

    Args:
        name: of the tensor, in the model or on disk.
        dtype: of the model's parameters.
    """
    return torch.promote_types(dtype, torch.float32) if name.endswith(".expert_bias") else dtype


def _per_expert(names: Sequence[str], config: ModelConfig) -> list[str]:
    if "{e}" not in names[0] or config.moe is None:
        return list(names)
    return [name.replace("{e}", str(expert)) for expert in range(config.moe.num_experts) for name in names]


def _rename(disk: str, model: str, suffixes: Sequence[str] = ("weight",), change: Change = Rename()) -> list[KeyRule]:
    return [KeyRule((f"{disk}.{suffix}",), (f"{model}.{suffix}",), change) for suffix in suffixes]


def _dense(names: Mapping[str, str], *, query: Change = Rename(), key: Change = Rename()) -> tuple[KeyRule, ...]:
    """Return the table of a dense decoder from the disk names of its modules."""
    both = ("weight", "bias")
    changes: Mapping[str, Change] = {"layers.{l}.attention.query": query, "layers.{l}.attention.key": key}
    rules: list[KeyRule] = []
    for model, disk in names.items():
        linear = model.startswith("layers.") and not model.endswith("norm")
        rules += _rename(disk, model, both if linear else ("weight",), changes.get(model, Rename()))
    return tuple(rules)


HF_DENSE = _dense(
    {
        "embedding": "model.embed_tokens",
        "layers.{l}.attention_norm": "model.layers.{l}.input_layernorm",
        "layers.{l}.attention.query": "model.layers.{l}.self_attn.q_proj",
        "layers.{l}.attention.key": "model.layers.{l}.self_attn.k_proj",
        "layers.{l}.attention.value": "model.layers.{l}.self_attn.v_proj",
        "layers.{l}.attention.output": "model.layers.{l}.self_attn.o_proj",
        "layers.{l}.attention.query_norm": "model.layers.{l}.self_attn.q_norm",
        "layers.{l}.attention.key_norm": "model.layers.{l}.self_attn.k_norm",
        "layers.{l}.mlp_norm": "model.layers.{l}.post_attention_layernorm",
        "layers.{l}.mlp.gate": "model.layers.{l}.mlp.gate_proj",
        "layers.{l}.mlp.up": "model.layers.{l}.mlp.up_proj",
        "layers.{l}.mlp.down": "model.layers.{l}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
)
"""safetensors names of llama, mistral, qwen2 and qwen3."""


def _experts(mlp: str) -> tuple[KeyRule, ...]:
    """Return the rules of a layer's experts, one matrix each on disk."""
    gate, up, down = (f"{mlp}.experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down"))
    return (
        *_rename(f"{mlp}.gate", "layers.{l}.mlp.router"),
        KeyRule((gate, up), ("layers.{l}.mlp.experts.gate_up",), StackExperts(parts=2)),
        KeyRule((down,), ("layers.{l}.mlp.experts.down",), StackExperts()),
    )


def _stacked_experts(mlp: str) -> tuple[KeyRule, ...]:
    """Return the rules of a layer's experts, all of them in one tensor per part on disk; no `.weight` in the names."""
    gate, up, down = (f"{mlp}.experts.{part}_proj" for part in ("gate", "up", "down"))
    return (
        *_rename(f"{mlp}.gate", "layers.{l}.mlp.router"),
        KeyRule((gate, up), ("layers.{l}.mlp.experts.gate_up",), FuseExperts()),
        KeyRule((down,), ("layers.{l}.mlp.experts.down",)),
    )


HF_QWEN3_MOE = (*HF_DENSE, *_experts("model.layers.{l}.mlp"))
"""safetensors names of qwen3_moe."""

_LING_TRUNK = (
    *_rename("model.word_embeddings", "embedding"),
    *_rename("model.layers.{l}.input_layernorm", "layers.{l}.attention_norm"),
    *(
        KeyRule(
            (f"model.layers.{{l}}.attention.query_key_value.{kind}",),
            (
                f"layers.{{l}}.attention.query.{kind}",
                f"layers.{{l}}.attention.key.{kind}",
                f"layers.{{l}}.attention.value.{kind}",
            ),
            FusedQKV(),
        )
        for kind in ("weight", "bias")
    ),
    *_rename("model.layers.{l}.attention.query_layernorm", "layers.{l}.attention.query_norm"),
    *_rename("model.layers.{l}.attention.key_layernorm", "layers.{l}.attention.key_norm"),
    *_rename("model.layers.{l}.attention.dense", "layers.{l}.attention.output", ("weight", "bias")),
    *_rename("model.layers.{l}.post_attention_layernorm", "layers.{l}.mlp_norm"),
    *(
        rule
        for part in ("gate", "up", "down")
        for rule in (
            *_rename(f"model.layers.{{l}}.mlp.{part}_proj", f"layers.{{l}}.mlp.{part}"),
            *_rename(f"model.layers.{{l}}.mlp.shared_experts.{part}_proj", f"layers.{{l}}.mlp.shared.{part}"),
        )
    ),
)
_LING_END = (
    *_rename("model.layers.{l}.mlp.gate", "layers.{l}.mlp.router", ("expert_bias",)),
    *_rename("model.norm", "norm"),
    *_rename("lm_head", "head"),
)

HF_LING = (*_LING_TRUNK, *_experts("model.layers.{l}.mlp"), *_LING_END)
"""safetensors names of bailing_moe (Ling 2.0) and llada2_moe, which are the same."""

HF_LING_STACKED = (*_LING_TRUNK, *_stacked_experts("model.layers.{l}.mlp"), *_LING_END)
"""safetensors names of llada2_moe_veomni, as dFactory's trainer reads and writes them."""

_GGUF_NAMES = {
    "embedding": "token_embd",
    "layers.{l}.attention_norm": "blk.{l}.attn_norm",
    "layers.{l}.attention.query": "blk.{l}.attn_q",
    "layers.{l}.attention.key": "blk.{l}.attn_k",
    "layers.{l}.attention.value": "blk.{l}.attn_v",
    "layers.{l}.attention.output": "blk.{l}.attn_output",
    "layers.{l}.attention.query_norm": "blk.{l}.attn_q_norm",
    "layers.{l}.attention.key_norm": "blk.{l}.attn_k_norm",
    "layers.{l}.mlp_norm": "blk.{l}.ffn_norm",
    "layers.{l}.mlp.gate": "blk.{l}.ffn_gate",
    "layers.{l}.mlp.up": "blk.{l}.ffn_up",
    "layers.{l}.mlp.down": "blk.{l}.ffn_down",
    "norm": "output_norm",
    "head": "output",
}

GGUF_DENSE = _dense(_GGUF_NAMES)
"""GGUF names of qwen2 and qwen3."""

GGUF_LLAMA = _dense(_GGUF_NAMES, query=InterleaveRotary("query"), key=InterleaveRotary("key"))
"""GGUF names of llama, whose query and key rows llama.cpp stores interleaved."""

IGNORED_ON_DISK = (".rotary_emb.inv_freq", "rope_freqs.weight")
"""Endings of tensors that are recomputed from the configuration (old llama exports) or read as metadata (GGUF)."""
