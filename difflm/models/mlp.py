"""The gated feed-forward of dense layers and of shared experts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from difflm.models.lora import AdapterRows, Linear


class MLP(nn.Module):
    """Gated feed-forward: down(silu(gate x) * up x).

    Args:
        hidden_size, inner_size: D and the inner width.
        bias: whether the three linear maps have a bias.
    """

    def __init__(self, hidden_size: int, inner_size: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = Linear(hidden_size, inner_size, bias=bias)
        self.up = Linear(hidden_size, inner_size, bias=bias)
        self.down = Linear(inner_size, hidden_size, bias=bias)

    def forward(self, hidden_BND: Tensor, adapter: AdapterRows = True) -> Tensor:
        """Return the feed-forward branch, [B, N, D]; `adapter`: see `Transformer.forward`."""
        inner_BNI = F.silu(self.gate(hidden_BND, adapter)) * self.up(hidden_BND, adapter)
        return self.down(inner_BNI, adapter)
