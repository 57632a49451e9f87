"""What a decoding policy is: pure decisions about one sequence. No tensors, no forwards, no cache.

The engine runs the forwards, applies the policy's rule to the rows it asks for, and hands the proposals back. All
policies share the grid: blocks lie at absolute multiples of the block length, the first decoded one holds the rest of
the prompt, and a sequence is extended by one block of masks at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from difflm.decode.events import Selection, TokenLogprob
from difflm.decode.sampling import Rule
from difflm.diffusion.acceptance import accept

Verdict = Literal["continue", "next", "end", "early"]


@dataclass(slots=True, kw_only=True)
class Draft:
    """The state that a policy decides on; the engine writes it.

    Attributes:
        tokens: prompt, decided tokens, and the mask id at undecided positions; up to the end of the current block.
        decided: whether each position holds a token.
        num_prompt: tokens of the prompt.
        limit: position behind the last token that may be returned.
        mask_id: id of an undecided position.
        eos_ids: ids that end a generation; empty when they are ignored.
        start, stop: positions of the current block.
        steps: denoising forwards of the current block so far.
        post: those of them that began with nothing left to decide.
    """

    tokens: list[int]
    decided: list[bool]
    num_prompt: int
    limit: int
    mask_id: int
    eos_ids: frozenset[int]
    start: int = 0
    stop: int = 0
    steps: int = 0
    post: int = 0

    def masked(self) -> list[int]:
        """Return the undecided positions of the current block, ascending."""
        return [place for place in range(self.start, self.stop) if not self.decided[place]]

    def block(self) -> tuple[int, ...]:
        """Return the tokens of the current block."""
        return tuple(self.tokens[self.start : self.stop])

    def first_eos(self, start: int, stop: int) -> int | None:
        """Return the first position in [start, stop) that holds an EOS, decided or not; None without one."""
        return next((place for place in range(start, stop) if self.tokens[place] in self.eos_ids), None)

    def generated(self) -> tuple[list[int], int | None]:
        """Return the generated tokens up to the limit, the first EOS among them the last; and that EOS, if any."""
        stop = min(self.stop, self.limit)
        eos = self.first_eos(self.num_prompt, stop)
        if eos is None:
            return self.tokens[self.num_prompt : stop], None
        return self.tokens[self.num_prompt : eos + 1], self.tokens[eos]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a forward proposes for the places it was asked for, in their order; under a grammar for the first of them.

    Attributes:
        tokens: ids.
        confidences: their probabilities.
        entropies: of the rows' distributions, nats; empty unless the policy needs them.
        scores: of the tokens; empty unless the request wants them.
    """

    tokens: Sequence[int] = ()
    confidences: Sequence[float] = ()
    entropies: Sequence[float] = ()
    scores: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a proposal.

    Attributes:
        filled: undecided positions that take their proposal, ascending.
        edited: decided positions that take theirs, ascending.
        selected_by: what chose `filled`: the threshold, the most confident as too few were above it, or nothing.
    """

    filled: tuple[int, ...] = ()
    edited: tuple[int, ...] = ()
    selected_by: Selection = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is returned of a sequence.

    Attributes:
        tokens: ids as returned.
        num_prompt: leading ones that are the prompt's (policies that return it).
        num_tokens: generated tokens that count, up to and including the first EOS, none beyond the limit.
        stopped_by: the EOS that ended the generation; None where none did.
    """

    tokens: list[int]
    num_prompt: int = 0
    num_tokens: int
    stopped_by: int | None


class Policy(Protocol):
    """Decides what a block's forwards fill and edit, and when block and sequence end."""

    @property
    def block_length(self) -> int | None:
        """Tokens of a block; None is the model's."""
        ...

    @property
    def gen_length(self) -> int | None:
        """Tokens to generate at most; None is that of `SamplingParams`."""
        ...

    @property
    def eos_id(self) -> int | None:
        """Id that ends a generation; None is the model's."""
        ...

    @property
    def mask_id(self) -> int | None:
        """Id of an undecided position; None is the model's."""
        ...

    def rule(self, suppressed: tuple[int, ...]) -> Rule:
        """Return how rows become proposals.

        Args:
            suppressed: ids that must never be emitted (MASK, ids without a token); compatible policies propose them.
        """
        ...

    @property
    def mask_is_undecided(self) -> bool:
        """Whether a position that holds the mask id counts as undecided, wherever the id came from."""
        ...

    @property
    def mask_in_prompt(self) -> bool:
        """Whether a prompt may hold the mask id."""
        ...

    @property
    def max_forwards(self) -> int | None:
        """Forwards of a block after which it is given up; None where the policy's own rule has a bound."""
        ...

    def places(self, draft: Draft) -> tuple[int, ...]:
        """Return the positions of the current block whose predictions the next forward must give, ascending."""
        ...

    def decide(self, draft: Draft, places: Sequence[int], proposal: Proposal) -> Decision:
        """Return what the forward fills and edits; the draft is as it was before the forward."""
        ...

    def verdict(self, draft: Draft, decision: Decision | None) -> Verdict:
        """Return whether the block goes on, is finished, or ends the sequence ("early": by a rule of its own).

        Asked after every denoising forward, its decision written, and once when a block is opened (None).
        """
        ...

    def result(self, draft: Draft, verdict: Verdict) -> Result:
        """Return what is returned of the sequence if the current block, finished with this verdict, is its last."""
        ...


def threshold_or_top(
    confidence: Sequence[float], places: Sequence[int], *, threshold: float, least: int
) -> tuple[tuple[int, ...], Selection]:
    """Return the places above the threshold, or the `least` most confident where fewer are; and which it was.

    Args:
        confidence: of each place.
        places: candidates, ascending.
        threshold: probability; strict.
        least: number of places below which the most confident are taken instead.
    """
    taken = accept(confidence, threshold=threshold, min_accept=least)
    enough = sum(value > threshold for value in confidence) >= least
    selected_by: Selection = "none" if not taken else "threshold" if enough else "top_k"
    return tuple(places[i] for i in taken), selected_by
