"""manifest.json: any damage to any file of a folder is found, and what is forgotten is forgotten whole."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints import manifest
from difflm.checkpoints.manifest import MANIFEST, drop_file, read_manifest, seal_folder, verify_folder
from difflm.errors import CheckpointError

CONTENT = {"model.safetensors": bytes(range(200)), "config.json": b'{"a": 1}', "sub/tokens.txt": b"words", "empty": b""}


def sealed(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    seal_folder(folder)
    return folder


def test_every_file_is_recorded_with_size_and_hash(tmp_path: Path) -> None:
    facts = verify_folder(sealed(tmp_path / "a"))
    assert facts == read_manifest(tmp_path / "a")
    assert {name: fact.size for name, fact in facts.items()} == {name: len(each) for name, each in CONTENT.items()}
    assert facts["empty"].sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["format"] == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = sealed(tmp_path_factory.mktemp("flip") / "a")
    name = data.draw(st.sampled_from([MANIFEST, *(name for name, content in CONTENT.items() if content)]))
    content = bytearray((folder / name).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=Path(name).name):
        verify_folder(folder)


def test_no_bit_of_the_manifest_may_flip(tmp_path: Path) -> None:
    """Every eleventh bit of the file that guards the others: white space, hashes, names, numbers."""
    folder = sealed(tmp_path / "a")
    whole = (folder / MANIFEST).read_bytes()
    for bit in range(0, 8 * len(whole), 11):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            read_manifest(folder)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncation_anywhere_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = sealed(tmp_path_factory.mktemp("cut") / "a")
    name = data.draw(st.sampled_from([MANIFEST, *(name for name, content in CONTENT.items() if content)]))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=Path(name).name):
        verify_folder(folder)


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "a")
    (folder / "sub" / "tokens.txt").unlink()
    with pytest.raises(CheckpointError, match=r"tokens\.txt: missing"):
        verify_folder(folder)
    (folder / "sub" / "tokens.txt").write_bytes(b"wordsandmore")
    with pytest.raises(CheckpointError, match=r"tokens\.txt: damaged \(it has 12 bytes, 5 were written\)"):
        verify_folder(folder)
    (folder / "sub" / "tokens.txt").write_bytes(b"wordz")
    with pytest.raises(CheckpointError, match=r"tokens\.txt: damaged \(its content is not what was written\)"):
        verify_folder(folder)
    (folder / "sub" / "tokens.txt").write_bytes(b"words")
    verify_folder(folder)

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "file_sha256", unreadable)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Input/output error\)"):
        verify_folder(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json: missing; the folder is incomplete"):
        verify_folder(folder)


def test_only_files_that_a_loader_might_read_may_not_be_added(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "a")
    (folder / "notes.md").write_text("mine")
    (folder / ".manifest.json.partial").write_text("left by a killed process")
    verify_folder(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: not part of the checkpoint"):
        verify_folder(folder)
    verify_folder(folder, spare=("model.safetensors.index.json",))


def test_a_dropped_file_is_forgotten_before_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "a")
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drop_file(folder, "model.safetensors")
    monkeypatch.undo()
    assert (folder / "model.safetensors").exists()
    assert "model.safetensors" not in verify_folder(folder, spare=("model.safetensors",))
    drop_file(folder, "model.safetensors")
    assert set(verify_folder(folder)) == set(CONTENT) - {"model.safetensors"}
    assert not (folder / "model.safetensors").exists()


def test_a_disk_that_returns_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = manifest.write_manifest

    def rotting(folder: Path) -> None:
        write(folder)
        (folder / "config.json").write_bytes(b'{"a": 2}')

    monkeypatch.setattr(manifest, "write_manifest", rotting)
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        sealed(tmp_path / "a")
