"""A clean stream that no gradient enters, then the noisy rows behind it: two forwards instead of one.

Clean rows never see noisy ones. Where nothing on them learns (an adapter for noisy rows alone), their keys and values
are constants of the noisy forward: as decoding has them in its cache. They are bit for bit the parent's.

Shape legend: see `difflm.types`; H query heads, G key/value heads, E head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from difflm.models.transformer import Attend
from difflm.types import Layout


@dataclass(frozen=True, slots=True)
class Recorded:
    """Attention of the clean rows, whose keys and values are kept.

    Attributes:
        attend: over the clean rows.
        kept: key and value of each layer.
    """

    attend: Attend
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]])

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values, [B, H, N, E]."""
        self.kept[layer] = (key_BGNE, value_BGNE)
        return self.attend(layer, query_BHNE, key_BGNE, value_BGNE)


@dataclass(frozen=True, slots=True)
class Behind:
    """Attention of the noisy rows to themselves and to clean rows that were forwarded before.

    Attributes:
        attend: noisy queries over all model rows, noisy rows first.
        clean: of the clean forward.
    """

    attend: Attend
    clean: Recorded

    def __call__(self, layer: int, query_BHNE: Tensor, key_BGNE: Tensor, value_BGNE: Tensor) -> Tensor:
        """Return the mixed values of the noisy rows, [B, H, N, E]."""
        key, value = self.clean.kept[layer]
        return self.attend(layer, query_BHNE, torch.cat([key_BGNE, key], dim=2), torch.cat([value_BGNE, value], dim=2))


def clean_layout(layout: Layout) -> Layout:
    """Return the clean stream of a layout of two streams, as a layout of its own."""
    if not layout.clean_causal:
        return Layout(document_BL=layout.document_BL, block_BL=layout.block_BL, lookahead=layout.lookahead)
    place_BL = torch.arange(layout.document_BL.shape[1], device=layout.document_BL.device)
    return Layout(document_BL=layout.document_BL, block_BL=place_BL.expand_as(layout.document_BL), causal_inside=True)
