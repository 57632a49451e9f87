"""The arithmetic of completions."""

from __future__ import annotations

from difflm.decode.events import Completion, DraftCounts, Forwards


def test_rates_count_commits_and_not_prefill() -> None:
    completion = Completion(
        tokens=[1] * 11,
        text=None,
        forwards=Forwards(prefill=1, denoise=3, commit=1),
        finish_reason="stop",
        num_tokens=12,
        seconds=4.0,
    )
    assert completion.tokens_per_forward == 3.0
    assert completion.tokens_per_second == 3.0


def test_counting_adds_one_of_a_kind() -> None:
    counts = Forwards().counting("prefill").counting("denoise").counting("denoise").counting("commit")
    assert counts == Forwards(prefill=1, denoise=2, commit=1)


def test_a_completion_without_a_forward_has_a_rate_of_nothing() -> None:
    nothing = Completion(tokens=[], text=None, forwards=Forwards(), finish_reason="length", num_tokens=0, seconds=0.1)
    assert nothing.tokens_per_forward == 0.0


def test_counts_of_drafts() -> None:
    assert DraftCounts.of(checked=0, accepted=0, written=1) == DraftCounts(tokens=1), "it drafted"
    counts = DraftCounts.of(checked=2, accepted=1, written=2) + DraftCounts.of(checked=4, accepted=3, written=4)
    counts += DraftCounts.of(checked=1, accepted=0, written=1)
    assert counts == DraftCounts(cycles=3, tokens=7, verified_at=(3, 2, 1, 1), accepted_at=(2, 1, 1, 0))
    assert (counts.drafted, counts.accepted) == (7, 4)
    assert counts.acceptance_at == (2 / 3, 0.5, 1.0, 0.0)
    assert counts.tokens_per_cycle == 7 / 3
    assert DraftCounts().tokens_per_cycle == 0.0
