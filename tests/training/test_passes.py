"""The two passes: memory that does not grow, and the smallest type of id."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from difflm.data import duplicates, readers, tokens
from difflm.data.tokens import Special
from difflm.training.passes import token_dtype
from difflm.training.prepare import prepare
from tests.standins import write_parent


def test_ids_are_stored_in_two_bytes_where_they_fit() -> None:
    assert token_dtype(Special(eos=0, vocabulary=65536)) == "uint16"
    assert token_dtype(Special(eos=0, vocabulary=65537)) == "uint32"
    assert token_dtype(Special(eos=0)) == "uint32"


@pytest.mark.parametrize("layout", ["lines", "array", "text"])
def test_python_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced allocations (Python and NumPy) of a corpus four times as large stay the same."""
    for module, name in ((tokens, "_BATCH_CHARACTERS"), (readers, "TEXT_PIECE_BYTES"), (duplicates, "_STRIDE")):
        monkeypatch.setattr(module, name, 1 << 16)
    model = write_parent(tmp_path / "parent")

    def peak(copies: int) -> int:
        path = tmp_path / f"{copies}.data"
        records = [{"text": f"{number} " + "some words " * 90} for number in range(100 * copies)]
        if layout == "lines":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        elif layout == "array":
            path.write_text(json.dumps(records))
        else:
            path = path.with_suffix(".txt")
            path.write_text("\n".join(record["text"] for record in records))
        del records
        tracemalloc.start()
        prepare(path, model=model, output=tmp_path / f"p{copies}", shard_tokens=1 << 20)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)  # what is imported and cached once
    small, large = peak(2), peak(8)
    assert large < small + (300 << 10)
