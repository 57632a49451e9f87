"""Works go side by side, and what goes wrong in a process is told by its run's name."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from difflm.errors import DifflmError
from study.lanes import Lanes, NamedLines
from study.plan import QUICK, parent_run


def test_one_lane_does_works_in_order() -> None:
    seen: list[int] = []

    def work(number: int) -> int:
        seen.append(number)
        return 10 * number

    assert Lanes(1).together([lambda n=n: work(n) for n in range(3)]) == [0, 10, 20]
    assert seen == [0, 1, 2]


def test_two_lanes_do_works_side_by_side() -> None:
    meet = threading.Barrier(2, timeout=60)

    def work(number: int) -> int:
        meet.wait()
        return number

    assert Lanes(2).together([lambda: work(1), lambda: work(2)]) == [1, 2]


def test_what_a_process_refuses_is_raised(tmp_path: Path) -> None:
    lanes = Lanes(2)
    config = parent_run(QUICK, tmp_path / "absent")
    with pytest.raises(DifflmError, match="absent"):
        lanes.together([lambda: lanes.train("parent", config)])
    assert lanes.together([lambda: 1]) == [1]


def test_lines_begin_with_the_name_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    NamedLines("sft").message("half")
    assert capsys.readouterr().err == "sft: half\n"
