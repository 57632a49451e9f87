"""The whole demo on a tiny stand-in: every part runs, the tables are complete, and it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from demo import run as demo
from demo.fetch import MODEL, Asset
from demo.plan import Plan
from demo.task import items, to_prompt
from difflm import load_model
from difflm.errors import DifflmError
from tests.standins import word_tokenizer, write_parent

PLAN = Plan(
    ladder=((1, 300), ("row", 300), (8, 300)),
    task_tokens=1500,
    task_items=30,
    validation_rows=2,
    fresh=2,
    unseen=2,
    side_fresh=1,
    side_unseen=1,
    control_fresh=2,
    control_unseen=1,
    exact=2,
    draft_tokens=500,
    thresholds=(0.9, 0.5),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return what a fetch would: a tiny checkpoint with the spare token that the demo names, and a small corpus."""
    folder = tmp_path_factory.mktemp("inputs")
    examples = items("train", 60, seed=1)
    texts = [text for item in examples for text in (item.prompt, item.completion)]
    tokenizer = word_tokenizer(texts, special=["<empty_output>"])
    verses = [
        {
            "citation": "x",
            "text": f"{'the word was light and ' * 3}{chapter} {verse}.",
            "book": f"B{chapter}",
            "chapter": chapter,
        }
        for chapter in range(24)
        for verse in range(3)
    ]
    corpus = folder / "kjv.jsonl"
    corpus.write_text("".join(json.dumps(verse) + "\n" for verse in verses))
    return {"model": write_parent(folder / "parent", tokenizer=tokenizer), "corpus": corpus}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Path]) -> None:
    def fetch(asset: Asset, cache: Path) -> Path:
        return inputs["model"] if asset is MODEL else inputs["corpus"]

    monkeypatch.setattr(demo, "fetch", fetch)


@pytest.mark.parametrize("paper", [False, True])
def test_the_demo_from_end_to_end(
    paper: bool, offline: None, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = dataclasses.replace(PLAN, paper=paper)
    folder = tmp_path / "demo"
    demo.run(plan, folder, tmp_path / "cache")
    report = (folder / "report.txt").read_text()
    for part in ("AR parent", "block 32", "threshold 0.9, fresh", "one token per forward, unseen", "AR control, fresh"):
        assert part in report, part
    assert ("equal to the AR control's in float32 2 of 2" in report) == (not paper), "what is verified is the control's"
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((folder / "result.json").read_text())
    assert set(result["perplexity"]["before"]["perplexity"]) == {"1", "4", "8", "32"}
    raw = json.loads((folder / "merged" / "config.json").read_text())
    assert (raw.get("logit_shift", False), raw.get("clean_attention", "block")) == (
        (False, "block") if paper else (True, "causal")
    )
    merged = load_model(folder / "merged")
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert merged.encode_chat(asked) == merged.encode(to_prompt("c")), "a chat asks in the form that was learnt"
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    demo.run(plan, folder, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before, "nothing is done twice"
    assert "threshold 0.9, fresh" in capsys.readouterr().out


def test_a_folder_of_another_plan_is_refused(offline: None, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo.check_plan(PLAN, folder)
    with pytest.raises(DifflmError, match="holds a demo of other sizes"):
        demo.check_plan(Plan(ladder=((8, 10),), task_tokens=10), folder)
