"""Windows through models: one forward equals one for each window; under a gate, clean rows are the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken, Objective
from difflm.diffusion.windows import Drafting
from difflm.models.adapters import adapter_parameters
from difflm.models.attention import DenseAttention
from difflm.models.ranges import dense_mask, key_ranges
from difflm.models.transformer import Transformer
from difflm.scoring import forward_hidden, logits, score_input
from difflm.types import ModelInput, NoisyAttention, Parametrisation
from tests.checkpoints.adapters import BASES, adapted, base_folder
from tests.decode.tiny import MASK, tiny
from tests.rows import batch_of

NOISES: list[tuple[str, bool, NoisyAttention]] = [
    ("masked", True, "causal"),
    ("uniform", True, "bidirectional"),
    ("draft", False, "bidirectional"),
]


def prepared(noise: Any, shift: bool, inside: NoisyAttention, **changes: Any) -> tuple[Objective, ModelInput]:
    parametrisation = Parametrisation(logit_shift=shift, clean_attention="causal", noisy_attention=inside)
    given: dict[str, Any] = {"window": 4, "noise": noise, "noisy_rows": 30, "parametrisation": parametrisation}
    objective = Drafting(**given | changes)
    batch = batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]])
    return objective, objective.prepare(batch, mask_id=MASK, noise=RowNoise(2))


def one_by_one(model: Transformer, inputs: ModelInput, *, gate: bool) -> Tensor:
    """Return the hidden states of the noisy rows, [B, W, D], from a forward of each window behind its document."""
    layout, width = inputs.layout, inputs.layout.noisy_length
    assert layout.anchor_BW is not None
    out = torch.zeros(*layout.anchor_BW.shape, model.config.hidden_size, dtype=model.embedding.weight.dtype)
    rows = []
    for row, anchors in enumerate(layout.anchor_BW.tolist()):
        for anchor in sorted(set(anchors) - {-1}):
            columns = [column for column, each in enumerate(anchors) if each == anchor]
            document = layout.document_BL[row]
            clean = [place for place in range(anchor + 1) if document[place] == document[anchor]]
            index = torch.tensor([width + place for place in clean] + columns)
            count, total = len(clean), len(index)
            mask = torch.ones(total, total, dtype=torch.bool).tril()
            if not layout.causal_inside:
                mask[count:, count:] = True
            noisy = torch.arange(total)[None] >= count
            attend = DenseAttention(mask[None, None])
            token, position = inputs.token_BN[row][index][None], inputs.position_BN[row][index][None]
            hidden = model(token, position, attend, adapter=noisy if gate else None)
            rows.append((row, columns, hidden[0, count:]))
    for row, columns, hidden in rows:
        out = out.index_put((torch.tensor(row), torch.tensor(columns)), hidden)
    return out


@pytest.mark.parametrize(("noise", "shift", "inside"), NOISES)
def test_all_weights_learn_as_from_a_forward_for_each_window(noise: str, shift: bool, inside: NoisyAttention) -> None:
    loaded = tiny(logit_shift=shift, clean="causal", noisy=inside)
    model = loaded.model.requires_grad_(True)
    objective, inputs = prepared(noise, shift, inside, draft_loss="kl" if noise == "masked" else "ce")
    clean = NextToken().prepare(
        batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]]), mask_id=None, noise=RowNoise(2)
    )
    hidden_BLD = forward_hidden(model, clean.token_BN, clean.position_BN, clean.layout)
    flat = torch.cat([one_by_one(model, inputs, gate=False), hidden_BLD], dim=1).flatten(0, 1)
    expected = []
    for term in inputs.terms:
        log_q = torch.log_softmax(flat[term.row_M] @ model.head.weight.T, -1)
        value = -log_q.gather(1, term.target_M[:, None])[:, 0]
        if term.teacher_M is not None:
            log_p = torch.log_softmax(flat[term.teacher_M] @ model.head.weight.T, -1).detach()
            value = (log_p.exp() * (log_p - log_q)).sum(-1)
        expected.append((term.weight_M * value).sum() * term.scale / term.count)
    grads = torch.autograd.grad(torch.stack(expected).sum(), list(model.parameters()))
    for backend in ("split", "portable", "dense"):
        sums = objective.loss(score_input(model, inputs, backend=backend), inputs)
        parts = [term.scale * value / term.count for term, value in zip(inputs.terms, sums, strict=True)]
        for one, other in zip(parts, expected, strict=True):
            assert float((one - other).detach()) == pytest.approx(0, abs=1e-9)
        mine = torch.autograd.grad(torch.stack(parts).sum(), list(model.parameters()))
        assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(mine, grads, strict=True)), backend
    # The next-token term alone is the next-token objective.
    alone = score_input(model, inputs)[1].nll_M.sum()
    plain = score_input(model, clean)[0].nll_M.sum()
    pairs = (torch.autograd.grad(each, list(model.parameters()), allow_unused=True) for each in (alone, plain))
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(*pairs, strict=True) if one is not None)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", BASES)
def test_under_a_gate_clean_rows_are_the_base_and_noisy_rows_the_adapter_s(tmp_path: Path, name: str) -> None:
    base = base_folder(tmp_path / "base", name)
    loaded = adapted(base, gate="noisy", token_ids=(MASK,), dtype="float64")
    model = loaded.model
    for noise, shift, inside in NOISES if name == "llama" else NOISES[1:2]:
        _, inputs = prepared(noise, shift, inside, ar_weight=0.0)
        width = inputs.layout.noisy_length
        assert inputs.layout.anchor_BW is not None
        real = inputs.layout.anchor_BW >= 0
        expected = one_by_one(model, inputs, gate=True)
        where = (inputs.token_BN, inputs.position_BN, inputs.layout)
        for backend in ("split", "portable", "dense"):
            found = forward_hidden(model, *where, backend=backend)
            assert torch.allclose(found[:, :width][real], expected[real], atol=1e-9), backend
        with torch.no_grad():
            flex = forward_hidden(model, *where, backend="flex")
        assert torch.allclose(flex[:, :width][real], expected[real], atol=1e-6)
        # In one forward over both streams, gated row by row: the same numbers and the same gradient of the adapter.
        every = dense_mask(key_ranges(inputs.layout))
        noisy_BN = torch.arange(inputs.token_BN.shape[1])[None].expand_as(inputs.token_BN) < width
        joint = model(inputs.token_BN, inputs.position_BN, DenseAttention(every), adapter=noisy_BN)
        assert torch.allclose(joint[:, :width][real], expected[real], atol=1e-9)
        learnt = adapter_parameters(model)
        direction = torch.randn(joint[:, :width][real].shape, dtype=torch.float64)
        two_passes = forward_hidden(model, *where)
        assert not two_passes[:, width:].detach().isnan().any()
        grads = [
            torch.autograd.grad((each[:, :width][real] * direction).sum(), list(learnt.values()), allow_unused=True)
            for each in (two_passes, joint)
        ]
        for one, other in zip(*grads, strict=True):
            zero = torch.zeros(())
            assert torch.allclose(zero if one is None else one, zero if other is None else other, atol=1e-9)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("backend", ["split", "portable", "dense"])
def test_clean_rows_are_the_parent_bit_for_bit(tmp_path: Path, name: str, backend: Any) -> None:
    base = base_folder(tmp_path / "base", name)
    gated, parent = adapted(base, gate="noisy", token_ids=(MASK,)), adapted(base, only="none", token_ids=())
    batch = batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]])
    causal = NextToken().prepare(batch, mask_id=None, noise=RowNoise(0))
    theirs = forward_hidden(parent.model, causal.token_BN, causal.position_BN, causal.layout, backend=backend)
    _, inputs = prepared("masked", True, "causal", ar_weight=0.0)
    found = forward_hidden(gated.model, inputs.token_BN, inputs.position_BN, inputs.layout, backend=backend)
    assert torch.equal(found[:, inputs.layout.noisy_length :], theirs)
    head = (gated.model.head_weight(), parent.model.head_weight())
    assert torch.equal(*head)
    # Whoever knows of no gate gets the parent, and so does the next-token objective.
    alone = forward_hidden(gated.model, causal.token_BN, causal.position_BN, causal.layout, backend=backend)
    assert torch.equal(alone, theirs)
    assert torch.equal(score_input(gated.model, causal)[0].nll_M, score_input(parent.model, causal)[0].nll_M)
    for attention in ("causal", "block", "bidirectional"):
        pair = [logits(each, batch.token_BL, attention=attention, block_size=4) for each in (gated, parent)]  # type: ignore[arg-type]
        assert torch.equal(*pair)


def test_a_gate_holds_for_blocks_as_well(tmp_path: Path) -> None:
    gated = adapted(base_folder(tmp_path / "base", "llama"), gate="noisy", token_ids=(MASK,))
    batch = batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]])
    for clean, size in (("causal", 4), ("block", 4), ("block", None)):
        objective = BlockDiffusion(block_size=size, parametrisation=Parametrisation(clean_attention=clean))  # type: ignore[arg-type]
        inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
        noisy_BN = torch.ones_like(inputs.token_BN, dtype=torch.bool)
        noisy_BN[:, 16:] = False
        attend = DenseAttention(dense_mask(key_ranges(inputs.layout)))
        joint = gated.model(inputs.token_BN, inputs.position_BN, attend, adapter=noisy_BN)
        term = inputs.terms[0]
        log_q = torch.log_softmax(joint.flatten(0, 1)[term.row_M] @ gated.model.head.weight.T, -1)
        nll = -log_q.gather(1, term.target_M[:, None])[:, 0]
        assert torch.allclose(score_input(gated.model, inputs)[0].nll_M, nll, atol=1e-5)
        off = score_input(gated.model, inputs, adapter=False)[0].nll_M
        assert not torch.allclose(off, nll, atol=1e-3)
