"""Facts about the machine: versions and commit, never a path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from difflm.bench.environment import environment, usable_cores


def test_the_environment_names_versions_and_hides_paths() -> None:
    facts = environment()
    assert facts["torch"] == torch.__version__
    assert not any(isinstance(value, str) and str(Path.home()) in value for value in facts.values())


def test_usable_cores_are_those_of_the_process() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert usable_cores() == len(os.sched_getaffinity(0))
    assert usable_cores() >= 1


def test_there_is_no_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] is None
