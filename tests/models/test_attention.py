"""The exact split equals the dense reference: outputs and gradients, every regime, packed and ragged."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from difflm.diffusion.masks import block_numbers, layout_mask, materialise
from difflm.errors import ConfigError
from difflm.models.attention import (
    AttentionBackend,
    AttentionChoice,
    DenseAttention,
    SplitAttention,
    attention_for,
    backend_for,
    fused_kernel_available,
)
from difflm.models.flex import FlexAttention
from difflm.types import Layout
from tests.models.windows import view_layout, window_layout
from tests.rows import batch_of

HEADS, GROUPS, WIDTH = 4, 2, 8
PACKINGS = ([[150]], [[61, 47], [7, 33, 1, 90]])


def layout_of(
    packing: list[list[int]],
    *,
    row_length: int,
    block_size: int,
    two: bool,
    inside: bool,
    clean: bool,
    origin: str,
    ahead: int | None = None,
) -> Layout:
    batch = batch_of(packing, row_length=row_length)
    block = block_numbers(batch.position_BL, block_size=block_size, origin=origin)  # type: ignore[arg-type]
    return Layout(
        document_BL=batch.document_BL,
        block_BL=block,
        two_streams=two,
        causal_inside=inside,
        clean_causal=clean,
        lookahead=ahead,
    )


def largest_difference(layout: Layout, *, tile: int, backend: Literal["split", "portable"]) -> float:
    """Return the largest difference of outputs and of the three gradients, padding rows left out."""
    rows, length = layout.document_BL.shape
    size = 2 * length if layout.two_streams else length
    generator = torch.Generator().manual_seed(0)

    def normal(heads: int) -> Tensor:
        return torch.randn(rows, heads, size, WIDTH, generator=generator).requires_grad_()

    inputs = (normal(HEADS), normal(GROUPS), normal(GROUPS))
    real = (layout.document_BL >= 0).repeat(1, size // length)[:, None, :, None]
    cotangent = torch.randn(rows, HEADS, size, WIDTH, generator=generator) * real
    dense = DenseAttention(materialise(layout_mask(layout), rows, size))
    split = SplitAttention(
        layout,
        heads_per_group=HEADS // GROUPS,
        dtype=torch.float32,
        device="cpu",
        backend=backend,
        tile=tile,
    )
    results = []
    for attend in (dense, split):
        out = attend(0, *inputs) * real
        results.append((out, *torch.autograd.grad((out * cotangent).sum(), inputs)))
    return max(float((one - other).detach().abs().max()) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["split", "portable"])
@pytest.mark.parametrize("block_size", [1, 4, 32, 150])
@pytest.mark.parametrize("packing", PACKINGS)
def test_split_equals_dense(packing: list[list[int]], block_size: int, backend: Literal["split", "portable"]) -> None:
    for two, inside, clean, origin in itertools.product((0, 1), (0, 1), (0, 1), ("document", "row")):
        layout = layout_of(
            packing,
            row_length=150,
            block_size=block_size,
            two=bool(two),
            inside=bool(inside),
            clean=bool(clean),
            origin=origin,
        )
        assert largest_difference(layout, tile=64, backend=backend) < 1e-5


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 23), min_size=2, max_size=4), min_size=1, max_size=2),
    block_size=st.integers(1, 40),
    tile=st.integers(1, 50),
    origin=st.sampled_from(["document", "row"]),
    ahead=st.none() | st.integers(0, 12),
)
def test_split_equals_dense_for_any_packing(
    sizes: list[list[int]], block_size: int, tile: int, origin: str, ahead: int | None
) -> None:
    length = max(sum(row) for row in sizes) + 1
    for two, inside, clean in itertools.product((False, True), repeat=3):
        layout = layout_of(
            sizes,
            row_length=length,
            block_size=block_size,
            two=two,
            inside=inside,
            clean=clean,
            origin=origin,
            ahead=ahead,
        )
        assert largest_difference(layout, tile=tile, backend="split") < 1e-5


@pytest.mark.parametrize("ahead", [None, 0, 3])
def test_a_long_document_beside_short_ones_in_small_tiles(ahead: int | None) -> None:
    """A tile that begins inside a document holds that document alone; the view is narrowed in both streams."""
    for two in (False, True):
        layout = layout_of(
            [[30, 3, 5, 2], [7, 20, 2, 4]],
            row_length=42,
            block_size=8,
            two=two,
            inside=False,
            clean=False,
            origin="document",
            ahead=ahead,
        )
        assert largest_difference(layout, tile=16, backend="split") < 1e-5


@pytest.mark.parametrize("backend", ["split", "portable"])
@pytest.mark.parametrize("noisy_only", [False, True])
@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 23), min_size=1, max_size=4), min_size=1, max_size=2),
    width=st.integers(1, 60),
    size=st.integers(1, 7),
    tile=st.integers(1, 30),
    causal=st.booleans(),
)
def test_windows_equal_dense(
    sizes: list[list[int]],
    width: int,
    size: int,
    tile: int,
    causal: bool,
    noisy_only: bool,
    backend: Literal["split", "portable"],
) -> None:
    layout = window_layout(sizes, width=width, size=size, causal=causal, padding=2)
    assert_equal_to_dense(layout, tile=tile, noisy_only=noisy_only, backend=backend)


@pytest.mark.parametrize("backend", ["split", "portable"])
@pytest.mark.parametrize("noisy_only", [False, True])
@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 23), min_size=1, max_size=4), min_size=1, max_size=2),
    block_size=st.integers(1, 9),
    views=st.integers(1, 3),
    tile=st.integers(1, 30),
    causal=st.booleans(),
)
def test_views_equal_dense(
    sizes: list[list[int]],
    block_size: int,
    views: int,
    tile: int,
    causal: bool,
    noisy_only: bool,
    backend: Literal["split", "portable"],
) -> None:
    layout = view_layout(sizes, block_size=block_size, views=views, clean_causal=causal, padding=2)
    assert_equal_to_dense(layout, tile=tile, noisy_only=noisy_only, backend=backend)


def assert_equal_to_dense(
    layout: Layout, *, tile: int, noisy_only: bool, backend: Literal["split", "portable"]
) -> None:
    rows, length = layout.document_BL.shape
    width = layout.noisy_length
    queries = width if noisy_only else width + length
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.randn(rows, heads, count, WIDTH, generator=generator).requires_grad_()
        for heads, count in ((HEADS, queries), (GROUPS, width + length), (GROUPS, width + length))
    )
    assert layout.stand_BW is not None
    real = torch.cat([layout.stand_BW, layout.document_BL], dim=1)[:, None, :queries, None] >= 0
    mask = materialise(layout_mask(layout), rows, width + length)[:, :, :queries]
    ours = SplitAttention(
        layout,
        heads_per_group=HEADS // GROUPS,
        dtype=torch.float32,
        device="cpu",
        backend=backend,
        tile=tile,
        noisy_only=noisy_only,
    )
    results = []
    for attend in (DenseAttention(mask), ours):
        out = attend(0, *inputs) * real
        # Nothing may be asked at all.
        value = out.sin().sum() + 0 * torch.stack([each.sum() for each in inputs]).sum()
        results.append((out, *torch.autograd.grad(value, inputs)))
    assert max(float((one - other).detach().abs().max()) for one, other in zip(*results, strict=True)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layout = layout_of(
        [[100, 40]], row_length=150, block_size=8, two=True, inside=False, clean=False, origin="document"
    )
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, 300, WIDTH, generator=generator) for heads in (HEADS, GROUPS, GROUPS)]
    wide = [each.double().requires_grad_() for each in inputs]
    exact = DenseAttention(materialise(layout_mask(layout), 1, 300))(0, *wide)
    narrow = [each.to(dtype).requires_grad_() for each in inputs]
    split = SplitAttention(layout, heads_per_group=2, dtype=dtype, device="cpu", tile=32)(0, *narrow)
    real = (layout.document_BL >= 0).repeat(1, 2)[:, None, :, None]
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    assert float(((split.double() - exact) * real).detach().abs().max()) < tolerance
    grad = torch.autograd.grad((split * real).sum(), narrow)
    expected = torch.autograd.grad((exact * real).sum(), wide)
    for one, other in zip(grad, expected, strict=True):
        assert float((one.double() - other).abs().max()) < tolerance * 4


def test_gradients_of_bfloat16_are_summed_in_float32() -> None:
    """What the tiles add to shared keys is rounded once, not at every sum: 0.0017 to 0.002, not 0.0035 to 0.0045."""
    layout = layout_of([[256]], row_length=256, block_size=8, two=False, inside=True, clean=True, origin="document")
    generator = torch.Generator().manual_seed(0)
    narrow = [torch.randn(1, heads, 256, 64, generator=generator).bfloat16() for heads in (HEADS, GROUPS, GROUPS)]
    towards = torch.randn(1, HEADS, 256, 64, generator=generator).bfloat16()
    found: list[tuple[Tensor, ...]] = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [each.to(dtype).requires_grad_() for each in narrow]
        split = SplitAttention(layout, heads_per_group=2, dtype=dtype, device="cpu", tile=32)
        found.append(torch.autograd.grad(split(0, *inputs), inputs, towards.to(dtype)))
    for one, other in zip(*found, strict=True):
        assert float((one.float() - other).norm() / other.norm()) < 0.0025


def chosen_on(device: str, choice: AttentionChoice = "auto") -> AttentionBackend:
    return backend_for(choice, device=device, dtype=torch.float32, head_dim=16)


def test_the_kernel_is_chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_kernel_available("cpu")  # pins the private name: without it CPU training is slower
    assert not fused_kernel_available("meta")
    assert chosen_on("cpu") == "split"
    assert chosen_on("meta") == "portable"
    monkeypatch.setattr("difflm.models.attention.flex_refusal", lambda *args, **options: None)
    assert chosen_on("cuda") == "flex"
    monkeypatch.setattr("difflm.models.attention.flex_refusal", lambda *args, **options: "reason")
    with pytest.warns(UserWarning, match=r"FlexAttention cannot be used \(reason\): 'portable'"):
        assert chosen_on("cuda") == "portable"


def test_a_named_backend_is_used_or_refused() -> None:
    for choice in ("split", "portable", "flex", "dense"):
        assert chosen_on("cpu", choice) == choice
    with pytest.raises(ConfigError, match=r"attention: 'split' does not work on cuda.*'auto'"):
        chosen_on("cuda", "split")
    with pytest.raises(ConfigError, match=r"attention: 'flex' does not work on meta.*device type 'meta'"):
        chosen_on("meta", "flex")
    with pytest.raises(ConfigError, match=r"attention: 'fast' is unknown; use 'auto', 'split'"):
        chosen_on("cpu", "fast")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_backend_gives_the_same_values() -> None:
    layout = layout_of([[40, 11]], row_length=53, block_size=8, two=True, inside=False, clean=True, origin="document")
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, 106, WIDTH, generator=generator) for heads in (HEADS, GROUPS, GROUPS)]
    real = (layout.document_BL >= 0).repeat(1, 2)[:, None, :, None]
    expected = DenseAttention(materialise(layout_mask(layout), 1, 106))(0, *inputs)
    kinds = set()
    for choice in ("auto", "split", "portable", "flex", "dense"):
        attend = attention_for(layout, heads_per_group=2, dtype=torch.float32, device="cpu", backend=choice)
        kinds.add(type(attend))
        assert float(((attend(0, *inputs) - expected) * real).abs().max()) < 2e-6
    assert kinds == {SplitAttention, FlexAttention, DenseAttention}
