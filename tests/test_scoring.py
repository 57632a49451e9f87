"""The public `logits` and `score`: literal masks, packed documents, shift, MDLM, agreement with the objectives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from difflm.checkpoints.loading import LoadedModel
from difflm.diffusion.masks import layout_mask, materialise
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.diffusion.windows import Drafting
from difflm.errors import ConfigError
from difflm.models.adapters import attach_adapter
from difflm.models.attention import DenseAttention
from difflm.scoring import PositionScores, forward_hidden, logits, score, score_input
from difflm.types import Layout, Parametrisation
from tests.decode.tiny import MASK, tiny
from tests.rows import batch_of

COMBINATIONS = list(itertools.product((False, True), ("block", "causal"), ("bidirectional", "causal")))


def model_of(shift: bool = False, clean: str = "block", noisy: str = "bidirectional") -> LoadedModel:
    """Return a float32 tiny model."""
    loaded = tiny(logit_shift=shift, clean=clean, noisy=noisy)  # type: ignore[arg-type]
    loaded.model.float()
    return loaded


def noised(row_length: int = 20, lengths: tuple[int, ...] = (11, 7), seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return (clean, noisy, document) of one row with two documents and two positions of padding."""
    batch = batch_of([lengths], row_length=row_length, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    masked = (torch.rand(1, row_length, generator=generator) < 0.5) & batch.trainable_BL
    return batch.token_BL, torch.where(masked, MASK, batch.token_BL), batch.document_BL


def by_hand(loaded: LoadedModel, token: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return logits under an explicit boolean mask, through the dense reference."""
    with torch.no_grad():
        return loaded.model.head(loaded.model(token, position, DenseAttention(mask)))


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "block"])
def test_literal_masks(attention: str) -> None:
    loaded = model_of()
    token = torch.randint(0, MASK, (2, 15), generator=torch.Generator().manual_seed(0))
    query, key = torch.arange(15)[:, None], torch.arange(15)[None]
    visible = {"causal": key <= query, "bidirectional": key >= 0, "block": key // 4 <= query // 4}[attention]
    expected = by_hand(loaded, token, visible.expand(2, 1, 15, 15), torch.arange(15).expand(2, 15))
    found = logits(loaded, token, attention=attention)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "block", "noisy_clean"])
def test_a_packed_document_is_as_it_is_alone(attention: str) -> None:
    loaded = model_of()
    clean, noisy, document = noised()
    double = attention == "noisy_clean"
    row = torch.cat([noisy, clean], dim=1) if double else clean
    packed = logits(loaded, row, attention=attention, document_BL=document)  # type: ignore[arg-type]
    for span in (slice(0, 11), slice(11, 18)):
        part = torch.cat([noisy[:, span], clean[:, span]], dim=1) if double else clean[:, span]
        alone = logits(loaded, part, attention=attention)  # type: ignore[arg-type]
        assert torch.allclose(packed[:, span], alone, atol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "block", "noisy_clean"])
def test_a_run_that_reuses_an_id_is_a_document_of_its_own(attention: str) -> None:
    loaded = model_of()
    clean, noisy, _ = noised(20, (20,))
    row = torch.cat([noisy, clean], dim=1) if attention == "noisy_clean" else clean
    reused = torch.tensor([[0] * 5 + [1] * 6 + [0] * 9])
    numbered = torch.tensor([[0] * 5 + [1] * 6 + [2] * 9])
    found, expected = (logits(loaded, row, attention=attention, document_BL=each) for each in (reused, numbered))  # type: ignore[arg-type]
    assert torch.equal(found, expected)
    scores = [score(loaded, clean, noisy, block_size=4, document_BL=each).nll_BL for each in (reused, numbered)]
    assert torch.equal(*scores)


@pytest.mark.parametrize(("shift", "clean", "noisy"), COMBINATIONS)
def test_one_training_forward_equals_separate_forwards_of_every_block(shift: bool, clean: str, noisy: str) -> None:
    """Block k of the noisy half = noisy block k after the clean blocks before it, in a row of its own."""
    loaded = model_of(shift, clean, noisy)
    token, masked, _ = noised(18, (18,))
    whole = logits(loaded, torch.cat([masked, token], dim=1), attention="noisy_clean", block_size=4)
    for start in range(0, 18, 4):
        stop = min(start + 4, 18)
        row = torch.cat([token[:, :start], masked[:, start:stop]], dim=1)
        query, key = torch.arange(stop)[:, None], torch.arange(stop)[None]
        prefix = key <= query if clean == "causal" else key // 4 <= query // 4
        own = (key >= start) & (key <= query) if noisy == "causal" else key >= start
        visible = torch.where(query < start, prefix & (key < start), (key < start) | own)
        alone = by_hand(loaded, row, visible[None, None], torch.arange(stop)[None])
        assert torch.allclose(whole[:, start:stop], alone[:, start:], atol=1e-5)


@pytest.mark.parametrize("block_size", [1, 4, 32, None])
@pytest.mark.parametrize(("shift", "clean", "noisy"), COMBINATIONS)
def test_score_reads_the_row_that_predicts_the_target(
    shift: bool, clean: str, noisy: str, block_size: int | None
) -> None:
    loaded = model_of(shift, clean, noisy)
    token, masked, document = noised()
    found = score(loaded, token, masked, block_size=block_size, document_BL=document)
    size = block_size or 20
    position = torch.tensor([[*range(11), *range(7), 0, 0]])
    if block_size is None:
        layout = Layout(document_BL=document, block_BL=torch.zeros_like(position), causal_inside=noisy == "causal")
        rows = by_hand(loaded, masked, materialise(layout_mask(layout), 1, 20), position)
    else:
        layout = Layout(
            document_BL=document, block_BL=position // size, two_streams=True,
            causal_inside=noisy == "causal", clean_causal=clean == "causal",
        )  # fmt: skip
        both = torch.cat([masked, token], dim=1)
        rows = by_hand(loaded, both, materialise(layout_mask(layout), 1, 40), torch.cat([position] * 2, dim=1))
    log_chance = rows[0].log_softmax(-1)
    for i in range(20):
        place = int(position[0, i])
        scored = masked[0, i] == MASK and document[0, i] >= 0 and not (shift and place == 0)
        if not scored:
            assert (float(found.nll_BL[0, i]), float(found.entropy_BL[0, i]), bool(found.correct_BL[0, i])) == (0, 0, 0)
            continue
        source = i - 1 if shift else i
        if shift and place % size == 0 and block_size is not None:
            source += 20  # the clean row before the block
        line = log_chance[source]
        assert float(found.nll_BL[0, i]) == pytest.approx(-float(line[token[0, i]]), abs=1e-5)
        assert float(found.entropy_BL[0, i]) == pytest.approx(float(torch.special.entr(line.exp()).sum()), abs=1e-5)
        assert bool(found.correct_BL[0, i]) == (int(line.argmax()) == int(token[0, i]))


@pytest.mark.parametrize("block_size", [3, None])
def test_score_agrees_with_the_objective(block_size: int | None) -> None:
    loaded = model_of(shift=True, clean="causal")
    batch = batch_of([[11, 7], [20]], row_length=20)
    objective = BlockDiffusion(block_size=block_size, parametrisation=loaded.config.parametrisation)
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
    (mine,) = score_input(loaded.model, inputs)
    found = score(loaded, batch.token_BL, inputs.token_BN[:, :20], block_size=block_size, document_BL=batch.document_BL)
    assert torch.allclose(found.nll_BL.flatten()[inputs.terms[0].place_M], mine.nll_M, atol=1e-5)
    assert int((found.nll_BL != 0).sum()) == mine.nll_M.shape[0]


def test_with_the_shift_block_size_one_is_the_ar_likelihood() -> None:
    loaded = model_of(shift=True, clean="causal")
    token, _, document = noised()
    found = score(loaded, token, torch.full_like(token, MASK), block_size=1, document_BL=document)
    causal = logits(loaded, token, attention="causal", document_BL=document).log_softmax(-1)
    for i in [*range(1, 11), *range(12, 18)]:
        assert float(found.nll_BL[0, i]) == pytest.approx(-float(causal[0, i - 1, token[0, i]]), abs=1e-5)
    assert float(found.nll_BL[0, 0]) == 0


def test_editing_one_document_leaves_the_others_alone() -> None:
    loaded = model_of()
    token, masked, document = noised()
    before = score(loaded, token, masked, block_size=4, document_BL=document)
    token, masked = token.clone(), masked.clone()
    token[0, :11] = (token[0, :11] + 1) % MASK
    after = score(loaded, token, masked, block_size=4, document_BL=document)
    assert torch.equal(before.nll_BL[0, 11:], after.nll_BL[0, 11:])
    assert not torch.equal(before.nll_BL[0, :11], after.nll_BL[0, :11])


def test_bad_calls() -> None:
    loaded = model_of()
    token = torch.zeros(1, 7, dtype=torch.int64)
    with pytest.raises(ConfigError, match="attention: 'full' is unknown"):
        logits(loaded, token, attention="full")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="token_BL: 7 tokens"):
        logits(loaded, token, attention="noisy_clean")
    with pytest.raises(ConfigError, match="block_size: 0"):
        logits(loaded, token, attention="block", block_size=0)
    with pytest.raises(ConfigError, match="block_size: None"):
        logits(tiny(block_size=None), token, attention="block")
    with pytest.raises(ConfigError, match="document_BL: shape"):
        logits(loaded, token, attention="causal", document_BL=torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="mask_token_id"):
        score(tiny(mask_id=None), token, token)
    with pytest.raises(ConfigError, match="noisy_BL: shape"):
        score(loaded, token, token[:, :3])


def test_padding_is_never_scored_even_where_it_holds_the_mask() -> None:
    clean, noisy, document = noised()
    padding = document == -1
    assert int(padding.sum()) == 2
    loaded = model_of()
    found = score(loaded, clean, torch.where(padding, MASK, noisy), block_size=4, document_BL=document)
    expected = score(loaded, clean, noisy, block_size=4, document_BL=document)
    for name in ("nll_BL", "entropy_BL", "correct_BL"):
        assert torch.equal(vars_of(found)[name], vars_of(expected)[name])
        assert not bool(vars_of(found)[name][padding].any())


def vars_of(scores: PositionScores) -> dict[str, torch.Tensor]:
    """Return the three fields by name."""
    return {"nll_BL": scores.nll_BL, "entropy_BL": scores.entropy_BL, "correct_BL": scores.correct_BL}


def test_suppressing_mask_renormalises_over_the_other_tokens() -> None:
    loaded = model_of()
    token, masked, document = noised()
    raw = score(loaded, token, masked, block_size=4, document_BL=document)
    without = score(loaded, token, masked, block_size=4, document_BL=document, suppress_mask=True)
    rows = logits(
        loaded, torch.cat([masked, token], dim=1), attention="noisy_clean", block_size=4, document_BL=document
    )
    at = raw.nll_BL != 0
    mask_chance = rows.softmax(-1)[..., MASK]
    assert torch.allclose((raw.nll_BL - without.nll_BL)[at], -torch.log1p(-mask_chance)[at], atol=1e-5)


def test_rows_with_a_token_before_are_scored_as_the_draft_head_corrects_them() -> None:
    loaded = tiny(logit_shift=True, clean="causal")
    model, drawn = loaded.model, torch.Generator().manual_seed(0)
    batch = batch_of([[9, 6], [13]], row_length=16)
    parametrisation = Parametrisation(logit_shift=True, clean_attention="causal")
    objective = Drafting(window=4, noisy_rows=20, ar_weight=0.0, parametrisation=parametrisation)
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
    (term,) = inputs.terms
    attach_adapter(model, [], gate="noisy", draft_rank=3)
    head = model.draft_head
    assert head is not None
    (plain,) = score_input(model, inputs)
    with torch.no_grad():
        for half in (head.down, head.up):
            half.copy_(torch.randn(half.shape, generator=drawn))
    (corrected,) = score_input(model, inputs)
    (without,) = score_input(model, inputs, adapter=False)
    torch.testing.assert_close(without.nll_M, plain.nll_M)  # in one forward instead of two
    hidden = forward_hidden(model, inputs.token_BN, inputs.position_BN, inputs.layout).flatten(0, 1)[term.row_M]
    assert term.before_M is not None
    expected = F.cross_entropy(
        model.head(head(hidden, model.embedding(term.before_M))), term.target_M, reduction="none"
    )
    torch.testing.assert_close(corrected.nll_M, expected)
    assert not torch.allclose(corrected.nll_M, plain.nll_M)
