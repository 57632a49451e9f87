"""Rows that share their clean stream score as they do one by one, whatever they have in common."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from difflm.diffusion.objectives import BlockDiffusion, scorable
from difflm.models.lora import AdapterGate
from difflm.reading import score_read
from difflm.scoring import score_input
from difflm.types import Batch, Parametrisation
from tests.checkpoints.adapters import BASES, adapted, base_folder
from tests.decode.tiny import MASK, tiny
from tests.rows import batch_of

COMBINATIONS = list(itertools.product((False, True), ("block", "causal"), ("bidirectional", "causal")))


def masked(batch: Batch, parametrisation: Parametrisation, seed: int, share: float) -> torch.Tensor:
    """Return masks on a share of the positions that can have one, at least one altogether."""
    chance_BL = torch.rand(batch.token_BL.shape, generator=torch.Generator().manual_seed(seed))
    wanted_BL = scorable(batch, parametrisation)
    masked_BL = wanted_BL & (chance_BL < share)
    masked_BL[0] |= wanted_BL[0] & ~masked_BL.any()
    return masked_BL


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize(("shift", "clean", "noisy"), COMBINATIONS)
def test_scores_are_those_of_the_whole_layout(shift: bool, clean: str, noisy: str, size: int) -> None:
    parametrisation = Parametrisation(logit_shift=shift, clean_attention=clean, noisy_attention=noisy)  # type: ignore[arg-type]
    loaded = tiny(logit_shift=shift, clean=clean, noisy=noisy)  # type: ignore[arg-type]
    objective = BlockDiffusion(block_size=size, parametrisation=parametrisation)
    # Packed documents, padding, prompts; rows that repeat, differ behind what is seen, or have no mask at all.
    lengths, prompts = [[11, 7], [20], [3], [6, 6, 6]], [[6, 0], [15], [1], [0, 2, 5]]
    batch = batch_of(lengths, row_length=22, prompts=prompts)
    batch = batch.take(torch.tensor([0, 1, 1, 2, 3, 1, 0]))
    for row, place in ((2, 19), (5, 2)):
        batch.token_BL[row, place] = (batch.token_BL[row, place] + 1) % MASK
    for seed, share in ((0, 0.1), (1, 0.5), (2, 1.0)):
        masked_BL = masked(batch, parametrisation, seed, share)
        inputs = objective.given(batch, masked_BL, torch.ones(masked_BL.shape), mask_id=MASK)
        found, [expected] = score_read(loaded.model, inputs), score_input(loaded.model, inputs)
        assert torch.allclose(found.nll_M, expected.nll_M, atol=1e-9)
        assert torch.equal(found.correct_M, expected.correct_M)


@torch.no_grad()
def test_rows_with_one_prompt_forward_it_once() -> None:
    loaded, sizes = tiny(), list[int]()
    batch = batch_of([[20]], row_length=20, prompts=[[17]]).take(torch.zeros(5, dtype=torch.int64))
    inputs = BlockDiffusion(block_size=4).given(batch, batch.trainable_BL, torch.ones(5, 20), mask_id=MASK)
    loaded.model.embedding.register_forward_hook(lambda module, given, found: sizes.append(given[0].numel()))
    score_read(loaded.model, inputs)
    assert sizes == [16, 5 * 4]


@torch.no_grad()
@pytest.mark.parametrize("gate", ["all", "noisy"])
@pytest.mark.parametrize("name", BASES)
def test_an_adapter_acts_on_the_rows_that_its_gate_says(tmp_path: Path, name: str, gate: AdapterGate) -> None:
    model = adapted(base_folder(tmp_path / "base", name), gate=gate, token_ids=(MASK,), dtype="float64").model
    parametrisation = Parametrisation(logit_shift=True)
    objective = BlockDiffusion(block_size=4, parametrisation=parametrisation)
    batch = batch_of([[20], [18]], row_length=20, prompts=[[9], [6]]).take(torch.tensor([0, 0, 1]))
    masked_BL = masked(batch, parametrisation, 0, 0.7)
    inputs = objective.given(batch, masked_BL, torch.ones(3, 20), mask_id=MASK)
    found, [expected] = score_read(model, inputs), score_input(model, inputs)
    assert torch.allclose(found.nll_M, expected.nll_M, atol=1e-8)
