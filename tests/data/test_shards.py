"""Prepared data on disk: equal to memory, and any damage is refused by the name of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.data import TokenDocument, TokenStore, list_files, pack_store
from difflm.data.rows import PackOptions
from difflm.data.shards import MANIFEST, ShardWriter, file_hash, is_prepared, open_prepared, write_manifest
from difflm.data.store import MemoryStore
from difflm.errors import DataError

EOS = 1


def documents(count: int = 40) -> list[TokenDocument]:
    made = []
    for number in range(count):
        token = [*range(10, 12 + number % 7), EOS]
        learnt = [place % 3 != 0 for place in range(len(token))] if number % 5 == 0 else None
        made.append(
            TokenDocument(
                token=token,
                num_prompt=0 if learnt else number % 2,
                is_answer=number % 2 == 1 or learnt is not None,
                trainable=learnt,
                content=bytes([number]) * 32,
                where=f"f.jsonl:{number + 1}",
            )
        )
    return made


def write(folder: Path, *, dtype: str = "uint16", shard_tokens: int = 50) -> TokenStore:
    """Write a prepared folder; return the same documents in memory."""
    folder.mkdir()
    collected = MemoryStore(EOS)
    writer, empty = (
        ShardWriter(folder, stem, dtype=dtype, shard_tokens=shard_tokens, eos_id=EOS, files=["f.jsonl"])
        for stem in ("train-000", "validation-000")
    )
    for document in documents():
        writer.add(document)
        collected.add(document)
    entry = {
        "path": "f.jsonl",
        "weight": None,
        "documents": "mixed",
        "files": [{"path": "f.jsonl", "found": "as told"}],
    }
    source = {**entry, "train": writer.finish(), "validation": empty.finish()}
    write_manifest(folder, {"dtype": dtype, "sources": [source]})
    return collected.finish()


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("shard_tokens", [1, 50, 10_000])
def test_rows_from_disk_equal_those_from_memory(tmp_path: Path, dtype: str, shard_tokens: int) -> None:
    memory = write(tmp_path / "p", dtype=dtype, shard_tokens=shard_tokens)
    prepared = open_prepared(tmp_path / "p")
    (source,) = prepared.sources
    options = PackOptions(row_length=16, pad_id=0, eos_id=EOS, fill_multiple=4)
    one, two = pack_store(memory, options), pack_store(source.train, options)
    assert one.fingerprint == two.fingerprint
    assert one.counts == two.counts
    mine, theirs = one.batch(range(len(one))), two.batch(range(len(two)))
    for name in ("token_BL", "document_BL", "position_BL", "trainable_BL"):
        assert vars_of(mine)[name] == vars_of(theirs)[name]
    assert [source.train.where(index) for index in range(40)] == [document.where for document in documents()]
    assert len(source.validation) == 0
    side = prepared.manifest["sources"][0]["train"]
    assert side["documents"] == 40
    assert side["tokens"] == sum(len(document.token) for document in documents())
    assert side["trainable"] == int(memory.column("learnt").sum())
    assert side["largest_id"] == max(max(document.token) for document in documents())
    assert len(side["shards"]) == {1: 40, 50: 5, 10_000: 1}[shard_tokens]


def vars_of(batch: object) -> dict[str, list[list[int]]]:
    names = ("token_BL", "document_BL", "position_BL", "trainable_BL")
    return {name: object.__getattribute__(batch, name).tolist() for name in names}


def refused(folder: Path, **options: bool) -> str:
    with pytest.raises(DataError) as caught:
        open_prepared(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("part", ["tokens", "documents", "bits"])
def test_damage_is_named(tmp_path: Path, part: str) -> None:
    write(tmp_path / "p")
    file = tmp_path / "p" / f"train-000-00001.{part}"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert refused(tmp_path / "p", hashes=False).startswith(f"{file}: has {len(whole) - 1} bytes, the manifest says")
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert refused(tmp_path / "p").startswith(f"{file}: differs from the sha256 in the manifest")
    open_prepared(tmp_path / "p", hashes=False)
    file.unlink()
    assert refused(tmp_path / "p", hashes=False).startswith(f"{file}: cannot be read (No such file")


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "p")
    path = tmp_path / "p" / MANIFEST
    manifest = json.loads(path.read_text())
    for changed, message in (
        ({**manifest, "dtype": "uint32"}, "does not fit its own sha256"),
        ({**manifest, "version": 9}, "version 9, this difflm reads 1"),
        ({"sources": []}, "not the manifest of prepared data"),
        ([], "not the manifest of prepared data"),
    ):
        path.write_text(json.dumps(changed))
        assert message in refused(tmp_path / "p")
    path.write_text("{")
    assert "not valid JSON" in refused(tmp_path / "p")
    assert is_prepared(tmp_path / "p"), "damaged, but prepared"
    path.unlink()
    assert not is_prepared(tmp_path / "p")
    assert "cannot be read" in refused(tmp_path / "p")


def test_prepared_data_inside_a_folder_is_not_read_as_raw_data(tmp_path: Path) -> None:
    write(tmp_path / "prepared")
    (tmp_path / "other").mkdir()
    for name in ("a.jsonl", "other/manifest.json"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert not is_prepared(tmp_path / "other"), "a file of that name, but not ours"
    assert list_files(tmp_path) == [tmp_path / "a.jsonl", tmp_path / "other" / "manifest.json"]


def test_hashes_are_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "p")
    for shard in open_prepared(tmp_path / "p").manifest["sources"][0]["train"]["shards"]:
        for entry in shard.values():
            assert file_hash(tmp_path / "p" / entry["file"]) == entry["sha256"]
