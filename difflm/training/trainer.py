"""The one trainer: prepare, forward, sum, divide by a counted normaliser, step.

Objectives differ only in `config.objective`; the block size comes from the curriculum.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel, check_device, load_model, resolve_dtype
from difflm.data.loader import Loader, LoaderState
from difflm.data.mixture import row_order
from difflm.diffusion.noise import RowNoise, embedding_noise
from difflm.diffusion.objectives import NextToken, Objective
from difflm.diffusion.windows import Drafting
from difflm.errors import ConfigError
from difflm.scoring import score_input
from difflm.training import state as run_state
from difflm.training.build import ObjectiveWrapper, at_block_size, check_model, curriculum_of, objective_of, set_threads
from difflm.training.config import BlockDiffusionConfig, TrainConfig
from difflm.training.config_io import checked
from difflm.training.lora import give_adapter
from difflm.training.metrics import MetricsLog, Observer, Silent, peak_memory
from difflm.training.nonfinite import BadStep, examine, is_bad, require_budget, require_finite_weights
from difflm.training.optim import MasterWeights, Optimizer, learning_rate_ratio, working_copy
from difflm.training.origin import continued_state
from difflm.training.parameters import plan_parameters
from difflm.training.preferences import Preferences
from difflm.training.router import ForwardProbe, RouterStep
from difflm.training.rows import describe_rows, load_rows
from difflm.training.run_folder import Resume, check_run, open_run
from difflm.training.samples import Sampler, sample_rows, summary_row, take_samples
from difflm.training.signals import StopRequest, interrupted
from difflm.training.tally import StepTally
from difflm.training.tracking import Boards
from difflm.training.validation import Perplexities, validate
from difflm.types import ModelInput, TokenScores


class Trainer:
    """A training run, from its configuration to its last checkpoint.

    Args:
        config: the run.
        resume: "never" starts anew in an empty folder; "auto" continues from the newest complete checkpoint of the
            folder, or starts if there is none.
        observer: receives progress.
        objective: one of your own, made from each stage's configured objective; None takes that as it is.
        sampler: completes the prompts of config.samples.

    Raises:
        ConfigError, CheckpointError, DataError: input that cannot be used; nothing is written before these checks.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        resume: Resume = "never",
        observer: Observer | None = None,
        objective: ObjectiveWrapper | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.config = checked(config)
        self.sampler = sampler
        if config.samples.every_tokens and sampler is None:
            raise ConfigError(
                f"train.samples.every_tokens: {config.samples.every_tokens}, but this trainer was given no sampler; "
                "use difflm.train or the command line, or set it to 0"
            )
        self.wrapper = objective
        self.observer: Observer = observer or Silent()
        check_run(config, resume)
        self.boards = Boards(self.config, say=self.observer.message)
        set_threads(config.threads)
        check_device(config.device, field="train.device")
        parent = load_model(
            config.model,
            device=config.device,
            dtype=config.dtype if config.lora else "float32",  # a base that does not learn needs no masters
            rope_scaling=config.rope_scaling,
            revision=config.revision,
        )
        check_model(config, parent)
        self.parametrisation = parent.config.parametrisation
        self.mask_id = parent.config.mask_token_id
        chosen = config.objective
        self.suppressed_id = self.mask_id if isinstance(chosen, BlockDiffusionConfig) and chosen.suppress_mask else None
        self.objective = objective_of(config, self.parametrisation)
        self.curriculum = curriculum_of(config)
        self.rows, self.validation_rows = load_rows(config, parent)
        give_adapter(config, parent)
        self.preferences = Preferences(config, parent)
        plan_parameters(parent.model, config.learning, mask_id=self.mask_id)  # for its errors
        self.loaded = parent
        # Of the model the run starts from, so that a resumed run adds the same noise.
        self.embedding_rms = float(parent.model.embedding.weight.detach().float().pow(2).mean().sqrt())
        self.run = open_run(config, resume)
        try:
            self.state = continued_state(
                self.run.checkpoint,
                parent,
                data=self.rows.fingerprint,
                validation_data=self.validation_rows.fingerprint if self.validation_rows else "",
                model=config.model,
            )
            self._start_engine(self.run.checkpoint)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the run folder back to other processes."""
        self.boards.close()
        self.run.lock.close()

    @property
    def finished(self) -> bool:
        """Return whether the curriculum is at its end."""
        return self.state.tokens >= self.curriculum.total_tokens

    def _start_engine(self, checkpoint: Path | None) -> None:
        """Build what holds mutable state: weights, optimiser, row loader, log."""
        config = self.config
        master = self.loaded.model.requires_grad_(True).train()
        # Before the working copy is made: the optimiser freezes parameters, the copy must know.
        self.optimizer = Optimizer(master, config.learning, mask_id=self.mask_id)
        dtype = resolve_dtype(config.dtype)
        self.model = working_copy(master, dtype)
        self.weights = MasterWeights(master, self.model)
        if checkpoint:
            run_state.load_moments(checkpoint, self.optimizer)
        run_state.require_space(config.output, self.loaded, self.optimizer)
        self.began = self.state.step
        order = row_order(self.rows, seed=config.seed, shuffle=config.data.shuffle)
        self.loader = Loader(order, LoaderState(epoch=self.state.epoch, position=self.state.position))
        self.noise = RowNoise(config.seed)
        self.boards.open(self.state.step)  # it reads metrics.jsonl before it is cut
        self.log = MetricsLog(config.output / "metrics.jsonl", step=self.state.step)
        if config.samples.every_tokens:
            self.samples = MetricsLog(config.output / "samples.jsonl", step=self.state.step)

    def train(self) -> LoadedModel:
        """Run to the end of the curriculum and return the trained model (float32 weights).

        Raises:
            NonFiniteError: a loss or a gradient that is not finite (see `train.nonfinite`).
            Interrupted: SIGINT or SIGTERM arrived; the step at hand was finished and saved.
            CheckpointError: a checkpoint could not be written; earlier ones are whole.
        """
        self.observer.start(self.curriculum.total_tokens, self.state.tokens)
        try:
            with self.boards, StopRequest() as stop:
                self._run(stop)
        finally:
            self.observer.close()
        return self.loaded

    def _run(self, stop: StopRequest) -> None:
        self._describe()
        if self.state.step == 0:
            self._validate()
            self._sample()  # a prompt that cannot be completed is refused now
        while not self.finished:
            before = self.state.tokens
            metrics = self.train_step()
            if self.state.step % self.config.log_every == 0 or metrics["kind"] == "skipped":
                self._record(metrics)
            saved = self._after_step(before)
            if stop.received and not self.finished:
                raise interrupted(stop.received, saved or self._save(), step=self.state.step)

    def train_step(self) -> dict[str, Any]:
        """Do one optimiser step; return its metrics (a row of metrics.jsonl)."""
        started = time.perf_counter()
        stage = self.curriculum.stage_at(self.state.tokens)
        objective = self.objective_at(stage)
        inputs, tokens = self._draw(objective)
        tally = StepTally()
        self.preferences.restart()
        noisy_only = self.loaded.model.adapter_gate == "noisy"
        moe = self.loaded.config.model.moe
        routers = RouterStep(self.config.router, moe, device=self.config.device, noisy_only=noisy_only)
        for each in inputs:
            routers.expect(each)
            for term in each.terms:
                tally.expect(term)
        if tally.counting and len(inputs) > 1:
            with torch.no_grad():
                for each in inputs:
                    tally.count(each, self._score(each))
            tally.counting = False
        for each in inputs:
            self._backward(objective, each, tally, routers)
        norm = float(self.optimizer.clip())
        losses = tally.losses() | routers.losses()
        if is_bad(losses, norm):
            bad = self._refuse(inputs, losses, norm)
            self._advance(stage, tokens, time.perf_counter() - started)
            return bad | {"num_tokens": self.state.tokens, "seconds": self.state.seconds}
        done = self.state.tokens + tokens
        ratio = learning_rate_ratio(self.config.lr_schedule, done, self.curriculum.total_tokens)
        rate = self.optimizer.step(ratio)
        routers.update_biases(self.loaded.model)
        self.weights.publish()
        seconds = time.perf_counter() - started
        self._advance(stage, tokens, seconds)
        size = self.curriculum.stages[stage].block_size
        return {
            "kind": "train",
            "step": self.state.step,
            "num_tokens": self.state.tokens,
            "epoch": self.state.epoch,
            "stage": stage,
            "block_size": size,
            **tally.row(block_size=size),
            **self.preferences.row(),
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "memory_bytes": peak_memory(self.config.device),
            "seconds": self.state.seconds,
            **routers.row(),
        }

    def _refuse(self, inputs: list[ModelInput], losses: dict[str, float], norm: float) -> dict[str, Any]:
        """Leave out a step that is not finite: weights and optimiser stay as they are; returns its row of metrics."""
        step = self.state.step + 1
        bad = BadStep(step=step, first=self.state.step == self.began, inputs=inputs, losses=losses, norm=norm)
        found = examine(bad, config=self.config, model=self.loaded.model, rows=self.rows, score=self._score)
        self.loaded.model.zero_grad(set_to_none=True)
        settings = self.config.nonfinite
        require_budget(found, settings, skipped=self.state.skipped)
        self.state = replace(self.state, skipped=self.state.skipped + 1)
        counts = {"skipped": self.state.skipped, "budget": settings.budget}
        return {"kind": "skipped", "step": step, **counts, "reason": found.text}

    def _score(self, inputs: ModelInput, probe: ForwardProbe | None = None) -> tuple[TokenScores, ...]:
        return score_input(
            self.model,
            inputs,
            chunk=self.config.head_chunk_rows,
            suppressed_id=self.suppressed_id,
            backend=self.config.attention,
            embedding_noise_BND=self._embedding_noise(inputs),
            activation_checkpointing=self.config.activation_checkpointing,
            probe=probe,
        )

    def objective_at(self, stage: int) -> Objective:
        """Return the objective with the block size of a stage, and the view inside it at this point of the run."""
        size = self.curriculum.stages[stage].block_size
        chosen = at_block_size(self.objective, self.config, size, tokens=self.state.tokens)
        return self.wrapper(chosen) if self.wrapper else chosen

    def _draw(self, objective: Objective) -> tuple[list[ModelInput], int]:
        """Draw the rows of one step and prepare them; returns (micro-batches, training tokens)."""
        inputs, tokens = [], 0
        for _ in range(self.config.accumulation):
            draw = self.loader.next(self.config.rows_per_batch)
            batch = self.rows.batch(draw.row_B, draw.epoch_B)
            tokens += batch.num_tokens()
            inputs.append(objective.prepare(batch, mask_id=self.mask_id, noise=self.noise))
        return inputs, tokens

    def _backward(self, objective: Objective, inputs: ModelInput, tally: StepTally, routers: RouterStep) -> None:
        """Forward one micro-batch, add its gradient, and its figures to the tallies."""
        probe = routers.probe(inputs)
        scores = self._score(inputs, probe)
        inputs = self.preferences.compared(self.model, objective, scores, inputs)
        if tally.counting:  # the only micro-batch: its own forward tells
            tally.count(inputs, scores)
        sums = objective.loss(scores, inputs)
        parts = [tally.share(term) * value for term, value in zip(inputs.terms, sums, strict=True)]
        torch.stack([*parts, *routers.add(probe)]).sum().backward()
        self.weights.collect()
        tally.add(inputs, scores, sums)

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

    def _after_step(self, before: int) -> Path | None:
        """Validate and save where the run has crossed a multiple of the configured tokens, and at its end.

        Returns the checkpoint that it wrote, if any.

        A checkpoint of the final block size is validated as well: the merge chooses by its perplexity.
        """
        now, last = self.state.tokens, self.finished

        def crossed(every: int) -> bool:
            return bool(every) and now // every > before // every

        settings = self.config.checkpoint
        saving = last or crossed(settings.every_tokens)
        final = self.curriculum.stages[-1].block_size
        candidate = saving and settings.keep_best > 0 and self.state.block_size == final
        if last or candidate or crossed(self.config.validation.every_tokens):
            self._validate()
        if last or crossed(self.config.samples.every_tokens):
            self._sample()
        return self._save() if saving else None

    def _validate(self) -> None:
        if self.validation_rows is None:
            return
        require_finite_weights(self.loaded.model, step=self.state.step)
        settings = self.config.validation
        final = self.curriculum.stages[-1].block_size
        drafting = self.objective if isinstance(self.objective, Drafting) else None
        sizes: list[int] = sorted({*(() if drafting else settings.block_sizes), final or settings.block_sizes[0]})
        result: Perplexities = validate(
            self.model,
            self.validation_rows,
            block_sizes=sizes,
            parametrisation=self.parametrisation,
            mask_id=None if isinstance(self.objective, NextToken) else self.mask_id,
            seed=settings.seed,
            num_rows=settings.rows,
            rows_per_batch=settings.rows_per_batch,
            draws=settings.draws,
            autoregressive=settings.autoregressive,
            backend=self.config.attention,
            drafting=drafting,
        )
        figures = result.as_metrics()
        figures |= self.preferences.validate(
            self.model, self.validation_rows, self.objective_at(-1), mask_id=self.mask_id, say=self.observer.message
        )
        self.state = replace(self.state, validation=figures["perplexity"], ar_perplexity=figures["ar_perplexity"])
        self._record({"kind": "validation", "step": self.state.step, "num_tokens": self.state.tokens, **figures})

    def _sample(self) -> None:
        """Write completions of the configured prompts, decoded at the run's last block size."""
        settings, size = self.config.samples, self.curriculum.stages[-1].block_size
        if self.sampler is None or not settings.every_tokens:
            return
        found = take_samples(self.sampler, self.loaded, self.model, settings, block_size=size)
        where = {"kind": "samples", "step": self.state.step, "num_tokens": self.state.tokens}
        for row in sample_rows(found):
            self.samples.write({**where, **row})
        self._record({**where, **summary_row(found)})

    def _save(self) -> Path:
        require_finite_weights(self.loaded.model, step=self.state.step)
        folder, problems = run_state.keep_checkpoint(self.config, self.loaded, self.optimizer, self.state)
        for text in [f"checkpoint {folder}", *problems]:
            self.observer.message(text)
        return folder

    def _record(self, row: dict[str, Any]) -> None:
        self.log.write(row)
        self.boards.log(row)
        self.observer.update(row)

    def _describe(self) -> None:
        for line in describe_rows(self.rows):
            self.observer.message(line)
        self.observer.message(f"optimizer: {self.optimizer.describe()}")
        for note in self.run.notes:
            self.observer.message(note)
        if self.state.step:
            self.observer.message(f"resumed at step {self.state.step}, {self.state.tokens} tokens")
