"""Masks, rows and key maps as lines: the picture is the predicate, the table is the row, the map is the rules."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from difflm.diffusion.masks import layout_mask, materialise
from difflm.errors import CheckpointError, ConfigError
from difflm.inspection import (
    ASCII,
    UNICODE,
    document_ids,
    key_map_lines,
    layout_of,
    mask_lines,
    row_documents,
    row_lines,
)
from difflm.training.preview import ShownRow, ShownToken
from difflm.types import Parametrisation
from tests.checkpoints.tiny import hf_folder, ling_folder
from tests.checkpoints.tiny_gguf import write_gguf
from tests.standins import write_parent


@pytest.mark.parametrize("two_streams", [False, True])
def test_the_picture_is_the_predicate(two_streams: bool) -> None:
    for clean, noisy, ahead in itertools.product(("block", "causal"), ("bidirectional", "causal"), (None, 1)):
        layout = layout_of(
            document_ids([4, 3], 9),
            block_size=2,
            parametrisation=Parametrisation(clean_attention=clean, noisy_attention=noisy),
            two_streams=two_streams,
            lookahead=ahead,
        )
        size = 18 if two_streams else 9
        drawn = [line[22:].replace(" ", "").replace("|", "") for line in mask_lines(layout, glyphs=ASCII)[2 : 2 + size]]
        expected = materialise(layout_mask(layout), 1, size)[0, 0]
        assert torch.equal(torch.tensor([[cell != "." for cell in line] for line in drawn]), expected)
        if two_streams:
            assert set(drawn[3][:9]) <= {"n", "."}
            assert set(drawn[3][9:]) <= {"c", "."}
            assert set(drawn[12]) <= {"#", "."}


def test_a_small_mask_line_by_line() -> None:
    layout = layout_of(document_ids([3, 1], 5), block_size=2)
    assert mask_lines(layout, glyphs=ASCII) == [
        "             document  00 0 1 - | 00 0 1 -",
        "                block  00 1 0 - | 00 1 0 -",
        "noisy d0   b0    p0    nn . . . | .. . . .",
        "noisy d0   b0    p1    nn . . . | .. . . .",
        "noisy d0   b1    p2    .. n . . | cc . . .",
        "noisy d1   b0    p0    .. . n . | .. . . .",
        "noisy padding          .. . . n | .. . . .",
        "clean d0   b0    p0    .. . . . | ## . . .",
        "clean d0   b0    p1    .. . . . | ## . . .",
        "clean d0   b1    p2    .. . . . | ## # . .",
        "clean d1   b0    p0    .. . . . | .. . # .",
        "clean padding          .. . . . | .. . . #",
        "n a noisy query sees a noisy key",
        "c a noisy query sees a clean key",
        "# a clean query sees a clean key",
        ". not seen",
        "d document, b block, p position; padding sees padding alone",
    ]
    cells = {ASCII.noisy: UNICODE.noisy, ASCII.hidden: UNICODE.hidden}
    drawn = "".join(cells.get(cell, cell) for cell in "nn . . . | .. . . .")
    assert mask_lines(layout)[2] == f"noisy d0   b0    p0    {drawn}"


def test_one_block_for_each_document() -> None:
    layout = layout_of(document_ids([3, 2], 5), block_size=None, two_streams=False)
    assert layout.block_BL.tolist() == [[0] * 5]
    assert mask_lines(layout, glyphs=ASCII)[2] == "token d0   b0    p0    nnn .."


def test_bad_layouts_are_refused_in_one_line() -> None:
    for lengths in ([], [0, 3], [5, 4]):
        with pytest.raises(ConfigError, match=r"documents: .* do not fill a row of 8 tokens"):
            document_ids(lengths, 8)
    document = document_ids([200], 200)
    with pytest.raises(ConfigError, match="row_length: 200 draws 400 columns; use at most 128"):
        mask_lines(layout_of(document, block_size=4))
    with pytest.raises(ConfigError, match="block_size: 0 is below 1"):
        layout_of(document, block_size=0)
    with pytest.raises(ConfigError, match="lookahead: -1 is negative"):
        layout_of(document, block_size=1, lookahead=-1)


def shown() -> ShownRow:
    facts = [
        ("a", "prompt", False, 0),
        ("b", "trainable", True, 0),
        ("c", "eos", False, 0),
        ("d", "trainable", False, 1),
    ]
    tokens = [ShownToken(text=t, role=r, masked=m, document=d) for t, r, m, d in facts]  # type: ignore[arg-type]
    tokens.append(ShownToken(text="e", role="padding", masked=False, document=-1))
    return ShownRow(source="file.jsonl", number=2, tokens=tuple(tokens), documents_read=2)


def test_a_row_as_a_table() -> None:
    assert row_documents(shown()).tolist() == [[0, 0, 0, 1, -1]]
    lines = row_lines(shown(), block_size=2)
    assert lines[0] == "file.jsonl, row 2, 5 tokens, blocks of 2"
    assert [line.split() for line in lines[1:-1]] == [
        ["place", "document", "position", "block", "role", "noisy", "token"],
        ["0", "0", "0", "0", "prompt", "'a'"],
        ["1", "0", "1", "0", "trainable", "MASK", "'b'"],
        [],
        ["2", "0", "2", "1", "eos", "'c'"],
        [],
        ["3", "1", "0", "0", "trainable", "'d'"],
        [],
        ["4", "-", "-", "-", "padding"],
    ]
    assert lines[-1] == "1 prompt, 2 trainable, 1 eos, 1 padding; 1 masked"
    assert row_lines(shown())[0].endswith("one block for each document")


def test_the_key_map_folds_layers(tmp_path: Path) -> None:
    lines = key_map_lines(write_parent(tmp_path / "parent"))
    assert lines[0].endswith("parent: llama, 20 tensors on disk, 20 in the model")
    assert "model.norm.weight [32] float32  ->  norm.weight [32]" in lines
    assert (
        "model.layers.{l}.self_attn.k_proj.weight [16, 32] float32  ->  layers.{l}.attention.key.weight [16, 32]"
        "  (2 layers)"
    ) in lines
    assert lines[-1] == "head.weight is embedding.weight (tied)"
    every = key_map_lines(tmp_path / "parent", every_layer=True)
    assert len(every) == 1 + 20 + 1
    assert any(line.startswith("model.layers.1.mlp.up_proj.weight") for line in every)
    with pytest.raises(CheckpointError, match="absent"):
        key_map_lines(tmp_path / "absent")


def test_the_key_map_says_what_changes(tmp_path: Path) -> None:
    ling_folder(tmp_path / "ling")
    text = "\n".join(key_map_lines(tmp_path / "ling"))
    assert "experts stacked, 2 parts below each other" in text
    assert "split into query, key, value" in text
    assert "experts.{e}.gate_proj" in text
    model = hf_folder(tmp_path / "llama")
    write_gguf(tmp_path / "llama.gguf", model)
    packed = key_map_lines(tmp_path / "llama.gguf")
    assert any(line.startswith("blk.{l}.attn_q.weight") and "half-split" in line for line in packed)
