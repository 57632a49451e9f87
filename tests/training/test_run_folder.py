"""A run folder is created, recognised, compared and guarded."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from difflm.errors import ConfigError
from difflm.runs import train
from difflm.training import run_folder
from difflm.training.config import TrainConfig
from difflm.training.config_io import config_from_tree, config_to_tree, load_config
from difflm.training.run_folder import CONTENT, FREE, ROUNDING, differences
from difflm.training.state import checkpoint_folders
from difflm.training.trainer import Trainer
from tests.training.runs import Notes, config_of


@pytest.fixture(scope="module")
def finished(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the configuration of a run that is done."""
    config = config_of(files, tmp_path_factory.mktemp("finished") / "run", checkpoint={"every_tokens": 300})
    train(config)
    return config


def changed(config: TrainConfig, **fields: Any) -> TrainConfig:
    tree = config_to_tree(config)
    for path, value in fields.items():
        here: Any = tree
        *above, last = path.split("__")
        for name in above:
            here = here[int(name) if name.isdecimal() else name]
        here[last] = value
    return config_from_tree(tree)


def test_a_run_killed_in_its_first_moment_starts_again(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.partial").write_text("model: half writ")
    (tmp_path / "run" / ".lock").touch()
    trainer = Trainer(config, resume="auto")
    assert trainer.state.step == 0
    trainer.close()
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["config.yaml", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("seed", 9, "train.seed"),
        ("optimizer__learning_rate", 2e-3, "train.optimizer.learning_rate"),
        ("optimizer__betas", [0.9, 0.99], "train.optimizer.betas[1]"),
        ("curriculum", [{"block_size": 4, "tokens": 600}, {"block_size": 8, "tokens": 600}], "train.curriculum"),
        ("curriculum__0__tokens", 900, "train.curriculum[0].tokens"),
        ("data__row_length", 128, "train.data.row_length"),
        ("objective__weighting", "uniform", "train.objective.weighting"),
        ("lr_schedule__kind", "constant", "train.lr_schedule.kind"),
        ("dtype", "bfloat16", "train.dtype"),
        ("rows_per_batch", 1, "train.rows_per_batch"),
        ("validation__seed", 3, "train.validation.seed"),
    ],
)
def test_a_changed_field_is_refused_by_its_full_name(finished: TrainConfig, field: str, value: Any, name: str) -> None:
    config = changed(finished, **{field: value})
    for attempt in (lambda: Trainer(config, resume="auto"), lambda: train(config, resume="auto")):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{name}: differs from the run in {finished.output} (")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"sexd: 0\n", b"model: [", b"\xff\x00"])
def test_a_damaged_record_is_named(finished: TrainConfig, tmp_path: Path, content: bytes) -> None:
    """Not the configuration that was given: that one is sound."""
    shutil.copytree(finished.output, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        train(changed(finished, output=str(tmp_path / "run")), resume="auto")
    assert str(caught.value).startswith(f"{tmp_path / 'run' / 'config.yaml'}: damaged, or of another version of difflm")
    assert "\n" not in str(caught.value)


def test_all_changed_fields_are_listed(finished: TrainConfig) -> None:
    config = changed(finished, seed=9, optimizer__eps=1e-6, curriculum__0__block_size=8, log_every=3)
    with pytest.raises(ConfigError, match=r"differs .*; so do train\.optimizer\.eps, train\.seed;") as caught:
        Trainer(config, resume="auto")
    assert str(caught.value).startswith("train.curriculum[0].block_size: differs")
    assert "(4 there, 8 here)" in str(caught.value)
    assert "log_every" not in str(caught.value)


def test_fields_that_decide_nothing_may_change(finished: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "copy")
    config = changed(
        finished,
        output=str(tmp_path / "copy"),
        recipe="other",
        log_every=2,
        threads=2,
        head_chunk_rows=64,
        checkpoint__keep=5,
        nonfinite__action="skip",
        validation__every_tokens=100,
    )
    trainer = Trainer(config, resume="auto")
    assert trainer.state.tokens >= config.total_tokens
    assert trainer.run.notes == (
        "train.threads: 2 instead of 1; the run goes on, rounded differently",
        "train.head_chunk_rows: 64 instead of 512; the run goes on, rounded differently",
    )
    trainer.close()
    assert load_config(tmp_path / "copy" / "config.yaml") == config


def test_every_field_is_either_free_or_refused(finished: TrainConfig) -> None:
    """The lists name fields that exist: a renamed one would be refused without anybody noticing."""
    tree = config_to_tree(finished)
    for name in (*FREE, *ROUNDING, *CONTENT):
        here = tree
        for part in name.split("."):
            assert part in here, name
            here = here[part]


def test_differences_are_found_at_the_leaves() -> None:
    theirs = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1}], "f": [1], "g": {"kind": "x", "only": 1}}
    mine = {"a": {"b": 2, "c": [1, 3]}, "d": [{"e": 2}], "f": [1, 2], "g": {"kind": "y", "new": 2}}
    assert list(differences(theirs, mine)) == [
        ("a.b", 1, 2),
        ("a.c[1]", 2, 3),
        ("d[0].e", 1, 2),
        ("f", [1], [1, 2]),
        ("g.kind", "x", "y"),
        ("g.only", 1, None),
        ("g.new", None, 2),
    ]
    assert list(differences(theirs, theirs)) == []


def test_a_finished_run_says_so_and_does_nothing(finished: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.output.rglob("*")}
    monkeypatch.setattr(Trainer, "__init__", lambda *args, **kwargs: pytest.fail("a trainer was built"))
    notes = Notes()
    assert train(finished, resume="auto", observer=notes) == checkpoint_folders(finished.output)[-1]
    assert notes.lines == [f"{finished.output}: the run is finished (600 tokens); nothing is left to do"]
    assert {path: path.stat().st_mtime_ns for path in finished.output.rglob("*")} == before


def test_a_finished_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(
    finished: TrainConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished.output, tmp_path / "copy")
    config = changed(finished, output=str(tmp_path / "copy"))
    last = checkpoint_folders(config.output)[-1]
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 4
    (last / "model.safetensors").write_bytes(weights)
    notes = Notes()
    assert train(config, resume="auto", observer=notes) == last
    assert any(line.startswith(f"skipped a checkpoint: {last / 'model.safetensors'}: damaged") for line in notes.lines)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (last / name).read_bytes() == (finished.output / "checkpoints" / last.name / name).read_bytes()


def test_a_moved_run_is_resumed_where_it_is(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    train(config)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = dataclasses.replace(config, output=tmp_path / "moved")
    assert Trainer(moved, resume="auto").state.tokens >= config.total_tokens
    assert load_config(tmp_path / "moved" / "config.yaml") == moved
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_is_refused_and_left_alone(finished: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "copy")
    config = changed(finished, output=str(tmp_path / "copy"))
    trainer = Trainer(config, resume="auto")
    metrics = (config.output / "metrics.jsonl").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"train\.output: .* is in use by process"):
        Trainer(config, resume="auto")
    assert (config.output / "metrics.jsonl").stat().st_mtime_ns == metrics
    trainer.close()
    assert not (config.output / ".lock").exists()
    recorded = json.loads((checkpoint_folders(config.output)[-1] / "training_state.json").read_text())
    again = Trainer(config, resume="auto")
    assert recorded["step"] == again.state.step
    again.close()


def test_a_failed_start_leaves_the_folder_free(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(files, tmp_path / "run")
    for error in (OSError(errno.EROFS, "Read-only file system"), KeyboardInterrupt()):
        with pytest.MonkeyPatch.context() as patch:

            def failing(path: Path, text: str, error: BaseException = error) -> None:
                raise error

            patch.setattr(run_folder, "replace_text", failing)
            with pytest.raises((ConfigError, KeyboardInterrupt)) as caught:
                Trainer(config)
        if isinstance(error, OSError):
            message = f"train.output: {config.output} cannot be written (Read-only file system); choose another path"
            assert str(caught.value) == message
    Trainer(config).close()


def test_a_folder_without_a_run_is_not_touched(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"train\.output: .*file is a file"):
        Trainer(config_of(files, tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"train\.output: .* cannot be created \(Not a directory\)"):
        Trainer(config_of(files, tmp_path / "file" / "run"))
