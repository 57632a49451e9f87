"""The gated feed-forward against its formula."""

from __future__ import annotations

import pytest
import torch

from difflm.models.mlp import MLP


@pytest.mark.parametrize("bias", [False, True])
def test_formula(bias: bool) -> None:
    mlp = MLP(6, 10, bias=bias).double()
    hidden = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gate, up, down = ((part.weight, part.bias if bias else 0.0) for part in (mlp.gate, mlp.up, mlp.down))
    gated = hidden @ gate[0].T + gate[1]
    expected = (gated * gated.sigmoid() * (hidden @ up[0].T + up[1])) @ down[0].T + down[1]
    assert torch.allclose(mlp(hidden), expected, atol=1e-12)
    assert len(list(mlp.parameters())) == (6 if bias else 3)
