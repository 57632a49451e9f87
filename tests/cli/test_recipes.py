"""`difflm recipes`: a line for each recipe, and a recipe as it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.cli.main import run
from difflm.recipes import recipe_names, recipe_path, recipe_summary
from difflm.training.config_io import load_config


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    for line in lines:
        name, text = line.split(maxsplit=1)
        assert text == recipe_summary(name)


def test_what_show_prints_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "llada2-mini"]) == 0
    printed = capsys.readouterr().out
    path = recipe_path("llada2_mini")
    assert path is not None
    assert printed == path.read_text()
    (tmp_path / "mine.yaml").write_text(printed)
    config = load_config(tmp_path / "mine.yaml", ["model=m", "output=o", "data.paths=[d]"])
    assert config.data.row_length == 4096


def test_an_unknown_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "llada2_mni"]) == 2
    assert "did you mean 'llada2_mini'?" in capsys.readouterr().err
