"""Left-to-right decoding in the engine: AR parents and AR controls. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from difflm.decode.events import Committed, Denoised, Event, Forwards
from difflm.decode.policies.base import Proposal
from difflm.decode.request import Request
from difflm.decode.work import Outcome, Work


@dataclass(slots=True)
class NextTokenDecoding:
    """Left-to-right decoding of one request under a causal mask, one token per forward.

    The first forward reads the whole prompt and yields the first token. It is counted once, as denoise (the rule
    for fused forwards), so that n tokens are n denoise forwards and a prefill count of 0.

    Attributes:
        request: what is decoded.
        base: first entry of its span of the cache.
        tokens: prompt and generated tokens.
        committed: length of the cached prefix.
        forwards: counts by kind.
        outcome: the result, once there is one.
    """

    request: Request
    base: int
    tokens: list[int] = field(init=False)
    committed: int = 0
    forwards: Forwards = field(default_factory=Forwards)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    def begin(self) -> list[Event]:
        """Do nothing: there is at least one token to generate."""
        return []

    def next_work(self) -> Work:
        """Return the next forward: every token behind the prefix, predicting the next position."""
        rows = tuple(self.tokens[self.committed :])
        return Work(
            request=self.request,
            base=self.base,
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
        number = self.request.id
        events: list[Event] = [
            Denoised(
                request_id=number,
                block=place,
                positions=(place,),
                tokens=(token,),
                confidences=tuple(proposal.confidences),
                open_positions=(),
                num_masked=1,
            )
        ]
        if not stopped:
            events.append(Committed(request_id=number, block=place, tokens=(token,)))
        if stopped or len(self.tokens) == self.request.limit:
            generated = self.tokens[len(self.request.prompt) :]
            self.outcome = Outcome(
                tokens=generated[: len(generated) - stopped],
                num_tokens=len(generated),
                finish_reason="stop" if stopped else "length",
                forwards=self.forwards,
            )
        return events
