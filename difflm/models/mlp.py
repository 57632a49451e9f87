"""The gated feed-forward of dense layers and of shared experts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Gated feed-forward: down(silu(gate x) * up x).

    Args:
        hidden_size, inner_size: D and the inner width.
        bias: whether the three linear maps have a bias.
    """

    def __init__(self, hidden_size: int, inner_size: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, inner_size, bias=bias)
        self.up = nn.Linear(hidden_size, inner_size, bias=bias)
        self.down = nn.Linear(inner_size, hidden_size, bias=bias)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        """Return the feed-forward branch, [B, N, D]."""
        return self.down(F.silu(self.gate(hidden_BND)) * self.up(hidden_BND))
