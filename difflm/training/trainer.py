"""The one trainer: prepare, forward, sum, divide by a counted normaliser, step.

Objectives differ only in `config.objective`; the block size comes from the curriculum.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel, check_device, load_model
from difflm.data.loader import Loader, LoaderState, RowOrder
from difflm.diffusion.noise import RowNoise, embedding_noise
from difflm.diffusion.objectives import BlockDiffusion, Objective
from difflm.errors import CheckpointError, ConfigError, DifflmError
from difflm.models.attention import backend_for
from difflm.plots import plot_training
from difflm.scoring import score_input
from difflm.training import state as run_state
from difflm.training.build import curriculum_of, objective_of, set_threads
from difflm.training.config import BlockDiffusionConfig, TrainConfig
from difflm.training.config_io import ConfigLike, as_config, checked
from difflm.training.metrics import MetricsLog, Observer, Silent
from difflm.training.optim import MasterWeights, Optimizer, learning_rate_ratio
from difflm.training.rows import load_rows
from difflm.training.run_folder import Resume, open_run
from difflm.training.state import TrainingState
from difflm.training.validation import Perplexities, validate
from difflm.types import ModelInput, TokenScores


class NonFiniteError(DifflmError):
    """The gradient is not a finite number; the optimiser was not touched."""


class Trainer:
    """A training run, from its configuration to its last checkpoint.

    Args:
        config: the run.
        resume: "never" starts anew in an empty folder; "auto" continues from the newest complete checkpoint of the
            folder, or starts if there is none.
        observer: receives progress.

    Raises:
        ConfigError, CheckpointError, DataError: input that cannot be used; nothing is written before these checks.
    """

    def __init__(self, config: TrainConfig, *, resume: Resume = "never", observer: Observer | None = None) -> None:
        self.config = checked(config)
        self.observer: Observer = observer or Silent()
        set_threads(config.threads)
        check_device(config.device, field="train.device")
        parent = load_model(config.model, device=config.device)
        self._check_attention(parent)
        self.parametrisation = parent.config.parametrisation
        self.mask_id = parent.config.mask_token_id
        if isinstance(config.objective, BlockDiffusionConfig) and self.mask_id is None:
            raise ConfigError(f"train.model: {config.model} has no mask token; convert it first (difflm convert)")
        chosen = config.objective
        self.suppressed_id = self.mask_id if isinstance(chosen, BlockDiffusionConfig) and chosen.suppress_mask else None
        self.objective = objective_of(config, self.parametrisation)
        self.curriculum = curriculum_of(config)
        if parent.config.model.max_positions < config.data.row_length:
            raise ConfigError(
                f"train.data.row_length: {config.data.row_length} exceeds the model's context of "
                f"{parent.config.model.max_positions} tokens; lower it"
            )
        self.rows, self.validation_rows = load_rows(config, parent)
        checkpoint = open_run(config, resume)
        self.loaded = parent
        # Of the model the run starts from, so that a resumed run adds the same noise.
        self.embedding_rms = float(parent.model.embedding.weight.detach().pow(2).mean().sqrt())
        if checkpoint:
            # Only the weights come from the checkpoint: it may be pruned, while later ones carry the parent's files.
            parent.model.load_state_dict(load_model(checkpoint, device=config.device).model.state_dict())
        self.state = run_state.read_state(checkpoint) if checkpoint else TrainingState(data=self.rows.fingerprint)
        if self.state.data != self.rows.fingerprint:
            raise CheckpointError(
                f"{checkpoint}: was trained on other rows than train.data gives now; restore the data files"
            )
        self._start_engine(checkpoint)

    def _check_attention(self, parent: LoadedModel) -> None:
        backend_for(
            self.config.attention,
            device=self.config.device,
            dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[self.config.dtype],
            head_dim=parent.config.model.head_dim,
            backward=True,
            field="train.attention",
        )

    def _start_engine(self, checkpoint: Path | None) -> None:
        """Build what holds mutable state: weights, optimiser, row loader, log."""
        config = self.config
        master = self.loaded.model.requires_grad_(True).train()
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        self.model = master if dtype == torch.float32 else copy.deepcopy(master).to(dtype)
        self.weights = MasterWeights(master, self.model)
        self.optimizer = Optimizer(master, config.optimizer, mask_id=self.mask_id)
        if checkpoint:
            run_state.load_moments(checkpoint, self.optimizer)
        order = RowOrder(num_rows=len(self.rows), seed=config.seed, shuffle=config.data.shuffle)
        self.loader = Loader(order, LoaderState(epoch=self.state.epoch, position=self.state.position))
        self.noise = RowNoise(config.seed)
        self.log = MetricsLog(config.output / "metrics.jsonl", step=self.state.step)

    def train(self) -> LoadedModel:
        """Run to the end of the curriculum and return the trained model (float32 weights)."""
        self.observer.start(self.curriculum.total_tokens, self.state.tokens)
        try:
            self._describe()
            if self.state.step == 0:
                self._validate()
            while self.state.tokens < self.curriculum.total_tokens:
                before = self.state.tokens
                metrics = self.train_step()
                if self.state.step % self.config.log_every == 0:
                    self._record(metrics)
                self._after_step(before)
        finally:
            self.observer.close()
        return self.loaded

    def train_step(self) -> dict[str, Any]:
        """Do one optimiser step; return its metrics (a row of metrics.jsonl)."""
        started = time.perf_counter()
        stage = self.curriculum.stage_at(self.state.tokens)
        objective = self.objective_at(stage)
        inputs, tokens = self._draw(objective)
        counts: dict[str, float] = {}
        for each in inputs:
            for term in each.terms:
                counts[term.name] = counts.get(term.name, 0.0) + float(term.count)
        sums = dict.fromkeys(counts, 0.0)
        correct = masked = 0
        for each in inputs:
            scores = score_input(
                self.model,
                each,
                chunk=self.config.head_chunk_rows,
                suppressed_id=self.suppressed_id,
                backend=self.config.attention,
                embedding_noise_BND=self._embedding_noise(each),
                activation_checkpointing=self.config.activation_checkpointing,
            )
            total = self._backward(objective, each, scores, counts)
            for name, value in total.items():
                sums[name] += value
            correct += int(scores[0].correct_M.sum())
            masked += scores[0].correct_M.numel()
        norm = float(self.optimizer.clip())
        if not math.isfinite(norm):
            rows = [row for each in inputs for row in each.row_B.tolist()]
            raise NonFiniteError(
                f"gradient norm {norm} at step {self.state.step + 1} (rows {rows}); "
                "lower the learning rate or check the data"
            )
        done = self.state.tokens + tokens
        ratio = learning_rate_ratio(self.config.lr_schedule, done, self.curriculum.total_tokens)
        rate = self.optimizer.step(ratio)
        self.weights.publish()
        seconds = time.perf_counter() - started
        losses = {name: sums[name] / max(count, 1.0) for name, count in counts.items()}
        scales = {term.name: term.scale for each in inputs for term in each.terms}
        self._advance(stage, tokens, seconds)
        return {
            "kind": "train",
            "step": self.state.step,
            "tokens": self.state.tokens,
            "epoch": self.state.epoch,
            "stage": stage,
            "block_size": self.curriculum.stages[stage].block_size,
            "loss": sum(scales[name] * value for name, value in losses.items()),
            "loss_by_term": losses,
            "masked_accuracy": correct / max(masked, 1),
            "mask_ratio": masked / max(sum(int(each.masked_BN.numel()) for each in inputs), 1),
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "seconds": self.state.seconds,
        }

    def objective_at(self, stage: int) -> Objective:
        """Return the objective with the block size of a stage."""
        if isinstance(self.objective, BlockDiffusion):
            return replace(self.objective, block_size=self.curriculum.stages[stage].block_size)
        return self.objective

    def _draw(self, objective: Objective) -> tuple[list[ModelInput], int]:
        """Draw the rows of one step and prepare them; returns (micro-batches, training tokens)."""
        inputs, tokens = [], 0
        for _ in range(self.config.accumulation):
            draw = self.loader.next(self.config.rows_per_batch)
            batch = self.rows.batch(draw.row_B, draw.epoch_B)
            tokens += batch.num_tokens()
            inputs.append(objective.prepare(batch, mask_id=self.mask_id, noise=self.noise))
        return inputs, tokens

    def _backward(
        self, objective: Objective, inputs: ModelInput, scores: tuple[TokenScores, ...], counts: dict[str, float]
    ) -> dict[str, float]:
        """Add the gradient of one micro-batch; returns the term sums (nats)."""
        sums = objective.loss(scores, inputs)
        parts = [
            term.scale / max(counts[term.name], 1.0) * value for term, value in zip(inputs.terms, sums, strict=True)
        ]
        torch.stack(parts).sum().backward()
        self.weights.collect()
        return {term.name: float(value.detach()) for term, value in zip(inputs.terms, sums, strict=True)}

    def _embedding_noise(self, inputs: ModelInput) -> Tensor | None:
        """Return the noise of the report's section 7.1 at this point of the run, or None."""
        settings = self.config.embedding_noise
        left = 1.0 - self.state.tokens / max(self.config.embedding_noise_tokens, 1)
        if settings.sigma == 0 or left <= 0:
            return None
        return embedding_noise(
            inputs,
            self.noise,
            hidden_size=self.loaded.config.model.hidden_size,
            deviation=settings.sigma * left * self.embedding_rms,
        )

    def _advance(self, stage: int, tokens: int, seconds: float) -> None:
        loader = self.loader.state
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            tokens=self.state.tokens + tokens,
            epoch=loader.epoch,
            position=loader.position,
            stage=stage,
            block_size=self.curriculum.stages[stage].block_size,
            validation={},
            ar_perplexity=None,
            seconds=self.state.seconds + seconds,
        )

    def _after_step(self, before: int) -> None:
        """Validate and save where the run has crossed a multiple of the configured tokens, and at its end.

        A checkpoint of the final block size is validated as well: the merge chooses by its perplexity.
        """
        now, last = self.state.tokens, self.state.tokens >= self.curriculum.total_tokens

        def crossed(every: int) -> bool:
            return bool(every) and now // every > before // every

        settings = self.config.checkpoint
        saving = last or crossed(settings.every_tokens)
        final = self.curriculum.stages[-1].block_size
        candidate = saving and settings.keep_best > 0 and self.state.block_size == final
        if last or candidate or crossed(self.config.validation.every_tokens):
            self._validate()
        if saving:
            self._save()

    def _validate(self) -> None:
        if self.validation_rows is None:
            return
        settings = self.config.validation
        final = self.curriculum.stages[-1].block_size
        sizes: list[int] = sorted({*settings.block_sizes, final or settings.block_sizes[0]})
        result: Perplexities = validate(
            self.model,
            self.validation_rows,
            block_sizes=sizes,
            parametrisation=self.parametrisation,
            mask_id=self.mask_id if isinstance(self.objective, BlockDiffusion) else None,
            seed=settings.seed,
            num_rows=settings.rows,
            rows_per_batch=settings.rows_per_batch,
            draws=settings.draws,
            autoregressive=settings.autoregressive,
            backend=self.config.attention,
        )
        figures = result.as_metrics()
        self.state = replace(self.state, validation=figures["perplexity"], ar_perplexity=figures["ar_perplexity"])
        self._record({"kind": "validation", "step": self.state.step, "tokens": self.state.tokens, **figures})

    def _save(self) -> None:
        updates: dict[str, Any] = {"block_size": self.state.block_size} if self.state.block_size else {}
        updates["difflm"] = {"recipe": self.config.recipe}
        folder = run_state.save_checkpoint(self.config.output, self.loaded, self.optimizer, self.state, updates=updates)
        final = self.curriculum.stages[-1].block_size
        settings = self.config.checkpoint
        run_state.prune(self.config.output, keep=settings.keep, keep_best=settings.keep_best, block_size=final)
        self.observer.message(f"checkpoint {folder}")

    def _record(self, row: dict[str, Any]) -> None:
        self.log.write(row)
        self.observer.update(row)

    def _describe(self) -> None:
        counts = self.rows.counts
        self.observer.message(
            f"data: {counts.documents} documents, {counts.tokens} tokens ({counts.trainable} trainable) in "
            f"{counts.rows} rows of {counts.row_length}, fill {counts.fill_rate:.0%}"
            + (f", {counts.split} split" if counts.split else "")
            + (f", {counts.dropped} dropped (first: {counts.first_dropped})" if counts.dropped else "")
        )
        if self.state.step:
            self.observer.message(f"resumed at step {self.state.step}, {self.state.tokens} tokens")


def train(config: ConfigLike, *, resume: Resume = "never", observer: Observer | None = None) -> Path:
    """Run a training configuration and return the folder of its last checkpoint, which loads as a model.

    Args:
        config: the run: a `TrainConfig`, the same tree as a mapping, or the path of a YAML file.
        resume: "auto" continues the run in its output folder from the newest complete checkpoint.
        observer: receives progress (e.g. `difflm.display.training_observer()`).

    Raises:
        DifflmError: input that cannot be used, or (NonFiniteError) a gradient that is not finite.
    """
    trainer = Trainer(as_config(config), resume=resume, observer=observer)
    run = trainer.config.output
    trainer.train()
    try:
        plot_training(run / "metrics.jsonl", run / "training.png")
    except ConfigError as error:
        trainer.observer.message(f"no picture of the run: {error}")
    return run_state.checkpoint_folders(run)[-1]
