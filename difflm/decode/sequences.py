"""The state of one running request: which rows its next forward needs, and what their answers change. No tensors.

A forward always consists of the rows behind the cached prefix, at consecutive positions: some clean rows (tokens
that become part of the prefix), then some noisy rows (a block with its undecided positions masked), either of
them possibly none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from difflm.decode.request import Committed, Denoised, Event, FinishReason, ForwardKind, Forwards, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One forward of one request.

    Attributes:
        request: whose.
        kind: under which count the forward is booked.
        start: position of the first row = length of the cached prefix.
        tokens: input ids of the rows.
        num_clean: leading rows that are clean and join the prefix.
        places: positions to predict, ascending, all of them undecided.
    """

    request: Request
    kind: ForwardKind
    start: int
    tokens: tuple[int, ...]
    num_clean: int
    places: tuple[int, ...] = ()

    def row_of(self, place: int) -> int:
        """Return the row that predicts `place`; -1 is the last row of the cached prefix."""
        return place - self.start - (1 if self.request.logit_shift else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a forward proposes for the places of its work, in their order, and which proposals are accepted."""

    tokens: Sequence[int] = ()
    confidences: Sequence[float] = ()
    accepted: Sequence[bool] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a finished request, before its tokens become text; see `Completion` for the fields."""

    tokens: list[int]
    num_tokens: int
    finish_reason: FinishReason
    forwards: Forwards


class Decoding(Protocol):
    """A running request."""

    @property
    def outcome(self) -> Outcome | None:
        """The result once the request is done, else None."""
        ...

    def next_work(self) -> Work:
        """Return the next forward; changes nothing."""
        ...

    def absorb(self, work: Work, proposal: Proposal) -> list[Event]:
        """Take the answer to that forward and return what happened."""
        ...


def decoding_of(request: Request) -> Decoding:
    """Return the initial state of a request: block decoding, or next-token decoding if it has no mask id."""
    return NextTokenDecoding(request) if request.mask_id is None else BlockDecoding(request, request.mask_id)


@dataclass(slots=True)
class BlockDecoding:
    """Block-diffusion decoding of one request.

    Blocks lie at absolute multiples of the block size. Whole prompt blocks are prefilled; the first decoded
    block starts with the rest of the prompt. A finished block is forwarded once more, clean, before (or fused
    with) the first denoising of the next one; the last block is not.

    Positions at the limit or behind the first accepted EOS are never decided: their rows stay masked and only
    serve as the inputs that the model knows from training.

    Attributes:
        request: what is decoded.
        mask_id: input id of an undecided position.
        tokens: prompt and decided tokens; undecided positions of the current block hold the mask id.
        decided: whether each position of `tokens` holds a token (never inferred from its id).
        committed: length of the cached prefix.
        block: number of the block being decoded.
        end: position of the first accepted EOS, else the limit; nothing is decided from there on.
        stopped: whether `end` is an EOS.
        forwards: counts by kind.
        outcome: the result, once there is one.
    """

    request: Request
    mask_id: int
    tokens: list[int] = field(init=False)
    decided: list[bool] = field(init=False)
    committed: int = 0
    block: int = field(init=False)
    end: int = field(init=False)
    stopped: bool = False
    forwards: Forwards = field(default_factory=Forwards)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        prompt = self.request.prompt
        self.tokens, self.decided = list(prompt), [True] * len(prompt)
        self.end = self.request.limit
        self._open_block(self.first_block)

    @property
    def first_block(self) -> int:
        """Number of the first block that holds a generated token."""
        return len(self.request.prompt) // self.request.block_size

    @property
    def block_start(self) -> int:
        """Position of the current block's first token."""
        return self.block * self.request.block_size

    @property
    def block_stop(self) -> int:
        """Position behind the current block."""
        return self.block_start + self.request.block_size

    def _open_block(self, block: int) -> None:
        self.block = block
        missing = self.block_stop - len(self.tokens)
        self.tokens += [self.mask_id] * missing
        self.decided += [False] * missing

    def open_positions(self) -> tuple[int, ...]:
        """Return the positions of the current block that are still to be decided."""
        stop = min(self.block_stop, self.end)
        return tuple(place for place in range(self.block_start, stop) if not self.decided[place])

    def next_work(self) -> Work:
        """Return the next forward: prefill, commit (if not fused) or denoise."""
        clean = self.block_start - self.committed
        rows = tuple(self.tokens[self.committed :])
        prefill = self.block == self.first_block
        if clean and (prefill or not self.request.fused):
            kind: ForwardKind = "prefill" if prefill else "commit"
            return Work(request=self.request, kind=kind, start=self.committed, tokens=rows[:clean], num_clean=clean)
        return Work(
            request=self.request,
            kind="denoise",
            start=self.committed,
            tokens=rows,
            num_clean=clean,
            places=self.open_positions(),
        )

    def absorb(self, work: Work, proposal: Proposal) -> list[Event]:
        """Write the accepted tokens; when nothing is left to decide in the block, open the next one or finish."""
        self.forwards = self.forwards.counting(work.kind)
        self.committed += work.num_clean
        if not work.places:
            return []
        taken = [i for i, accepted in enumerate(proposal.accepted) if accepted]
        assert taken, "a denoising forward must decide something"
        for i in taken:
            place, token = work.places[i], proposal.tokens[i]
            self.tokens[place], self.decided[place] = token, True
            if token in self.request.eos_ids and place < self.end:
                self.end, self.stopped = place, True
        left = self.open_positions()
        denoised = Denoised(
            request_id=self.request.id,
            block=self.block,
            positions=tuple(work.places[i] for i in taken),
            tokens=tuple(proposal.tokens[i] for i in taken),
            confidences=tuple(proposal.confidences[i] for i in taken),
            open_positions=left,
        )
        return [denoised] if left else [denoised, *self._finish_block()]

    def _finish_block(self) -> list[Event]:
        num_prompt = len(self.request.prompt)
        tokens = tuple(self.tokens[max(self.block_start, num_prompt) : min(self.block_stop, self.end)])
        events: list[Event] = [Committed(request_id=self.request.id, block=self.block, tokens=tokens)] if tokens else []
        if self.block_stop < self.end:
            self._open_block(self.block + 1)
        else:
            generated = self.tokens[num_prompt : self.end]
            self.outcome = Outcome(
                tokens=generated,
                num_tokens=len(generated) + self.stopped,
                finish_reason="stop" if self.stopped else "length",
                forwards=self.forwards,
            )
        return events


@dataclass(slots=True)
class NextTokenDecoding:
    """Left-to-right decoding of one request under a causal mask, one token per forward.

    The first forward reads the whole prompt and yields the first token. It is counted once, as denoise (the rule
    for fused forwards), so that n tokens are n denoise forwards and a prefill count of 0.

    Attributes:
        request: what is decoded.
        tokens: prompt and generated tokens.
        committed: length of the cached prefix.
        forwards: counts by kind.
        outcome: the result, once there is one.
    """

    request: Request
    tokens: list[int] = field(init=False)
    committed: int = 0
    forwards: Forwards = field(default_factory=Forwards)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    def next_work(self) -> Work:
        """Return the next forward: every token behind the prefix, predicting the next position."""
        rows = tuple(self.tokens[self.committed :])
        return Work(
            request=self.request,
            kind="denoise",
            start=self.committed,
            tokens=rows,
            num_clean=len(rows),
            places=(len(self.tokens),),
        )

    def absorb(self, work: Work, proposal: Proposal) -> list[Event]:
        """Append the token; finish at an EOS or at the limit."""
        self.forwards = self.forwards.counting(work.kind)
        self.committed += work.num_clean
        (place,), (token,) = work.places, proposal.tokens
        stopped = token in self.request.eos_ids
        self.tokens.append(token)
        identity = {"request_id": self.request.id, "block": place}
        events: list[Event] = [
            Denoised(
                **identity,
                positions=(place,),
                tokens=(token,),
                confidences=tuple(proposal.confidences),
                open_positions=(),
            )
        ]
        if not stopped:
            events.append(Committed(**identity, tokens=(token,)))
        if stopped or len(self.tokens) == self.request.limit:
            generated = self.tokens[len(self.request.prompt) :]
            self.outcome = Outcome(
                tokens=generated[: len(generated) - stopped],
                num_tokens=len(generated),
                finish_reason="stop" if stopped else "length",
                forwards=self.forwards,
            )
        return events
