"""A step whose loss or gradient is not a finite number: what is said, what is dumped, when it may be left out.

run/dumps/step-00000012/
    step.json               reason, rows with their loss and their source lines, weights or gradients at fault, config
    tensors.safetensors     "<micro-batch>.<field>": what entered the model and the loss, as in `difflm.types`

The optimiser is never touched by such a step, so the weights are those before it and the losses of its rows can be
computed again, one by one.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.folders import staged_folder
from difflm.checkpoints.hf import listed, save_tensors
from difflm.data.rows import PackedRows
from difflm.errors import CheckpointError, DifflmError
from difflm.models.adapters import adapter_parameters
from difflm.models.transformer import Transformer
from difflm.training.config import TrainConfig
from difflm.training.config_io import config_to_tree
from difflm.training.config_run import NonFiniteConfig
from difflm.types import ModelInput, TokenScores

# Not "resume": a run resumes with the learning rate that it began with.
_START_ANEW = (
    "start a new run (another train.output) with a lower train.optimizer.learning_rate, from an earlier checkpoint as "
    "its train.model or from the start"
)

Score = Callable[[ModelInput], tuple[TokenScores, ...]]


class NonFiniteError(DifflmError):
    """The loss or the gradient is not a finite number; the optimiser was not touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoss:
    """One row of a step.

    Attributes:
        row, epoch, view: as in `ModelInput`.
        losses: loss term -> weighted nats per predicted token of this row.
        where: "file:line" of the documents in the row.
    """

    row: int
    epoch: int
    view: int
    losses: dict[str, float]
    where: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Return whether every loss of the row is a finite number."""
        return all(math.isfinite(value) for value in self.losses.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class BadStep:
    """A step that is not finite, before anything was updated.

    Attributes:
        step: its number.
        first: it is the first step since the weights were loaded.
        inputs: its micro-batches.
        losses: loss term -> loss of the step.
        norm: L2 norm of the gradient.
    """

    step: int
    first: bool
    inputs: Sequence[ModelInput]
    losses: dict[str, float]
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is wrong with a step.

    Attributes:
        text: one line: what, where, and what to do about it.
        hopeless: the weights themselves are not finite, so no step can be.
    """

    text: str
    hopeless: bool


def weights_not_finite(model: Transformer) -> list[str]:
    """Return the names of stored tensors, biases of experts and an adapter among them, with a NaN or an infinity."""
    every = model.stored_tensors() | adapter_parameters(model)
    return [name for name, each in every.items() if not bool(torch.isfinite(each).all())]


def require_finite_weights(model: Transformer, *, step: int) -> None:
    """Check the weights that step `step` left behind, before they are measured or saved.

    An update can overflow although its loss and its gradient were finite, and no later step tells of the last one.

    Raises:
        NonFiniteError: there is a NaN or an infinity among them.
    """
    broken = weights_not_finite(model)
    if broken:
        raise NonFiniteError(
            f"step {step}: its update made weights that are not finite ({listed(broken, 3)}), they are not saved; "
            f"{_START_ANEW}"
        )


def is_bad(losses: dict[str, float], norm: float) -> bool:
    """Return whether a step's losses or the norm of its gradient are not finite."""
    return not all(map(math.isfinite, (*losses.values(), norm)))


def examine(bad: BadStep, *, config: TrainConfig, model: Transformer, rows: PackedRows, score: Score) -> Diagnosis:
    """Find the rows and tensors at fault, write the dump and return what to tell the user.

    Args:
        bad: the step.
        config: of the run.
        model: what computed it; its weights are those before the step.
        rows: training rows.
        score: forward of the step, of one micro-batch.
    """
    weights = weights_not_finite(model)
    gradients = [
        name for name, each in model.named_parameters() if each.grad is not None and not torch.isfinite(each.grad).all()
    ]
    with torch.no_grad():
        found = [row for each in bad.inputs for row in row_losses(each, score(each), rows)]
    dump = config.output / "dumps" / f"step-{bad.step:08d}"
    text = _text(bad, weights, found, config=config)
    try:
        _write_dump(dump, bad, found, reason=text, weights=weights, gradients=gradients, config=config)
    except CheckpointError as error:
        return Diagnosis(text=f"{text}; no dump: {error}", hopeless=bool(weights))
    return Diagnosis(text=f"{text}; dump in {dump}", hopeless=bool(weights))


def _write_dump(
    dump: Path,
    bad: BadStep,
    found: Sequence[RowLoss],
    *,
    reason: str,
    weights: Sequence[str],
    gradients: Sequence[str],
    config: TrainConfig,
) -> None:
    with staged_folder(dump, replace=True) as folder:
        save_tensors(folder / "tensors.safetensors", _tensors(bad.inputs))
        record = {
            "step": bad.step,
            "reason": reason,
            "loss": {name: _number(value) for name, value in bad.losses.items()},
            "grad_norm": _number(bad.norm),
            "rows": [
                {
                    "row": each.row,
                    "epoch": each.epoch,
                    "view": each.view,
                    "loss": {name: _number(value) for name, value in each.losses.items()},
                    "where": each.where,
                }
                for each in found
            ],
            "weights_not_finite": weights,
            "gradients_not_finite": gradients,
            "config": config_to_tree(config),
        }
        (folder / "step.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def require_budget(found: Diagnosis, settings: NonFiniteConfig, *, skipped: int) -> None:
    """Check that a step may be left out.

    Args:
        found: of `examine`.
        settings: of the run.
        skipped: steps left out before this one, in the whole run.

    Raises:
        NonFiniteError: the run has to stop.
    """
    if found.hopeless or settings.action == "stop":
        raise NonFiniteError(found.text)
    if skipped >= settings.budget:
        raise NonFiniteError(
            f"{found.text}; {skipped} steps were skipped before it, which is all that train.nonfinite.budget "
            f"({settings.budget}) allows"
        )


def row_losses(inputs: ModelInput, scores: Sequence[TokenScores], rows: PackedRows) -> list[RowLoss]:
    """Return the losses of each row of a micro-batch.

    Args:
        inputs: of `Objective.prepare`.
        scores: one per term.
        rows: where the rows come from.
    """
    count, width = inputs.token_BN.shape
    means: dict[str, Tensor] = {}
    for term, score in zip(inputs.terms, scores, strict=True):
        if term.scores_of is not None:
            continue
        owner_M = term.row_M.cpu() // width
        value_M = (term.weight_M.cpu() * score.nll_M.detach().float().cpu()).double()
        sum_B = torch.zeros(count, dtype=torch.float64).index_add_(0, owner_M, value_M)
        means[term.name] = sum_B / torch.bincount(owner_M, minlength=count).clamp(min=1)
    return [
        RowLoss(
            row=int(inputs.row_B[index]),
            epoch=int(inputs.epoch_B[index]),
            view=int(inputs.view_B[index]),
            losses={name: float(value_B[index]) for name, value_B in means.items()},
            where=sources_of(rows, int(inputs.row_B[index])),
        )
        for index in range(count)
    ]


def sources_of(rows: PackedRows, row: int) -> tuple[str, ...]:
    """Return "file:line" of the documents in a row, in order, each once."""
    pieces = range(int(rows.row_start[row]), int(rows.row_start[row + 1]))
    return tuple(dict.fromkeys(rows.store.where(int(rows.document[piece])) for piece in pieces))


def _text(bad: BadStep, weights: Sequence[str], found: Sequence[RowLoss], *, config: TrainConfig) -> str:
    """Return what is not finite, and whether the weights, the data or the learning rate are the likely cause."""
    step = f"step {bad.step}"
    if weights:
        since = "of the checkpoint it resumed from" if bad.first else "have overflowed in the steps before it: they"
        return f"{step}: weights {since} are not finite ({listed(weights, 3)}); {_START_ANEW}"
    guilty = [each for each in found if not each.finite]
    if not guilty:
        what = "the loss is finite but the gradient norm" if _all_finite(bad.losses.values()) else "the loss"
        value = bad.norm if _all_finite(bad.losses.values()) else sum(bad.losses.values())
        return f"{step}: {what} is {value} (rows {_rows(found)}); lower train.optimizer.learning_rate" + (
            ", or use train.dtype: float32" if config.dtype != "float32" else ""
        )
    places = listed(dict.fromkeys(place for each in guilty for place in each.where), 3)
    text = f"{step}: the loss of rows {_rows(guilty)} is not finite ({places})"
    if len(guilty) == len(found):
        return f"{text}, which is every row of the step; lower train.optimizer.learning_rate, or check these documents"
    return f"{text}, the other {len(found) - len(guilty)} rows are fine; check these documents"


def _rows(rows: Iterable[RowLoss]) -> str:
    return listed(dict.fromkeys(each.row for each in rows))


def _all_finite(values: Iterable[float]) -> bool:
    return all(map(math.isfinite, values))


def _number(value: float) -> float | str:
    """Return a number that JSON has, or the name of one that it has not."""
    return value if math.isfinite(value) else str(value)


def _tensors(inputs: Sequence[ModelInput]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number, each in enumerate(inputs):
        fields: dict[str, Any] = {
            "token_BN": each.token_BN,
            "position_BN": each.position_BN,
            "masked_BN": each.masked_BN,
            "document_BL": each.layout.document_BL,
            "row_B": each.row_B,
            "epoch_B": each.epoch_B,
            "view_B": each.view_B,
        }
        if each.layout.place_BW is not None and each.layout.view_BW is not None:
            fields |= {"place_BW": each.layout.place_BW, "view_BW": each.layout.view_BW}
        for term in each.terms:
            fields |= {f"{term.name}.row_M": term.row_M, f"{term.name}.target_M": term.target_M}
            fields |= {f"{term.name}.weight_M": term.weight_M}
        # Copies: safetensors refuses tensors that share memory.
        tensors |= {f"{number}.{name}": value.cpu().clone().contiguous() for name, value in fields.items()}
    return tensors
