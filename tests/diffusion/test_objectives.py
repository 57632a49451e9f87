"""Objectives against loops over the equations, on a tabular stand-in for a model."""

from __future__ import annotations

import itertools

import pytest
import torch

from difflm.diffusion.masks import block_numbers
from difflm.diffusion.noise import Bernoulli, ExactCount, RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken
from difflm.errors import ConfigError
from difflm.types import ModelInput, Parametrisation, TokenScores
from tests.rows import MASK, VOCAB, batch_of


def table_scores(inputs: ModelInput, seed: int = 0) -> tuple[tuple[TokenScores, ...], torch.Tensor]:
    """Score rows with a random log-probability table [B * N, V] in place of a model."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(inputs.token_BN.numel(), VOCAB, generator=generator).log_softmax(-1)
    scores = tuple(
        TokenScores(
            nll_M=-table[term.row_M, term.target_M],
            entropy_M=torch.zeros_like(term.weight_M),
            correct_M=table[term.row_M].argmax(-1) == term.target_M,
        )
        for term in inputs.terms
    )
    return scores, table.view(*inputs.token_BN.shape, VOCAB)


@pytest.mark.parametrize("weighting", ["elbo", "uniform"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_size", [1, 3, None])
def test_loss_equals_a_loop_over_eq_1_2_and_5(weighting: str, shift: bool, block_size: int | None) -> None:
    batch = batch_of([[7, 4], [10]], row_length=12, prompts=[[2, 0], [5]])
    objective = BlockDiffusion(
        block_size=block_size,
        weighting=weighting,  # type: ignore[arg-type]
        parametrisation=Parametrisation(logit_shift=shift),
    )
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(3))
    assert inputs.layout.two_streams == (block_size is not None)
    scores, table = table_scores(inputs)
    (value,) = objective.loss(scores, inputs)

    size = block_size or 12
    block = block_numbers(batch.position_BL, block_size=size)
    total, masked, trainable = 0.0, 0, 0
    for row, i in itertools.product(range(2), range(12)):
        wanted = bool(batch.trainable_BL[row, i]) and not (shift and batch.position_BL[row, i] == 0)
        trainable += wanted
        is_masked = bool(inputs.token_BN[row, i] == MASK)
        assert not is_masked or wanted  # prompts, padding and unscorable first tokens stay clean
        if not is_masked:
            continue
        masked += 1
        mates = [
            j
            for j in range(12)
            if batch.document_BL[row, j] == batch.document_BL[row, i]
            and block[row, j] == block[row, i]
            and bool(batch.trainable_BL[row, j])
            and not (shift and batch.position_BL[row, j] == 0)
        ]
        hidden = sum(bool(inputs.token_BN[row, j] == MASK) for j in mates)
        weight = len(mates) / hidden if weighting == "elbo" else 1.0
        source = i - 1 if shift else i
        starts_block = batch.position_BL[row, i] % size == 0
        if shift and starts_block and block_size is not None:
            source += 12  # the clean row before the block
        total += weight * -float(table[row, source, batch.token_BL[row, i]])
    assert float(value) == pytest.approx(total, rel=1e-5)
    assert float(inputs.terms[0].count) == (trainable if weighting == "elbo" else masked)
    assert float(value) > 0


def test_block_size_one_is_mask_rate_one_and_weight_one_for_any_noise() -> None:
    batch = batch_of([[6, 5]], row_length=12)
    for noise in (ExactCount(), Bernoulli(bandwidth=(0.1, 0.3))):
        inputs = BlockDiffusion(block_size=1, noise=noise).prepare(batch, mask_id=MASK, noise=RowNoise(0))
        assert bool((inputs.token_BN[0, :11] == MASK).all())
        assert bool((inputs.terms[0].weight_M == 1).all())


def test_a_block_that_covers_the_row_drops_the_clean_half() -> None:
    batch = batch_of([[6, 5]], row_length=12)
    whole = BlockDiffusion(block_size=12).prepare(batch, mask_id=MASK, noise=RowNoise(0))
    mdlm = BlockDiffusion(block_size=None).prepare(batch, mask_id=MASK, noise=RowNoise(0))
    assert torch.equal(whole.token_BN, mdlm.token_BN)
    assert whole.token_BN.shape[1] == 12
    assert BlockDiffusion(block_size=11).prepare(batch, mask_id=MASK, noise=RowNoise(0)).token_BN.shape[1] == 24


def test_the_ar_co_loss_is_next_token_on_the_clean_stream_once_per_row() -> None:
    batch = batch_of([[7, 4], [10]], row_length=12, prompts=[[2, 0], [5]])
    causal = Parametrisation(clean_attention="causal")
    plain = NextToken().prepare(batch, mask_id=None, noise=RowNoise(0)).terms[0]
    for complementary in (False, True):
        objective = BlockDiffusion(block_size=4, ar_weight=0.5, complementary=complementary, parametrisation=causal)
        inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(1))
        diffusion, ar = inputs.terms
        assert (diffusion.name, ar.name, ar.scale) == ("diffusion", "ar", 0.5)
        assert torch.equal(ar.target_M, plain.target_M)
        assert float(ar.count) == float(plain.count)
        tokens = inputs.token_BN.flatten()
        assert bool((ar.row_M % 24 >= 12).all())  # clean half
        # Row i predicts the clean token one place later.
        assert torch.equal(tokens[ar.row_M + 1], ar.target_M)


def test_next_token_scores_completions_and_never_crosses_documents() -> None:
    batch = batch_of([[4, 3]], row_length=9, prompts=[[2, 0]])
    term = NextToken().prepare(batch, mask_id=None, noise=RowNoise(0)).terms[0]
    assert term.row_M.tolist() == [1, 2, 4, 5]
    assert term.target_M.tolist() == batch.token_BL[0, [2, 3, 5, 6]].tolist()
    assert float(term.count) == 4


def test_time_per_sequence_shares_one_rate_in_a_document() -> None:
    batch = batch_of([[60, 60]], row_length=120)
    noise = Bernoulli(bandwidth=(0.0, 1.0))
    inputs = BlockDiffusion(block_size=6, noise=noise, time_per="sequence").prepare(
        batch, mask_id=MASK, noise=RowNoise(5)
    )
    weight = inputs.terms[0].weight_M
    place = inputs.terms[0].place_M
    assert len(set(weight[place < 60].tolist())) == 1
    assert len(set(weight[place >= 60].tolist())) == 1
    assert len(set(weight.tolist())) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "objective.block_size: 0"),
        ({"block_size": 4, "ar_weight": -1.0}, "objective.ar_weight: -1.0 is negative"),
        ({"block_size": 4, "ar_weight": 0.5}, "needs clean_attention 'causal'"),
    ],
)
def test_refused_combinations(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BlockDiffusion(**settings)  # type: ignore[arg-type]
