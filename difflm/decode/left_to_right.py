"""Left-to-right decoding in the engine: a token per forward, or drafts that the next forward verifies. No tensors.

A forward has clean rows (final tokens that are not in the cache yet, then drafts to be verified) and, to draft, MASK
rows behind them. Each clean row says what follows it; a draft that is what the row before it says is accepted, and the
first one that is not is replaced by it. So the text is that of one token per forward, whatever is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from difflm.decode.events import (
    Committed,
    Denoised,
    DraftCounts,
    Drafted,
    Event,
    FinishReason,
    ForwardKind,
    Forwards,
    TokenLogprob,
)
from difflm.decode.pace import Pace
from difflm.decode.policies.base import Proposal, Result
from difflm.decode.request import Request
from difflm.decode.work import Outcome, Work, outcome_of


@dataclass(slots=True)
class LeftToRightDecoding:
    """Left-to-right decoding of one request under a causal mask.

    The first forward reads the whole prompt and yields the first token. It is counted once, as denoise (the rule
    for fused forwards), so that without drafts n tokens are n denoise forwards and a prefill count of 0. Where there is
    no room to read the whole prompt at once, the pieces before the last one are prefill. A forward that only verifies
    is counted as commit, one that drafts (and verifies or reads the prompt, too) as denoise.

    Attributes:
        request: what is decoded.
        base: first entry of its span of the cache.
        tokens: prompt and generated tokens, all final.
        committed: length of the cached prefix.
        drafts: tokens that may follow and have to be verified.
        pace: when to draft and how much; None: never.
        streamed: generated tokens that `Committed` events have told.
        scores: logprobs of the generated tokens, if asked for.
        forwards: counts by kind.
        counts: of drafts.
        outcome: the result, once there is one.
    """

    request: Request
    base: int
    tokens: list[int] = field(init=False)
    committed: int = 0
    drafts: list[int] = field(default_factory=list[int])
    pace: Pace | None = field(init=False)
    streamed: int = 0
    scores: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    forwards: Forwards = field(default_factory=Forwards)
    counts: DraftCounts = field(default_factory=DraftCounts)
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.pace = None if self.request.drafting is None else Pace(self.request.drafting)

    def begin(self) -> list[Event]:
        """Do nothing: there is at least one token to generate."""
        return []

    def next_work(self, room: int) -> Work | None:
        """Return the next forward: the rows behind the prefix and what they predict; or a piece of the prompt."""
        unread = max(0, len(self.request.prompt) - self.committed)
        if unread > room:
            return self._piece(room) if room > 0 else None
        known, left = len(self.tokens), self.request.limit - len(self.tokens)
        # The row of a draft at the last place, or of an EOS, would predict what is not asked for.
        ends = bool(self.drafts) and self.drafts[-1] in self.request.eos_ids
        checked = self.drafts[: min(left, len(self.drafts) + 1 - ends) - 1]
        first = known + len(checked) + 1  # the first place that only a MASK row can predict
        room = 0 if ends else self.request.limit - first
        drafted = 0 if self.pace is None else self.pace.places(len(self.drafts), room)
        masks = drafted + (not self.request.noisy_shift) if drafted else 0
        kind: ForwardKind = "denoise" if masks or not checked else "commit"
        mask_id = self.request.mask_id
        assert mask_id is not None or not masks, "drafting needs a mask id"
        rows = (*self.tokens[self.committed :], *checked)
        return Work(
            request=self.request,
            base=self.base,
            kind=kind,
            start=self.committed,
            tokens=(*rows, *([mask_id or 0] * masks)),
            num_clean=len(rows),
            places=tuple(range(known, first + drafted)),
            fresh=False,
            generated=tuple(self.generated) if self.request.rule.needs_history else (),
            drafts=tuple(checked),
            reads=unread,
        )

    def _piece(self, count: int) -> Work:
        rows = tuple(self.tokens[self.committed : self.committed + count])
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
        """Append what is verified and the token behind it; finish at an EOS, a stop string or the limit."""
        self.forwards = self.forwards.counting(work.kind)
        if not work.places:
            self.committed += work.num_clean
            return []
        if not proposal.tokens:
            self.committed = work.start + work.num_clean - len(work.drafts)
            return self._stuck()
        said, given = proposal.tokens, self.drafts
        pairs = enumerate(zip(given, said, strict=False))
        accepted = next((i for i, (draft, token) in pairs if token != draft), min(len(given), len(said)))
        clean = len(work.drafts) + 1  # leading places: those that clean rows predict
        final = min(accepted + 1, clean, len(said))
        self.committed = work.start + work.num_clean - (clean - final)
        # What MASK rows propose stands behind the drafts, and is of no use behind others.
        self.drafts = self._up_to_an_end(said[clean:]) if accepted == len(given) else []
        first = len(self.tokens)
        ended = self._append(proposal, final)
        written = len(self.tokens) - first
        if self.pace is not None:
            masks = len(work.tokens) - work.num_clean
            self.pace.absorb(masks=masks, checked=len(given), accepted=accepted)
            if given or masks:
                self.counts += DraftCounts.of(checked=len(given), accepted=min(accepted, written), written=written)
        if ended:
            self._finish()
        events = self._told(work, proposal, written)
        if self.drafts and self.outcome is None:
            drafted = Drafted(
                request_id=self.request.id,
                positions=work.places[clean : clean + len(self.drafts)],
                tokens=tuple(self.drafts),
                confidences=tuple(proposal.confidences[clean : clean + len(self.drafts)]),
            )
            events.append(drafted)
        return events

    def _up_to_an_end(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens up to the first EOS: what is drafted behind one could never be written."""
        ends = self.request.eos_ids
        count = next((number for number, token in enumerate(tokens, start=1) if token in ends), len(tokens))
        return list(tokens[:count])

    def _append(self, proposal: Proposal, final: int) -> bool:
        """Append the first tokens of a proposal, one after the other; return whether one of them ends the answer."""
        request = self.request
        for number in range(final):
            self.tokens.append(proposal.tokens[number])
            self.scores.extend(proposal.scores[number : number + 1])
            if self.tokens[-1] in request.eos_ids or len(self.tokens) == request.limit:
                return True
            if request.stops is not None and request.stops.find(self.generated, after=request.min_tokens) is not None:
                return True
        return False

    def _stuck(self) -> list[Event]:
        """Finish where a grammar allows no token; return the event of what is left to tell."""
        place = len(self.tokens)
        self._finish("stuck")
        return self._commit(place)

    def _finish(self, reason: FinishReason | None = None) -> None:
        """Set the outcome."""
        generated = self.generated
        stopped = bool(generated) and generated[-1] in self.request.eos_ids
        result = Result(
            tokens=generated[: len(generated) - stopped],
            num_tokens=len(generated),
            stopped_by=generated[-1] if stopped else None,
        )
        counts = None if self.pace is None else self.counts
        self.outcome = outcome_of(self.request, result, self.forwards, self.scores, reason, drafts=counts)

    def _told(self, work: Work, proposal: Proposal, written: int) -> list[Event]:
        """Return the events of a forward that wrote so many tokens."""
        places = work.places[:written]
        denoised = Denoised(
            request_id=self.request.id,
            block=places[0],
            positions=places,
            tokens=tuple(proposal.tokens[:written]),
            confidences=tuple(proposal.confidences[:written]),
            open_positions=(),
            num_masked=written,
        )
        return [denoised, *self._commit(places[0])]

    def _commit(self, place: int) -> list[Event]:
        """Return the event of the tokens that are final now."""
        generated, stops = self.generated, self.request.stops
        if self.outcome is not None:
            final = len(self.outcome.tokens)
        else:
            final = len(generated) if stops is None else stops.settled(generated)
        tokens = tuple(generated[self.streamed : final])
        scores = None if self.request.logprobs is None else tuple(self.scores[self.streamed : final])
        self.streamed = max(self.streamed, final)
        return [Committed(request_id=self.request.id, block=place, tokens=tokens, logprobs=scores)] if tokens else []
