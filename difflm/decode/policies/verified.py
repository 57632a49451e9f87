"""The policy of lossless drafting: MASK rows draft, the next forward's clean rows verify. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from difflm.decode.drawing import Draw
from difflm.decode.ratio import Ratio
from difflm.decode.sampling import Rule

Check = Literal["same", "ratio"]
"""How drawn tokens are verified."""
DraftTokens = Literal["drawn", "best"]
EXACT = ("float32", "float64")
"""Types of the weights in which the text is promised to be that of a token per forward; elsewhere up to near-ties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Left to right, several tokens per forward, and the text is that of one token per forward.

    With `check` "same" each position has noise of its own, which draws from the clean row's distribution: the text is
    that of decoding "next_token" with the same seed, token for token, at any temperature. With "ratio" a draft x is
    accepted with probability min(1, p(x) / q(x)): the text has the same distribution, more drafts are accepted, and
    the tokens are others than those of "next_token".

    Source: arXiv:2211.17192, Algorithm 1 ("ratio"); arXiv:2607.05722 (drafting and verification by one model).

    Attributes:
        window: places that one forward drafts at most, the next token included; None takes the model's block size.
        start: places of the first window.
        fused: draft in the forward that verifies: True always, False never, None where it pays.
        fallback: go on without drafts while they cost more than they save.
        row_cost: what a row more adds to a forward, in forwards of one row; `difflm tune` measures it.
        draft_cost: what MASK rows add beside that, however many they are (the adapter, the draft head); likewise.
        check: "same" or "ratio"; at temperature 0 they are one.
        draft: drafts under "ratio": "drawn" from q, or its "best" token (then q is certain of it).
        min_tokens: nothing ends the answer before so many tokens.
        draw: how a token is drawn from a row; always by the noise of its position.
    """

    window: int | None = None
    start: int = 8
    fused: bool | None = None
    fallback: bool = True
    row_cost: float = 0.05
    draft_cost: float = 0.5
    check: Check = "same"
    draft: DraftTokens = "drawn"
    min_tokens: int = 0
    draw: Draw = field(default=Draw())

    @property
    def block_length(self) -> None:
        """None: it knows no blocks."""
        return None

    @property
    def gen_length(self) -> None:
        """None: `SamplingParams.max_new_tokens` holds."""
        return None

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return how rows become tokens.

        Args:
            suppressed: ids that must never be emitted.
        """
        draw = replace(self.draw, suppressed=suppressed, keyed=True)
        if self.check == "same" or draw.temperature == 0.0:
            return draw
        return Ratio(draw=draw, best=self.draft == "best")
