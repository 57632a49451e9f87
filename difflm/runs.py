"""A run from configuration to last checkpoint: the trainer, with what it may not know itself: decoder and pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import generate
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError, DataError
from difflm.plots import plot_training
from difflm.training import state as run_state
from difflm.training.build import ObjectiveWrapper
from difflm.training.config_io import ConfigLike, as_config
from difflm.training.metrics import Observer, Silent
from difflm.training.run_folder import Resume, finished_checkpoint
from difflm.training.samples import Sample
from difflm.training.trainer import Trainer


def sample_with_engine(
    loaded: LoadedModel, prompts: Sequence[str], *, block_size: int | None, max_new_tokens: int, threshold: float
) -> list[Sample]:
    """Complete prompts with the decoding engine, at temperature 0; a `difflm.training.samples.Sampler`.

    Args:
        loaded: model and tokenizer.
        prompts: texts.
        block_size: tokens of a diffusion block; None decodes left to right.
        max_new_tokens: longest completion, tokens.
        threshold: of acceptance, probability.
    """
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        block_size=block_size,
        threshold=threshold,
        decoding="next_token" if block_size is None else "block",
    )
    completions = generate(loaded, list(prompts), params)
    return [
        Sample(
            prompt=prompt,
            text=each.text or "",
            tokens=each.num_tokens,
            forwards=each.forwards.denoise + each.forwards.commit,
        )
        for prompt, each in zip(prompts, completions, strict=True)
    ]


def train(
    config: ConfigLike,
    *,
    resume: Resume = "never",
    observer: Observer | None = None,
    objective: ObjectiveWrapper | None = None,
) -> Path:
    """Run a training configuration and return the folder of its last checkpoint, which loads as a model.

    Args:
        config: the run: a `TrainConfig`, the same tree as a mapping, or the path of a YAML file.
        resume: "auto" continues the run in its output folder from the newest complete checkpoint.
        observer: receives progress (e.g. `difflm.display.training_observer()`).
        objective: a loss of your own: called with the objective that the configuration gives a stage (block size and
            parametrisation set), returns the one to train on. config.yaml cannot record it: give it again to resume.

    Raises:
        DifflmError: input that cannot be used, (NonFiniteError) a loss or gradient that is not finite, or (Interrupted)
            a signal that stopped the run after it had saved a checkpoint.
    """
    settings, told = as_config(config), observer or Silent()
    run = settings.output
    finished = finished_checkpoint(settings) if resume == "auto" else None
    if finished:
        told.message(f"{run}: the run is finished ({settings.total_tokens} tokens); nothing is left to do")
        return finished
    trainer = Trainer(settings, resume=resume, observer=told, objective=objective, sampler=sample_with_engine)
    with contextlib.closing(trainer):
        trainer.train()
        try:
            plot_training(run / "metrics.jsonl", run / "training.png")
        except (ConfigError, DataError) as error:
            told.message(f"no picture of the run: {error}")
    return run_state.checkpoint_folders(run)[-1]
