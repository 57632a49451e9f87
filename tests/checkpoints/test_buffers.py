"""Memory of large tensors: of their own, given back at once, and nothing large in the C library's besides."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from difflm.checkpoints import buffers, parameters
from difflm.checkpoints.buffers import buffer, joined, pieces
from difflm.checkpoints.convert import convert
from difflm.checkpoints.export import export
from difflm.checkpoints.merge import average_checkpoints
from tests.checkpoints.tiny import hf_folder, ling_folder


class Mapped(mmap.mmap):
    """A mapping that counts the bytes of all that live."""

    live = most = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        Mapped.live += len(self)
        Mapped.most = max(Mapped.most, Mapped.live)

    def __del__(self) -> None:
        Mapped.live -= len(self)


@pytest.fixture(autouse=True)
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mapped, "live", 0)
    monkeypatch.setattr(Mapped, "most", 0)
    monkeypatch.setattr(buffers.mmap, "mmap", Mapped)


def test_a_large_buffer_is_a_mapping_that_goes_with_the_tensor() -> None:
    made = buffer((3, 2**17), torch.bfloat16)
    assert (made.shape, made.dtype, Mapped.live) == ((3, 2**17), torch.bfloat16, 6 * 2**17)
    view = made.zero_()[1].add_(2)
    del made
    assert Mapped.live == 6 * 2**17, "a view keeps it"
    assert bool((view == 2).all())
    del view
    assert Mapped.live == 0


def test_small_ones_other_devices_and_scalars_are_plain() -> None:
    assert buffer((), torch.float32).shape == ()
    assert buffer((0, 2**20), torch.float32).shape == (0, 2**20)
    assert buffer((2**20,), torch.float32, "meta").is_meta
    assert Mapped.most == 0


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_joined_is_cat(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator).bfloat16()]
    assert torch.equal(joined(parts, dim), torch.cat(parts, dim))
    assert not joined([each.requires_grad_() for each in parts], dim).requires_grad, "parameters of a model too"


@pytest.mark.parametrize("shape", [(), (0,), (7,), (7, 3), (5, 0), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pieces_are_the_whole_in_order_and_alike_for_every_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "PIECE", 6)
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    found = list(pieces(whole.to(dtype)))
    assert torch.equal(torch.cat(found).reshape(shape), whole.to(dtype))
    assert [len(each) for each in found] == [len(each) for each in pieces(whole)]
    row = torch.Size(shape[1:]).numel()
    assert all(each.numel() <= max(6, row) for each in found)


class Made(TorchDispatchMode):
    """Notes the largest tensor that an operation puts into new memory."""

    largest, name = 0, ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        def tensors(tree: Any) -> Iterator[Tensor]:
            return (each for each in tree_leaves(tree) if isinstance(each, Tensor) and each.device.type == "cpu")

        given = {each.untyped_storage().data_ptr() for each in tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for each in tensors(found):
            storage = each.untyped_storage()
            if storage.data_ptr() not in given and storage.nbytes() > self.largest:
                self.largest, self.name = storage.nbytes(), str(func)
        return found


CALLS: dict[str, Callable[[Path, Path], object]] = {
    "convert": lambda folder, out: convert(folder, out, max_shard_bytes=20_000),
    "merge": lambda folder, out: average_checkpoints([folder, folder], out, weights=[1, 3], max_shard_bytes=20_000),
    "plain mean": lambda folder, out: average_checkpoints([folder, folder], out, max_shard_bytes=20_000),
    "split to stacked": lambda folder, out: export(folder, out, format="stacked", max_shard_bytes=20_000),
    "stacked to split": lambda folder, out: export(folder, out, format="hf", max_shard_bytes=20_000),
    "other dtype": lambda folder, out: export(folder, out, format="hf", dtype="float16", max_shard_bytes=20_000),
}
EXPERT = 40 * 32  # elements of gate and up of one expert, which is the least piece of a stack


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str], Path]:
    """Return a function of model, layers and call: the folder that the call reads."""
    work = tmp_path_factory.mktemp("work")

    def folder(model: str, layers: int, call: str) -> Path:
        place = work / f"{model}{layers}"
        if not place.exists():
            if model == "dense":
                hf_folder(
                    place / "a", "llama", dtype=torch.bfloat16, num_hidden_layers=layers, vocab_size=400,
                    tie_word_embeddings=False, max_shard_size="20KB",
                )  # fmt: skip
            else:
                ling_folder(place / "a", dtype=torch.bfloat16, num_hidden_layers=layers, vocab_size=400)
            convert(place / "a", place / "b", max_shard_bytes=20_000)
            if model == "ling":
                export(place / "b", place / "c", format="stacked", max_shard_bytes=20_000)
        return place / {"convert": "a", "stacked to split": "c"}.get(call, "b")

    return folder


@pytest.mark.parametrize(
    ("model", "call"), [*(("ling", call) for call in CALLS), ("dense", "convert"), ("dense", "merge")]
)
def test_memory_does_not_grow_with_shards_and_none_of_it_is_the_c_librarys(
    model: str,
    call: str,
    folders: Callable[[str, int, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most, shards = {}, {}
    for layers in (2, 4):
        folder, out = folders(model, layers, call), tmp_path / str(layers)
        with monkeypatch.context() as patch:
            patch.setattr(buffers, "_LEAST_BYTES", 1)
            patch.setattr(buffers, "PIECE", 640)
            patch.setattr(parameters, "SLAB_BYTES", 4 * 2 * EXPERT)
            gc.collect()
            Mapped.most = Mapped.live = 0
            with Made() as made:
                CALLS[call](folder, out)
        most[layers] = Mapped.most
        shards[layers] = len(list(out.glob("*.safetensors")))
        assert made.largest <= 4 * EXPERT, f"{made.name} made {made.largest} bytes"
        assert Mapped.live == 0
    assert shards[2] < shards[4]
    assert most[2] == most[4]
    # The embedding of 400 rows: what is read, with a row more; or the sum in float32 beside a member; or as it is.
    sizes = {"convert": 2 * 400 + 2 * 401, "merge": (4 + 2) * 401, "plain mean": (4 + 2) * 401}
    assert most[4] == sizes.get(call, 2 * 401) * 32
