"""Costs add up: rates are ratios of sums, and what was not asked for is not reported."""

from __future__ import annotations

from difflm.decode.events import Completion, Forwards
from difflm.evaluation.usage import Usage
from difflm.likelihood import Likelihood


def test_rates_are_ratios_of_sums() -> None:
    usage = Usage(seconds=4.0)
    for tokens, denoise, commit in ((8, 2, 0), (4, 4, 2)):
        forwards = Forwards(prefill=1, denoise=denoise, commit=commit)
        done = Completion(tokens=[0], text="", forwards=forwards, finish_reason="stop", num_tokens=tokens, seconds=9.0)
        usage.add_completion(done)
    found = usage.as_dict()
    assert set(found) == {"truncated_contexts", "generation"}
    assert found["generation"] == {
        "requests": 2, "tokens": 12, "forwards": {"prefill": 2, "denoise": 6, "commit": 2},
        "tokens_per_forward": 1.5, "tokens_per_second": 3.0, "seconds": 4.0,
    }  # fmt: skip


def test_exact_values_and_estimates_are_told_apart() -> None:
    usage = Usage()
    for error in (0.0, 0.5, 0.3, None):
        usage.add_likelihood(
            Likelihood(log_likelihood=-1.0, standard_error=error, num_tokens=3, greedy=None, forwards=2)
        )
    found = usage.as_dict()["likelihood"]
    assert (found["texts"], found["exact"], found["tokens"], found["forwards"]) == (4, 1, 12, 8)
    assert found["mean_standard_error_nats"] == 0.4


def test_nothing_asked_costs_nothing() -> None:
    assert Usage().as_dict() == {"truncated_contexts": 0}
    assert Usage(generated=1).as_dict()["generation"]["tokens_per_forward"] == 0
