"""FlexAttention: its forward equals the dense reference on CPU, its masks are data, its limits are said in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from difflm.diffusion.masks import block_numbers, layout_mask, materialise
from difflm.errors import ConfigError
from difflm.models.attention import DenseAttention
from difflm.models.flex import (
    FlexAttention,
    FlexKernel,
    block_mask_of,
    compiled_kernel,
    flex_refusal,
    kernel_for,
)
from difflm.models.ranges import key_ranges, ranges_mask
from difflm.types import Layout
from tests.models.test_ranges import layouts
from tests.models.windows import window_layout
from tests.rows import batch_of

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

HEADS, GROUPS, WIDTH = 4, 2, 8
TOLERANCE = 2e-6
"""Largest absolute difference of outputs of normal inputs, float32: another order of summation, nothing else."""


def inputs_of(rows: int, length: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, heads, length, WIDTH, generator=generator).to(dtype) for heads in (HEADS, GROUPS, GROUPS)
    )
    return query, key, value


def largest_difference(layout: Layout, *, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest difference to the dense reference at real tokens."""
    rows, length = layout.document_BL.shape
    streams = 1 + layout.two_streams
    inputs = inputs_of(rows, streams * length, dtype=dtype)
    dense = DenseAttention(materialise(layout_mask(layout), rows, streams * length))(0, *inputs)
    flex = FlexAttention(layout, device="cpu")(0, *inputs)
    assert bool(flex.isfinite().all())
    real = (layout.document_BL >= 0).repeat(1, streams)[:, None, :, None]
    return float(((flex - dense) * real).abs().max())


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=1, max_size=2),
    padding=st.integers(0, 9),
    block_size=st.integers(1, 70),
    which=st.integers(0, 15),
)
def test_forward_equals_dense_for_any_layout(sizes: list[list[int]], padding: int, block_size: int, which: int) -> None:
    assert largest_difference(layouts(sizes, padding=padding, block_size=block_size)[which]) < TOLERANCE


@pytest.mark.parametrize("length", [127, 128, 129, 200])
def test_lengths_around_the_kernel_tile(length: int) -> None:
    """Bug reports 3 and 34: a mask with coarse tiles, rows that are not a multiple of 128."""
    layout = layouts([[length - 40, 30]], padding=10, block_size=32)[8]
    assert layout.two_streams
    assert largest_difference(layout) < TOLERANCE


def test_bfloat16_differs_by_rounding_only() -> None:
    layout = layouts([[90, 61]], padding=3, block_size=16)[8]
    assert largest_difference(layout, dtype=torch.bfloat16) < 2e-2


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 170), min_size=1, max_size=3), min_size=1, max_size=2),
    padding=st.integers(0, 9),
    block_size=st.integers(1, 200),
    lookahead=st.none() | st.integers(0, 9),
    which=st.integers(0, 15),
)
def test_the_block_mask_equals_the_one_of_torch(
    sizes: list[list[int]], padding: int, block_size: int, lookahead: int | None, which: int
) -> None:
    layout = layouts(sizes, padding=padding, block_size=block_size, lookahead=lookahead)[which]
    ranges = key_ranges(layout)
    rows, length = ranges.own_start_BN.shape
    expected = create_block_mask(ranges_mask(ranges), rows, None, length, length, device="cpu")
    found = block_mask_of(ranges)
    assert found.seq_lengths == expected.seq_lengths
    assert found.BLOCK_SIZE == expected.BLOCK_SIZE
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    names += ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")
    for name in names:
        one, other = vars(found)[name], vars(expected)[name]
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


@pytest.mark.parametrize("noisy_only", [False, True])
@pytest.mark.parametrize(("width", "causal"), [(50, True), (150, False), (300, True)])
def test_windows(width: int, causal: bool, noisy_only: bool) -> None:
    layout = window_layout([[100, 61], [9, 140]], width=width, size=6, causal=causal, padding=3)
    rows, length = layout.document_BL.shape
    queries = width if noisy_only else width + length
    ranges = key_ranges(layout, noisy_only=noisy_only)
    expected = create_block_mask(ranges_mask(ranges), rows, None, queries, width + length, device="cpu")
    found = block_mask_of(ranges)
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(vars(found)[name], vars(expected)[name]), name
    query, key, value = inputs_of(rows, width + length)
    query = query[:, :, :queries].contiguous()
    dense = DenseAttention(materialise(layout_mask(layout), rows, width + length)[:, :, :queries])
    flex = FlexAttention(layout, device="cpu", noisy_only=noisy_only)
    assert float((flex(0, query, key, value) - dense(0, query, key, value)).abs().max()) < TOLERANCE


def counted() -> tuple[FlexKernel, CompileCounter]:
    torch._dynamo.reset()
    counter = CompileCounter()
    return compiled_kernel(counter), counter


def attend(layout: Layout, kernel: FlexKernel) -> None:
    rows, length = layout.document_BL.shape
    FlexAttention(layout, device="cpu", kernel=kernel)(0, *inputs_of(rows, length * (1 + layout.two_streams)))


def layout_at(block_size: int, *, length: int = 150, causal: bool = False) -> Layout:
    batch = batch_of([[length - 60, 40]], row_length=length)
    block = block_numbers(batch.position_BL, block_size=block_size)
    return Layout(
        document_BL=batch.document_BL, block_BL=block, two_streams=True, causal_inside=causal, clean_causal=causal
    )


def test_a_curriculum_over_the_block_size_compiles_once() -> None:
    kernel, counter = counted()
    for size in (1, 4, 32, 64, 150, 32):
        for causal in (False, True):
            attend(layout_at(size, causal=causal), kernel)
        attend(replace(layout_at(size), lookahead=size // 2), kernel)
    assert counter.frame_count == 1


def test_more_shapes_than_dynamo_allows_are_compiled_not_run_unfused() -> None:
    kernel, counter = counted()
    with torch.compiler.config.patch(recompile_limit=1):  # type: ignore[attr-defined]
        for length in (61, 62, 63):
            attend(layout_at(4, length=length), kernel)
    assert counter.frame_count == 3


def test_backward_on_cpu_is_refused_in_one_line() -> None:
    layout = layout_at(4)
    query, key, value = inputs_of(1, 300)
    flex = FlexAttention(layout, device="cpu")
    with pytest.raises(ConfigError, match=r"attention: 'flex' has no backward on cpu.*'split'"):
        flex(0, query, key.requires_grad_(), value)
    with torch.no_grad():
        assert flex(0, query, key, value).shape == query.shape


def test_upstream_still_has_no_backward_on_cpu() -> None:
    """When this fails, torch has learned it: lift the refusal."""
    query = torch.randn(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex_attention(query, query, query)


def test_the_kernel_is_compiled_on_cuda_only_and_kept() -> None:
    assert kernel_for("cuda") is kernel_for("cuda")
    assert kernel_for("cuda") is not flex_attention
    assert kernel_for("cpu") is flex_attention


def test_refusals_name_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flex_refusal("cpu", dtype=torch.float64, head_dim=4) is None
    assert "mps" in str(flex_refusal("mps", dtype=torch.float32, head_dim=64))
    assert "float64" in str(flex_refusal("cuda", dtype=torch.float64, head_dim=64))
    assert "at least 16, the model has 8" in str(flex_refusal("cuda", dtype=torch.float32, head_dim=8))
    monkeypatch.setattr("difflm.models.flex.find_spec", lambda name: None)
    assert "triton" in str(flex_refusal("cuda", dtype=torch.float32, head_dim=64))
    monkeypatch.setattr("difflm.models.flex.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0, the GPU has 7.5" in str(flex_refusal("cuda", dtype=torch.float32, head_dim=None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert flex_refusal("cuda", dtype=torch.bfloat16, head_dim=64) is None
