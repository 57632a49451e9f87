"""Who sees whom in a forward, against the training layout; where its rows are kept."""

from __future__ import annotations

import itertools

import pytest
import torch

from difflm.decode.packing import TILE, noisy_rows, packed, parts_of, segments_of
from difflm.decode.work import Work
from difflm.models.cache import CachePool, PackedAttention, Part
from tests.decode.reference import training_layout_mask
from tests.decode.test_runner import request_of
from tests.decode.tiny import architecture


@pytest.mark.parametrize(("clean_causal", "noisy_causal"), list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize(
    ("start", "clean", "noisy"), [(0, 8, 0), (0, 0, 4), (8, 4, 4), (8, 0, 4), (4, 4, 0), (0, 12, 4)]
)
def test_visibility_is_the_training_layout_of_the_rows(
    clean_causal: bool, noisy_causal: bool, start: int, clean: int, noisy: int
) -> None:
    size, length = 4, start + clean + noisy
    full = training_layout_mask(length, size, clean_causal, noisy_causal)
    rows = [length + start + i for i in range(clean)] + [start + clean + i for i in range(noisy)]
    expected = full[rows][:, rows]
    request = request_of(block_size=size, clean_causal=clean_causal, noisy_causal=noisy_causal)
    work = Work(request=request, kind="denoise", start=start, tokens=(0,) * (clean + noisy), num_clean=clean)
    found = torch.zeros_like(expected)
    for part in parts_of(work, 0, "cpu"):
        own = slice(part.first, part.first + part.count)
        assert part.stop == start + own.stop
        found[own, : part.first] = True
        inside = torch.ones(part.count, part.count, dtype=torch.bool)
        found[own, own] = inside.tril() if part.causal else inside if part.mask_NN is None else part.mask_NN
    assert torch.equal(found, expected)
    segments = list(segments_of(work))
    assert sum(count for count, _, _ in segments) == clean + noisy
    seen = [stop - start for count, _, stop in segments for _ in range(count)]
    assert torch.equal(torch.arange(clean + noisy) < torch.tensor(seen)[:, None], expected)
    # and every row sees all of the prefix
    assert full[rows][:, length : length + start].all()


@pytest.mark.parametrize("noisy_causal", [False, True])
@pytest.mark.parametrize(("start", "clean", "noisy"), [(0, 3, 4), (5, 1, 5), (5, 4, 3), (0, 1, 1), (7, 5, 0)])
def test_drafting_rows_see_the_drafts_and_each_other_and_nothing_sees_them(
    noisy_causal: bool, start: int, clean: int, noisy: int
) -> None:
    request = request_of(block_size=1, clean_causal=True, noisy_causal=noisy_causal, logit_shift=True)
    rows = clean + noisy
    work = Work(request=request, base=9, kind="denoise", start=start, tokens=(0,) * rows, num_clean=clean)
    expected = torch.zeros(rows, rows, dtype=torch.bool)
    for row in range(rows):
        for seen in range(rows):
            earlier = seen <= row
            expected[row, seen] = earlier if row < clean or noisy_causal or seen < clean else seen >= clean
    found = torch.zeros_like(expected)
    for part in parts_of(work, 0, "cpu"):
        own = slice(part.first, part.first + part.count)
        assert (part.base, part.stop) == (9, start + own.stop)
        found[own, : part.first] = True
        inside = torch.ones(part.count, part.count, dtype=torch.bool)
        found[own, own] = inside.tril() if part.causal else inside if part.mask_NN is None else part.mask_NN
    assert torch.equal(found, expected)
    seen = [(base, stop - start) for count, base, stop in segments_of(work) for _ in range(count)]
    assert seen == [(9, int(row.sum())) for row in expected]
    assert noisy_rows([work]) == [0] * clean + [1] * noisy


@pytest.mark.parametrize(("start", "clean", "noisy"), [(0, 3, 4), (5, 1, 5), (0, 0, 3), (6, 0, 4), (7, 5, 0)])
def test_one_part_where_all_rows_are_causal_is_the_two_of_clean_and_noisy_rows(
    start: int, clean: int, noisy: int
) -> None:
    request = request_of(block_size=1, clean_causal=True, noisy_causal=True, logit_shift=True)
    rows, base = clean + noisy, 3
    work = Work(request=request, base=base, kind="denoise", start=start, tokens=(0,) * rows, num_clean=clean)
    parts = list(parts_of(work, 0, "cpu"))
    assert len(parts) == 1
    before, triangle = [each for each in (clean, noisy) if each], torch.ones(rows, rows, dtype=torch.bool).tril()
    firsts = [0, *itertools.accumulate(before)]
    two = [
        Part(first=first, count=count, base=base, stop=start + first + count, mask_NN=triangle[:count, :count])
        for first, count in zip(firsts, before, strict=False)
    ]
    generator, config = torch.Generator().manual_seed(0), architecture()
    query = torch.randn(1, config.num_heads, rows, 4, generator=generator, dtype=torch.float64)
    key, value = (
        torch.randn(1, config.num_kv_heads, rows, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    found = []
    for each in (parts, two):
        pool = CachePool(config, device="cpu", dtype=torch.float64)
        pool.ensure(base + start + rows, most=99)
        for stored in (pool.key, pool.value):
            stored.copy_(torch.randn(stored.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        entry_N = torch.arange(base + start, base + start + rows)
        found.append(PackedAttention(pool, entry_N, each)(1, query, key, value))
    assert torch.allclose(*found, atol=1e-12)


def test_many_causal_rows_are_cut_clean_and_noisy_ones_alike() -> None:
    request = request_of(block_size=1, clean_causal=True, noisy_causal=True, logit_shift=True)
    rows = TILE + 7
    work = Work(request=request, kind="denoise", start=2, tokens=(0,) * rows, num_clean=TILE - 1)
    parts = list(parts_of(work, 0, "cpu"))
    assert [(part.first, part.count, part.stop) for part in parts] == [(0, TILE, TILE + 2), (TILE, 7, rows + 2)]
    for part in parts:
        assert part.mask_NN is not None
        assert torch.equal(part.mask_NN, torch.ones_like(part.mask_NN).tril())


def test_rows_of_many_works_stand_one_behind_another_and_know_their_places() -> None:
    first = Work(request=request_of(), base=8, kind="denoise", start=4, tokens=(7, 8, 9), num_clean=0)
    second = Work(request=request_of(), base=32, kind="prefill", start=0, tokens=(1, 2), num_clean=2)
    rows = packed([first, second])
    assert rows.tokens == [7, 8, 9, 1, 2]
    assert rows.positions == [4, 5, 6, 0, 1]
    assert rows.entries == [12, 13, 14, 32, 33]
    assert rows.firsts == [0, 3]
    parts = [*parts_of(first, 0, "cpu"), *parts_of(second, 3, "cpu")]
    assert [(part.first, part.count, part.base, part.stop) for part in parts] == [(0, 3, 8, 7), (3, 2, 32, 2)]
