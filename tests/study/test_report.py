"""Tables, targets and picture from made-up figures: each verdict follows from them; without them nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.report import main, page, write_page
from study.results import Results
from study.targets import ABSENT, CONFIRMED, OPEN, REFUTED, difference, verdicts


def score(stage: str, right: int, *, task: str = "sums", threshold: float | None = 0.95, forwards: int = 100) -> Any:
    return {
        "kind": "score", "stage": stage, "task": task, "threshold": threshold, "items": 200, "right": right,
        "marks": "1" * right + "0" * (200 - right), "num_tokens": 400, "denoise": forwards, "commit": 0,
    }  # fmt: skip


def speed(stage: str, ratio: float) -> dict[str, Any]:
    return {
        "kind": "speed", "stage": stage, "task": "difflm, plain", "threads": 1, "tps": 10 * ratio, "ratio": ratio,
        "ratio_low": ratio, "ratio_high": ratio, "tpf": 2.0, "prompts": 4, "repeats": 3, "baseline": "ar-sft plain",
    }  # fmt: skip


def filled(path: Path, rows: list[dict[str, Any]]) -> Results:
    results = Results(path / "results.jsonl")
    for row in rows:
        results.put(row)
    return results


def test_a_line_that_is_measured_again_takes_its_place(tmp_path: Path) -> None:
    results = filled(tmp_path, [score("sft", 1), score("cap", 2), score("sft", 3), score("sft", 4, threshold=0.5)])
    assert [row["right"] for row in Results(results.path).rows] == [3, 2, 4]
    assert [row["right"] for row in results.of("score", stage="sft", threshold=0.5)] == [4]


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    results = filled(tmp_path, [score("sft", 1), score("cap", 2)])
    results.path.write_text(results.path.read_text()[:-20])
    again = Results(results.path)
    again.put(score("dpo", 3))
    assert [row["stage"] for row in Results(results.path).rows] == ["sft", "dpo"]


def test_every_target_is_decided_by_its_figures(tmp_path: Path) -> None:
    rows = [
        score("ar-sft", 190, threshold=None),
        score("sft", 190),
        score("sft-single", 150),
        score("cap", 190, forwards=60),
        score("dpo", 190, forwards=60),
        speed("ar-sft", 1.0),
        speed("sft", 1.6),
        speed("cap", 2.0),
        {"kind": "equal", "stage": "lossless", "same": 9, "items": 10, "dtype": "float32"},
    ]
    found = {each.target: each for each in verdicts(filled(tmp_path, rows))}
    assert [each.verdict for each in found.values()] == [
        CONFIRMED, CONFIRMED, CONFIRMED, REFUTED, ABSENT, REFUTED, CONFIRMED, OPEN,
    ]  # fmt: skip
    assert found["CAP: 1.46x the TPF for at most 1.7 points"].measured == "1.67x, +0.0 points (+0.0 to +0.0)"


@pytest.mark.parametrize(
    ("right", "forwards", "verdict"),
    [(190, 69, REFUTED), (190, 68, CONFIRMED), (187, 60, OPEN), (150, 60, REFUTED)],
    ids=["too slow", "fast", "too few items", "too wrong"],
)
def test_cap_needs_both_speed_and_answers(right: int, forwards: int, verdict: str, tmp_path: Path) -> None:
    results = filled(tmp_path, [score("sft", 190), score("cap", right, forwards=forwards)])
    assert verdicts(results)[0].verdict == verdict


def test_differences_are_paired_by_item(tmp_path: Path) -> None:
    first = [score("a", 100), score("a", 50, task="other")]
    # The tasks' order does not matter, their items do.
    delta, low, high = difference(first, [score("b", 60, task="other"), score("b", 100)])
    assert delta == 2.5
    assert 0 < low < delta < high
    with pytest.raises(ValueError, match="argument 2 is longer"):
        difference(first, [score("b", 1) | {"marks": "1"}, score("b", 60, task="other")])


def test_without_figures_the_page_says_so_and_is_the_one_in_the_docs(tmp_path: Path) -> None:
    text = page(Results(tmp_path / "results.jsonl"), None)
    assert "**Not run yet:**" in text
    assert "Targets" not in text
    kept = (Path(__file__).parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    head = text.partition("\n**Not run yet")[0]
    assert kept.startswith(head), "python -m study.report runs/study --page docs/study.md"


def test_what_somebody_found_stays_on_a_page_that_is_written_again(tmp_path: Path) -> None:
    filled(tmp_path, [score("sft", 190)])
    first = write_page(tmp_path, tmp_path / "page.md").read_text()
    (tmp_path / "page.md").write_text(f"{first}\n## Findings\n\nPairs help.\n")
    filled(tmp_path, [score("sft", 100)])
    again = write_page(tmp_path, tmp_path / "page.md").read_text()
    assert again == write_page(tmp_path, tmp_path / "page.md").read_text()
    assert "| sft | fine-tuning with complementary pairs (Eq. 5) | 200 | 50.0" in again
    assert again.endswith("\n## Findings\n\nPairs help.\n")


def test_the_page_has_every_stage_task_and_threshold(tmp_path: Path) -> None:
    rows = [
        score("ar-sft", 180, threshold=None, forwards=400),
        score("sft", 190),
        score("sft", 170, threshold=0.5, forwards=50),
        score("sft", 20, task="sorting"),
        score("sft-wide", 180, forwards=80),
        score("sft-wide", 20, task="sorting", forwards=80),
        speed("sft", 1.6),
        {"kind": "environment", "processor": "P", "cores": 2, "torch": "2", "transformers": "5", "commit": "c" * 40},
        {"kind": "model", "parameters": 5_000_000, "vocabulary": 1024},
        {"kind": "skipped", "stage": "dpo", "reason": "2 records"},
        {"kind": "training", "stage": "sft", "tokens": 1000, "seconds": 60.0, "perplexity": {"16": 1.5}},
        {"kind": "own", "stage": "cap", "task": "sums", "kept": 7, "wrong": 3},
        {"kind": "plan", "lanes": 2},
        {"kind": "attempt", "stage": "0", "seconds": 600.0},
        {"kind": "attempt", "stage": "1", "seconds": 1200.0},
    ]
    filled(tmp_path, rows)
    written = write_page(tmp_path, tmp_path / "out" / "page.md")
    text = written.read_text()
    assert "| sft | fine-tuning with complementary pairs (Eq. 5) | 400 | 52.5 (47.6-57.3) | 4.00 |" in text
    assert "| sft | 0.5 | 200 | 85.0 (79.4-89.3) | 8.00 |" in text
    assert "| sft | difflm, plain | 1 | 16 | 1.60x (1.60-1.60) | 2.00 |" in text
    for part in (
        "5.0M parameters",
        "All of it took 30 minutes in 2 attempts, each of which went on where the one before stopped, 2 trainings at",
        "**Left out: dpo** (2 records)",
        "16: 1.500",
        "| cap | sums | 7 | 3 |",
        "(page.png)",
        "| sft-wide | mask rates of 0 to 1 | 50.0 (45.1-54.9) | -2.5 (-4.0 to -1.0) | 5.00 | 1.25 |",
    ):
        assert part in text, part
    assert (tmp_path / "out" / "page.png").read_bytes()[:4] == b"\x89PNG"
    printed: list[str] = []
    assert main([str(tmp_path)], say=lambda line: printed.append(str(line))) == 0
    assert printed == [str(tmp_path / "study.md")]
    (tmp_path / "results.jsonl").write_text("no json\n{}\n")
    assert main([str(tmp_path)]) == 2
