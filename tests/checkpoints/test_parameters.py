"""Streaming: what is held at once does not grow with a checkpoint, nothing is read twice, and every bit is the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.checkpoints import parameters as module
from difflm.checkpoints.convert import convert
from difflm.checkpoints.export import export
from difflm.checkpoints.families import FAMILIES, model_config
from difflm.checkpoints.hf import SafetensorsFolder, open_safetensors
from difflm.checkpoints.mask_token import MaskChoice, MaskedParameters
from difflm.checkpoints.merge import MeanParameters, average_checkpoints
from difflm.checkpoints.parameters import Parameters, disk_parts, is_stack, outline, take
from difflm.checkpoints.rules import key_map
from difflm.checkpoints.shards import ShardWriter
from difflm.checkpoints.source import open_checkpoint, parameter_shapes
from tests.checkpoints.tiny import LING, hf_folder, ling_folder

CHOICE = MaskChoice(token=None, token_id=67, adds_row=True, vocab_size=68, known_ids=67)


@pytest.fixture(scope="module")
def ling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ling")
    ling_folder(folder / "parent", dtype=torch.bfloat16)
    convert(folder / "parent", folder / "split", max_shard_bytes=20_000)
    export(folder / "split", folder / "stacked", format="stacked", max_shard_bytes=20_000)
    return folder


def opened(folder: Path) -> Any:
    checkpoint = open_checkpoint(folder)
    return checkpoint.parameters(model_config(checkpoint.raw, "config.json"))


def variants(ling: Path) -> dict[str, Parameters]:
    parent, split, stacked = (opened(ling / name) for name in ("parent", "split", "stacked"))
    return {
        "split": split,
        "stacked": stacked,
        "masked": MaskedParameters(parent, CHOICE, "mean"),
        "mean": MeanParameters([split, stacked], [0.25, 0.75]),
        "wide mean": MeanParameters([split, dict(stacked)], None, torch.float32),
    }


@pytest.mark.parametrize("name", ["split", "stacked", "masked", "mean", "wide mean"])
def test_parts_and_outlines_are_those_of_the_whole(name: str, ling: Path) -> None:
    parameters = variants(ling)[name]
    for each in parameters:
        whole, shape = parameters[each], outline(parameters, each)
        assert shape.is_meta
        assert (shape.shape, shape.dtype) == (whole.shape, whole.dtype)
        assert torch.equal(take({each: whole}, [each])[0], whole)
        if is_stack(each):
            assert whole.shape[0] == LING["num_experts"]
            (some,) = take(parameters, [each], range(2, 5))
            assert torch.equal(some, whole[2:5])
            assert torch.equal(take({each: whole}, [each], range(2, 5))[0], whole[2:5])
    assert len(parameters) == len(list(parameters)) > 20


def test_the_dtype_of_some_experts_is_that_of_the_stack(tmp_path: Path) -> None:
    """One wide expert makes the stack wide: a slab without it has to be wide too."""
    from safetensors.torch import load_file, save_file

    folder = ling_folder(tmp_path / "a", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.7.down_proj.weight"] = tensors[
        "model.layers.1.mlp.experts.7.down_proj.weight"
    ].float()
    save_file(tensors, folder / "model.safetensors")
    parameters, name = opened(folder), "layers.1.mlp.experts.down"
    assert parameters.take([name], range(1))[0].dtype == outline(parameters, name).dtype == torch.float32


@pytest.mark.parametrize("family", ["llada2_moe", "llada2_moe_veomni"])
def test_experts_of_a_rule_are_its_names_or_rows(family: str) -> None:
    config = model_config(LING, "config.json")
    shapes = parameter_shapes(config)
    rules = [rule for rule in key_map(FAMILIES[family].hf_rules, shapes, config) if is_stack(rule.model[0])]
    for rule in rules:
        parts = [each for number in range(8) for each in disk_parts(rule, range(number, number + 1), config)]
        if family == "llada2_moe":
            assert parts == [(name, None) for name in rule.disk]
        else:
            assert sorted(parts, key=str) == sorted(
                [(name, range(number, number + 1)) for name in rule.disk for number in range(8)], key=str
            )


class Watch:
    """Counts bytes: read from each tensor of the source, and held at once between reading and writing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: Counter[tuple[str, str]] = Counter()
        self.since = self.most = self.largest = 0
        read, put = SafetensorsFolder.read, ShardWriter.put

        def counted_read(folder: SafetensorsFolder, name: str, rows: range | None = None) -> Tensor:
            found = read(folder, name, rows)
            size = found.numel() * found.element_size()
            self.read[folder.folder.name, name] += size
            self.since += size
            self.most = max(self.most, self.since)
            return found

        def counted_put(writer: ShardWriter, name: str, tensor: Tensor, row: int = 0) -> None:
            put(writer, name, tensor, row)
            self.since = 0
            self.largest = max(self.largest, tensor.numel() * tensor.element_size())

        monkeypatch.setattr(SafetensorsFolder, "read", counted_read)
        monkeypatch.setattr(ShardWriter, "put", counted_put)


CALLS: dict[str, Any] = {
    "convert": lambda folder, out: convert(folder, out, max_shard_bytes=20_000),
    "merge": lambda folder, out: average_checkpoints([folder], out, max_shard_bytes=20_000),
    "split to stacked": lambda folder, out: export(folder, out, format="stacked", max_shard_bytes=20_000),
    "stacked to split": lambda folder, out: export(folder, out, format="hf", max_shard_bytes=20_000),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layers", [2, 5])
def test_what_is_held_at_once_is_a_tensor_or_a_slab(
    call: str, layers: int, ling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slabs of one expert: its gate and up, which are more than any other tensor; for any number of layers."""
    folder = ling_folder(tmp_path / "a", dtype=torch.bfloat16, num_hidden_layers=layers, moe_intermediate_size=160)
    if call != "convert":
        convert(folder, tmp_path / "b")
        folder = tmp_path / "b"
    if call == "stacked to split":
        export(folder, tmp_path / "c", format="stacked")
        folder = tmp_path / "c"
    monkeypatch.setattr(module, "SLAB_BYTES", 1)
    watch = Watch(monkeypatch)
    CALLS[call](folder, tmp_path / "out")
    matrix = 160 * 32 * 2
    assert watch.most == 2 * matrix, "gate and up of an expert"
    assert watch.largest == matrix
    sizes = {name: fact.size for name, fact in open_safetensors(folder).facts.items()}
    assert dict(watch.read) == {(folder.name, name): size for name, size in sizes.items()}, "each byte is read once"


def test_a_dense_checkpoint_holds_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layers in (2, 6):
        hf_folder(tmp_path / f"a{layers}", "qwen3", num_hidden_layers=layers, max_shard_size="20KB")
        watch = Watch(monkeypatch)
        convert(tmp_path / f"a{layers}", tmp_path / f"b{layers}")
        assert watch.most == 67 * 32 * 4
        monkeypatch.undo()


def test_slabs_do_not_change_a_byte(ling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    for size in (1, 3 * 2 * 20 * 32 * 2, 2**30):
        monkeypatch.setattr(module, "SLAB_BYTES", size)
        convert(ling / "parent", tmp_path / f"split{size}", max_shard_bytes=20_000)
        export(ling / "split", tmp_path / f"stacked{size}", format="stacked", max_shard_bytes=20_000)
        assert written(tmp_path / f"split{size}") == written(ling / "split")
        assert written(tmp_path / f"stacked{size}") == written(ling / "stacked")
