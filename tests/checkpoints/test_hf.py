"""Safetensors folders: streaming, sharding, and every kind of damage refused in one line; pickle never opened."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflm.checkpoints.hf import INDEX_FILE, SINGLE_FILE, file_sha256, listed, open_safetensors
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import some_tensors, write_tensors


def sharded(folder: Path) -> dict[str, Tensor]:
    folder.mkdir()
    values = some_tensors()
    write_tensors(folder, values, max_shard_bytes=100)
    return values


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damage_truncate(folder: Path) -> None:
    path = next(folder.glob("model-00002-*"))
    path.write_bytes(path.read_bytes()[:-3])


def damage_header(folder: Path) -> None:
    next(folder.glob("model-00001-*")).write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00{]")


def damage_empty(folder: Path) -> None:
    next(folder.glob("model-00001-*")).write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_header, damage_empty])
def test_damaged_shards(damage: Callable[[Path], None], tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    damage(tmp_path / "a")
    message = refused(tmp_path / "a")
    assert "damaged or truncated safetensors" in message
    assert "model-0000" in message


def test_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    gone = next((tmp_path / "a").glob("model-00002-*"))
    gone.unlink()
    assert f"names {gone.name}, not in the folder" in refused(tmp_path / "a")


@pytest.mark.parametrize(
    "name",
    [
        "../b/model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\m.safetensors",
        "C:\\m.safetensors",
        "C:m.safetensors",
        "..",
        "",
        "model.bin",
    ],
)
def test_index_that_points_elsewhere(name: str, tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    (tmp_path / "b").mkdir()
    save_file({"t0": torch.zeros(1)}, tmp_path / "b" / SINGLE_FILE)
    path = tmp_path / "a" / INDEX_FILE
    index = json.loads(path.read_text())
    index["weight_map"]["t0"] = name
    path.write_text(json.dumps(index))
    assert f"weight_map names {name!r}; expected a plain *.safetensors name" in refused(tmp_path / "a")


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[", "[]"]
)
def test_index_that_is_none(index: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(index)
    assert INDEX_FILE in refused(tmp_path)


def test_index_and_shards_of_different_checkpoints(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    path = tmp_path / "a" / INDEX_FILE
    index = json.loads(path.read_text())
    del index["weight_map"]["t1"]
    index["weight_map"]["t9"] = index["weight_map"]["t0"]
    path.write_text(json.dumps(index))
    message = refused(tmp_path / "a")
    assert "not where the index says: t9" in message
    assert "in a shard but not in the index: t1" in message


def test_the_same_tensor_twice(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    last = sorted((tmp_path / "a").glob("model-*"))[-1]
    save_file({**load_file(last), "t0": torch.zeros(1)}, last)
    assert "tensor t0 is also in" in refused(tmp_path / "a")


def test_a_stray_single_file_beside_an_index(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    save_file({"t0": torch.zeros(1)}, tmp_path / "a" / SINGLE_FILE)
    assert "holds both" in refused(tmp_path / "a")


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    save_file({"t0": torch.zeros(2, dtype=torch.int8)}, tmp_path / SINGLE_FILE)
    assert "tensor t0 has dtype I8" in refused(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    assert "no weights; expected model.safetensors" in refused(tmp_path)
    save_file({"t0": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert f"no {INDEX_FILE} for other.safetensors" in refused(tmp_path)


class Canary:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "consolidated.00.pth", "model.ckpt"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside safetensors"])
def test_pickles_are_never_opened(name: str, beside: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    if beside:
        write_tensors(folder, some_tensors())
        assert set(open_safetensors(folder).facts) == set(some_tensors())
    else:
        assert f"only pickle files ({name}); they can run code and are never opened" in refused(folder)
    assert not canary.exists()
    pickle.loads((folder / name).read_bytes())
    assert canary.exists(), "the canary itself works"


def test_a_pickle_named_safetensors_is_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / SINGLE_FILE).write_bytes(pickle.dumps(Canary(canary)))
    assert "damaged or truncated" in refused(tmp_path)
    assert not canary.exists()


def test_listing_is_short() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(20), 2) == "0, 1 and 18 more"


def test_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
