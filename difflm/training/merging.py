"""Merge of a run: a weighted mean of its checkpoints, validated as the run validated them.

An adapter for noisy rows has no such mean (weights know no rows, and the mean of two low-rank products is no low-rank
product): of its run the checkpoint that drafts best is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from difflm.checkpoints.adapter_config import is_adapter, read_adapter_config
from difflm.checkpoints.adapter_saving import finish_adapter
from difflm.checkpoints.folders import require_free
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.checkpoints.manifest import MANIFEST, verify_folder
from difflm.checkpoints.merge import average_checkpoints, mean_parameters
from difflm.checkpoints.resume import Observer
from difflm.data.rows import PackedRows
from difflm.diffusion.windows import Drafting
from difflm.errors import CheckpointError
from difflm.models.adapters import remove_adapter
from difflm.plots import read_rows
from difflm.training.build import objective_of
from difflm.training.config import NextTokenConfig, TrainConfig
from difflm.training.config_io import load_config
from difflm.training.merge_methods import Best, Candidate, MergeMethod, RunFacts
from difflm.training.rows import load_rows
from difflm.training.state import MOMENTS, TrainingState, checkpoint_folders, read_state
from difflm.training.validation import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A merged checkpoint.

    Attributes:
        folder: of the checkpoint.
        weight: its share; the shares add up to 1.
        perplexity: its validation perplexity; None if the run has no validation data.
    """

    folder: Path
    weight: float
    perplexity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedRun:
    """One merge of a run.

    Attributes:
        method: "best", "window" or "ema".
        block_size: block size of the perplexities, tokens; None: AR perplexity (next-token runs).
        members: merged checkpoints; best first, or oldest first.
        perplexity: validation perplexity of the mean, same rows and noise; None without validation data.
    """

    method: str
    block_size: int | None
    members: tuple[Member, ...]
    perplexity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMerged:
    """A method that this run's checkpoints do not allow.

    Attributes:
        method: its name.
        reason: why, and what to change.
    """

    method: str
    reason: str


def merge_run(
    run: Path,
    target: Path,
    *,
    method: MergeMethod | None = None,
    fresh: bool = False,
    observer: Observer | None = None,
) -> MergedRun:
    """Average checkpoints of a run's final block size, write the mean and validate it.

    Args:
        run: run folder of `difflm.train`.
        target: absent or empty folder.
        method: which checkpoints, with which weights; None: the best four.
        fresh: throw away what an interrupted merge to `target` left, instead of continuing it.
        observer: is told of progress; None: what it would note is a warning.

    Raises:
        CheckpointError: no run, a damaged member, or its checkpoints do not suffice for the method.
    """
    require_free(target)
    source = _Run(run)
    method = method or Best()
    members = source.choose(method)
    folders, weights = [each.folder for each in members], [each.weight for each in members]
    average_checkpoints(folders, target, weights=weights, fresh=fresh, observer=observer)
    perplexity = source.measure(load_model(target, device=source.config.device, dtype=source.config.dtype))
    return MergedRun(
        method=method.name, block_size=source.facts.block_size, members=tuple(members), perplexity=perplexity
    )


def compare_merges(run: Path, methods: Sequence[MergeMethod]) -> list[MergedRun | NotMerged]:
    """Return what each method would give on the validation rows; nothing is written.

    Args:
        run: run folder of `difflm.train`.
        methods: in the order of the result.

    Raises:
        CheckpointError: no run, no checkpoint of its final block size, or a damaged member.
    """
    source = _Run(run)
    found: list[MergedRun | NotMerged] = []
    for method in methods:
        try:
            members = source.choose(method)
        except CheckpointError as error:
            found.append(NotMerged(method=method.name, reason=str(error)))
            continue
        perplexity = source.measure(source.mean({each.folder: each.weight for each in members}))
        facts = source.facts
        found.append(
            MergedRun(method=method.name, block_size=facts.block_size, members=tuple(members), perplexity=perplexity)
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingCheckpoint:
    """The checkpoint of a drafting run that its finished adapter is made of.

    Attributes:
        folder: of the checkpoint.
        tokens_per_cycle: what the run measured of it on validation rows; None: of no checkpoint, and it is the last.
        measured: checkpoints of the final block size with that figure.
        unmeasured: those without.
    """

    folder: Path
    tokens_per_cycle: float | None
    measured: int
    unmeasured: int

    @property
    def reason(self) -> str:
        """Say why it was taken."""
        if self.tokens_per_cycle is None:
            return "the last one: the validation rows of metrics.jsonl have drafts.tokens_per_cycle of no checkpoint"
        rest = f", {self.unmeasured} not measured" if self.unmeasured else ""
        return f"{self.tokens_per_cycle:.3f} tokens per cycle on validation rows, the most of {self.measured}{rest}"


def only_drafts(path: Path) -> bool:
    """Return whether a folder is an adapter for noisy rows alone, or a run that trains one.

    Raises:
        CheckpointError: an adapter_config.json that cannot be used.
        ConfigError: a config.yaml of a run that cannot be used.
    """
    if is_adapter(path):
        return read_adapter_config(path).gate == "noisy"
    if (path / "config.json").is_file() or not (path / "config.yaml").is_file():
        return False
    lora = load_config(path / "config.yaml").lora
    return lora is not None and lora.adapter_rows == "noisy"


def best_drafting(run: Path) -> DraftingCheckpoint:
    """Return the checkpoint of a run's final block size that drafts most tokens per cycle; unmeasured, the last one.

    Args:
        run: run folder of `difflm.train`, with an adapter for noisy rows.

    Raises:
        CheckpointError: no run, or no checkpoint of its final block size.
        DataError: metrics.jsonl is damaged before its last line.
    """
    candidates = _Run(run).candidates
    if not candidates:
        raise CheckpointError(f"{run}: no checkpoint of the final block size; train on, or name one")
    figures = _tokens_per_cycle(run / "metrics.jsonl")
    measured = [(figures[each.step], each.step, each) for each in candidates if each.step in figures]
    figure, _, chosen = max(measured, default=(None, 0, candidates[-1]), key=lambda found: found[:2])
    return DraftingCheckpoint(
        folder=chosen.folder,
        tokens_per_cycle=figure,
        measured=len(measured),
        unmeasured=len(candidates) - len(measured),
    )


def finish_drafting(
    run: Path, target: Path, *, base: Path | None = None, dtype: str | torch.dtype | None = None
) -> DraftingCheckpoint:
    """Write the adapter of a drafting run's best checkpoint as a folder of its own; return which that was.

    Args:
        run: as in `best_drafting`.
        target: an absent or empty folder.
        base: of the adapter, instead of the one that it names; its path is written.
        dtype: of the adapter on disk; None keeps the stored one, float32.

    Raises:
        CheckpointError: as `best_drafting` and `finish_adapter`.
        ConfigError: a dtype that cannot be written.
        DataError: as `best_drafting`.
    """
    require_free(target)
    chosen = best_drafting(run)
    finish_adapter(chosen.folder, target, base=base, dtype=dtype)
    return chosen


def _tokens_per_cycle(metrics: Path) -> dict[int, float]:
    """Return step -> drafts.tokens_per_cycle, of the validations that have the figure."""
    found: dict[int, float] = {}
    for row in read_rows(metrics) if metrics.is_file() else ():
        figure = (row.get("drafts") or {}).get("tokens_per_cycle") if row.get("kind") == "validation" else None
        if figure is not None and math.isfinite(figure):
            found[row["step"]] = figure
    return found


class _Run:
    """A run folder: its candidates, and validation as the run did it."""

    def __init__(self, run: Path) -> None:
        record = run / "config.yaml"
        if not record.is_file():
            raise CheckpointError(
                f"{run}: no config.yaml, so not a run folder; give a run, or the checkpoints themselves"
            )
        self.config: TrainConfig = load_config(record)
        first = self.config.final_stage
        self.facts = RunFacts(
            folder=run,
            block_size=self.config.block_sizes[-1],
            every_tokens=self.config.checkpoint.every_tokens,
            last_tokens=sum(stage.tokens for stage in self.config.curriculum[first:]),
        )
        states = [(folder, read_state(folder)) for folder in checkpoint_folders(run)]
        self.candidates = [self._candidate(folder, state) for folder, state in states if state.stage >= first]
        self.verified: set[Path] = set()
        self.rows: PackedRows | None = None
        self.rows_read = False

    def _candidate(self, folder: Path, state: TrainingState) -> Candidate:
        size = self.facts.block_size
        value = state.ar_perplexity if size is None else state.validation.get(str(size))
        return Candidate(folder=folder, step=state.step, tokens=state.tokens, perplexity=value)

    def choose(self, method: MergeMethod) -> list[Member]:
        """Return the members of a method, verified, with a perplexity where the run has validation rows."""
        if not self.candidates:
            raise CheckpointError(
                f"{self.facts.folder}: no validated checkpoint of the final block size; train on, or name checkpoints"
            )
        members = method.members(self.candidates, self.facts)
        for each, _ in members:
            self._verify(each.folder)
        return [
            Member(folder=each.folder, weight=weight, perplexity=self._perplexity(each)) for each, weight in members
        ]

    def _verify(self, folder: Path) -> None:
        if folder in self.verified or not (folder / MANIFEST).is_file():
            return
        try:
            verify_folder(folder, spare=(MOMENTS,))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; move {folder} away to merge without it") from None
        self.verified.add(folder)

    def _perplexity(self, candidate: Candidate) -> float | None:
        """Return a candidate's figure; one that the run left out (it was interrupted there) is measured now."""
        if candidate.perplexity is not None or (self.rows_read and self.rows is None):
            return candidate.perplexity
        return self.measure(load_model(candidate.folder, device=self.config.device, dtype=self.config.dtype))

    def mean(self, weights: Mapping[Path, float]) -> LoadedModel:
        """Return the weighted mean of checkpoints as a model, in memory."""
        folders = list(weights)
        loaded = load_model(folders[0], device=self.config.device, dtype=self.config.dtype)
        remove_adapter(loaded.model)  # the mean is of merged weights
        loaded.adapter = None
        state = loaded.model.state_dict()
        parameters = mean_parameters(folders, list(weights.values()))
        with torch.no_grad():
            for name in parameters:
                state[name].copy_(parameters[name])
        return loaded

    def measure(self, loaded: LoadedModel) -> float | None:
        """Return the validation perplexity of a model as the run measured its checkpoints."""
        size, config = self.facts.block_size, self.config
        if not self.rows_read:
            self.rows, self.rows_read = load_rows(config, loaded)[1], True
        if self.rows is None:
            return None
        masked = not isinstance(config.objective, NextTokenConfig)
        objective = objective_of(config, loaded.config.parametrisation)
        result = validate(
            loaded.model,
            self.rows,
            block_sizes=[size] if size else [],
            parametrisation=loaded.config.parametrisation,
            mask_id=loaded.config.mask_token_id if masked else None,
            seed=config.validation.seed,
            num_rows=config.validation.rows,
            rows_per_batch=config.validation.rows_per_batch,
            draws=config.validation.draws,
            autoregressive=size is None,
            backend=config.attention,
            drafting=objective if isinstance(objective, Drafting) else None,
        )
        return result.autoregressive if size is None else result.nelbo[size]
