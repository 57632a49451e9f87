"""The writer: the bytes of the reference writer, piece by piece, never more than one piece in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from difflm.checkpoints.hf import INDEX_FILE, SINGLE_FILE, open_safetensors
from difflm.checkpoints.shards import Entry, ShardWriter, plan_shards, write_safetensors
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import some_tensors, write_tensors

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("limit", [1, 60, 100, 10**9])
def test_round_trip_is_bit_exact_in_every_dtype(limit: int, tmp_path: Path) -> None:
    values = some_tensors()
    write_tensors(tmp_path, values, max_shard_bytes=limit)
    opened = open_safetensors(tmp_path)
    assert set(opened.facts) == set(values)
    for name, value in values.items():
        read = opened.read(name)
        assert read.dtype == value.dtype == opened.facts[name].dtype
        assert torch.equal(read.view(torch.uint8), value.view(torch.uint8))
        some = opened.read(name, range(1, 3))
        assert torch.equal(some.view(torch.uint8), value[1:3].view(torch.uint8))
    for file in opened.files:
        shard = list(load_file(file).values())
        assert len(shard) == 1 or sum(each.numel() * each.element_size() for each in shard) <= limit
    assert (tmp_path / INDEX_FILE).exists() == (len(opened.files) > 1) == (limit < 10**9)


def test_shards_are_named_as_transformers_expects(tmp_path: Path) -> None:
    values = some_tensors()
    write_tensors(tmp_path, values, max_shard_bytes=100)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in values.values())
    assert set(index["weight_map"]) == set(values)
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)


SHAPES = st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES)), min_size=1, max_size=6)


@given(shapes=SHAPES, names=st.randoms(use_true_random=False))
def test_a_file_is_the_reference_writers_byte_for_byte(
    shapes: list[tuple[list[int], torch.dtype]], names: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    numbers = list(range(len(shapes)))
    names.shuffle(numbers)  # type: ignore[attr-defined]
    tensors = {
        f"layer.{number}.w\u00e9": torch.randn(shape).to(dtype)
        for number, (shape, dtype) in zip(numbers, shapes, strict=True)
    }
    write_tensors(folder, tensors)
    save_file(tensors, folder / "reference", metadata={"format": "pt"})
    assert (folder / SINGLE_FILE).read_bytes() == (folder / "reference").read_bytes()


def test_a_single_file_can_have_an_index() -> None:
    (shard,) = plan_shards([Entry("a", (2,), torch.float32)], indexed=True)
    assert shard.file == "model-00001-of-00001.safetensors"
    assert plan_shards([Entry("a", (2,), torch.float32)])[0].file == SINGLE_FILE


def test_rows_come_in_any_order_and_are_cast(tmp_path: Path) -> None:
    value, other = torch.randn(5, 3), torch.randn(4)
    shards = plan_shards([Entry("a", (5, 3), torch.bfloat16), Entry("b", (4,), torch.float32)])

    def put(writer: ShardWriter) -> None:
        assert [writer.wants(name) for name in "abc"] == [True, True, False]
        writer.put("a", value[3:], row=3)
        writer.put("b", other)
        writer.put("c", torch.zeros(1))
        writer.put("a", value[:3])

    write_safetensors(tmp_path, shards, put)
    found = load_file(tmp_path / SINGLE_FILE)
    assert torch.equal(found["a"], value.bfloat16())
    assert torch.equal(found["b"], other)


def test_what_is_not_as_planned_is_our_mistake(tmp_path: Path) -> None:
    shards = plan_shards([Entry("a", (5, 3), torch.float32)])
    for wrong in (torch.zeros(5, 2), torch.zeros(6, 3)):
        with pytest.raises(AssertionError, match="planned"):
            write_safetensors(tmp_path, shards, lambda writer, wrong=wrong: writer.put("a", wrong))
    with pytest.raises(AssertionError, match=r"not written: \['model.safetensors'\]"):
        write_safetensors(tmp_path, shards, lambda writer: writer.put("a", torch.zeros(4, 3)))
    with pytest.raises(AssertionError, match="twice"):
        plan_shards([Entry("a", (1,), torch.float32), Entry("a", (2,), torch.float32)])


def test_a_partial_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take, and give, fewer bytes than it was asked for: 2 GB at most on Linux."""
    from difflm.checkpoints import hf, shards

    class Slow:
        def __init__(self, file: object) -> None:
            self.file = file

        def seek(self, start: int) -> None:
            self.file.seek(start)  # type: ignore[attr-defined]

        def write(self, content: memoryview) -> int:
            return self.file.write(content[:3])  # type: ignore[attr-defined]

        def readinto(self, content: memoryview) -> int:
            return self.file.readinto(content[:3])  # type: ignore[attr-defined]

    write_at, fill = shards._write_at, hf._fill
    monkeypatch.setattr(shards, "_write_at", lambda file, start, content: write_at(Slow(file), start, content))  # type: ignore[arg-type]
    monkeypatch.setattr(hf, "_fill", lambda file, start, content: fill(Slow(file), start, content))  # type: ignore[arg-type]
    values = some_tensors()
    write_tensors(tmp_path, values)
    opened = open_safetensors(tmp_path)
    assert all(torch.equal(opened.read(name), value) for name, value in values.items())


def test_the_disk_is_asked_for_room_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2**25 + 100

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: 32 MiB free, 33 MiB needed; free space or choose"):
        write_tensors(tmp_path / "out", {"a": torch.zeros(2**18)})
    assert list((tmp_path / "out").iterdir()) == []
