"""adapter_config.json of PEFT: what is read of it, what is refused, and what is written.

Source: `LoraConfig` of PEFT 0.21; the tests hold reading and writing against the library.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from difflm.checkpoints.fields import Fields, read_json
from difflm.errors import CheckpointError
from difflm.models.lora import AdapterGate

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GATE = "difflm_adapter_rows"
"""Our field beside PEFT's: rows that the adapter acts on. Absent means all; PEFT warns and takes all."""
DRAFT_HEAD = "difflm_draft_head"
"""Our other field: rank of the draft head, whose tensors stand beside the pairs. Absent means none."""
# They say how an adapter was trained or began, or which modules it was given; its tensors say that themselves.
_HARMLESS = frozenset(
    {
        "auto_mapping", "corda_config", "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
        "layers_to_transform", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_core", "peft_version",
        "qalora_group_size", "target_modules", "task_type",
    }
)  # fmt: skip
_READ = frozenset(
    {
        "alpha_pattern", "base_model_name_or_path", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern",
        "revision", "trainable_token_indices", "use_rslora", GATE, DRAFT_HEAD,
    }
)  # fmt: skip
# Starts that leave the base as it is; the others (pissa, olora, corda, loftq, ...) subtract something from it.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_NAME = re.compile(r"[\w.]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """What an adapter_config.json says.

    Attributes:
        base: path or hub id of the base; None where it is silent.
        revision: commit of the base on the hub.
        rank, alpha: of every module that a pattern does not name.
        stabilised: rsLoRA.
        varies: modules have ranks of their own.
        alphas: name or end of a name of modules -> their alpha.
        token_ids: rows of the embedding that learn.
        targets: names or ends of names of all modules with a pair; None where it does not say so plainly.
        gate: rows that it acts on.
        draft_rank: of its draft head; 0: none.
        where: the file, for errors.
    """

    base: str | None
    revision: str | None
    rank: int
    alpha: float
    stabilised: bool
    varies: bool
    alphas: Mapping[str, float]
    token_ids: tuple[int, ...]
    targets: tuple[str, ...] | None
    where: str
    gate: AdapterGate = "all"
    draft_rank: int = 0

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a module; the first name of `alphas` that fits counts."""
        return next((value for name, value in self.alphas.items() if fits(module, name)), self.alpha)


def fits(module: str, name: str) -> bool:
    """Return whether a module has a name, or ends with it at a dot."""
    return module == name or module.endswith(f".{name}")


def is_adapter(path: Path) -> bool:
    """Return whether a folder holds an adapter and no whole checkpoint."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter_config(folder: Path) -> PeftConfig:
    """Return what the adapter_config.json of a folder says.

    Raises:
        CheckpointError: a field that is wrong, or asks for something that is not plain LoRA; the message names it.
    """
    path = folder / ADAPTER_CONFIG
    raw = read_json(path)
    fields = Fields(raw, str(path))
    _refuse_unsupported(fields)
    base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    for name, value in (("base_model_name_or_path", base), ("revision", revision)):
        if not isinstance(value, str | None):
            raise fields.error(name, "a string")
    return PeftConfig(
        base=base or None,
        revision=revision,
        rank=fields.integer("r"),
        alpha=fields.number("lora_alpha"),
        stabilised=fields.flag("use_rslora", False),
        varies=bool(raw.get("rank_pattern")),
        alphas=_alphas(fields),
        token_ids=_token_ids(fields),
        targets=_targets(raw),
        where=str(path),
        gate=_gate(fields),
        draft_rank=_draft_rank(fields),
    )


def adapter_config(
    *,
    base: str,
    revision: str | None,
    pairs: Mapping[str, tuple[int, float]],
    every: Collection[str],
    stabilised: bool,
    token_rows: tuple[str, Sequence[int]] | None,
    gate: AdapterGate = "all",
    draft_rank: int = 0,
) -> dict[str, Any]:
    """Return the adapter_config.json of an adapter.

    Args:
        base: path or hub id of the base.
        revision: commit of the base on the hub.
        pairs: module of the base that carries a pair -> its rank and alpha.
        every: all modules of the base that could carry one.
        stabilised: rsLoRA.
        token_rows: (module of the embedding, ids) of rows that learn.
        gate: rows that it acts on.
        draft_rank: of its draft head; 0: none.
    """
    ranks, alphas = [rank for rank, _ in pairs.values()], [alpha for _, alpha in pairs.values()]
    rank, alpha = max(ranks, key=ranks.count), max(alphas, key=alphas.count)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "use_rslora": stabilised,
        "target_modules": target_modules(pairs.keys(), every),
        "rank_pattern": {name: each for name, (each, _) in pairs.items() if each != rank},
        "alpha_pattern": {name: _plain(each) for name, (_, each) in pairs.items() if each != alpha},
        "trainable_token_indices": None if token_rows is None else {token_rows[0]: list(token_rows[1])},
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
        **({} if gate == "all" else {GATE: gate}),
        **({DRAFT_HEAD: draft_rank} if draft_rank else {}),
    }


def target_modules(chosen: Collection[str], every: Collection[str]) -> list[str] | str:
    """Return PEFT's `target_modules` for exactly the modules `chosen`: last names where they say it, else a pattern.

    Args:
        chosen: modules with a pair.
        every: all modules that could carry one.
    """
    leaves = {name.rpartition(".")[2] for name in chosen}
    if {name for name in every if name.rpartition(".")[2] in leaves} == set(chosen):
        return sorted(leaves)
    # Modules alike in everything but numbers stand together where all of them are chosen.
    kinds: dict[str, list[str]] = {}
    for name in every:
        kinds.setdefault(re.sub(r"\d+", "{}", name), []).append(name)
    patterns = []
    for kind, names in kinds.items():
        found = [name for name in names if name in chosen]
        if len(found) == len(names):
            patterns.append(re.escape(kind).replace(r"\{\}", r"\d+"))
        else:
            patterns += map(re.escape, found)
    return "|".join(patterns)


def _refuse_unsupported(fields: Fields) -> None:
    raw = fields.raw
    if raw.get("peft_type") != "LORA":
        raise fields.error("peft_type", "LORA (no other kind of adapter is implemented)")
    if raw.get("bias", "none") != "none":
        raise fields.error("bias", "none (biases that learn are not implemented)")
    if raw.get("init_lora_weights") not in _PLAIN_STARTS:
        raise fields.error("init_lora_weights", "true, false or gaussian: this start changes the base as well")
    if raw.get("target_parameters"):
        raise fields.error(
            "target_parameters", "null: pairs of stacked experts are not read, only those of each expert's matrices"
        )
    for name, value in raw.items():
        # Whatever else is switched on (use_dora, modules_to_save, lora_bias, layer_replication, ...) changes the model.
        if value and name not in (_HARMLESS | _READ | {"bias", "target_parameters"}):
            raise fields.error(name, "absent, null or false (not implemented; merge the adapter with PEFT)")


def _alphas(fields: Fields) -> dict[str, float]:
    raw = fields.raw.get("alpha_pattern") or {}
    if not isinstance(raw, dict):
        raise fields.error("alpha_pattern", "an object of numbers")
    for name in raw:
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{fields.where}: alpha_pattern names {name!r}; only names of modules are read, no regular expressions"
            )
    inner = Fields(raw, f"{fields.where}: alpha_pattern")
    return {name: inner.number(name) for name in raw}


def _token_ids(fields: Fields) -> tuple[int, ...]:
    raw = fields.raw.get("trainable_token_indices")
    if raw is None:
        return ()
    ids = next(iter(raw.values())) if isinstance(raw, dict) and len(raw) == 1 else raw
    whole = isinstance(ids, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in ids)
    if not whole or len(set(ids)) != len(ids) or any(each < 0 for each in ids):
        raise fields.error("trainable_token_indices", "token ids of the embedding, each once")
    return tuple(ids)


def _draft_rank(fields: Fields) -> int:
    rank = fields.raw.get(DRAFT_HEAD, 0)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        raise fields.error(DRAFT_HEAD, "the rank of the draft head, 0 or absent for none")
    if rank and fields.raw.get(GATE) != "noisy":
        raise fields.error(DRAFT_HEAD, f"absent where {GATE} is not 'noisy': only drafts are corrected")
    return rank


def _gate(fields: Fields) -> AdapterGate:
    found = fields.raw.get(GATE, "all")
    if found not in get_args(AdapterGate):
        raise fields.error(GATE, f"one of {', '.join(get_args(AdapterGate))}")
    return found


def _targets(raw: Mapping[str, Any]) -> tuple[str, ...] | None:
    targets = raw.get("target_modules")
    chosen = any(raw.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    if chosen or not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
        return None
    return tuple(targets)


def _plain(value: float) -> int | float:
    """Return a whole number as one: PEFT's alphas are mostly whole."""
    return int(value) if float(value).is_integer() else value
