"""What comes out of decoding: events and completions. No tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

FinishReason = Literal["stop", "length", "stuck"]
ForwardKind = Literal["prefill", "denoise", "commit"]
Selection = Literal["threshold", "top_k", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """How probable the model found a token when it was written: at the forward that filled, or last edited, it.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability in the softmax of the logits, at temperature 1, before bias,
            penalties and filters; ids that are never emitted are left out of the softmax.
        top: the most probable ids with theirs, the best first; as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwards:
    """Forward passes of one request.

    Attributes:
        prefill: passes over prompt tokens that decide nothing: one for every piece in which they are read, none for
            blocks that the cache holds.
        denoise: passes that decide tokens. A pass that also commits the previous block, or that also reads the
            prompt (next-token decoding), counts once, here.
        commit: passes that only write the keys and values of a finished block (none when fused).
    """

    prefill: int = 0
    denoise: int = 0
    commit: int = 0

    def counting(self, kind: ForwardKind) -> Forwards:
        """Return the counts with one more forward of this kind."""
        return replace(
            self,
            prefill=self.prefill + (kind == "prefill"),
            denoise=self.denoise + (kind == "denoise"),
            commit=self.commit + (kind == "commit"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """What became of the drafts of one request, or of several together.

    Attributes:
        cycles: forwards that verified drafts.
        tokens: written by them, and by the forwards that drafted for them; not those that were written without drafts.
        verified_at: for the first, second, ... draft of a cycle: how often there was one.
        accepted_at: how often it was written.
    """

    cycles: int = 0
    tokens: int = 0
    verified_at: tuple[int, ...] = ()
    accepted_at: tuple[int, ...] = ()

    @property
    def drafted(self) -> int:
        """Tokens that were verified."""
        return sum(self.verified_at)

    @property
    def accepted(self) -> int:
        """Those of them that were written."""
        return sum(self.accepted_at)

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens for each forward that verified: with a draft forward before each, those of two forwards; 0 without."""
        return self.tokens / self.cycles if self.cycles else 0.0

    @property
    def acceptance_at(self) -> tuple[float, ...]:
        """For the first, second, ... draft of a cycle: share that was written, of those that there were."""
        pairs = zip(self.accepted_at, self.verified_at, strict=True)
        return tuple(accepted / verified for accepted, verified in pairs)

    def __add__(self, other: DraftCounts) -> DraftCounts:
        """Return the counts of both together."""
        return DraftCounts(
            cycles=self.cycles + other.cycles,
            tokens=self.tokens + other.tokens,
            verified_at=_added(self.verified_at, other.verified_at),
            accepted_at=_added(self.accepted_at, other.accepted_at),
        )

    @staticmethod
    def of(*, checked: int, accepted: int, written: int) -> DraftCounts:
        """Return the counts of one forward that drafted or verified.

        Args:
            checked: drafts that it verified; 0 where it did not.
            accepted: those of them that were written, the first ones.
            written: tokens.
        """
        return DraftCounts(
            cycles=int(checked > 0),
            tokens=written,
            verified_at=(1,) * checked,
            accepted_at=tuple(int(place < accepted) for place in range(checked)),
        )


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip_longest(one, other, fillvalue=0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a request produced.

    Attributes:
        tokens: generated ids, without the prompt, cut before the first EOS, at most `max_new_tokens`. Under a policy
            what its system returns: that may hold EOS, masks or the prompt.
        text: the decoded tokens, cut before a stop string to the character; None without a tokenizer.
        forwards: forward passes by kind.
        finish_reason: "stop" (an EOS), "length", or "stuck": a policy whose own loop has no end repeated a state, or
            reached its `max_forwards` in a block, or a grammar allowed no token of the model's; the tokens are those
            of that moment.
        num_tokens: tokens up to and including the first EOS (if it was not ignored), none beyond it or beyond
            `max_new_tokens`; what rates are counted in.
        seconds: wall-clock time from the request's first forward to its end.
        stopped_by: the EOS or stop id, or the stop string, that ended the generation; None where none did.
        logprobs: of the generated tokens of `tokens`, if asked for.
        reused_tokens: prompt tokens that were not read, as the cache held their blocks.
        drafts: what became of drafts, where there were some to be verified (policy "verified"); else None.
    """

    tokens: list[int]
    text: str | None
    forwards: Forwards
    finish_reason: FinishReason
    num_tokens: int
    seconds: float
    stopped_by: int | str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    reused_tokens: int = 0
    drafts: DraftCounts | None = None

    @property
    def tokens_per_forward(self) -> float:
        """TPF: `num_tokens` / (denoise + commit forwards). Prefill is apart; EOS fill does not count."""
        forwards = self.forwards.denoise + self.forwards.commit
        return self.num_tokens / forwards if forwards else 0.0

    @property
    def tokens_per_second(self) -> float:
        """TPS: `num_tokens` / `seconds`, prefill included."""
        return self.num_tokens / self.seconds if self.seconds > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """A denoising forward: what it decided. An EOS before them may still cut tokens off, an edit replace them.

    Attributes:
        request_id: number of the request.
        block: number of the block, counted from the start of the prompt.
        positions: positions decided now, counted from the start of the prompt, ascending.
        tokens: their ids.
        confidences: their probabilities.
        open_positions: positions of the block that are still to be decided.
        num_masked: positions that were undecided before the forward, those included that never will be.
        wasted: positions that were chosen but stay undecided, as their proposal was the mask (compatible policies).
        selected_by: what chose the positions; the threshold, the most confident as too few were above it, or nothing.
        guesses: what was proposed for open positions and not taken: position, id, probability; positions ascending.
            Only where it was asked for (`SamplingParams.guesses`).
    """

    request_id: int
    block: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    open_positions: tuple[int, ...]
    num_masked: int = 0
    wasted: tuple[int, ...] = ()
    selected_by: Selection = "threshold"
    guesses: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A forward replaced decided tokens of the block that is not final yet. Follows the forward's `Denoised`.

    Attributes:
        request_id: number of the request.
        block: number of the block, counted from the start of the prompt.
        positions: positions that changed, ascending.
        before: ids that stood there.
        tokens: ids that stand there now; the mask id where a policy opens a position again.
        confidences: their probabilities.
    """

    request_id: int
    block: int
    positions: tuple[int, ...]
    before: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """A forward proposed tokens behind the text so far, which the next one verifies. Follows the forward's `Denoised`.

    Attributes:
        request_id: number of the request.
        positions: where they would stand, counted from the start of the prompt, ascending.
        tokens: their ids.
        confidences: their probabilities, as the drafting rows have them.
    """

    request_id: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A block is final. The tokens of a request's `Committed` events, joined, are its completion's generated tokens.

    (Not so under one setting: hf20 policies with `eos_early_stop` and an EOS in the prompt, whose return drops tokens
    that were final.)

    Attributes:
        request_id: number of the request.
        block: number of the block, counted from the start of the prompt.
        tokens: its generated tokens, without prompt tokens and what is not returned (natively EOS and anything behind
            it); never empty.
        logprobs: of these tokens, if asked for; joined, they are the completion's.
    """

    request_id: int
    block: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request is done; its last event.

    Attributes:
        request_id: number of the request.
        completion: the result.
    """

    request_id: int
    completion: Completion


Event = Denoised | Edited | Drafted | Committed | Finished
