"""Configuration -> objects of the maths: objective and curriculum of a run; what it asks of model and machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from difflm.checkpoints.hf import listed
from difflm.checkpoints.loading import LoadedModel, resolve_dtype
from difflm.diffusion.confidence import ConfidenceAware
from difflm.diffusion.curriculum import BlockCurriculum, Stage, lookahead_at
from difflm.diffusion.noise import Bernoulli, CosineSchedule, ExactCount, LinearSchedule, Noise
from difflm.diffusion.objectives import BlockDiffusion, NextToken, Objective
from difflm.diffusion.preference import DirectPreference
from difflm.diffusion.windows import Drafting
from difflm.errors import ConfigError
from difflm.models.attention import backend_for
from difflm.training.config import (
    BlockDiffusionConfig,
    DraftingConfig,
    NextTokenConfig,
    PreferenceConfig,
    TrainConfig,
)
from difflm.training.nonfinite import weights_not_finite
from difflm.training.router import check_routers
from difflm.types import Parametrisation

ObjectiveWrapper = Callable[[Objective], Objective]
"""From the objective that the configuration gives a stage to the one to train on: how a run takes one of yours."""


def objective_of(config: TrainConfig, parametrisation: Parametrisation) -> Objective:
    """Return the objective of a run; its block size is set from the curriculum, step by step."""
    chosen = config.objective
    if isinstance(chosen, NextTokenConfig):
        return NextToken()
    if isinstance(chosen, PreferenceConfig):
        return DirectPreference(
            block_size=None,
            beta=chosen.beta,
            samples=chosen.samples,
            length_normalised=chosen.length_normalised,
            block_origin=chosen.block_origin,
            parametrisation=parametrisation,
        )
    if isinstance(chosen, DraftingConfig):
        window = config.block_sizes[0]
        assert window is not None, "checked with the configuration"
        return Drafting(
            window=window,
            noise=chosen.noise,
            draft_loss=chosen.draft_loss,
            noisy_rows=chosen.noisy_rows or config.data.row_length,
            ar_weight=chosen.ar_weight,
            diffusion_weight=chosen.diffusion_weight,
            parametrisation=parametrisation,
        )
    if chosen.annealing_tokens and parametrisation.noisy_attention == "causal":
        raise ConfigError(
            f"train.objective.annealing_tokens: {chosen.annealing_tokens} has no meaning for a model whose "
            "noisy_attention is 'causal'; set it to 0"
        )
    noise: Noise = ExactCount(stratified=chosen.stratified)
    if chosen.noise == "bernoulli":
        schedule = LinearSchedule() if chosen.schedule == "linear" else CosineSchedule()
        noise = Bernoulli(
            schedule=schedule, bandwidth=chosen.band, min_masks=chosen.min_masks, stratified=chosen.stratified
        )
    base = BlockDiffusion(
        block_size=None,
        noise=noise,
        time_per=chosen.time_per,
        weighting=chosen.weighting,
        cart_p=chosen.cart_p,
        complementary=chosen.complementary,
        views=chosen.views,
        shared=True,
        ar_weight=chosen.ar_weight,
        block_origin=chosen.block_origin,
        parametrisation=parametrisation,
    )
    wanted = chosen.confidence
    if wanted is None:
        return base
    return ConfidenceAware(
        base=base, weight=wanted.weight, temperature=wanted.temperature, normaliser=wanted.normaliser
    )


def at_block_size(objective: Objective, config: TrainConfig, block_size: int | None, *, tokens: int) -> Objective:
    """Return the objective of a run as it is at one point of it.

    Args:
        objective: of `objective_of`.
        config: of the run.
        block_size: of the stage, tokens.
        tokens: training tokens done.
    """
    if isinstance(objective, BlockDiffusion):
        return replace(objective, block_size=block_size, lookahead=annealed_view(config, block_size, tokens))
    if isinstance(objective, ConfidenceAware):
        base = at_block_size(objective.base, config, block_size, tokens=tokens)
        assert isinstance(base, BlockDiffusion), "an objective stays of its kind"
        return replace(objective, base=base)
    if isinstance(objective, DirectPreference):
        return replace(objective, block_size=block_size)
    if isinstance(objective, Drafting):
        assert block_size is not None, "a stage of drafting has a window"
        return replace(objective, window=block_size)
    return objective


def annealed_view(config: TrainConfig, block_size: int | None, tokens: int) -> int | None:
    """Return how far a row sees ahead inside its block after `tokens` training tokens; None is the whole block."""
    chosen = config.objective
    annealing = chosen.annealing_tokens if isinstance(chosen, BlockDiffusionConfig) else 0
    return lookahead_at(tokens, annealing_tokens=annealing, block_size=block_size or config.data.row_length)


def curriculum_of(config: TrainConfig) -> BlockCurriculum:
    """Return the curriculum of a run, "row" resolved to one block per row."""
    sizes = config.block_sizes
    return BlockCurriculum(
        tuple(Stage(size, stage.tokens) for size, stage in zip(sizes, config.curriculum, strict=True))
    )


def set_threads(threads: int | None) -> None:
    """Use `threads` CPU threads; None: OMP_NUM_THREADS where it is set, else the cores this process may run on."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": one number for each nested level
    if threads is None and told.isdecimal() and int(told) > 0:
        threads = int(told)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    torch.set_num_threads(threads or cores)


def check_model(config: TrainConfig, loaded: LoadedModel) -> None:
    """Refuse a model that a run cannot be done with.

    Raises:
        ConfigError: weights that are not finite, no mask token for a masked objective, a context shorter than a row,
            settings of routers that it does not have, or an attention backend that does not work for it.
    """
    model = loaded.config.model
    broken = weights_not_finite(loaded.model)
    if broken:
        raise ConfigError(
            f"train.model: {config.model} has weights that are not finite ({listed(broken, 3)}); use another checkpoint"
        )
    if not isinstance(config.objective, NextTokenConfig) and loaded.config.mask_token_id is None:
        raise ConfigError(f"train.model: {config.model} has no mask token; convert it first (difflm convert)")
    if model.max_positions < config.data.row_length:
        raise ConfigError(
            f"train.data.row_length: {config.data.row_length} exceeds the model's context of {model.max_positions} "
            "tokens; lower it"
        )
    check_routers(config, loaded)
    backend_for(
        config.attention,
        device=config.device,
        dtype=resolve_dtype(config.dtype),
        head_dim=model.head_dim,
        backward=True,
        field="train.attention",
    )
