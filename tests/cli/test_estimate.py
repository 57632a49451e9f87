"""`difflm estimate`, and the estimate behind a dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.cli.estimate import memory_size
from difflm.cli.main import run
from difflm.errors import ConfigError
from difflm.training.config_io import parse_yaml


def test_a_recipe_and_the_name_of_a_model_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "estimate",
                "laptop",
                "--model",
                "smollm2-135m",
                "--no-measure",
                "--json",
                "accumulation=3",
                "data.row_length=256",
            ]
        )
        == 0
    )
    tree = json.loads(capsys.readouterr().out)
    assert tree["rows_per_step"] % 3 == 0
    assert tree["stages"][0]["block_size"] == 8
    assert (
        run(
            [
                "estimate",
                "laptop",
                "--model",
                "smollm2-135m",
                "--no-measure",
                "--fill",
                "0.5",
                "data.row_length=256",
            ]
        )
        == 0
    )
    assert "fill 50.0%" in capsys.readouterr().out
    assert run(["estimate", "laptop", "--model", "absent", "--no-measure"]) == 2
    assert "train.model: 'absent' is neither a folder nor one of" in capsys.readouterr().err


def test_a_dry_run_is_a_configuration_with_its_cost_as_comments(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "sft", "--model", "m", "--data", "d", "--output", "o", "--dry-run"]
    assert run(words) == 0
    out = capsys.readouterr().out
    assert parse_yaml(out, where="dry run")["model"] == "m"
    assert "# no estimate: train.model: 'm' is neither" in out


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert run(["estimate", *words]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_many_gpus_by_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--architecture", "llada2.0-flash", "--gpus", "64", "--gpu-memory", "80GiB", "--json"]
    tree = json.loads(told(capsys, *words, "data.row_length=512"))
    assert (tree["fits"], tree["measured"], tree["time"]["hours"]) == (True, False, None)
    assert tree["model"]["parameters"] == 102_889_697_280
    assert (tree["run"]["row_length"], tree["run"]["dtype"], tree["run"]["tokens"]) == (512, "bfloat16", 10**9)
    wide = ("--dtype", "float32", "--gpu-tflops", "100", "--mfu", "0.5", "--tokens", "5000", "--expert-parallel", "4")
    tree = json.loads(told(capsys, *words, "--data.row-length", "512", *wide))
    assert (tree["run"]["dtype"], tree["run"]["tokens"], tree["cluster"]["expert_parallel"]) == ("float32", 5000, 4)
    assert tree["time"]["hours"] == pytest.approx(tree["operations"] / (64 * 50e12 * 3600))
    text = told(capsys, "llada2_flash", "--model", "llada2.0-flash", "--gpus", "8", "data.row_length=512",
                "curriculum=[{block_size: 32, tokens: 1000}]", "embedding_noise.stages=1")  # fmt: skip
    assert "512 rows of 512 a step: 64 x 1 on each GPU" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "recipe: none given; name a recipe or a config.yaml, or a model with --architecture"),
        (("--architecture", "llada3"), "architecture is 'llada3'; expected one of"),
        (("--architecture", "qwen3-0.6b", "laptop"), "laptop"),
        (("--architecture", "qwen3-0.6b", "--gpus", "0"), "gpus: 0 is none; use 1 or more"),
        (("--architecture", "qwen3-0.6b", "--gpus", "2", "--gpu-memory", "80 apples"), "'80 apples' is no size"),
        (("--architecture", "qwen3-0.6b", "--mfu", "0.3", "--shard", "fsdp"), "--mfu, --shard: says nothing about one"),
        (
            ("--architecture", "qwen3-0.6b", "--gpus", "3", "accumulation=4"),
            "not divisible by 3 GPUs; set it to 3 or 6",
        ),
    ],
)
def test_what_no_cluster_can_be(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    assert message in told(capsys, *words, code=2)


def named(model: str | None = None) -> dict[str, object]:
    """Return the fields of a recipe as a function of the model makes it."""
    tree: dict[str, object] = {"data": {"row_length": 64}, "curriculum": [{"block_size": 4, "tokens": 1000}]}
    return tree if model is None else tree | {"model": model}


@pytest.mark.parametrize("recipe", ["llada2_flash", "laptop", f"{__name__}:named", "own.yaml"])
@pytest.mark.parametrize("rest", [(), ("--gpus", "64")])
def test_a_recipe_without_a_model_says_how_to_give_one(
    recipe: str,
    rest: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("data: {row_length: 64}\ncurriculum: [{block_size: 4, tokens: 1000}]\n")
    said = told(capsys, recipe, *rest, "data.paths=[data]", code=2)
    assert said.startswith(
        f"difflm: model: recipe {recipe} names none; give --model FOLDER (its config.json is enough)"
    )
    assert "or --model NAME, one of smollm2-135m, qwen3-0.6b, " in said
    # Another field that is missing is not taken for it.
    Path("own.yaml").write_text("model: smollm2-135m\ndata: {row_length: 64}\n")
    assert told(capsys, "own.yaml", "data.paths=[data]", code=2).startswith("difflm: train.curriculum: missing")


def test_sizes_of_memory() -> None:
    assert [memory_size(text) for text in ("80GiB", "141GB", "1.5 GiB", "85899345920", "2MiB")] == [
        80 * 2**30, 141 * 10**9, 3 * 2**29, 80 * 2**30, 2**21,
    ]  # fmt: skip
    for text in ("", "0GiB", "-1", "1TB", "GiB"):
        with pytest.raises(ConfigError, match=r"is no size; write e\.g\. 80GiB or 141GB"):
            memory_size(text)
    with pytest.raises(ConfigError, match="gpu-memory: '80' is 80 bytes; write"):
        memory_size("80")
