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
    counts = DraftCounts().adding(checked=0, accepted=0)
    assert counts == DraftCounts()
    counts = counts.adding(checked=2, accepted=1).adding(checked=4, accepted=3).adding(checked=1, accepted=0)
    assert counts == DraftCounts(cycles=3, drafted=7, accepted=4, positions=(2, 1, 1, 0))


def test_tokens_per_cycle_count_forwards_that_verified() -> None:
    def completion(drafts: DraftCounts | None) -> Completion:
        forwards = Forwards(denoise=4, commit=3)
        return Completion(
            tokens=[1], text=None, forwards=forwards, finish_reason="length", num_tokens=12, seconds=1.0, drafts=drafts
        )

    assert completion(DraftCounts(cycles=3)).tokens_per_cycle == 4.0
    assert completion(DraftCounts()).tokens_per_cycle == completion(None).tokens_per_cycle == 0.0
    assert completion(None).tokens_per_forward == 12 / 7
