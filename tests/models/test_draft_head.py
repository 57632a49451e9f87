"""The head that tells a draft what the token before it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from difflm.models.adapters import AdapterSite, adapter_parameters, attach_adapter, remove_adapter
from difflm.models.draft_head import DraftHead
from difflm.models.transformer import Transformer
from tests.decode import tiny

CONFIG = tiny.architecture()
WIDTH = CONFIG.hidden_size


def head(*, rank: int = 3, dtype: torch.dtype = torch.float64) -> DraftHead:
    drawn = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=drawn, dtype=dtype) for shape in ((rank, 16), (8, rank)))
    return DraftHead(nn.Parameter(down), nn.Parameter(up))


def test_it_is_what_its_formula_says_row_by_row() -> None:
    made, drawn = head(), torch.Generator().manual_seed(1)
    hidden_MD, before_MD = (torch.randn(5, 8, generator=drawn, dtype=torch.float64) for _ in range(2))

    def normed(row_D: Tensor) -> Tensor:
        return row_D / (row_D.pow(2).mean() + torch.finfo(torch.float64).eps).sqrt()

    for row_D, before_D, out_D in zip(hidden_MD, before_MD, made(hidden_MD, before_MD), strict=True):
        inner_R = made.down @ torch.cat([normed(row_D), normed(before_D)])
        expected_D = row_D + made.up @ (inner_R * inner_R.sigmoid())
        torch.testing.assert_close(out_D, expected_D)
    assert made.rank == 3


def test_the_order_of_its_two_inputs_and_the_size_of_the_embedding() -> None:
    made, drawn = head(), torch.Generator().manual_seed(2)
    hidden_MD, before_MD = (torch.randn(2, 8, generator=drawn, dtype=torch.float64) for _ in range(2))
    out_MD = made(hidden_MD, before_MD)
    assert not torch.allclose(out_MD - hidden_MD, made(before_MD, hidden_MD) - before_MD)
    torch.testing.assert_close(made(hidden_MD, 7.0 * before_MD), out_MD, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_numbers_of_another_type_come_back_in_their_own(kind: torch.dtype) -> None:
    hidden_MD = torch.ones(2, 8, dtype=kind)
    assert head(dtype=torch.float32)(hidden_MD, hidden_MD).dtype == kind


def test_a_fresh_one_changes_nothing_learns_and_is_taken_off() -> None:
    model = Transformer(CONFIG)
    stored = model.stored_tensors().keys()
    sites = [AdapterSite(weights=("layers.0.attention.query",), rank=2, alpha=4.0)]
    attach_adapter(model, sites, generator=torch.Generator().manual_seed(0), gate="noisy", draft_rank=3)
    made = model.draft_head
    assert made is not None
    hidden_MD = torch.randn(4, WIDTH)
    assert torch.equal(made(hidden_MD, torch.randn(4, WIDTH)), hidden_MD)
    assert {"draft_head.down", "draft_head.up"} < adapter_parameters(model).keys()
    assert model.stored_tensors().keys() == stored
    made(hidden_MD, torch.randn(4, WIDTH)).sum().backward()
    assert made.up.grad is not None
    assert made.up.grad.abs().sum() > 0
    remove_adapter(model)
    assert model.draft_head is None
    attach_adapter(model, sites)
    assert model.draft_head is None
