"""Checks that stand alone: one that fails is a result with its message, and the others go on.

Imports nothing but the standard library, so that a missing package can be named.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

REQUIRED = {"torch": "torch", "numpy": "numpy", "safetensors": "safetensors"}
FOR_THE_TRAINER = {"pydantic": "pydantic", "yaml": "pyyaml", "transformers": "transformers"}
"""Modules and the packages that hold them."""

Status = Literal["passed", "failed", "not run"]


class NotRunError(Exception):
    """A check that cannot run here, with the reason."""


class WrongError(Exception):
    """A check that found something wrong."""


def require(right: bool, detail: str) -> None:
    """Raise `WrongError` with the detail where something is not right."""
    if not right:
        raise WrongError(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check.

    Attributes:
        name: what was checked.
        status: "not run" where a package is missing or the time was up.
        detail: a line for people.
        seconds: it took.
        figures: for programs.
    """

    name: str
    status: Status
    detail: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)


Check = Callable[[], tuple[str, dict[str, Any]]]
"""Returns the detail and the figures; raises `WrongError` for a result that is wrong."""


def missing(modules: dict[str, str]) -> list[str]:
    """Return the packages whose modules are not installed.

    Args:
        modules: module -> package.
    """
    return [package for module, package in modules.items() if not _installed(module)]


def _installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None


def run_check(name: str, check: Check) -> Result:
    """Run one check; whatever it raises becomes its result."""
    started = time.perf_counter()
    status: Status = "passed"
    figures: dict[str, Any] = {}
    try:
        detail, figures = check()
    except NotRunError as error:
        status, detail = "not run", str(error)
    except WrongError as error:
        status, detail = "failed", str(error)
    except Exception as error:  # the point of a check: any failure is a finding
        status = "failed"
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        figures = {"traceback": traceback.format_exc()[-4000:]}
    return Result(name=name, status=status, detail=detail, seconds=time.perf_counter() - started, figures=figures)


def run_all(checks: Sequence[tuple[str, Check]], *, budget: float, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield the result of each check; none is started after the budget is spent.

    Args:
        checks: names and checks, the important ones first.
        budget: seconds.
        say: receives a line for each check.
    """
    started = time.perf_counter()
    for name, check in checks:
        if time.perf_counter() - started > budget:
            result = Result(name=name, status="not run", detail=f"the {budget:.0f} seconds were up", seconds=0.0)
        else:
            result = run_check(name, check)
        say(f"{result.status}: {name} ({result.seconds:.1f} s): {result.detail}")
        yield result
