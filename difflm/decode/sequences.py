"""The state of one running request: which rows its next forward needs, and what their answers change. No tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from difflm.decode.events import (
    Committed,
    Denoised,
    Edited,
    Event,
    FinishReason,
    ForwardKind,
    Forwards,
    TokenLogprob,
)
from difflm.decode.left_to_right import LeftToRightDecoding
from difflm.decode.policies.base import Decision, Draft, Policy, Proposal, Verdict
from difflm.decode.request import Request
from difflm.decode.work import Decoding, Outcome, Work, outcome_of


def decoding_of(request: Request, base: int = 0, *, committed: int = 0) -> Decoding:
    """Return the initial state of a request: block decoding, or left to right if it has no policy of blocks.

    Args:
        request: what to decode.
        base: first entry of its span of the cache.
        committed: leading prompt tokens whose keys and values are there, whole blocks.
    """
    if request.policy is None:
        return LeftToRightDecoding(request, base, committed=committed)
    assert request.mask_id is not None, "block decoding needs a mask id"
    # Given tokens behind a gap are decided from the start; their block is denoised with them in sight.
    given = [request.mask_id if token is None else token for token in request.template]
    draft = Draft(
        tokens=[*request.prompt, *given],
        decided=[True] * len(request.prompt) + [token is not None for token in request.template],
        num_prompt=len(request.prompt),
        limit=request.limit,
        mask_id=request.mask_id,
        eos_ids=request.eos_ids,
    )
    return BlockDecoding(request, base, request.policy, draft, committed=committed)


@dataclass(slots=True)
class BlockDecoding:
    """Block-diffusion decoding of one request, under a policy.

    Blocks lie at absolute multiples of the block size. Whole prompt blocks are prefilled; the first decoded
    block starts with the rest of the prompt. A finished block is forwarded once more, clean, before (or fused
    with) the first denoising of the next one; not the last block, and not where the last denoising forward changed
    nothing, so that what it left behind the prefix is final.

    Attributes:
        request: what is decoded.
        base: first entry of its span of the cache.
        policy: decides.
        draft: tokens, and which of them are decided.
        committed: length of the cached prefix.
        settled: rows behind the prefix that are final and join it at the next forward.
        streamed: generated tokens that `Committed` events have told.
        scores: logprobs by position, if asked for.
        seen: states of the block so far, where the policy could go round in circles.
        forwards: counts by kind.
        outcome: the result, once there is one.
    """

    request: Request
    base: int
    policy: Policy
    draft: Draft
    committed: int = 0
    settled: int = 0
    streamed: int = 0
    scores: dict[int, TokenLogprob] = field(default_factory=dict[int, TokenLogprob])
    seen: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])
    forwards: Forwards = field(default_factory=Forwards)
    outcome: Outcome | None = None

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far, with masks at undecided positions."""
        return self.draft.tokens

    @property
    def block(self) -> int:
        """Number of the current block."""
        return self.draft.start // self.request.block_size

    @property
    def first_block(self) -> int:
        """Number of the first block that holds a generated token."""
        return len(self.request.prompt) // self.request.block_size

    def begin(self) -> list[Event]:
        """Open the first block; without room for a block the request is finished."""
        start = self.first_block * self.request.block_size
        if start >= self.draft.limit:
            self.draft.start = self.draft.stop = start
            return self._end("next", "length")
        self._open(start)
        return self._advance(None)

    def _open(self, start: int) -> None:
        draft = self.draft
        draft.start, draft.stop, draft.steps, draft.post = start, start + self.request.block_size, 0, 0
        missing = draft.stop - len(draft.tokens)
        draft.tokens += [draft.mask_id] * missing
        draft.decided += [False] * missing
        if self.policy.mask_is_undecided:
            for place in range(start, draft.stop):
                draft.decided[place] = draft.tokens[place] != draft.mask_id
        self.seen = {self._state()}

    def _state(self) -> tuple[int, ...]:
        return (self.draft.post, *self.draft.block())

    def next_work(self, room: int) -> Work | None:
        """Return the next forward: prefill (a piece of it, if there is no room for more), commit (if not fused), or
        denoise.
        """
        start = self.committed + self.settled
        clean = self.draft.start - start
        if clean and self.block == self.first_block:
            size = self.request.block_size
            return self._clean_work("prefill", start, min(clean, room // size * size))
        if clean and not self.request.fused:
            return self._clean_work("commit", start, clean)
        rows = tuple(self.draft.tokens[start : self.draft.stop])
        return Work(
            request=self.request,
            base=self.base,
            kind="denoise",
            start=start,
            tokens=rows,
            num_clean=clean,
            places=self.policy.places(self.draft),
            settled=self.settled,
            fresh=self.draft.steps == 0,
            generated=self._history(),
        )

    def _clean_work(self, kind: ForwardKind, start: int, count: int) -> Work | None:
        """Return a forward that only fills the cache; None without rows."""
        rows = tuple(self.draft.tokens[start : start + count])
        reads = count if kind == "prefill" else 0
        if not rows:
            return None
        return Work(
            request=self.request,
            base=self.base,
            kind=kind,
            start=start,
            tokens=rows,
            num_clean=count,
            reads=reads,
        )

    def _history(self) -> tuple[int, ...]:
        if not self.request.rule.needs_history:
            return ()
        draft, first = self.draft, self.draft.num_prompt
        given = {first + i for i, token in enumerate(self.request.template) if token is not None}
        answer = (i for i in range(first, len(draft.tokens)) if i not in given)
        return tuple(draft.tokens[i] for i in answer if draft.decided[i])

    def absorb(self, work: Work, proposal: Proposal) -> list[Event]:
        """Write what the policy decides; when the block is finished, open the next one or finish."""
        self.forwards = self.forwards.counting(work.kind)
        self.committed = work.start + work.num_clean
        self.settled = 0
        if work.kind != "denoise":
            return []
        if work.places and not proposal.tokens:
            return self._end("early", "stuck")  # a grammar that allows no token
        decision = self.policy.decide(self.draft, work.places, proposal)
        events = self._write(work, proposal, decision)
        return events + self._advance(decision)

    def _write(self, work: Work, proposal: Proposal, decision: Decision) -> list[Event]:
        draft, by_id = self.draft, self.policy.mask_is_undecided
        num_masked = len(draft.masked())
        nothing_left = all(draft.decided[place] for place in work.places)
        index = {place: i for i, place in enumerate(work.places[: len(proposal.tokens)])}
        before = tuple(draft.tokens[place] for place in decision.edited)
        for place in (*decision.filled, *decision.edited):
            token = proposal.tokens[index[place]]
            draft.tokens[place], draft.decided[place] = token, not (by_id and token == draft.mask_id)
            if proposal.scores:
                self.scores[place] = proposal.scores[index[place]]
        draft.steps += 1
        draft.post += nothing_left
        filled = tuple(place for place in decision.filled if draft.decided[place])
        open_positions = tuple(place for place in self.policy.places(draft) if not draft.decided[place])
        guessed = [place for place in open_positions if place in index] if self.request.guesses else []
        events: list[Event] = [
            Denoised(
                request_id=self.request.id,
                block=self.block,
                positions=filled,
                tokens=tuple(draft.tokens[place] for place in filled),
                confidences=tuple(proposal.confidences[index[place]] for place in filled),
                open_positions=open_positions,
                num_masked=num_masked,
                wasted=tuple(place for place in decision.filled if not draft.decided[place]),
                selected_by=decision.selected_by,
                guesses=tuple(_guess(proposal, place, index[place]) for place in guessed),
            )
        ]
        if decision.edited:
            edited = Edited(
                request_id=self.request.id,
                block=self.block,
                positions=decision.edited,
                before=before,
                tokens=tuple(draft.tokens[place] for place in decision.edited),
                confidences=tuple(proposal.confidences[index[place]] for place in decision.edited),
            )
            events.append(edited)
        return events

    def _advance(self, decision: Decision | None) -> list[Event]:
        """Return the events of finished blocks, and open the next ones, until one needs a forward or all is done."""
        events: list[Event] = []
        verdict = self.policy.verdict(self.draft, decision)
        while verdict == "next" and self.draft.stop < self.draft.limit:
            generated = self.policy.result(self.draft, verdict).tokens
            if self.request.stops is not None:
                if self.request.stops.find(generated, after=self.request.min_tokens) is not None:
                    break
                generated = generated[: self.request.stops.settled(generated)]
            events += self._commit(generated)
            unchanged = decision is not None and not decision.filled and not decision.edited
            self.settled = self.request.block_size if unchanged and self._clean_as_noisy else 0
            self._open(self.draft.stop)
            decision = None
            verdict = self.policy.verdict(self.draft, None)
        if verdict != "continue":
            return events + self._end(verdict, None)
        return events + (self._end("end", "stuck") if decision is not None and self._stuck() else [])

    @property
    def _clean_as_noisy(self) -> bool:
        """Whether a decided block gives the same keys and values as clean rows and as noisy ones."""
        request = self.request
        return not (request.clean_causal or request.noisy_causal or request.logit_shift)

    def _stuck(self) -> bool:
        """Whether a policy without a bound will never finish the block, as far as that can be told."""
        if self.policy.max_forwards is None:
            return False
        state = self._state()
        # Without chance the same state leads to the same next one, for ever.
        again = state in self.seen and not self.request.rule.random
        self.seen.add(state)
        return again or self.draft.steps >= self.policy.max_forwards

    def _commit(self, generated: Sequence[int]) -> list[Event]:
        tokens = tuple(generated[self.streamed :])
        scores = None if self.request.logprobs is None else tuple(self._scores(generated)[self.streamed :])
        self.streamed = max(self.streamed, len(generated))
        if not tokens:
            return []
        return [Committed(request_id=self.request.id, block=self.block, tokens=tokens, logprobs=scores)]

    def _scores(self, generated: Sequence[int]) -> list[TokenLogprob]:
        """Return the logprobs of generated tokens; -inf for what was left open, or is the limit's."""
        never = (TokenLogprob(token=token, logprob=-math.inf) for token in generated)
        return [self.scores.get(self.draft.num_prompt + i, each) for i, each in enumerate(never)]

    def _end(self, verdict: Verdict, reason: FinishReason | None) -> list[Event]:
        result = self.policy.result(self.draft, verdict)
        generated = result.tokens[result.num_prompt :]
        self.outcome = outcome_of(self.request, result, self.forwards, self._scores(generated), reason)
        return self._commit(self.outcome.tokens[result.num_prompt :])


def _guess(proposal: Proposal, place: int, row: int) -> tuple[int, int, float]:
    return place, proposal.tokens[row], proposal.confidences[row]
