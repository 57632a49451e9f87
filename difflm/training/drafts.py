"""How well a model drafts: which drafts the clean rows agree with, and what that makes of a cycle of draft and verify.

A draft is the arg-max of a noisy row, and the clean row that predicts the same token says what would be written there
(greedily, after the true text: exact for the model's own completions, an estimate on other text).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from difflm.diffusion.windows import Drafting, draft_offsets
from difflm.types import ModelInput, TokenScores


@dataclass(slots=True)
class DraftTally:
    """Counts of some forwards over windows that are wholly masked and compared with clean rows.

    Attributes:
        objective: of the windows.
        agreed, drafted: place in the window (1 is the next token) -> drafts that agree, drafts.
        accepted: drafts at the beginnings of whole windows up to the first that differs.
        windows: whole windows.
    """

    objective: Drafting
    agreed: dict[int, int] = field(default_factory=dict[int, int])
    drafted: dict[int, int] = field(default_factory=dict[int, int])
    accepted: int = 0
    windows: int = 0

    def add(self, inputs: ModelInput, scores: TokenScores) -> None:
        """Take in a forward."""
        assert scores.agree_M is not None, "windows are compared with clean rows"
        agree_M, offset_M = scores.agree_M.cpu(), draft_offsets(inputs)
        for place in range(self.objective.first_place, self.objective.window + 1):
            chosen_M = offset_M == place
            self.agreed[place] = self.agreed.get(place, 0) + int((agree_M & chosen_M).sum())
            self.drafted[place] = self.drafted.get(place, 0) + int(chosen_M.sum())
        whole_AS = self._whole(inputs, offset_M, agree_M)
        self.accepted += int(whole_AS.long().cumprod(dim=1).sum())
        self.windows += whole_AS.shape[0]

    def _whole(self, inputs: ModelInput, offset_M: Tensor, agree_M: Tensor) -> Tensor:
        """Return the drafts of the windows that have all their places, [windows, places]."""
        size = self.objective.window - self.objective.first_place + 1
        # A window is known by the flattened place of its anchor.
        _, window_M, count_A = torch.unique_consecutive(
            inputs.terms[0].place_M.cpu() - offset_M.cpu(), return_inverse=True, return_counts=True
        )
        return agree_M[(count_A == size)[window_M]].view(-1, size)

    def row(self) -> dict[str, Any]:
        """Return the figures under the names of metrics.jsonl; tokens_per_cycle is null without a whole window."""
        given = self.objective.first_place - 1  # the next token itself, which the seed's own row predicts
        return {
            "agreement": {str(place): self.agreed[place] / count for place, count in self.drafted.items() if count},
            # What is accepted, and the token of the verifying forward behind it.
            "tokens_per_cycle": 1 + given + self.accepted / self.windows if self.windows else None,
        }
