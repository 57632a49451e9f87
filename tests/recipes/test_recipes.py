"""Every shipped recipe is a valid configuration, is what its name says, and runs dry on the meta device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.architectures import architecture, meta_model
from difflm.checkpoints.families import FAMILIES
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.models.adapters import adapter_parameters, attach_adapter
from difflm.models.attention import DenseAttention
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer
from difflm.recipes import recipe, recipe_names, recipe_path
from difflm.training.build import curriculum_of, objective_of
from difflm.training.config import (
    BlockDiffusionConfig,
    DraftingConfig,
    NextTokenConfig,
    PreferenceConfig,
    TrainConfig,
)
from difflm.training.config_io import config_from_tree, dump_config, parse_yaml
from difflm.training.lora import sites_of
from difflm.training.parameters import plan_parameters
from difflm.types import PADDING, Parametrisation
from tests.rows import batch_of

# Recipe -> (architecture it is written for, parameters, tokens of an optimiser step).
WRITTEN_FOR = {
    "llada2_mini": ("llada2.0-mini", 16_255_638_528, 2**21),
    "llada2_flash": ("llada2.0-flash", 102_889_697_280, 2**21),
    "qwen3_0_6b": ("qwen3-0.6b", 596_049_920, 2**19),
    "llama3_2_1b": ("llama-3.2-1b", 1_235_814_400, 2**19),
    "smollm2": ("smollm2-135m", 134_515_008, 2**17),
    "laptop-wsd": ("smollm2-135m", 134_515_008, 2**9),
    "laptop": ("smollm2-135m", 134_515_008, 2**9),
}
LLADA2 = [1, 4, 32, 64, "row", 2048, 1024, 256, 32]


def made(name: str) -> TrainConfig:
    return recipe(name, model="m", output="o", data="d")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_measured_and_survives_its_dump(name: str) -> None:
    config = made(name)
    assert config_from_tree(parse_yaml(dump_config(config), where=name)) == config
    assert config.data.validation_fraction > 0, "merge needs validated checkpoints"
    assert config.checkpoint.every_tokens > 0
    last = config.curriculum[-1].tokens
    assert last >= 2 * config.checkpoint.every_tokens, "the last stage gives merge something to average"
    assert config.recipe == name


@pytest.mark.parametrize("name", ["llada2_mini", "llada2_flash", "paper-wsd"])
def test_the_papers_ladder(name: str) -> None:
    config = made(name)
    assert [stage.block_size for stage in config.curriculum] == LLADA2
    assert config.block_sizes[4] == config.data.row_length == 4096
    assert config.embedding_noise.sigma > 0
    assert config.objective == BlockDiffusionConfig(), "exact counts, ELBO weights, blocks per document"


@pytest.mark.parametrize("name", ["paper-wsd", *sorted(set(WRITTEN_FOR) - {"laptop", "laptop-wsd"})])
def test_budgets_are_10_70_20_and_the_noise_ends_with_the_warm_up(name: str) -> None:
    config = made(name)
    top = [stage.block_size for stage in config.curriculum].index("row")
    parts = (config.curriculum[:top], config.curriculum[top : top + 1], config.curriculum[top + 1 :])
    shares = [sum(stage.tokens for stage in part) / config.total_tokens for part in parts]
    assert shares == pytest.approx([0.1, 0.7, 0.2])
    assert config.embedding_noise.stages == top


@pytest.mark.parametrize("name", ["laptop-wsd", "qwen3_0_6b", "llama3_2_1b", "smollm2"])
def test_the_other_ladders_have_the_same_shape(name: str) -> None:
    sizes = [stage.block_size for stage in made(name).curriculum]
    top = sizes.index("row")
    growing = [size for size in sizes[:top] if isinstance(size, int)]
    falling = [size for size in sizes[top + 1 :] if isinstance(size, int)]
    assert growing == sorted(set(growing)), "grows"
    assert falling == sorted(set(falling), reverse=True), "falls"
    assert growing[0] == 1
    assert len(falling) > 1


@pytest.mark.parametrize("name", ["llada2_mini", "llada2_flash"])
def test_every_field_of_the_full_recipes_says_where_it_is_from(name: str) -> None:
    path = recipe_path(name)
    assert path is not None
    text = path.read_text()
    assert "a choice, since the\n# report is silent" in text
    assert {mark for mark in ("[report", "[public]", "[ours]") if mark in text} == {"[report", "[public]", "[ours]"}


@pytest.mark.parametrize("name", sorted(WRITTEN_FOR))
def test_dry_run_of_the_whole_recipe_on_the_meta_device(name: str) -> None:
    """Model, optimiser plan, steps, and at each stage one prepared row and its forward: shapes only."""
    config = made(name)
    architecture_name, count, step_tokens = WRITTEN_FOR[name]
    model = meta_model(architecture_name)
    facts = architecture(architecture_name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert all(parameter.is_meta for parameter in model.parameters())
    assert facts.max_positions >= config.data.row_length
    plans = plan_parameters(model, config.optimizer, mask_id=facts.vocab_size - 1)
    assert sum(plan.parameter.numel() for plan in plans if not plan.frozen) == count
    tokens_per_step = config.rows_per_batch * config.accumulation * config.data.row_length
    assert tokens_per_step == step_tokens
    assert all(math.ceil(stage.tokens / tokens_per_step) >= 5 for stage in config.curriculum), "steps of each stage"
    for stage in curriculum_of(config).stages:
        assert stage.block_size is not None
        assert config.data.row_length % stage.block_size == 0
    shapes = _prepared_shapes(config, vocabulary=facts.vocab_size)
    # A mixture sorts tokens by expert, which plain meta tensors do not know: fake tensors stand on the CPU.
    with FakeTensorMode() if facts.moe else torch.device("meta"):
        runner = _in_bfloat16(facts)
        for shape in sorted(shapes):
            tokens = torch.zeros(shape, dtype=torch.int64)
            hidden = runner(tokens, tokens, DenseAttention(torch.ones(1, 1, shape[1], shape[1], dtype=torch.bool)))
            assert hidden.shape == (*shape, facts.hidden_size)


def _in_bfloat16(facts: ModelConfig) -> Transformer:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return Transformer(facts)
    finally:
        torch.set_default_dtype(before)


def _prepared_shapes(config: TrainConfig, *, vocabulary: int) -> set[tuple[int, int]]:
    """Prepare a synthetic row at every stage and return the shapes of the model's inputs."""
    length, shapes = config.data.row_length, set()
    batch = batch_of([[length // 2, length // 3, length // 8]], row_length=length)
    chosen = config.objective
    co_loss = isinstance(chosen, BlockDiffusionConfig) and chosen.ar_weight > 0
    objective = objective_of(config, Parametrisation(clean_attention="causal" if co_loss else "block"))
    assert isinstance(objective, BlockDiffusion)
    for stage in curriculum_of(config).stages:
        staged = replace(objective, block_size=stage.block_size)
        inputs = staged.prepare(batch, mask_id=vocabulary - 1, noise=RowNoise(config.seed))
        two_streams = stage.block_size != length or staged.ar_weight > 0
        views = 2 if objective.complementary and stage.block_size != 1 else 1
        noisy, place_BW = inputs.layout.noisy_length, inputs.layout.place_BW
        rows = views if place_BW is None else 1
        assert inputs.token_BN.shape == (rows, noisy + length)
        assert noisy <= (1 if place_BW is None else views) * length
        assert (noisy > 0) == two_streams
        assert int(inputs.masked_BN.sum()) > 0
        empty = inputs.layout.document_BL if place_BW is None else place_BW
        assert not bool(inputs.masked_BN[:, : empty.shape[1]][empty == PADDING].any())
        assert inputs.terms[0].row_M.numel() == int(inputs.masked_BN.sum()), "the loss is on the masks"
        shapes.add((rows, inputs.token_BN.shape[1]))
    return shapes


def test_fine_tuning_masks_complementary_pairs_of_the_answer() -> None:
    config = made("sft")
    assert isinstance(config.objective, BlockDiffusionConfig)
    assert config.objective.complementary
    assert config.objective.weighting == "uniform"
    assert sum(config.objective.band) == 1.0, "symmetric, so that both views lie in the band"
    assert config.fill_multiple == 32


def test_each_stage_begins_at_the_learning_rate_at_which_the_one_before_it_ends() -> None:
    sft, cap, dpo = (made(name) for name in ("sft", "cap", "dpo"))
    for before in (sft, cap):
        last = before.optimizer.learning_rate * before.lr_schedule.final_ratio
        assert dpo.optimizer.learning_rate == pytest.approx(last)
    assert isinstance(dpo.objective, PreferenceConfig)
    assert dpo.objective.beta == 0.1
    assert isinstance(cap.objective, BlockDiffusionConfig)
    assert cap.objective.confidence is not None
    assert cap.objective.confidence.weight == 2.0


def test_the_control_has_no_blocks() -> None:
    config = made("next-token")
    assert config.objective == NextTokenConfig()
    assert config.block_sizes == (None,)
    assert config.fill_multiple is None


def test_the_lossless_recipe_leaves_the_base_alone_and_runs_dry() -> None:
    config = made("lossless_smollm2")
    assert isinstance(config.objective, DraftingConfig)
    assert config.lora is not None
    assert config.lora.adapter_rows == "noisy"
    assert config.objective.ar_weight == 0
    facts = architecture("smollm2-135m")
    layout = adapter_layout(FAMILIES["llama"], facts)
    sites = sites_of(config.lora, layout, family="llama")
    with torch.device("meta"):
        model = Transformer(facts)
    lora = config.lora
    attach_adapter(model, sites, token_ids=(0,), gate=lora.adapter_rows, draft_rank=lora.draft_head)
    numbers = sum(each.numel() for each in adapter_parameters(model).values())
    assert 2 * numbers < 20e6, "bytes in bfloat16"
    trained = [plan for plan in plan_parameters(model, config.optimizer) if not plan.frozen]
    assert {id(plan.parameter) for plan in trained} == set(map(id, adapter_parameters(model).values()))
    parametrisation = Parametrisation(logit_shift=True, clean_attention="causal", noisy_attention="causal")
    objective = objective_of(config, parametrisation)
    batch = batch_of([[120, 80], [250]], row_length=config.data.row_length, prompts=[[40, 20], [100]])
    inputs = objective.prepare(batch, mask_id=facts.vocab_size - 1, noise=RowNoise(config.seed))
    assert inputs.token_BN.shape == (2, 512)
    assert len(inputs.terms) == 1
    assert inputs.layout.noisy_length == 256
    per_step = config.rows_per_batch * config.accumulation * inputs.layout.noisy_length
    assert per_step == 512
    assert [stage.block_size for stage in config.curriculum] == [4, 8]
