"""Merge of a run: the mean of its best checkpoints, validated.

Source: LLaDA2.0 report, section 7 (top-k checkpoints by validation perplexity, uniform mean; k is not given there).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from difflm.checkpoints.loading import load_model
from difflm.checkpoints.merge import average_checkpoints
from difflm.errors import CheckpointError, ConfigError
from difflm.training.config import BlockDiffusionConfig, TrainConfig
from difflm.training.config_io import load_config
from difflm.training.rows import load_rows
from difflm.training.state import best_checkpoints, read_state
from difflm.training.validation import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedRun:
    """What `merge_run` did.

    Attributes:
        block_size: block size of the perplexities, tokens; None: AR perplexity (next-token runs).
        members: merged checkpoints and their validation perplexity, best first.
        perplexity: validation perplexity of the mean, same rows and noise.
    """

    block_size: int | None
    members: tuple[tuple[Path, float], ...]
    perplexity: float


def merge_run(run: Path, target: Path, *, best: int = 4) -> MergedRun:
    """Average the best checkpoints of a run's final block size, write the mean and validate it.

    Args:
        run: run folder of `difflm.train`.
        target: absent or empty folder.
        best: how many checkpoints, by validation perplexity; fewer if the run has fewer.

    Raises:
        ConfigError: `best` below 1, or the run had no validation data.
        CheckpointError: no run, or none of its checkpoints was validated at the final block size.
    """
    if best < 1:
        raise ConfigError(f"best: {best} is below 1; give the number of checkpoints to average")
    record = run / "config.yaml"
    if not record.is_file():
        raise CheckpointError(f"{run}: no config.yaml, so not a run folder; give a run, or the checkpoints themselves")
    config = load_config(record)
    final = config.block_sizes[-1]
    chosen = best_checkpoints(run, block_size=final, count=best)
    if not chosen:
        raise CheckpointError(
            f"{run}: no validated checkpoint of the final block size; train with validation data, or name checkpoints"
        )
    average_checkpoints(chosen, target)
    figures = [read_state(folder) for folder in chosen]
    values = [each.ar_perplexity if final is None else each.validation[str(final)] for each in figures]
    members = tuple((folder, float(value or 0.0)) for folder, value in zip(chosen, values, strict=True))
    return MergedRun(block_size=final, members=members, perplexity=_perplexity(config, target, final))


def _perplexity(config: TrainConfig, folder: Path, block_size: int | None) -> float:
    """Return the validation perplexity of a folder as the run measured its checkpoints."""
    loaded = load_model(folder, device=config.device, dtype=config.dtype)
    _, rows = load_rows(config, loaded)
    assert rows is not None, "a validated run has validation rows"
    diffusion = isinstance(config.objective, BlockDiffusionConfig)
    result = validate(
        loaded.model,
        rows,
        block_sizes=[block_size] if block_size else [],
        parametrisation=loaded.config.parametrisation,
        mask_id=loaded.config.mask_token_id if diffusion else None,
        seed=config.validation.seed,
        num_rows=config.validation.rows,
        rows_per_batch=config.validation.rows_per_batch,
        draws=config.validation.draws,
        autoregressive=block_size is None,
    )
    value = result.autoregressive if block_size is None else result.nelbo[block_size]
    assert value is not None
    return value
