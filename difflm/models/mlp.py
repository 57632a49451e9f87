"""The gated feed-forward of dense layers and of shared experts."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from difflm.models.lora import AdapterRows, Linear
from difflm.models.stacking import SharedInput


class MLP(SharedInput):
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

    @property
    def maps(self) -> tuple[Linear, ...]:
        """Return the maps of the branch's input."""
        return self.gate, self.up

    def forward(self, hidden_BND: Tensor, adapter: AdapterRows = True) -> Tensor:
        """Return the feed-forward branch, [B, N, D]; `adapter`: see `Transformer.forward`."""
        gate_BNI, up_BNI = self.mapped(hidden_BND, adapter)
        return self.down(F.silu(gate_BNI) * up_BNI, adapter)
