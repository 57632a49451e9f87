"""What is tried with a model that drafts, and what a row is found to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import difflm
from difflm.decode.runner import Runner
from difflm.decode.work import Work
from difflm.errors import ConfigError, RequestError
from difflm.evaluation import drafting
from difflm.evaluation.drafting import (
    Costs,
    costs_of_windows,
    drafting_costs,
    fitted,
    left_to_right,
    settings_for,
    windows_of,
)
from tests.decode.tiny import tiny
from tests.drafters import drafters

__all__ = ["drafters"]


def test_rows_and_drafting_are_told_apart() -> None:
    shapes = [(0, 0), (7, 0), (0, 7), (7, 8)]
    assert fitted(shapes, [2.0, 2.0 * 1.7, 2.0 * 2.2, 2.0 * 3.0]) == Costs(row_cost=0.1, draft_cost=0.5)
    assert fitted(shapes, [1.0, 1.0, 1.5, 1.5]) == Costs(row_cost=0.0, draft_cost=0.5)


def test_neither_is_a_gain() -> None:
    assert fitted([(0, 0), (7, 0)], [1.0, 0.9]) == (0.0, 0.0)
    # Rows that seem to be a gain cost nothing, and drafting what is best without them; and the other way round.
    assert fitted([(0, 0), (10, 0), (0, 10)], [1.0, 0.8, 1.5]) == (0.0, 0.5)
    assert fitted([(0, 0), (10, 0), (0, 10)], [1.0, 2.0, 1.0]) == (0.05, 0.0)
    assert fitted([(0, 0)], [1.0]) == (0.0, 0.0)


@pytest.mark.parametrize("shift", [True, False])
def test_forwards_of_a_draft_and_of_a_verification_are_timed(shift: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [0.0], list[Work]()

    class Timed(Runner):
        def run(self, works: Sequence[Work]) -> list[difflm.decode.policies.base.Proposal]:
            (work,) = works
            seen.append(work)
            # The first forward of each shape is slow, and one later forward of each is disturbed.
            turn = [other.tokens for other in seen].count(work.tokens)
            masks = len(work.tokens) - work.num_clean
            took = 1.0 + 0.25 * (len(work.tokens) - 1) + 0.75 * (masks > 0)
            now[0] += took * (9.0 if turn in (1, 3) else 1.0)
            proposals = super().run(works)
            assert len(proposals[0].tokens) == len(work.places)
            return proposals

    monkeypatch.setattr(drafting, "Runner", Timed)
    loaded = tiny(clean="causal", logit_shift=shift, block_size=8)
    assert drafting_costs(loaded, 8, clock=lambda: now[0]) == (0.25, 0.75)
    read, one, check, draft, both = seen[:5]
    assert (read.kind, read.start, len(read.tokens)) == ("prefill", 0, 79)
    for work, clean, masks in ((one, 1, 0), (check, 8, 0), (draft, 1, 7), (both, 8, 8)):
        assert (work.start, work.num_clean, len(work.tokens)) == (79, clean, clean + masks)
        assert work.tokens[clean:] == (12,) * masks
        assert work.places == tuple(range(80, 80 + clean + (masks if shift or not masks else masks - 1)))
        assert len(work.drafts) == clean - 1
    assert len(seen) == 1 + 4 * 10


def test_a_real_adapter_has_a_cost(drafters: Path) -> None:
    loaded = difflm.load_model(drafters / "drafter")
    assert min(drafting_costs(loaded, 4, rounds=2)) >= 0.0
    with pytest.raises(RequestError, match="window 16 is beyond the block of 8"):
        drafting_costs(loaded, 16)


def test_costs_are_measured_once_for_a_model_and_a_place(tmp_path: Path) -> None:
    asked: list[int] = []

    def measured(loaded: difflm.LoadedModel, window: int) -> Costs:
        asked.append(window)
        return Costs(window / 10, 0.5)

    def costs(windows: list[int], device: str) -> dict[int, Costs]:
        return costs_of_windows(tiny(), windows, tmp_path, key={"device": device}, measure=measured)

    assert costs([2, 4], "cpu") == {2: (0.2, 0.5), 4: (0.4, 0.5)}
    assert costs([4, 8], "cpu") == {4: Costs(row_cost=0.4, draft_cost=0.5), 8: (0.8, 0.5)}
    assert asked == [2, 4, 8]
    costs([4], "cuda")
    assert asked == [2, 4, 8, 4]


def test_windows_go_up_to_the_block() -> None:
    def windows(block: int) -> list[int]:
        return windows_of(tiny(block_size=block))

    assert windows(8) == [2, 4, 8]
    assert windows(12) == [2, 4, 8, 12]
    assert windows(32) == windows(64) == [2, 4, 8, 16, 32]
    assert windows(1) == []


def test_what_is_swept_is_what_the_model_was_made_for(drafters: Path) -> None:
    drafter, base = difflm.load_model(drafters / "drafter"), difflm.load_model(drafters / "base")
    labels = ["next_token", "verified:window=2", "verified:window=4", "verified:window=8"]
    assert [each.label for each in settings_for(drafter)] == labels
    assert [each.label for each in settings_for(base)][-4:] == labels
    assert len(settings_for(base)) == 5 + 4
    assert len(settings_for(base, thresholds=[0.9])) == 1
    assert len(settings_for(tiny())) == 5
    asked = ["verified:window=4,fallback=false", "next_token"]
    assert [each.label for each in settings_for(drafter, asked)] == ["verified:window=4,fallback=False", "next_token"]
    with pytest.raises(ConfigError, match=r"--threshold: 0\.9 is for blocks, but the adapter on .* only drafts"):
        settings_for(drafter, thresholds=[0.9])
    assert left_to_right([4], {4: Costs(0.5, 0.3)})[1].label == "verified:window=4,row_cost=0.5,draft_cost=0.3"
    assert replace(left_to_right([4])[1], settings=()).label == "verified"
    wide = [each.label for each in left_to_right([8, 16], {8: Costs(0.1, 0.0), 16: Costs(0.2, 0.0)})]
    first, more, cost = (
        "verified:window=8,row_cost=0.1,draft_cost=0.0",
        "verified:window=16",
        "row_cost=0.2,draft_cost=0.0",
    )
    assert wide == ["next_token", first, f"{more},{cost}", f"{more},start=16,{cost}"]
