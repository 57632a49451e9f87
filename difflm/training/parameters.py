"""How each parameter learns: by Muon or AdamW, at which rate, with which decay, or not at all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from difflm.checkpoints.adapter_names import TOKEN_ROWS
from difflm.errors import ConfigError
from difflm.models.adapters import adapter_parameters
from difflm.models.transformer import Transformer
from difflm.training.config import OptimizerConfig
from difflm.training.config_optimizer import ParameterGroupConfig

_IN_LAYER = re.compile(r"layers\.(\d+)\.")
_GATE_ABOVE_UP = re.compile(r".*\.experts\.gate_up(_lora\.[ab])?")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterPlan:
    """How one parameter learns.

    Attributes:
        names: of the parameter; two where head and embedding are one tensor.
        parameter: of the float32 masters.
        matrix: a matrix, or a stack of matrices, inside a layer: it decays, and Muon may update it.
        parts: how many matrices stand one below the other in it (see `Muon`).
        frozen: it does not learn.
        lr_scale: factor on the learning rate: that of its layer times that of its group.
        weight_decay: decoupled.
    """

    names: tuple[str, ...]
    parameter: nn.Parameter
    matrix: bool
    parts: int
    frozen: bool
    lr_scale: float
    weight_decay: float


def plan_parameters(model: Transformer, config: OptimizerConfig, *, mask_id: int | None = None) -> list[ParameterPlan]:
    """Return how each parameter of a model learns, in the model's order; nothing is changed.

    Tied head and embedding are one parameter with two names: a pattern that matches either matches it, and it learns
    as the embedding does. Of a model with an adapter only the adapter learns.

    Args:
        model: the float32 masters.
        config: rates, groups, patterns.
        mask_id: row of the embedding that `mask_row_lr_scale` speaks of; None: there is none.

    Raises:
        ConfigError: a pattern that matches nothing, a setting without effect, or nothing is left to learn.
    """
    names: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter] = (*names.get(parameter, ()), name)
    known = [name for each in names.values() for name in each]
    for index, pattern in enumerate(config.freeze):
        require_match(pattern, known, where=f"train.optimizer.freeze[{index}]")
    for index, group in enumerate(config.groups):
        require_match(group.pattern, known, where=f"train.optimizer.groups[{index}].pattern")
    adapter = adapter_parameters(model)
    plans = [
        _plan(each, parameter, config, len(model.layers), base=bool(adapter) and adapter.keys().isdisjoint(each))
        for parameter, each in names.items()
    ]
    learning = [plan for plan in plans if not plan.frozen]
    if not learning:
        raise ConfigError(f"train.optimizer.freeze: {list(config.freeze)} freezes everything; leave something to train")
    if config.kind == "muon" and not any(plan.matrix for plan in learning):
        raise ConfigError(
            f"train.optimizer.kind: 'muon' has no matrix to update, {list(config.freeze)} freezes all; set kind: adamw"
        )
    if mask_id is not None and config.mask_row_lr_scale != 1.0 and not any(map(_has_mask_row, learning)):
        raise ConfigError(
            f"train.optimizer.mask_row_lr_scale: {config.mask_row_lr_scale} has no effect on a frozen embedding; "
            "set it to 1"
        )
    return plans


def _has_mask_row(plan: ParameterPlan) -> bool:
    return not {"embedding.weight", TOKEN_ROWS}.isdisjoint(plan.names)


def _plan(
    names: tuple[str, ...], parameter: nn.Parameter, config: OptimizerConfig, num_layers: int, *, base: bool
) -> ParameterPlan:
    matrix = parameter.dim() > 1 and _layer(names) is not None
    group = next((each for each in config.groups if _matches(each.pattern, names)), ParameterGroupConfig(pattern="*"))
    decay = config.weight_decay if matrix else 0.0
    # Alone in its tensor, the row of an adapter needs no update to be scaled afterwards.
    row = config.mask_row_lr_scale if TOKEN_ROWS in names else 1.0
    return ParameterPlan(
        names=names,
        parameter=parameter,
        matrix=matrix,
        parts=2 if _GATE_ABOVE_UP.fullmatch(names[0]) else 1,
        frozen=base or any(_matches(pattern, names) for pattern in config.freeze),
        lr_scale=config.layer_decay ** _depth(names, num_layers) * group.lr_scale * row,
        weight_decay=decay if group.weight_decay is None else group.weight_decay,
    )


def _layer(names: Iterable[str]) -> int | None:
    found = (_IN_LAYER.match(name) for name in names)
    return next((int(each[1]) for each in found if each), None)


def _depth(names: Sequence[str], num_layers: int) -> int:
    """Return how many layers a parameter is below the last one; final norm and head count with the last."""
    layer = _layer(names)
    if layer is not None:
        return num_layers - 1 - layer
    return num_layers if any(name.startswith(("embedding.", TOKEN_ROWS)) for name in names) else 0


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def require_match(pattern: str, names: Sequence[str], *, where: str) -> None:
    """Refuse a pattern that matches no parameter, with a pattern or name like it that does.

    Args:
        pattern: with * and ?.
        names: that there are.
        where: field of the pattern.

    Raises:
        ConfigError: nothing matches.
    """
    if _matches(pattern, names):
        return
    candidates = set(names)
    for name in names:
        parts = name.split(".")
        candidates |= {".".join(parts[:end]) + ".*" for end in range(1, len(parts))}
        candidates |= {f"*.{'.'.join(parts[start:])}" for start in range(1, len(parts))}
        candidates |= {f"*.{part}.*" for part in parts[1:-1]}
    near = difflib.get_close_matches(pattern, sorted(candidates), n=1, cutoff=0.0)
    raise ConfigError(f"{where}: {pattern!r} matches no parameter; did you mean {near[0]!r}?")
