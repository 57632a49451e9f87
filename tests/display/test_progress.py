"""A training run on a terminal and away from it."""

from __future__ import annotations

import io

import pytest

from difflm.display import training_observer
from difflm.display.progress import Pace, TrainingLines, TrainingProgress, describe_samples, describe_validation
from tests.display.consoles import output, terminal

STEP = {
    "kind": "train", "step": 3, "num_tokens": 400, "stage": 1, "block_size": 8, "loss": 2.5, "tokens_per_second": 50.0
}  # fmt: skip
VALIDATION = {"kind": "validation", "num_tokens": 400, "perplexity": {"1": 20.0, "8": 61.234}, "ar_perplexity": 19.5}
SAMPLES = {"kind": "samples", "num_tokens": 400, "samples": 2, "tokens_per_forward": 2.5}
SKIPPED = {
    "kind": "skipped",
    "step": 3,
    "num_tokens": 400,
    "skipped": 1,
    "budget": 10,
    "reason": "step 3: the loss is nan",
}


def test_plain_lines_are_spaced_out_and_end_with_the_last_step() -> None:
    file, now = io.StringIO(), [0.0]
    lines = TrainingLines(file, interval=10.0, clock=lambda: now[0])
    lines.start(1000, 0)
    for tokens, seconds in ((100, 0.0), (200, 5.0), (400, 10.0), (500, 11.0), (1000, 12.0)):
        now[0] = seconds
        lines.update({**STEP, "num_tokens": tokens})
    lines.update(VALIDATION)
    lines.update(SAMPLES)
    lines.message("checkpoint x")
    lines.close()
    written = file.getvalue().splitlines()
    assert [line.split("  ")[1] for line in written[:3]] == ["100/1000 tokens", "400/1000 tokens", "1000/1000 tokens"]
    assert written[1] == "step 3  400/1000 tokens  stage 1  block 8  loss 2.500  50 tokens/s  ETA 0:00:12"
    assert written[3:] == [describe_validation(VALIDATION), describe_samples(SAMPLES), "checkpoint x"]
    assert describe_samples(SAMPLES) == "samples at 400 tokens: 2 completions, 2.50 tokens per forward"
    assert describe_validation(VALIDATION) == (
        "validation at 400 tokens, perplexity: block 1 20.00, block 8 61.23, AR 19.50"
    )


def test_the_bar_shows_loss_speed_eta_and_stage() -> None:
    console = terminal(width=120)
    bar = TrainingProgress(console)
    bar.start(1000, 200)
    bar.update(STEP)
    bar.update(VALIDATION)
    bar.update(SKIPPED)
    bar.update(SAMPLES)
    bar.message("[bold]data[/bold]")
    bar.close()
    drawn = output(console)
    for part in (
        "40%",
        "stage 1",
        "block 8",
        "loss 2.500",
        "50 tokens/s",
        "ETA 0:00:12",
        "AR 19.50",
        "2.50 tokens",
        "skipped step 3: the loss is nan (1 of 10 that",
        "[bold]data",
    ):
        assert part in drawn


def test_the_pace_is_smoothed_and_unknown_at_first() -> None:
    pace = Pace(1000, 0)
    assert pace.remaining == "-"
    pace.update(100, 10.0)
    pace.update(200, 20.0)
    assert pace.rate == pytest.approx(11.0)
    pace.update(4000, 11.0)
    assert pace.remaining == "0:00:00"
    assert Pace(3_661_000, 0, rate=1000.0).remaining == "1:01:01"


def test_the_observer_fits_the_stream() -> None:
    assert isinstance(training_observer(io.StringIO()), TrainingLines)
