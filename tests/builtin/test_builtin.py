"""The model that comes with the package: small, named where it is used, and right however it is decoded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import difflm
from difflm import Completion, LoadedModel, SamplingParams
from difflm.builtin import NAME, Example, builtin_model, examples
from difflm.serving.service import Service
from tests.products import needs_products
from tests.serving.servers import Running, serving, until

ROOT = Path(__file__).parents[2]
FOUND = examples()
ASKED = [[{"role": "user", "content": each.question}] for each in FOUND]
LONGEST = SamplingParams(max_new_tokens=64)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return difflm.load_model(difflm.builtin_model())


@pytest.fixture(scope="module")
def prompts(model: LoadedModel) -> list[list[int]]:
    return [model.encode_chat(each) for each in ASKED]


@pytest.fixture(scope="module")
def answers(model: LoadedModel, prompts: list[list[int]]) -> list[Completion]:
    return difflm.generate(model, prompts, LONGEST)


def test_it_is_small_and_whole() -> None:
    folder = builtin_model()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20 * 2**20
    assert {each.task for each in FOUND} == {"sums", "sorting", "filtering", "reversal", "rotation", "distances"}
    config = (folder / "config.json").read_text(encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert json.loads(config)["difflm"]["license"] == "apache-2.0"
    assert not re.search(r"(?<![\w.:/])/\w+/\w", config + card), "no place of a machine"


def test_every_example_is_answered(answers: list[Completion]) -> None:
    assert [answer.text for answer in answers] == [each.answer for each in FOUND]
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_it_takes_fewer_forwards_than_tokens(answers: list[Completion]) -> None:
    tokens = sum(answer.num_tokens for answer in answers)
    assert sum(answer.forwards.denoise + answer.forwards.commit for answer in answers) < tokens


def test_alone_and_together(model: LoadedModel, prompts: list[list[int]], answers: list[Completion]) -> None:
    alone = [difflm.generate(model, [prompt], LONGEST)[0].text for prompt in prompts]
    assert alone == [answer.text for answer in answers]


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, pytest.param({"weights": "int8"}, marks=needs_products)], ids=str
)
def test_in_few_bits(options: dict[str, Any], prompts: list[list[int]], answers: list[Completion]) -> None:
    found = difflm.generate(difflm.load_model(builtin_model(), **options), prompts, LONGEST)
    # Rounding may turn single answers; noise would turn all of them.
    assert sum(one.text == two.text for one, two in zip(found, answers, strict=True)) >= len(answers) - 1


@pytest.fixture(scope="module")
def running(model: LoadedModel) -> Iterator[Running]:
    with serving(model, name=NAME, questions=[each.question for each in FOUND]) as found:
        yield found


@pytest.mark.parametrize("example", FOUND, ids=lambda each: each.task)
def test_a_server_answers_whole_and_streamed_as_the_engine_does(running: Running, example: Example) -> None:
    body = {"messages": [{"role": "user", "content": example.question}], "max_tokens": 64}
    whole = running.post("/v1/chat/completions", body).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (example.answer, "stop")
    told = ""
    with httpx2.stream("POST", f"{running.address}/v1/chat/completions", json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    told += choice["delta"].get("content") or ""
    assert told == example.answer


def test_a_server_names_questions_that_suit_it(running: Running) -> None:
    offer = running.get("/v1/models").json()["data"][0]["diffusion"]
    assert offer["questions"] == [each.question for each in FOUND]


def test_an_answer_that_has_to_match_matches_and_may_still_be_right(running: Running) -> None:
    pytest.importorskip("llguidance", reason="llguidance is in the extra [constrain]")
    sums = next(each for each in FOUND if each.task == "sums")
    body = {"messages": [{"role": "user", "content": sums.question}], "max_tokens": 64}
    for pattern, right in ((r"-?[0-9]{1,3}", sums.answer), ("yes|no", None)):
        choice = running.post("/v1/chat/completions", {**body, "regex": pattern}).json()["choices"][0]
        text = choice["message"]["content"]
        assert text == right if right else text in ("yes", "no")


def test_difflm_serve_without_a_model_serves_it(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "difflm", "serve", "--port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("http://"):
                break
        address = lines[-1].strip()
        assert lines[0].startswith("no MODEL was given: this is the one that comes with difflm")
        [served] = httpx2.get(f"{address}/v1/models", timeout=60).json()["data"]
        assert (served["id"], served["diffusion"]["questions"][0]) == (NAME, FOUND[0].question)
        until(lambda: httpx2.get(f"{address}/ready", timeout=60).status_code == 200)
        curl = process.stderr.readline()
        assert curl.startswith("curl ")
        done = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == FOUND[0].answer
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_difflm_chat_without_a_model_talks_to_it() -> None:
    words = [sys.executable, "-m", "difflm", "chat", "--no-show"]
    typed = "/try\n" + "".join(f'"""\n{each.question}\n"""\n' for each in FOUND[1:])
    done = subprocess.run(words, cwd=ROOT, input=typed, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "".join(f"{each.answer}\n" for each in FOUND)
    assert FOUND[0].question in done.stderr
    assert "/try asks a question that suits the model, /help lists commands" in done.stderr


def test_a_service_without_questions_names_none(model: LoadedModel) -> None:
    assert Service(model, name="tiny").model_object(0)["diffusion"]["questions"] == []
