"""Left-to-right decoding in the engine: AR parents and AR controls. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from difflm.decode.events import Committed, Denoised, Event, Forwards, TokenLogprob
from difflm.decode.policies.base import Proposal, Result
from difflm.decode.request import Request
from difflm.decode.work import Outcome, Work, outcome_of


@dataclass(slots=True)
class NextTokenDecoding:
    """Left-to-right decoding of one request under a causal mask, one token per forward.

    The first forward reads the whole prompt and yields the first token. It is counted once, as denoise (the rule
    for fused forwards), so that n tokens are n denoise forwards and a prefill count of 0. Where there is no room to
    read the whole prompt at once, the pieces before the last one are prefill.

    Attributes:
        request: what is decoded.
        base: first entry of its span of the cache.
        tokens: prompt and generated tokens.
        committed: length of the cached prefix.
        streamed: generated tokens that `Committed` events have told.
        scores: logprobs of the generated tokens, if asked for.
        forwards: counts by kind.
        outcome: the result, once there is one.
    """

    request: Request
    base: int
    tokens: list[int] = field(init=False)
    committed: int = 0
    streamed: int = 0
    scores: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    forwards: Forwards = field(default_factory=Forwards)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    def begin(self) -> list[Event]:
        """Do nothing: there is at least one token to generate."""
        return []

    def next_work(self, room: int) -> Work | None:
        """Return the next forward: every token behind the prefix, predicting the next position; or a piece of them."""
        rows = tuple(self.tokens[self.committed :])
        unread = max(0, len(self.request.prompt) - self.committed)
        if unread > room:
            return self._piece(rows[:room]) if room > 0 else None
        return Work(
            request=self.request,
            base=self.base,
            kind="denoise",
            start=self.committed,
            tokens=rows,
            num_clean=len(rows),
            places=(len(self.tokens),),
            generated=tuple(self.generated) if self.request.rule.needs_history else (),
            reads=unread,
        )

    def _piece(self, rows: tuple[int, ...]) -> Work:
        return Work(
            request=self.request,
            base=self.base,
            kind="prefill",
            start=self.committed,
            tokens=rows,
            num_clean=len(rows),
            reads=len(rows),
        )

    @property
    def generated(self) -> list[int]:
        """Tokens behind the prompt."""
        return self.tokens[len(self.request.prompt) :]

    def absorb(self, work: Work, proposal: Proposal) -> list[Event]:
        """Append the token; finish at an EOS, a stop string or the limit."""
        self.forwards = self.forwards.counting(work.kind)
        self.committed += work.num_clean
        if not work.places:
            return []
        (place,), (token,) = work.places, proposal.tokens
        self.tokens.append(token)
        self.scores.extend(proposal.scores)
        denoised = Denoised(
            request_id=self.request.id,
            block=place,
            positions=(place,),
            tokens=(token,),
            confidences=tuple(proposal.confidences),
            open_positions=(),
            num_masked=1,
        )
        return [denoised, *self._told(place, token)]

    def _told(self, place: int, token: int) -> list[Event]:
        """Return the event of the tokens that are final now, and set the outcome if they are the last."""
        generated, stops = self.generated, self.request.stops
        stopped = token in self.request.eos_ids
        cut = None if stops is None else stops.find(generated, after=self.request.min_tokens)
        if stopped or cut is not None or len(self.tokens) == self.request.limit:
            result = Result(
                tokens=generated[: len(generated) - stopped],
                num_tokens=len(generated),
                stopped_by=token if stopped else None,
            )
            self.outcome = outcome_of(self.request, result, self.forwards, self.scores)
            final = len(self.outcome.tokens)
        else:
            final = len(generated) if stops is None else stops.settled(generated)
        tokens = tuple(generated[self.streamed : final])
        self.streamed = max(self.streamed, final)
        return [Committed(request_id=self.request.id, block=place, tokens=tokens)] if tokens else []
