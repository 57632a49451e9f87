"""config.json <-> `RopeConfig`: both spellings, rope scaling set at load time, and the longest context it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from difflm.checkpoints.fields import Fields
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig, RopeConfig

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ROPE_FIELDS = (
    *("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"),
    "original_max_position_embeddings",
)
"""Fields of config.json that describe the rotary embedding."""
_SCALING_FIELDS = (
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
)


def rope_config(raw: Mapping[str, Any], where: str, *, partial: bool = False, theta: float | None = 1e4) -> RopeConfig:
    """Return the rotary embedding that a config.json describes, in either spelling.

    Args:
        raw: config.json, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
        where: its file, for errors.
        partial: whether the family may rotate a part of each head.
        theta: `rope_theta` where the file is silent; None refuses that.

    Raises:
        CheckpointError: the rope type is not implemented, or one of its fields is absent or wrong.
    """
    name = "rope_parameters" if raw.get("rope_parameters") is not None else "rope_scaling"
    scaling = raw.get(name) or {}
    if not isinstance(scaling, Mapping) or any(isinstance(each, Mapping) for each in scaling.values()):
        raise Fields(raw, where).error(name, "one flat object (rope parameters per layer type are not implemented)")
    merged = {each: raw.get(each) for each in ("rope_theta", "partial_rotary_factor")}
    merged |= {key: value for key, value in scaling.items() if value is not None}
    fields = Fields(merged, f"{where}: {name}")
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise CheckpointError(f"{where}: {name}.rope_type is {kind!r}; implemented are {', '.join(ROPE_TYPES)}")
    share = fields.number("partial_rotary_factor", 1.0)
    if share != 1.0 and not partial:
        raise fields.error("partial_rotary_factor", "1.0 (this family rotates whole heads)")
    if share > 1.0:
        raise fields.error("partial_rotary_factor", "a share of the head, at most 1")
    inside = fields if "rope_theta" in scaling else Fields(raw, where)
    plain = RopeConfig(theta=inside.number("rope_theta", theta), partial=share)
    if kind == "default":
        return plain
    if kind == "linear":
        return replace(plain, kind="linear", factor=fields.number("factor"))
    if kind == "yarn":
        return _yarn(plain, fields, raw, name)
    return replace(
        plain,
        kind="llama3",
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
        original_max_positions=fields.integer("original_max_position_embeddings"),
    )


def _yarn(plain: RopeConfig, fields: Fields, raw: Mapping[str, Any], name: str) -> RopeConfig:
    """Return YaRN scaling; where config.json is silent or says 0 or null, what transformers makes of it."""
    # As in transformers: the field outside of the scaling has priority, and the context of the file is the default.
    outside = Fields(raw, fields.where.removesuffix(f": {name}"))
    original = fields.integer("original_max_position_embeddings", outside.integer("max_position_embeddings", 0) or None)
    original = outside.integer("original_max_position_embeddings", original)
    null_factor = None
    if "factor" in (raw.get(name) or {}):
        null_factor = outside.integer("max_position_embeddings", original) / original
    factor = fields.number("factor", null_factor)
    if factor < 1.0:
        raise fields.error("factor", "a number of at least 1")
    if plain.theta <= 1.0:
        raise fields.error("rope_theta", "a number above 1")
    beta_fast, beta_slow = (
        _or_zero(fields, each) or default for each, default in (("beta_fast", 32), ("beta_slow", 1))
    )
    if beta_fast < beta_slow:
        raise fields.error("beta_fast", f"a number of at least beta_slow ({beta_slow:g})")
    return replace(
        plain,
        kind="yarn",
        factor=factor,
        original_max_positions=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=None if fields.raw.get("attention_factor") is None else fields.number("attention_factor"),
        mscale=_or_zero(fields, "mscale"),
        mscale_all_dim=_or_zero(fields, "mscale_all_dim"),
        truncate=fields.flag("truncate", True),
    )


def _or_zero(fields: Fields, name: str) -> float | None:
    """Return a positive number; None where absent or 0, which transformers reads as absent."""
    value = fields.raw.get(name)
    return None if value is None or (value == 0 and not isinstance(value, bool)) else fields.number(name)


def hf_rope(rope: RopeConfig) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` (and `partial_rotary_factor`) of a rotary embedding."""
    scaling: dict[str, Any] | None = None
    if rope.kind != "default":
        scaling = {"rope_type": rope.kind, "factor": rope.factor}
    if scaling is not None and rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if scaling is not None and rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        optional = {
            "attention_factor": rope.attention_factor,
            "mscale": rope.mscale,
            "mscale_all_dim": rope.mscale_all_dim,
        }
        scaling |= {name: value for name, value in optional.items() if value is not None}
    if scaling is not None and rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_max_positions
    share = {} if rope.partial == 1.0 else {"partial_rotary_factor": rope.partial}
    return {"rope_theta": rope.theta, "rope_scaling": scaling, **share}


def longest_context(stated: int, rope: RopeConfig) -> int:
    """Return the longest context, tokens: what config.json states, or what YaRN extends it to.

    Released files add YaRN without touching `max_position_embeddings`; files with linear or Llama-3 scaling state the
    extended context.

    Args:
        stated: `max_position_embeddings`, tokens.
        rope: rotary embedding.
    """
    return max(stated, int(rope.original_max_positions * rope.factor)) if rope.kind == "yarn" else stated


def with_rope_scaling(config: ModelConfig, rope_scaling: Mapping[str, Any]) -> ModelConfig:
    """Return the architecture with other rope scaling and the longest context that goes with it.

    The scaling replaces the one of the checkpoint: it starts from the context that the checkpoint had before its own.

    Args:
        config: architecture.
        rope_scaling: as in config.json. "linear" multiplies the unscaled context by its factor; "llama3" and "yarn"
            give original_max_position_embeddings (YaRN: the unscaled context where absent) times the factor, or the
            unscaled context where that is longer; "default" takes scaling off. A given "rope_theta" replaces theta.

    Raises:
        CheckpointError: a field is absent or wrong.
    """
    argument = Fields(rope_scaling, "rope_scaling argument")
    if rope_scaling.get("rope_type", rope_scaling.get("type")) is None:
        raise argument.error("rope_type", "one of " + ", ".join(ROPE_TYPES))
    if unknown := sorted(set(rope_scaling) - set(_SCALING_FIELDS)):
        raise CheckpointError(f"{argument.where}: {unknown[0]} is not a field; known are {', '.join(_SCALING_FIELDS)}")
    before = config.rope
    plain = config.max_positions
    if before.kind == "linear":
        plain = int(plain / before.factor)
    if before.kind in ("llama3", "yarn"):
        plain = before.original_max_positions
    raw = {
        "rope_theta": before.theta,
        "partial_rotary_factor": before.partial,
        "rope_parameters": dict(rope_scaling),
        "max_position_embeddings": plain,
    }
    rope = rope_config(raw, "rope_scaling argument", partial=before.partial != 1.0)
    longest = plain
    if rope.kind == "linear":
        longest = int(plain * rope.factor)
    if rope.kind in ("llama3", "yarn"):
        longest = max(plain, int(rope.original_max_positions * rope.factor))
    return replace(config, rope=rope, max_positions=longest if rope != before else config.max_positions)
