"""One forward of one request, and what a running request is. No tensors.

A forward always consists of the rows behind the cached prefix, at consecutive positions: some clean rows (tokens
that become part of the prefix), then some noisy rows (a block with its undecided positions masked), either of
them possibly none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from difflm.decode.events import DraftCounts, Event, FinishReason, ForwardKind, Forwards, TokenLogprob
from difflm.decode.policies.base import Proposal, Result
from difflm.decode.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One forward of one request.

    Attributes:
        request: whose.
        base: first entry of its span of the cache.
        kind: under which count the forward is booked.
        start: position of the first row = length of the cached prefix.
        tokens: input ids of the rows.
        num_clean: leading rows that are clean and join the prefix.
        places: positions to predict, ascending.
        settled: rows that the forward before left behind the prefix and that are final: they join it first, unchanged.
        fresh: whether this is the first denoising forward of its block.
        generated: tokens decided so far, if the rule needs them.
        drafts: tokens of the last clean rows that are verified: the first places are theirs, and they join the prefix
            only as far as they are accepted.
        reads: prompt tokens among the rows that are read for the first time, where nothing forces them into this
            forward: others' prompts then wait.
    """

    request: Request
    base: int = 0
    kind: ForwardKind
    start: int
    tokens: tuple[int, ...]
    num_clean: int
    places: tuple[int, ...] = ()
    settled: int = 0
    fresh: bool = True
    generated: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    reads: int = 0

    @property
    def drafted(self) -> int:
        """How many of the last places are drafted by MASK rows, to be verified later."""
        return len(self.places) - len(self.drafts) - 1 if self.places and self.request.drafting is not None else 0

    def row_of(self, place: int) -> int:
        """Return the row that predicts `place`; -1 is the last row of the cached prefix."""
        noisy = place > self.start + self.num_clean
        return place - self.start - (self.request.noisy_shift if noisy else self.request.logit_shift)

    def left_of(self, place: int) -> int:
        """Return the input one position before `place`, -1 where that is outside the noisy block."""
        return -1 if place <= self.start + self.num_clean else self.tokens[place - self.start - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Keys and values that a request takes over from another span.

    Attributes:
        request: whose.
        source: first entry to copy.
        target: first entry of the request's span.
        count: entries, whole blocks.
    """

    request: Request
    source: int
    target: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a finished request, before its tokens become text; see `Completion` for the fields."""

    tokens: list[int]
    num_tokens: int
    finish_reason: FinishReason
    forwards: Forwards
    stopped_by: int | str | None = None
    text: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    drafts: DraftCounts | None = None


class Decoding(Protocol):
    """A running request."""

    @property
    def request(self) -> Request:
        """What is decoded."""
        ...

    @property
    def base(self) -> int:
        """First entry of its span of the cache."""
        ...

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far; not to be changed."""
        ...

    @property
    def committed(self) -> int:
        """How many of them are final, their keys and values in the cache."""
        ...

    @property
    def outcome(self) -> Outcome | None:
        """The result once the request is done, else None."""
        ...

    def begin(self) -> list[Event]:
        """Open the first block and return what happened; the outcome may be there at once."""
        ...

    def next_work(self, room: int) -> Work | None:
        """Return the next forward, None where it has to wait for room; changes nothing.

        Args:
            room: prompt tokens that it may read.
        """
        ...

    def absorb(self, work: Work, proposal: Proposal) -> list[Event]:
        """Take the answer to that forward and return what happened."""
        ...


def outcome_of(
    request: Request,
    result: Result,
    forwards: Forwards,
    scores: Sequence[TokenLogprob],
    reason: FinishReason | None = None,
    drafts: DraftCounts | None = None,
) -> Outcome:
    """Return the outcome of a result, cut at the first stop string of the request.

    Args:
        request: what was decoded.
        result: what its policy returns.
        forwards: what it took.
        scores: of its generated tokens; empty unless asked for.
        reason: why it ended, if not by an EOS or the limit.
        drafts: what became of them, if there were some.
    """
    prompt, generated = result.tokens[: result.num_prompt], result.tokens[result.num_prompt :]
    cut = None if request.stops is None else request.stops.find(generated, after=request.min_tokens)
    kept = len(generated) if cut is None else cut.kept
    asked = None if request.logprobs is None else tuple(scores[:kept])
    if cut is not None:
        return Outcome(
            tokens=prompt + generated[:kept],
            num_tokens=cut.counted,
            finish_reason="stop",
            forwards=forwards,
            stopped_by=cut.string,
            text=cut.text,
            logprobs=asked,
            drafts=drafts,
        )
    return Outcome(
        tokens=result.tokens,
        num_tokens=result.num_tokens,
        finish_reason=reason or ("length" if result.stopped_by is None else "stop"),
        forwards=forwards,
        stopped_by=result.stopped_by,
        logprobs=asked,
        drafts=drafts,
    )
