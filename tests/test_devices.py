"""Everything takes a device: no operation of a training step, of scoring or of decoding mixes two devices.

The second device here is "meta": shapes without numbers, on any machine. What would fail on a GPU because one operand
stayed on the CPU fails here too (a number of one element, and an index, may stay there, as on CUDA).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from difflm.decode.drawing import Draw
from difflm.decode.policies.native import Native
from difflm.decode.request import Request
from difflm.decode.runner import Runner
from difflm.decode.sampling import Rows
from difflm.decode.work import Work
from difflm.diffusion.noise import RowNoise, embedding_noise
from difflm.diffusion.objectives import BlockDiffusion, NextToken, Objective
from difflm.models.attention import AttentionChoice
from difflm.models.transformer import Transformer
from difflm.reading import score_read
from difflm.scoring import score_input
from difflm.training.config_optimizer import OptimizerConfig
from difflm.training.optim import MasterWeights, Optimizer
from difflm.types import Parametrisation
from tests.decode.tiny import architecture
from tests.rows import MASK, batch_of

MAY_MIX = ("aten::_to_copy", "aten::copy_", "aten::index.", "aten::index_put")


class OneDevice(TorchDispatchMode):
    """Raises where an operation takes tensors of two devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs or {})) if isinstance(each, Tensor)]
        found = {each.device.type for each in tensors if each.dim() > 0}
        name = func.name()
        assert len(found) < 2 or any(name.startswith(each) for each in MAY_MIX), f"{name} mixes {found}"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model() -> Iterator[Transformer]:
    with torch.device("meta"):
        found = Transformer(architecture())
    with OneDevice():
        yield found


def test_the_guard_sees_a_tensor_left_behind() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="mixes"):
        torch.add(torch.zeros(3, device="meta"), torch.zeros(3))


OBJECTIVES = (
    BlockDiffusion(block_size=4),
    BlockDiffusion(block_size=None, complementary=True),
    BlockDiffusion(
        block_size=8,
        ar_weight=0.5,
        parametrisation=Parametrisation(logit_shift=True, clean_attention="causal", noisy_attention="causal"),
    ),
    NextToken(),
)


@pytest.mark.parametrize("backend", ["auto", "portable", "dense"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["blocks", "pairs", "shift", "next token"])
def test_a_training_step(model: Transformer, objective: Objective, backend: AttentionChoice) -> None:
    inputs = objective.prepare(batch_of([[20, 9], [14]], row_length=32), mask_id=MASK, noise=RowNoise(0))
    noise = embedding_noise(inputs, RowNoise(0), hidden_size=16, deviation=0.1)
    scores = score_input(
        model,
        inputs,
        backend=backend,
        entropy=True,
        suppressed_id=MASK,
        embedding_noise_BND=noise,
        activation_checkpointing=True,
    )
    torch.stack(list(objective.loss(scores, inputs))).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(each is not None and each.is_meta for each in gradients)


@torch.no_grad()
@pytest.mark.parametrize("shift", [False, True])
def test_scores_of_the_rows_that_are_read(model: Transformer, shift: bool) -> None:
    objective = BlockDiffusion(block_size=4, parametrisation=Parametrisation(logit_shift=shift))
    batch = batch_of([[20], [14]], row_length=20, prompts=[[9], [6]])
    inputs = objective.given(batch, batch.trainable_BL, torch.ones(2, 20), mask_id=MASK)
    scores = score_read(model, inputs)
    assert scores.nll_M.is_meta
    assert scores.nll_M.shape == inputs.terms[0].row_M.shape


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimizer_step(model: Transformer, kind: Any) -> None:
    optimizer = Optimizer(model, OptimizerConfig(kind=kind, mask_row_lr_scale=3.0), mask_id=MASK)
    weights = MasterWeights(model, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weights.collect()
    optimizer.step(0.5)  # clip() asks whether the norm is finite: a number, which "meta" has not
    assert all(value.is_meta for name, value in optimizer.named_state().items() if not name.endswith(".step"))


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "id": 0,
        "prompt": (1, 2, 3, 4, 5, 6),
        "max_new_tokens": 8,
        "block_size": 4,
        "policy": Native(),
        "rule": Draw(temperature=0.7),
        "seed": 0,
        "eos_ids": frozenset(),
        "mask_id": MASK,
        "logit_shift": True,
        "clean_causal": False,
        "noisy_causal": False,
        "noisy_shift": False,
    }
    return Request(**(values | changes))


def test_prefill_and_commit_rows(model: Transformer) -> None:
    runner = Runner(model, max_tokens=64)
    asked = request()
    for start, tokens in ((0, (1, 2, 3, 4)), (4, (5, 6, 7, 8))):
        runner.run([Work(request=asked, kind="prefill", start=start, tokens=tokens, num_clean=4)])
    slot = runner.slots[0]
    assert slot.length == 8
    assert runner.pool.key.is_meta
    assert slot.last_hidden_D is not None
    assert slot.last_hidden_D.is_meta


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.usefixtures("model")
def test_proposals(temperature: float) -> None:
    logits = torch.zeros(3, 13, device="meta")
    rows = Rows(places=(0, 1, 2), block_length=4, left=(-1, 1, 1), generator=torch.Generator().manual_seed(0))
    assert Draw(temperature=temperature, suppressed=(MASK,), entropy=True)(logits, [rows]).columns().is_meta
