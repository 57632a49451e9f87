"""Memory terms against torch: bytes of parameters and optimiser exactly, activations tensor by tensor."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.families import FAMILIES
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.estimate.memory import ParameterMemory, StepMemory, parameter_memory, peak_memory_of, step_memory
from difflm.models.adapters import adapter_parameters, attach_adapter
from difflm.models.attention import AttentionBackend
from difflm.models.config import ModelConfig, MoEConfig, RopeConfig
from difflm.models.transformer import Transformer
from difflm.scoring import forward_hidden
from difflm.training.config import OptimizerConfig
from difflm.training.config_lora import LoRAConfig
from difflm.training.lora import sites_of
from difflm.training.optim import Optimizer, working_copy
from difflm.types import Batch, ModelInput

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=48, intermediate_size=112, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8,
    norm_eps=1e-5, rope=RopeConfig(), max_positions=512, tied_embeddings=True,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, qk norm, biases": {"tied_embeddings": False, "qk_norm": True, "qkv_bias": True},
    "wide heads": {"num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "num_layers": 3},
}
DTYPES = [torch.float32, torch.bfloat16]


def micro_batch(block_size: int | None, *, length: int = 320) -> ModelInput:
    """Return two rows of two documents each."""
    position = torch.cat([torch.arange(200), torch.arange(length - 200)]).expand(2, length).clone()
    document = torch.cat([torch.zeros(200), torch.ones(length - 200)]).long().expand(2, length).clone()
    batch = Batch(
        token_BL=torch.zeros_like(position), document_BL=document, position_BL=position,
        trainable_BL=torch.ones_like(position, dtype=torch.bool), row_B=torch.arange(2), epoch_B=torch.zeros(2).long(),
    )  # fmt: skip
    return BlockDiffusion(block_size=block_size).prepare(batch, mask_id=299, noise=RowNoise(0))


def kept_bytes(model: Transformer, inputs: ModelInput, backend: AttentionBackend) -> int:
    """Return the bytes of everything autograd keeps for the backward, each storage once, parameters left out."""
    seen: dict[int, tuple[int, Tensor]] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: an address stands for one storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward_hidden(model, inputs.token_BN, inputs.position_BN, inputs.layout, backend=backend)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_parameters_and_optimiser_are_exact(name: str, dtype: torch.dtype, kind: str) -> None:
    shape = replace(SHAPE, **SHAPES[name])
    settings = OptimizerConfig(kind=kind, freeze=("layers.0.*",))  # type: ignore[arg-type]
    found = parameter_memory(shape, settings, dtype=dtype)
    master = Transformer(shape)
    optimizer = Optimizer(master, settings, mask_id=None)
    working = master if dtype == torch.float32 else copy.deepcopy(master).to(dtype)
    assert found.weights == sum(each.nbytes for each in working.parameters())
    assert found.parameters == found.active == sum(each.numel() for each in master.parameters())
    assert found.masters == (0 if working is master else sum(each.nbytes for each in master.parameters()))
    assert found.optimizer == sum(each.nbytes for each in optimizer.named_state().values())
    hidden = forward_hidden(working, *_first(micro_batch(8)))
    (working.head(hidden).float().sum() if not shape.tied_embeddings else hidden.float().sum()).backward()
    gradients = sum(each.grad.numel() for each in working.parameters() if each.grad is not None)
    assert found.gradients == 4 * gradients
    assert found.working_gradients == (0 if working is master else 2 * gradients)
    assert found.embedding_gradient == master.embedding.weight.numel() * dtype.itemsize


def _first(inputs: ModelInput) -> tuple[Any, ...]:
    return inputs.token_BN, inputs.position_BN, inputs.layout


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["split", "dense", "portable"])
@pytest.mark.parametrize("block_size", [8, None])
def test_activations_are_what_autograd_keeps(
    name: str, dtype: torch.dtype, backend: AttentionBackend, block_size: int | None
) -> None:
    shape, inputs = replace(SHAPE, **SHAPES[name]), micro_batch(block_size)
    found = step_memory(
        shape, inputs, dtype=dtype, backend=backend, activation_checkpointing=False, head_chunk=512
    ).activations
    # The final hidden states and the scored rows of them are the head's: no hook sees them here.
    rows = inputs.token_BN.numel() + sum(term.row_M.numel() for term in inputs.terms)
    found -= rows * shape.hidden_size * dtype.itemsize
    assert found == pytest.approx(kept_bytes(Transformer(shape).to(dtype), inputs, backend), rel=0.01)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer_anew() -> None:
    inputs = micro_batch(8)
    plain, saving = (
        step_memory(SHAPE, inputs, dtype=torch.float32, backend="split", activation_checkpointing=each, head_chunk=512)
        for each in (False, True)
    )
    layers = SHAPE.num_layers
    inputs_of_layers = layers * inputs.token_BN.numel() * SHAPE.hidden_size * 4
    assert plain.activations - layers * plain.layer == saving.activations - inputs_of_layers
    assert (plain.recomputed, saving.recomputed) == (0, plain.layer)


LING = MoEConfig(
    num_experts=8, experts_per_token=2, expert_size=32, score="sigmoid", groups=4, groups_kept=2, expert_bias=True,
    scaling=2.5, shared_experts=1, shared_size=32, dense_layers=(0,),
)  # fmt: skip
QWEN = MoEConfig(num_experts=16, experts_per_token=4, expert_size=24, score="softmax")


def test_experts_that_a_token_does_not_pass_are_idle() -> None:
    shape = replace(SHAPE, num_layers=3, moe=LING)
    found = parameter_memory(shape, OptimizerConfig(), dtype=torch.float32)
    assert found.parameters == sum(each.numel() for each in Transformer(shape).parameters())
    assert found.parameters - found.active == 2 * 6 * 3 * 48 * 32
    assert found.gradients == found.weights == 4 * found.parameters, "every expert has a gradient, met or not"
    counters = 4 * len(list(Transformer(shape).parameters()))
    assert found.optimizer == 8 * found.parameters + counters


@pytest.mark.parametrize("moe", [LING, QWEN, replace(QWEN, normalise=False)], ids=["ling", "qwen", "not normalised"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_routed_tokens_are_kept_as_autograd_keeps_them(moe: MoEConfig, dtype: torch.dtype) -> None:
    """Sorted copies, router and shared expert among them."""
    inputs, shape = micro_batch(8), replace(SHAPE, num_layers=3, moe=moe)
    step = step_memory(shape, inputs, dtype=dtype, backend="split", activation_checkpointing=False, head_chunk=512)
    rows = inputs.token_BN.numel() + sum(term.row_M.numel() for term in inputs.terms)
    kept = kept_bytes(Transformer(shape).to(dtype), inputs, "split")
    assert step.activations - rows * 48 * dtype.itemsize == pytest.approx(kept, rel=0.002)


def test_peaks_count_gradients_where_they_lie() -> None:
    parameters = ParameterMemory(
        parameters=1, active=1, weights=10, masters=0, gradients=20, working_gradients=0, optimizer=40,
        embedding_gradient=3,
    )  # fmt: skip
    step = StepMemory(activations=100, layer=7, recomputed=0, logits=5, masks=1)
    once, twice = (peak_memory_of(parameters, step, accumulation=each) for each in (1, 2))
    assert once == {"start of the backward pass": 156, "end of the backward pass": 81, "update": 71}
    assert twice["start of the backward pass"] == 176, "gradients of the micro-batch before"
    beside = peak_memory_of(replace(parameters, reference=9), step, accumulation=1)
    assert beside == {name: value + 9 for name, value in once.items()}
    narrow = replace(parameters, masters=20, working_gradients=10)
    assert peak_memory_of(narrow, step, accumulation=2)["end of the backward pass"] == 71 + 20 + 10 + 7 + 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "llada2_moe"])
def test_parameters_of_a_run_with_an_adapter_are_exact(family: str, dtype: torch.dtype) -> None:
    lora = LoRAConfig(rank=4, targets=("attention",))
    found = parameter_memory(SHAPE, OptimizerConfig(), dtype=dtype, lora=lora, family=family)
    master = Transformer(SHAPE).to(dtype)
    sites = sites_of(lora, adapter_layout(FAMILIES[family], SHAPE), family=family)
    attach_adapter(master, sites, token_ids=(0,), dtype=torch.float32)
    optimizer = Optimizer(master, OptimizerConfig(), mask_id=0)
    working = working_copy(master, dtype)
    assert found.weights == sum(each.nbytes for each in working.parameters())
    mine = {each.untyped_storage().data_ptr() for each in working.parameters()}
    assert found.masters == sum(
        each.nbytes for each in master.parameters() if each.untyped_storage().data_ptr() not in mine
    )
    assert found.gradients == sum(each.nbytes for each in adapter_parameters(master).values())
    assert found.optimizer == sum(each.nbytes for each in optimizer.named_state().values())
    assert found.embedding_gradient == 0
