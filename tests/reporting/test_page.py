"""The page: complete, self-contained, safe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import difflm
from difflm.errors import ConfigError
from difflm.reporting.page import write_report
from tests.reporting.runs import state_at, train_row, validation_row, write_checkpoint, write_run

EVIL = "</pre><script>alert(1)</script>"


class Structure(HTMLParser):
    """Collects tags, attributes and ids, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def structure(page: Path) -> Structure:
    found = Structure()
    found.feed(page.read_text(encoding="utf-8"))
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole run, with markup wherever text comes from outside."""
    rows = [validation_row(0), *(train_row(step) for step in range(1, 9)), validation_row(8)]
    sampled = {"kind": "samples", "step": 8, "num_tokens": 800, "tokens_per_forward": 1.5}
    text = {"kind": "samples", "step": 8, "num_tokens": 800, "prompt": EVIL, "text": f"{EVIL}\x00", "tokens": 3}
    fault = {"kind": "skipped", "step": 9, "num_tokens": 900, "reason": EVIL, "seconds": 18.0}
    folder = tmp_path_factory.mktemp("page") / "run<script>"
    write_run(folder, [*rows, sampled, fault], samples=[text], recipe=EVIL, data={"paths": [EVIL], "row_length": 64})
    write_checkpoint(folder, state_at(8, validation={"8": 30.5}))
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    """Return its report."""
    return write_report(run)


def test_nothing_runs_and_nothing_is_loaded(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = structure(page)
    assert page.name == "report.html"
    assert not {"script", "img", "image", "link", "iframe", "object", "foreignobject", "base", "form"} & {*found.tags}
    assert "://" not in text
    for name, value in found.attributes:
        assert name != "style"
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "xlink:href")
        assert name != "href" or (value or "").startswith("#")
    assert text.count(EVIL) == 0
    assert text.count("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;") >= 5, "prompt, text, recipe, reason, data"


def test_the_policy_allows_the_style_sheet_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "prefers-color-scheme: dark" in style[1]
    assert 'name="viewport"' in text


def test_ids_stand_once_and_references_have_a_target(page: Path) -> None:
    found = structure(page)
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {(value or "")[1:] for name, value in found.attributes if name == "href"}
    used |= set(re.findall(r"url\(#([^)]+)\)", page.read_text(encoding="utf-8")))
    assert used
    assert used == set(ids)


def test_every_section_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<h2>([^<]*)</h2>", text) == [
        "Validation",
        "Checkpoints",
        "Samples",
        "Faults and restarts",
        "Data",
        "Configuration",
    ]
    assert text.count("<svg ") == text.count('role="img" aria-label="') == 8
    assert "<details><summary>config.yaml</summary>" in text
    assert "curriculum:" in text


def test_a_report_gives_way_to_the_next_and_nothing_else_does(run: Path, page: Path, tmp_path: Path) -> None:
    assert write_report(run, page) == page
    mine = tmp_path / "notes.html"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"notes.html: exists and is no report of difflm; choose another file"):
        write_report(run, mine)
    assert mine.read_text() == "mine"
    with pytest.raises(ConfigError, match="is a folder; name the file to write"):
        write_report(run, tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(run, tmp_path / "absent" / "report.html")


def test_runs_that_have_hardly_begun(tmp_path: Path) -> None:
    empty = write_report(write_run(tmp_path / "empty"))
    assert "The run has not done a step yet" in empty.read_text(encoding="utf-8")
    one = difflm.report(write_run(tmp_path / "one", [train_row(1)]), tmp_path / "one.html")
    assert one == tmp_path / "one.html"
    assert {"svg", "table"} <= {*structure(one).tags}
    for words in ("The run has no validation rows.", "There is no checkpoint yet.", "The run writes no samples"):
        assert words in one.read_text(encoding="utf-8")


def test_figures_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    rows = [train_row(1), train_row(2, loss=float("nan"), grad_norm=float("inf")), train_row(3)]
    assert "NaN" in json.dumps(rows)
    structure(write_report(write_run(tmp_path / "run", rows)))
