"""`difflm generate`: completions on stdout and nothing else, options that reach the engine."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest

import difflm
from difflm.cli.generate import chosen_decoding, describe, encode_prompt
from difflm.cli.main import run
from difflm.errors import RequestError
from tests.drafters import drafters, sure_drafters
from tests.standins import write_parent

__all__ = ["drafters", "sure_drafters"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    write_parent(folder / "parent")
    assert run(["convert", str(folder / "parent"), str(folder / "model"), "--block-size", "4"]) == 0
    return folder / "model"


PARAMS = ["--max-new-tokens", "6", "--ignore-eos", "--threshold", "0.001"]


def completion(model: Path, prompt: str, **fields: float) -> difflm.Completion:
    params = difflm.SamplingParams(max_new_tokens=6, ignore_eos=True, threshold=0.001, **fields)  # pyright: ignore[reportArgumentType]
    return difflm.generate(difflm.load_model(model), [prompt], params)[0]


def test_completions_are_the_librarys(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(model), "-p", "one", "-p", "two", *PARAMS]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{completion(model, 'one').text}\n{completion(model, 'two').text}\n"
    assert printed.err.count("forwards: 0 prefill, 3 denoise") == 2
    assert "6 tokens in" in printed.err


def test_showing_away_from_a_terminal_prints_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(model), "-p", "one", *PARAMS, "--no-stats", "--show"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{completion(model, 'one').text}\n"
    assert printed.err == ""


def test_a_prompt_on_stdin_that_is_no_text(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert run(["generate", str(model)]) == 2
    assert capsys.readouterr().err == (
        "difflm: prompt: stdin is not utf-8 text (unexpected end of data); give UTF-8 text\n"
    )


def test_the_prompt_can_come_from_stdin(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    assert run(["generate", str(model), *PARAMS, "--no-stats"]) == 0
    assert capsys.readouterr().out == f"{completion(model, 'one').text}\n"


def test_options_reach_the_engine(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for words in ([], ["--temperature", "1.5", "--seed", "3"], ["--temperature", "1.5", "--seed", "4"]):
        assert run(["generate", str(model), "-p", "one", *PARAMS, *words, "--no-stats"]) == 0
        seen.append(capsys.readouterr().out)
    assert len(set(seen)) == 3
    assert seen[1] == f"{completion(model, 'one', temperature=1.5, seed=3).text}\n"
    assert (
        run(
            ["generate", str(model), "-p", "one", *PARAMS, "--threshold", "1", "--min-accept", "2", "--block-size", "2"]
        )
        == 0
    )
    assert "1 prefill, 4 denoise" in capsys.readouterr().err


def test_next_token_decoding_of_the_parent(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = model.parent / "parent"
    assert run(["generate", str(parent), "-p", "one", "--decoding", "next_token", *PARAMS]) == 0
    assert "tokens per forward" in capsys.readouterr().err


def test_a_drafter_is_verified_by_itself_and_its_text_is_the_base_s(
    sure_drafters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-p", "one", "-p", "two", "--max-new-tokens", "12"]
    assert run(["generate", str(sure_drafters / "base"), *words, "--decoding", "next_token"]) == 0
    plain = capsys.readouterr()
    assert "drafts" not in plain.err
    assert run(["generate", str(sure_drafters / "drafter"), *words]) == 0
    printed = capsys.readouterr()
    assert printed.out == plain.out
    base = sure_drafters / "base"
    assert printed.err.count("decoding: ") == 1
    assert printed.err.startswith(
        f"decoding: verified, as the model's adapter drafts; the text is that of the base {base} "
    )
    # 12 tokens: one, 7 drafts and what follows them, one, 2 drafts (what follows them is not asked for).
    assert printed.err.count("2 denoise, 2 commit") == 2
    assert printed.err.count("drafts: 9 of 9 accepted in 2 cycles of 6.00 tokens, ended by length") == 2
    for more in (["--decoding", "verified"], ["--policy", "verified:window=4,fallback=false"], ["--show"]):
        assert run(["generate", str(sure_drafters / "drafter"), *words, *more]) == 0
        printed = capsys.readouterr()
        assert printed.out == plain.out
        assert ("decoding: " in printed.err) == (more == ["--show"])
    assert run(["generate", str(sure_drafters / "drafter"), *words, "--no-stats"]) == 0
    assert capsys.readouterr() == (plain.out, "")


def test_what_generation_config_chooses_is_said(drafters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = difflm.load_model(drafters / "base")
    params = difflm.SamplingParams()
    assert chosen_decoding(loaded, params) is None

    def saying(decoding: str, dtype: str = "float32") -> str | None:
        model = difflm.load_model(drafters / "base", dtype=dtype)
        model.config = dataclasses.replace(model.config, generation={"decoding": decoding})
        return chosen_decoding(model, params)

    assert saying("block") is None
    assert saying("next_token") == "decoding: next_token, as generation_config.json says so"
    text = "decoding: verified, as generation_config.json says so; the text is that of the weights left to right"
    end = " (--decoding next_token writes it without drafts)"
    assert saying("verified") == text + end
    assert saying("verified", "bfloat16") == f"{text}, up to near-ties in bfloat16{end}"


def test_a_step_map_of_a_drafter_is_inspected(
    sure_drafters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-p", "one", "--max-new-tokens", "12", "--step-map", str(tmp_path / "steps.jsonl")]
    assert run(["generate", str(sure_drafters / "drafter"), *words]) == 0
    capsys.readouterr()
    file = str(tmp_path / "steps.jsonl")
    assert run(["inspect", "steps", file, "--plot", str(tmp_path / "steps.png")]) == 0
    shown = capsys.readouterr().out
    assert "9 of 9 drafts accepted in 2 cycles" in shown
    assert "     0  ...112345678112" in shown
    assert (tmp_path / "steps.png").is_file()
    assert run(["inspect", "steps", file, "--replay"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("_" * 7)


def test_prompts_become_token_ids(model: Path) -> None:
    loaded = difflm.load_model(model)
    assert encode_prompt(loaded, "hi", chat_template=False) == loaded.encode("hi")
    assert encode_prompt(loaded, "hi", chat_template=True) == loaded.encode("<|user|>hi<|assistant|>")
    assert loaded.config.mask_token_id not in encode_prompt(loaded, "a <|mask|> b", chat_template=True)
    with pytest.raises(RequestError, match="prompt: it is empty"):
        encode_prompt(loaded, "", chat_template=True)


def test_the_line_about_a_completion(model: Path) -> None:
    done = completion(model, "one")
    text = describe(done)
    assert f"{done.tokens_per_forward:.2f} tokens per forward" in text
    assert text.endswith("ended by length")
