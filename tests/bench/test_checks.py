"""Checks stand alone: failures are results, packages that are missing are named."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from difflm.bench.checks import NotRunError, Result, missing, require, run_all, run_check


def fine() -> tuple[str, dict[str, Any]]:
    return "as it should be", {"figure": 1}


def wrong() -> tuple[str, dict[str, Any]]:
    require(False, "0.3 is above 0.1")
    return "", {}


def broken() -> tuple[str, dict[str, Any]]:
    raise RuntimeError("no kernel\nfor this")


def absent() -> tuple[str, dict[str, Any]]:
    raise NotRunError("needs the package x")


def test_whatever_a_check_does_is_a_result() -> None:
    assert run_check("a", fine).status == "passed"
    assert run_check("a", fine).figures == {"figure": 1}
    assert (run_check("a", wrong).status, run_check("a", wrong).detail) == ("failed", "0.3 is above 0.1")
    found = run_check("a", broken)
    assert (found.status, found.detail) == ("failed", "RuntimeError: no kernel for this")
    assert "broken" in found.figures["traceback"]
    assert (run_check("a", absent).status, run_check("a", absent).detail) == ("not run", "needs the package x")


def test_nothing_starts_after_the_budget() -> None:
    said: list[str] = []
    results = list(run_all([("one", fine), ("two", fine)], budget=-1.0, say=said.append))
    assert [each.status for each in results] == ["not run", "not run"]
    assert "seconds were up" in said[0]


def test_packages_are_looked_for_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing({"json": "x", "no_such_module": "the-package"}) == ["the-package"]
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert missing({"pydantic": "pydantic"}) == ["pydantic"]


def test_results_are_plain() -> None:
    assert Result(name="a", status="passed", detail="b", seconds=0.0).figures == {}
