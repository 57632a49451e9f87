"""A stage's model becomes a folder to talk to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from difflm import SamplingParams, convert, generate, load_model
from difflm.errors import ConfigError
from difflm.evaluation.tasks import Item
from study import ship as shipping
from study.parent import SPARE, learn_tokenizer, write_parent
from study.results import Results
from study.ship import TRIES, main, ship
from study.tasks import CUE, StudyTask
from tests.study.test_tasks import Numbers


class Generous(Numbers):
    """Any answer to an odd number is right."""

    def score(self, item: Item, text: str) -> float:
        return float(int(item.prompt.partition("?")[0]) % 2)


class Strict(Numbers):
    """No answer is right."""

    def score(self, item: Item, text: str) -> float:
        return 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a study's folder with one stage, whose weights are random."""
    folder = tmp_path_factory.mktemp("ship")
    tokenizer = learn_tokenizer([f"{number}?{CUE}b" for number in range(300)], 280)
    write_parent(folder / "random", tokenizer, layers=1, hidden=64, seed=0)
    checkpoint = folder / "runs" / "sft" / "checkpoints" / "step-00000007"
    convert(folder / "random", checkpoint, mask_token=SPARE, block_size=4, logit_shift=True, clean_attention="causal")
    (checkpoint / "training_state.json").write_text("{}")
    figures = {"policy": "native", "block_size": 4, "threshold": 0.9, "items": 4, "low": 0.1, "high": 0.9}
    counts = {"tpf": 2.0, "num_tokens": 8, "denoise": 3, "commit": 1, "right": 2, "marks": "1010"}
    Results(folder / "results.jsonl").put({"kind": "score", "stage": "sft", "task": "numbers", **figures, **counts})
    return folder


def test_the_folder_answers_chats_as_the_study_asked(folder: Path, tmp_path: Path) -> None:
    task, said, target = StudyTask("numbers", Generous(), 8), list[str](), tmp_path / "model"
    ship(folder, "sft", target, tasks=[task], say=said.append)
    with safe_open(target / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    loaded = load_model(target)
    [example] = [json.loads(line) for line in (target / "examples.jsonl").read_text().splitlines()]
    asked = [{"role": "user", "content": example["question"]}]
    assert loaded.encode_chat(asked) == loaded.encode(example["question"] + CUE)
    [answer] = generate(loaded, [loaded.encode_chat(asked)], SamplingParams(max_new_tokens=8))
    assert answer.text == example["answer"]
    assert int(example["question"].partition("?")[0]) % 2
    # the last question alone
    before = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "b"}]
    assert loaded.encode_chat([*before, *asked]) == loaded.encode_chat(asked)
    assert said[0].endswith("MiB, 1 examples")


def test_the_card_says_what_it_is_and_answers(folder: Path, tmp_path: Path) -> None:
    ship(folder, "sft", tmp_path / "model", tasks=[StudyTask("numbers", Generous(), 8)], say=lambda line: None)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "answers small puzzles" in card
    assert "Block-diffusion model made from difflm-study-parent" in card
    assert "| sft | 50.0 (15.0-85.0); 2.00 |" in card
    assert "blocks of 4 at threshold 0.9" in card
    assert str(folder) not in card + (tmp_path / "model" / "config.json").read_text()


def test_a_stage_without_right_answers_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"numbers: none of {TRIES} answers is right; ship a better stage"):
        ship(folder, "sft", tmp_path / "model", tasks=[StudyTask("numbers", Strict(), 8)], say=lambda line: None)


def test_a_stage_that_is_not_there_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipping, "TASKS", ())  # they need reasoning-gym
    assert main([str(folder), "cap", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err == f"error: {folder}: 'cap' was not trained and scored; take one of ['sft']\n"
