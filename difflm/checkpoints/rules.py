"""Names of tensors on disk and in `Transformer`: one table per family, read in both directions.

A rule maps a group of disk tensors to a group of model parameters. Today every rule maps one to one; stacking
experts (many to one) or splitting a fused query/key/value matrix (one to many) is another `Change`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

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
class KeyRule:
    """One line of a table; `{l}` stands for the number of a decoder layer.

    Attributes:
        disk: names in the file.
        model: names of parameters of `Transformer`. A rule applies to the models that have them.
        change: what happens in between.
    """

    disk: tuple[str, ...]
    model: tuple[str, ...]
    change: Change = Rename()


def key_map(rules: Sequence[KeyRule], parameters: Mapping[str, Shape], config: ModelConfig) -> list[KeyRule]:
    """Return the rules with layer numbers filled in, for exactly the parameters that the model has.

    Args:
        rules: a family's table.
        parameters: shape of every parameter of the model, tied parameters once.
        config: architecture, for the number of layers.
    """
    filled = []
    for rule in rules:
        layers = range(config.num_layers) if "{l}" in rule.model[0] else range(1)
        for layer in layers:
            disk = tuple(name.replace("{l}", str(layer)) for name in rule.disk)
            model = tuple(name.replace("{l}", str(layer)) for name in rule.model)
            if all(name in parameters for name in model):
                filled.append(KeyRule(disk, model, rule.change))
    covered = {name for rule in filled for name in rule.model}
    assert covered == set(parameters), f"no rule for {sorted(set(parameters) - covered)}"
    return filled


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
"""safetensors names of llama, qwen2 and qwen3."""

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
