"""`make serve-demo`: the best model of a demo, else the built-in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.serve import demo_model, main


def finished(folder: Path) -> Path:
    (folder / "merged").mkdir(parents=True)
    (folder / "merged" / "config.json").write_text("{}")
    return folder / "merged"


def test_the_best_finished_demo_is_served(tmp_path: Path) -> None:
    quick = finished(tmp_path / "demo-quick")
    (tmp_path / "demo" / "merged").mkdir(parents=True)  # interrupted
    assert demo_model(tmp_path) == quick
    (tmp_path / "demo" / "merged" / "config.json").write_text("{}")
    assert demo_model(tmp_path) == tmp_path / "demo" / "merged"


def test_options_go_to_the_server(tmp_path: Path) -> None:
    model, found = finished(tmp_path / "demo"), list[list[str]]()
    assert main(["--runs", str(tmp_path), "--port", "9"], serve=lambda words: found.append(words) or 3) == 3
    assert found[0][:2] == ["serve", str(model)]
    assert found[0][-2:] == ["--port", "9"]


def test_without_a_demo_the_built_in_model_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_model(tmp_path) is None
    found: list[list[str]] = []
    assert main(["--runs", str(tmp_path), "--port", "9"], serve=lambda words: found.append(words) or 0) == 0
    assert found == [["serve", "--log-level", "warning", "--port", "9"]]
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: it holds no model of the demo")
    assert "make demo-quick makes one in minutes" in said
