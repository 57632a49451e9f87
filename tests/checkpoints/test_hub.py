"""Hub ids, without a network: a stub of the download, and the hub's own cache layout in offline mode."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json
from difflm.checkpoints.hub import DATA_FILES, NOT_THE_MODEL, HubOrigin, is_offline, locate
from difflm.checkpoints.loading import load_model, load_without_weights
from difflm.cli.main import run
from difflm.errors import CheckpointError, ConfigError, DifflmError
from difflm.runs import train
from tests.checkpoints.tiny import hf_folder, make_tokenizer
from tests.standins import write_texts
from tests.test_layers import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands in for `snapshot_download`: copies what the patterns admit, and remembers what it was asked."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote, self.cache = remote, cache
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def __call__(self, repository: str, **options: Any) -> str:
        self.asked.append((repository, options))
        if self.error:
            raise self.error
        for file in self.remote.rglob("*"):
            name = file.relative_to(self.remote).as_posix()
            admitted = any(fnmatch.fnmatch(name, pattern) for pattern in options["allow_patterns"])
            if file.is_file() and admitted and not any(fnmatch.fnmatch(name, p) for p in options["ignore_patterns"]):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "remote", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    (tmp_path / "remote" / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    stub = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return stub


def test_an_id_at_a_commit_is_downloaded_and_loaded(hub: Hub) -> None:
    loaded = load_model("org/name", revision=COMMIT.upper())
    local = load_model(hub.remote)
    assert all(
        torch.equal(one, other) for one, other in zip(loaded.model.parameters(), local.model.parameters(), strict=True)
    )
    assert loaded.encode("the fox") == local.encode("the fox")
    [(repository, options)] = hub.asked
    assert (repository, options["revision"], options["local_files_only"]) == ("org/name", COMMIT, False)
    assert load_without_weights("org/name", revision=COMMIT).config.model == local.config.model


def test_only_data_is_fetched(hub: Hub) -> None:
    for name in (
        *("pytorch_model.bin", "modeling_evil.py", "model.ckpt", "weights.pt", "rust_model.ot", "tf_model.h5", "a.pkl"),
        *("consolidated.safetensors", "original/params.json", "onnx/model.onnx", "sub/model.safetensors", "q4.gguf"),
        *("run.sh", "notebook.ipynb", "additional_chat_templates/tool.jinja", "LICENSE.exe", "LICENSE"),
    ):
        (hub.remote / name).parent.mkdir(exist_ok=True)
        (hub.remote / name).write_bytes(b"x")
    path, origin = locate("org/name", COMMIT)
    assert origin == HubOrigin(repository="org/name", revision=COMMIT)
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert found == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md", "LICENSE"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
    }
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in DATA_FILES)
    assert "*/*.safetensors" in NOT_THE_MODEL


def test_a_gguf_file_is_fetched_only_by_its_name(hub: Hub) -> None:
    for name in ("small.gguf", "large.gguf"):
        (hub.remote / name).write_bytes(b"GGUF")
    path, origin = locate("org/name/small.gguf", COMMIT)
    assert path == hub.cache / "small.gguf"
    assert origin == HubOrigin(repository="org/name", revision=COMMIT)
    assert sorted(file.name for file in hub.cache.iterdir()) == ["README.md", "small.gguf"]


def test_a_path_that_exists_always_wins(hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(hub.remote, tmp_path / "org" / "name")
    assert load_model("org/name").path == Path("org/name")
    with pytest.warns(UserWarning, match=f"org/name exists here: it is used, and revision {COMMIT} is not"):
        assert locate("org/name", COMMIT) == (Path("org/name"), None)
    assert not hub.asked


@pytest.mark.parametrize("name", ["org/name", "org/name.v2", "org/file.gguf/x.gguf"])
def test_nothing_is_downloaded_without_a_commit(name: str, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or folder; a hub id needs its commit") as caught:
        load_model(name)
    assert all(part in str(caught.value) for part in (name, "revision=", "--revision", "40 hexadecimal digits"))
    assert "\n" not in str(caught.value)
    assert not hub.asked


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:39], COMMIT + "0", "g" * 40, "", "refs/pr/1"])
def test_branches_and_tags_are_refused(revision: str, hub: Hub) -> None:
    with pytest.raises(ConfigError, match="branches and tags move") as caught:
        load_model("org/name", revision=revision)
    assert str(caught.value).startswith(f"revision is {revision!r}; expected a commit of org/name")
    assert "\n" not in str(caught.value)
    assert not hub.asked


@pytest.mark.parametrize(
    "name", ["/org/name", "name", "a/b/c", "../name", "org/", "a b/c", "org/-x", "C:\\org\\name", "x.gguf"]
)
def test_what_can_only_be_a_path_is_never_asked_for(name: str, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder; expected a local checkpoint"):
        load_model(name, revision=COMMIT)
    assert not hub.asked


def test_provenance_carries_id_and_commit(hub: Hub, tmp_path: Path) -> None:
    convert("org/name", tmp_path / "out", revision=COMMIT)
    record = read_json(tmp_path / "out" / "config.json")["difflm"]
    assert (record["parent"]["name"], record["parent"]["revision"]) == ("org/name", COMMIT)
    assert list(record["parent"]["sha256"]) == ["model.safetensors"]
    assert record["license"] == "mit"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model: org/name" in card
    assert f"| revision of the parent | `{COMMIT}` |" in card
    convert(hub.remote, tmp_path / "local")
    assert "revision" not in read_json(tmp_path / "local" / "config.json")["difflm"]["parent"]


def test_a_command_takes_the_commit(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(hub.remote, tmp_path / "converted", block_size=4)
    hub.remote = tmp_path / "converted"
    options = ["--prompt", "the fox", "--max-new-tokens", "2", "--no-stats"]
    assert run(["generate", "org/name", *options, "--revision", COMMIT]) == 0
    assert hub.asked[0][1]["revision"] == COMMIT
    assert run(["generate", "org/name", *options]) != 0
    assert "a hub id needs its commit" in capsys.readouterr().err


def test_training_starts_from_a_commit(hub: Hub, tmp_path: Path) -> None:
    """`model`, `revision` and `rope_scaling` of a configuration; the trained checkpoint records the scaling."""
    convert(hub.remote, tmp_path / "converted", block_size=4)
    hub.remote = tmp_path / "converted"
    last = train(
        {
            "model": "org/name",
            "revision": COMMIT,
            "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
            "output": str(tmp_path / "run"),
            "data": {"paths": [str(write_texts(tmp_path / "texts.jsonl"))], "row_length": 64},
            "curriculum": [{"block_size": 4, "tokens": 100}],
            "threads": 1,
        }
    )
    assert hub.asked
    config = load_model(last).config.model
    assert (config.rope.kind, config.rope.factor, config.max_positions) == ("yarn", 2.0, 256)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_asks_for_nothing(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_offline()
    for no in ("0", "", "false"):
        monkeypatch.setenv(name, no)
        assert not is_offline()
    for yes in ("1", "true", "ON", "yes"):
        monkeypatch.setenv(name, yes)
        assert is_offline()
    locate("org/name", COMMIT)
    assert hub.asked[0][1]["local_files_only"] is True


def test_errors_of_the_hub_are_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    def raised() -> str:
        with pytest.raises(DifflmError) as caught:
            load_model("org/name", revision=COMMIT)
        assert str(caught.value).startswith("org/name@0123456789ab: ")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    hub.error = LocalEntryNotFoundError("not\nfound")
    assert "not complete in the hub's cache, and the hub was not reached (not found)" in raised()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "and HF_HUB_OFFLINE is set; go online once, or give a local folder" in raised()
    hub.error = RuntimeError("disk\nis full " + "x" * 1000)
    assert "not downloaded (RuntimeError: disk is full x" in raised()
    assert len(raised()) < 400
    for error, part in (
        (GatedRepoError, "accept its terms"),
        (RepositoryNotFoundError, "no such repository on the hub"),
    ):
        hub.error = error.__new__(error)
        assert part in raised()


def test_the_real_cache_offline(hub: Hub, tmp_path: Path) -> None:
    """The command line in a process of its own, with huggingface_hub as it is, on its cache layout."""
    repository = tmp_path / "home" / "hub" / "models--org--name"
    shutil.copytree(hub.remote, repository / "snapshots" / COMMIT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

    def convert_in_process(target: str, commit: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "difflm", "convert", "org/name", target, "--revision", commit]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = convert_in_process("out", COMMIT)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out" / "config.json")["difflm"]["parent"]["revision"] == COMMIT
    missing = convert_in_process("other", "f" * 40)
    assert missing.returncode != 0
    assert "org/name@ffffffffffff: not complete in the hub's cache, and HF_HUB_OFFLINE is set" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert not (tmp_path / "other").exists()
