"""GGUF files: configuration from the metadata, weights through the `gguf` package's dequantisation."""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.fields import Fields, one_line
from difflm.checkpoints.hf import TensorFact
from difflm.errors import CheckpointError
from difflm.models.config import RopeConfig
from difflm.models.rope import rotary_frequencies

_LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(slots=True)
class GGUFFile:
    """Weights of a GGUF file, opened but not read.

    Attributes:
        files: the file.
        facts: shape of every tensor; the dtype is always float32, which holds every dequantised value exactly.
        metadata: scalar metadata of the file, and the chat template; vocabulary arrays are left out.
    """

    files: tuple[Path, ...]
    facts: dict[str, TensorFact]
    metadata: dict[str, Any]
    _tensors: dict[str, Any] = field(repr=False)
    _map: mmap.mmap = field(repr=False)

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """Return one tensor on the CPU, dequantised to float32, or some rows of its first dimension."""
        from gguf.quants import dequantize

        entry = self._tensors[name]
        try:
            values = dequantize(entry.data, entry.tensor_type)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.files[0]}: tensor {name} has type {entry.tensor_type.name}, which the gguf package cannot "
                "dequantise; use another quantisation"
            ) from None
        tensor = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(self.facts[name].shape)
        # The pages of a mapped file that were touched count as memory of the process until they are let go.
        if sys.platform == "linux":
            self._map.madvise(mmap.MADV_DONTNEED)
        return tensor if rows is None else tensor[rows.start : rows.stop]


def open_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file and read its metadata and tensor table.

    Raises:
        CheckpointError: the gguf package is absent, or the file is damaged or truncated.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(f"{path}: reading GGUF needs the gguf package; pip install gguf") from None
    try:
        reader = GGUFReader(path)
        metadata = {name: entry.contents() for name, entry in reader.fields.items() if len(entry.data) == 1}
    except (ValueError, KeyError, IndexError, OSError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged or truncated GGUF file ({one_line(error)}); copy it again") from None
    tensors = {entry.name: entry for entry in reader.tensors}
    facts = {
        name: TensorFact(tuple(int(size) for size in reversed(entry.shape)), torch.float32, path.name)
        for name, entry in tensors.items()
    }
    whole: Any = reader.data  # numpy's memmap, on top of the mapping itself
    return GGUFFile((path,), facts, metadata, tensors, whole.base)


def gguf_config(file: GGUFFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config.json, generation_config.json) that describe a GGUF file.

    Raises:
        CheckpointError: an architecture, rope scaling or option that is not implemented; the message names it.
    """
    where, metadata = str(file.files[0]), file.metadata
    name = metadata.get("general.architecture")
    known = [each.name for each in FAMILIES.values() if each.gguf_rules is not None]
    if not isinstance(name, str) or name not in known:
        raise Fields(metadata, where).error("general.architecture", "one of " + ", ".join(known))
    family = FAMILIES[name]
    fields = Fields({key.removeprefix(f"{name}."): value for key, value in metadata.items()}, f"{where}: {name}")
    for option in ("expert_count", "attention.sliding_window"):
        if fields.raw.get(option):
            raise fields.error(option, "0 (not implemented for this family)")
    hidden_size, num_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    head_dim = fields.integer("attention.key_length", hidden_size // num_heads)
    rotated = fields.integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise fields.error("rope.dimension_count", f"{head_dim} (this family rotates whole heads)")
    if "token_embd.weight" not in file.facts:
        raise CheckpointError(f"{where}: tensor token_embd.weight is missing; the file holds no language model")
    raw: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": name,
        "vocab_size": file.facts["token_embd.weight"].shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(fields.number("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": fields.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in file.facts,
        "rope_theta": _shortest(fields.number("rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(file, fields, head_dim),
    }
    if family.attention_bias == "field":
        raw["attention_bias"] = "blk.0.attn_q.bias" in file.facts
    if family.reads_mlp_bias:
        raw["mlp_bias"] = "blk.0.ffn_gate.bias" in file.facts
    raw |= (special := _special_ids(metadata))
    return raw, special


def _special_ids(metadata: dict[str, Any]) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: metadata.get(f"tokenizer.ggml.{short}_token_id") for name, short in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _shortest(value: float) -> float:
    """Return the shortest decimal with the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUFFile, fields: Fields, head_dim: int) -> dict[str, Any] | None:
    kind = fields.raw.get("rope.scaling.type") or "none"
    if "rope_freqs.weight" in file.facts:
        if kind not in ("none", "llama3"):
            raise fields.error("rope.scaling.type", "none beside a rope_freqs.weight tensor")
        return _llama3_from_factors(file, fields, head_dim)
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": fields.number("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        for option in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"):
            if fields.raw.get(f"rope.scaling.{option}") not in (None, 1.0):
                raise fields.error(f"rope.scaling.{option}", "none, or 1 (not implemented)")
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if f"rope.scaling.{theirs}" in fields.raw:
                scaling[ours] = fields.number(f"rope.scaling.{theirs}")
        return scaling | {"original_max_position_embeddings": fields.integer("rope.scaling.original_context_length")}
    if kind != "linear":
        raise fields.error(
            "rope.scaling.type", "none, linear or yarn (Llama-3 scaling comes as the tensor rope_freqs.weight)"
        )
    return scaling


def _llama3_from_factors(file: GGUFFile, fields: Fields, head_dim: int) -> dict[str, Any]:
    """Recover Llama-3 scaling from its per-frequency divisors, which is all that GGUF stores of it."""
    divisor_F = file.read("rope_freqs.weight").double()
    theta = fields.number("rope.freq_base", 10_000.0)
    factor = _shortest(float(divisor_F.max()))
    rope = RopeConfig(theta=theta, kind="llama3", factor=factor)
    plain_F = rotary_frequencies(RopeConfig(theta=theta), head_dim).double()
    expected_F = plain_F / rotary_frequencies(rope, head_dim).double()
    if divisor_F.shape != expected_F.shape or not torch.allclose(divisor_F, expected_F, rtol=1e-4):
        raise CheckpointError(
            f"{file.files[0]}: rope_freqs.weight is not Llama-3 scaling with bands 1 and 4 of 8192 tokens; "
            "other rope factors are not implemented"
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3_BANDS}
