"""A run folder is created, recognised and guarded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from difflm.errors import ConfigError
from difflm.runs import train
from difflm.training.config_io import load_config
from difflm.training.state import checkpoint_folders
from difflm.training.trainer import Trainer
from tests.training.runs import config_of


def test_a_run_killed_in_its_first_moment_starts_again(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.partial").write_text("model: half writ")
    (tmp_path / "run" / ".lock").touch()
    trainer = Trainer(config, resume="auto")
    assert trainer.state.step == 0
    trainer.close()
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["config.yaml", "metrics.jsonl"]


def test_a_changed_configuration_is_not_resumed(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    train(config)
    with pytest.raises(ConfigError, match=r"train\.seed: differs from the run"):
        Trainer(dataclasses.replace(config, seed=9), resume="auto")
    again = Trainer(config, resume="auto")
    assert again.state.tokens >= config.total_tokens
    recorded = json.loads((checkpoint_folders(config.output)[-1] / "training_state.json").read_text())
    assert recorded["step"] == again.state.step


def test_a_moved_run_is_resumed_where_it_is(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    train(config)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = dataclasses.replace(config, output=tmp_path / "moved")
    assert Trainer(moved, resume="auto").state.tokens >= config.total_tokens
    assert load_config(tmp_path / "moved" / "config.yaml") == moved
    assert not (tmp_path / "run").exists()
