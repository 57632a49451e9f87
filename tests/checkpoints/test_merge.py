"""The mean of checkpoints: exact in float32, streaming, and only of one model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.hf import file_sha256
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.merge import MeanParameters, average_checkpoints, mean_parameters
from difflm.checkpoints.saving import save_model
from difflm.errors import CheckpointError, ConfigError
from tests.checkpoints.tiny import hf_folder, make_tokenizer


def family(folder: Path, count: int, dtype: str = "float32") -> list[Path]:
    """Write `count` checkpoints of one converted model with different weights."""
    tokenizer = make_tokenizer()
    hf_folder(folder / "ar", "qwen3", tokenizer=tokenizer, vocab_size=len(tokenizer), tie_word_embeddings=True)
    convert(folder / "ar", folder / "base", dtype=dtype)
    loaded = load_model(folder / "base", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        save_model(loaded, folder / f"step-{number}", config_updates={"difflm": {"recipe": number}})
    return [folder / f"step-{number}" for number in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mean_is_that_of_float32(dtype: str, tmp_path: Path) -> None:
    paths = family(tmp_path, 3, dtype)
    average_checkpoints(paths, tmp_path / "out")
    members = [load_file(path / "model.safetensors") for path in paths]
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert set(made) == set(members[0])
    for name, tensor in made.items():
        total = members[0][name].float() + members[1][name].float() + members[2][name].float()
        assert torch.equal(tensor, (total / 3).to(members[0][name].dtype)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weighted_mean_is_that_of_float32(dtype: str, tmp_path: Path) -> None:
    paths = family(tmp_path, 3, dtype)
    average_checkpoints(paths, tmp_path / "out", weights=[1, 4, 3])
    members = [load_file(path / "model.safetensors") for path in paths]
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        slow = sum(share / 8 * member[name].double() for share, member in zip((1, 4, 3), members, strict=True))
        assert isinstance(slow, torch.Tensor)
        # bfloat16: one rounding at the end, not one for each member.
        tolerance = {"float32": 1e-6, "bfloat16": 2.0**-8}[dtype]
        torch.testing.assert_close(tensor.double(), slow, atol=1e-6, rtol=tolerance)
    record = load_model(tmp_path / "out").config.raw["difflm"]["merged"]
    assert [each["weight"] for each in record] == [0.125, 0.5, 0.375]


def test_equal_weights_are_no_weights_and_zero_leaves_out(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    plain, equal, second = (mean_parameters(paths, weights) for weights in (None, [3.0, 3.0], [0.0, 2.0]))
    other = mean_parameters(paths[1:])
    assert list(plain) == list(equal) == list(other)
    for name in plain:
        assert torch.equal(plain[name], equal[name])
        assert torch.equal(second[name], other[name])
    broken = MeanParameters([{"a": torch.tensor([torch.nan])}, {"a": torch.tensor([2.0])}], [0.0, 1.0])
    assert float(broken["a"]) == 2.0, "what has no share is not read"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"^weights: 1 for 2 checkpoints; give one for each, or none$"),
        ([1.0, -1.0], r"^weights: \[1\.0, -1\.0\]; each must be a number of at least 0, and one must be above 0$"),
        ([0.0, 0.0], r"^weights: \[0\.0, 0\.0\]; each must"),
        ([1.0, float("nan")], r"^weights: \[1\.0, nan\]; each must"),
        ([1.0, float("inf")], r"^weights: \[1\.0, inf\]; each must"),
    ],
)
def test_weights_that_are_none_are_refused(weights: list[float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        average_checkpoints(["a", "b"], tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_and_copies_are_themselves(tmp_path: Path) -> None:
    (path,) = family(tmp_path, 1)
    for copies in (1, 2, 4):
        average_checkpoints([path] * copies, tmp_path / f"out{copies}")
        before, after = (load_file(f / "model.safetensors") for f in (path, tmp_path / f"out{copies}"))
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_result_loads_and_records_its_members(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    average_checkpoints(paths, tmp_path / "out", max_shard_bytes=20_000)
    loaded = load_model(tmp_path / "out")
    first = load_model(paths[0])
    assert loaded.config.mask_token_id == first.config.mask_token_id
    assert loaded.encode("the fox") == first.encode("the fox")
    record = loaded.config.raw["difflm"]
    assert [each["name"] for each in record["merged"]] == ["step-0", "step-1"]
    assert record["merged"][1]["sha256"] == {"model.safetensors": file_sha256(paths[1] / "model.safetensors")}
    assert record["parent"]["name"] == "ar"
    assert "step-0" in (tmp_path / "out" / "README.md").read_text()


def test_sharded_and_single_files_mix(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    save_model(load_model(paths[1]), tmp_path / "sharded", max_shard_bytes=20_000)
    average_checkpoints(paths, tmp_path / "x")
    average_checkpoints([paths[0], tmp_path / "sharded"], tmp_path / "y")
    x, y = (load_file(tmp_path / name / "model.safetensors") for name in "xy")
    assert all(torch.equal(x[name], y[name]) for name in x)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    paths = family(tmp_path, 2)
    out = tmp_path / "out"
    config = read_json(paths[1] / "config.json")
    write_json(paths[1] / "config.json", config | {"logit_shift": True, "block_size": 8})
    with pytest.raises(CheckpointError, match=r"step-1/config\.json: block_size, logit_shift differ from .*step-0"):
        average_checkpoints(paths, out)
    write_json(paths[1] / "config.json", config)
    tensors = load_file(paths[1] / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, paths[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-1.*missing: model\.norm\.weight"):
        average_checkpoints(paths, out)
    save_file({**tensors, "model.norm.weight": norm[:-1].clone()}, paths[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-1.*wrong shape: model\.norm\.weight"):
        average_checkpoints(paths, out)
    save_file({**tensors, "model.norm.weight": norm.half()}, paths[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-1: dtype of model\.norm\.weight differs"):
        average_checkpoints(paths, out)
    save_file({**tensors, "model.norm.weight": norm}, paths[1] / "model.safetensors")
    (paths[1] / "tokenizer.json").write_text((paths[1] / "tokenizer.json").read_text() + "\n")
    with pytest.raises(CheckpointError, match=r"step-1/tokenizer\.json: differs"):
        average_checkpoints(paths, out)
    assert not out.exists()


def test_no_paths_and_taken_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paths is empty"):
        average_checkpoints([], tmp_path / "out")
    (tmp_path / "mine").touch()
    with pytest.raises(CheckpointError, match="output folder is not empty"):
        average_checkpoints([tmp_path / "a"], tmp_path)
