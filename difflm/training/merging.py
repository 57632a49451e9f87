"""Average the best checkpoints of a run and validate the result (LLaDA2.0, section 4.2)."""

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
from difflm.training.validation import Perplexities, validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was merged, and how good it is.

    Attributes:
        target: the merged checkpoint.
        members: averaged checkpoints and their validation perplexity at the last block size, best first.
        block_size: that block size, tokens; None for next-token runs (then perplexities are autoregressive).
        validation: perplexities of the merged checkpoint on the run's validation rows.
    """

    target: Path
    members: tuple[tuple[Path, float], ...]
    block_size: int | None
    validation: Perplexities

    @property
    def perplexity(self) -> float:
        """Return the merged checkpoint's perplexity at the block size by which its members were chosen."""
        value = self.validation.autoregressive if self.block_size is None else self.validation.nelbo[self.block_size]
        assert value is not None, "the figure that chose the members was not measured"
        return value


def merge_run(run: Path, target: Path, *, best: int = 4) -> Merged:
    """Write the mean of a run's best checkpoints of the last block size to `target`, and validate it.

    Args:
        run: folder of a finished or interrupted run.
        target: an absent or empty folder.
        best: checkpoints to average, those with the lowest validation perplexity; fewer if there are fewer.

    Raises:
        ConfigError: `best` below 1, or `run` is no run folder.
        CheckpointError: no checkpoint of the last block size has been validated, or `target` is not free.
    """
    if best < 1:
        raise ConfigError(f"best: {best} is below 1; give the number of checkpoints to average")
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run}: no config.yaml; give a run folder, or name the checkpoints to average")
    config = load_config(run / "config.yaml")
    size = config.block_sizes[-1]
    paths = best_checkpoints(run, block_size=size, count=best)
    if not paths:
        raise CheckpointError(
            f"{run}: no checkpoint of the last block size ({size or 'next-token'}) has a validation perplexity; train "
            "with data.validation_fraction or data.validation_paths, or name the checkpoints to average"
        )
    average_checkpoints(paths, target)
    return Merged(
        target=target,
        members=tuple((path, _figure(path, size)) for path in paths),
        block_size=size,
        validation=validate_checkpoint(target, config),
    )


def validate_checkpoint(path: Path, config: TrainConfig) -> Perplexities:
    """Return the perplexities of the checkpoint in `path` on the validation rows of a run, as the run measures them.

    Raises:
        ConfigError: the run has no validation documents.
    """
    loaded = load_model(path, device=config.device, dtype=config.dtype)
    _, rows = load_rows(config, loaded)
    if rows is None:
        raise ConfigError("train.data: neither validation_paths nor validation_fraction is set; set one of the two")
    settings, size = config.validation, config.block_sizes[-1]
    return validate(
        loaded.model,
        rows,
        block_sizes=sorted({*settings.block_sizes, *([size] if size else [])}),
        parametrisation=loaded.config.parametrisation,
        mask_id=loaded.config.mask_token_id if isinstance(config.objective, BlockDiffusionConfig) else None,
        seed=settings.seed,
        num_rows=settings.rows,
        rows_per_batch=settings.rows_per_batch,
        draws=settings.draws,
        autoregressive=settings.autoregressive or size is None,
    )


def _figure(path: Path, size: int | None) -> float:
    state = read_state(path)
    value = state.ar_perplexity if size is None else state.validation[str(size)]
    assert value is not None, "best_checkpoints returns validated checkpoints"
    return value
