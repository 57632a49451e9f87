"""A small head that tells a draft what the token before it is.

The rows of a window are computed together, so each predicts its token without knowing the one before. Drafts are then
chosen one after another, and this head corrects each row by the token that was chosen just before.

Shape legend: see `difflm.types`; R rank of the head, M rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DraftHead(nn.Module):
    """hidden + up silu(down [norm hidden, norm before]): what a noisy row predicts once the token before it is known.

    Both norms are root-mean-square norms without weights. One head serves all places of a window, since the rows know
    theirs.

    Args:
        down: [R, 2 D].
        up: [D, R]; zeros change nothing.

    Source: Hydra (arXiv:2402.05109), section 3: draft heads that also read the tokens drafted before; there a head for
        each place reads the last token's hidden state, here one head reads the MASK row's own.
    """

    def __init__(self, down: nn.Parameter, up: nn.Parameter) -> None:
        super().__init__()
        self.down, self.up = down, up

    @property
    def rank(self) -> int:
        """Return R."""
        return len(self.down)

    def forward(self, hidden_MD: Tensor, before_MD: Tensor) -> Tensor:
        """Return the corrected hidden states, [M, D], in the dtype of the given ones.

        Args:
            hidden_MD: final, normalised hidden states of noisy rows.
            before_MD: embeddings of the tokens before the places that they predict.
        """
        both_MD = torch.cat([_normed(hidden_MD), _normed(before_MD)], dim=-1).to(self.down.dtype)
        return hidden_MD + F.linear(F.silu(F.linear(both_MD, self.down)), self.up).to(hidden_MD.dtype)


def _normed(hidden_MD: Tensor) -> Tensor:
    """Return the rows at a root mean square of 1, float32 at least."""
    wide_MD = hidden_MD.to(torch.promote_types(hidden_MD.dtype, torch.float32))
    return F.rms_norm(wide_MD, wide_MD.shape[-1:])
