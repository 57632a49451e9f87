"""Figures and tables of a report."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from difflm.data.shards import open_prepared
from difflm.reporting import tables
from difflm.reporting.facts import read_run
from difflm.training.prepare import prepare
from tests.reporting.runs import state_at, train_row, validation_row, write_checkpoint, write_run
from tests.standins import write_parent, write_texts


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_the_run_at_a_glance(tmp_path: Path) -> None:
    rows = [validation_row(0), train_row(3), train_row(4), validation_row(4, perplexity={"8": 12.0})]
    found = words(tables.summary_cards(read_run(write_run(tmp_path / "run", rows, recipe="<script>mine"))))
    assert "state stopped" in found
    assert "tokens 400 50.0% of 800" in found
    assert "steps 4 none skipped" in found
    assert "training time 8.0 s" in found
    assert "speed 50 tokens/s" in found
    assert "last loss 1.250" in found
    assert "perplexity, block 8 12 at step 4" in found
    assert "AR perplexity 19.25" in found
    assert "recipe <script>mine objective block_diffusion" in found


def test_validations_by_block_size_with_the_middle_of_a_long_list_left_out(tmp_path: Path) -> None:
    rows = [validation_row(step, ar_perplexity=None if step else 7.5) for step in range(40)]
    found = words(tables.validation_table(read_run(write_run(tmp_path / "run", rows))))
    assert "step tokens block 4 block 8 block 16 AR 0 0 20 30.50 40 7.500 16 1,600 20 30.50 40 - 17" in found
    assert found.endswith("39 3,900 20 30.50 40 - 15 rows after the first are left out.")


def test_checkpoints(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train_row(8)])
    write_checkpoint(run, state_at(7, validation={"8": 9.0}), moments=False)
    (write_checkpoint(run, state_at(8)) / "model.safetensors").unlink()
    found = words(tables.checkpoint_table(read_run(run)))
    assert re.search(r"step-00000007 7 700 8 9 [\d.]+ KiB no candidate 1 whole", found)
    assert re.search(r"step-00000008 8 800 8 - [\d.]+ KiB no - model.safetensors is missing", found)


def test_the_last_samples(tmp_path: Path) -> None:
    old = {"kind": "samples", "step": 0, "num_tokens": 0, "prompt": "p", "text": "old", "tokens": 1}
    new = {**old, "step": 8, "text": "<script>alert(1)</script>\x1b", "tokens": 12, "tokens_per_forward": 1.25}
    page = tables.sample_table(read_run(write_run(tmp_path / "run", samples=[old, new])))
    assert "<script" not in page
    assert "p <script>alert(1)</script>\ufffd 12 1.250" in words(page)
    assert "old" not in words(page)


def test_faults(tmp_path: Path) -> None:
    fault = {"kind": "skipped", "step": 2, "num_tokens": 200, "skipped": 1, "budget": 10, "reason": "loss is <nan>"}
    rows = [train_row(1, memory_bytes=9), fault, train_row(3, memory_bytes=5)]
    run = write_run(tmp_path / "run", rows)
    (run / "dumps" / "step-00000002").mkdir(parents=True)
    found = words(tables.fault_section(read_run(run)))
    assert "2 200 1 of 10 loss is <nan>" in found
    assert "Dumps: dumps/step-00000002." in found
    assert "Begun anew at least 1 time:" in found
    assert "No step was skipped" in words(tables.fault_section(read_run(write_run(tmp_path / "other"))))


def test_data_with_shares(tmp_path: Path) -> None:
    data = {"paths": ["a<b>.jsonl", "c.jsonl"], "weights": [3.0, 1.0], "row_length": 64, "validation_fraction": 0.25}
    found = words(tables.data_table(read_run(write_run(tmp_path / "run", [train_row(1, epoch=2)], data=data))))
    assert "a<b>.jsonl 75.0% - - c.jsonl 25.0% - -" in found
    assert "Rows of 64 tokens" in found
    assert "2 whole passes" in found
    assert "Validation: 0.25 of the documents." in found


def test_prepared_data_are_counted_and_damage_is_said_there(tmp_path: Path) -> None:
    summary = prepare([write_texts(tmp_path / "t.jsonl")], model=write_parent(tmp_path / "m"), output=tmp_path / "data")
    data = {"paths": [str(tmp_path / "data")], "row_length": 64}
    facts = read_run(write_run(tmp_path / "run", data=data))
    (store,) = [each.train for each in open_prepared(summary.folder).sources]
    counts = f"{len(store):,} {int(store.column('length').sum()):,}"
    assert f"{tmp_path / 'data'} - {counts} Rows" in words(tables.data_table(facts))
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": ', '"version": 9'))
    assert f"{manifest}: version 9" in words(tables.data_table(facts))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (3.0, "3"), (0.123456, "0.1235"), (6.37, "6.370"), (1234.5, "1,234"), (1e300, f"{1e300:,.0f}")],
)
def test_figures(value: float | None, text: str) -> None:
    assert tables.shown(value) == text


def test_times_and_sizes() -> None:
    assert [tables.duration(value) for value in (0.0, 59.94, 61, 3725, 200000)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "1 h 02 min",
        "2 d 7 h",
    ]
    assert [tables.byte_size(value) for value in (512, 2**20, 3 * 2**29)] == ["0.5 KiB", "1.00 MiB", "1.50 GiB"]
