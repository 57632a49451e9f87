"""The printed benchmark: a table, then one JSON document as the last line."""

from __future__ import annotations

import io
import json

from difflm.bench.decode import DecodeBench
from difflm.bench.report import report, table
from difflm.bench.systems import SYSTEMS


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


def test_tables_are_aligned() -> None:
    assert table(("name", "n"), [("a", "10"), ("long name", "1")]).splitlines() == [
        "name        n",
        "---------  --",
        "a          10",
        "long name   1",
    ]
