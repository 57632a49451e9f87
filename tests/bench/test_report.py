"""The printed benchmark: a table, then one JSON document as the last line."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from difflm.bench.decode import DecodeBench
from difflm.bench.report import drafts_line, report, table
from difflm.bench.systems import SYSTEMS, VERIFIED


def test_the_json_document_is_the_last_line(result: DecodeBench) -> None:
    out = io.StringIO()
    report(result, file=out)
    lines = out.getvalue().splitlines()
    document = json.loads(lines[-1])
    assert document["benchmark"] == "decode"
    assert document["baseline"] == result.baseline
    assert [row["setting"]["system"] for row in document["rows"]] == list(SYSTEMS)
    assert document["environment"]["cores"] >= 1
    shown = "\n".join(lines[:-1])
    assert f"{result.baseline} (baseline)" in shown
    assert "1+10+0" in shown


def test_drafts_have_a_column_and_a_line_of_their_own(result: DecodeBench, drafted: DecodeBench) -> None:
    out = io.StringIO()
    report(result, file=out)
    assert "same dtype" not in out.getvalue()
    assert "verified" not in out.getvalue()
    out = io.StringIO()
    report(drafted, file=out)
    lines = out.getvalue().splitlines()
    (heads,) = [line for line in lines if line.startswith("system ")]
    assert heads.endswith("range  same dtype")
    assert sum("(baseline)" in line for line in lines) == 1
    (exact,) = [line for line in lines if line.startswith("verified, float32: ")]
    assert exact.startswith("verified, float32: 2 of 2 answers equal to next_token's; ")
    assert " drafts accepted in " in exact
    row = next(row for row in json.loads(lines[-1])["rows"] if row["setting"]["system"] == VERIFIED)
    assert row["equal"] == 1.0
    assert len(row["drafts"]["accepted_at"]) == 7


def test_answers_that_differ_are_said_by_what_is_promised(drafted: DecodeBench) -> None:
    row = next(row for row in drafted.rows if row.setting == drafted.rows[1].setting)
    other = replace(row, equal=0.5, drafts=None)
    assert drafts_line(other, 2) == (
        "verified, float32: 1 of 2 answers equal to next_token's (promised: all but for ties within rounding); nothing "
        "was drafted"
    )
    half = replace(other, setting=replace(row.setting, dtype="bfloat16"))
    assert "1 of 2 answers equal to next_token's (near-ties; not promised in this dtype)" in drafts_line(half, 2)


def test_tables_are_aligned() -> None:
    assert table(("name", "n"), [("a", "10"), ("long name", "1")]).splitlines() == [
        "name        n",
        "---------  --",
        "a          10",
        "long name   1",
    ]
