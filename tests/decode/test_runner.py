"""Logits of the cached path against those of the training layout."""

from __future__ import annotations

import itertools

import pytest
import torch

from difflm.decode.drawing import Draw
from difflm.decode.policies.native import Native
from difflm.decode.request import Request
from difflm.decode.runner import Runner
from difflm.decode.work import Work
from difflm.diffusion.acceptance import ThresholdAcceptance
from difflm.types import CleanAttention, NoisyAttention
from tests.decode.reference import layout_logits
from tests.decode.tiny import MASK, tiny


def request_of(**facts: object) -> Request:
    defaults: dict[str, object] = {
        "id": 0,
        "prompt": (1,),
        "max_new_tokens": 31,
        "block_size": 4,
        "policy": Native(acceptance=ThresholdAcceptance(0.9)),
        "rule": Draw(suppressed=(MASK,)),
        "seed": 0,
        "eos_ids": frozenset[int](),
        "mask_id": MASK,
        "logit_shift": False,
        "clean_causal": False,
        "noisy_causal": False,
    }
    defaults["noisy_shift"] = facts.get("logit_shift", False)
    return Request(**{**defaults, **facts})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("clean", "noisy"), list(itertools.product(("block", "causal"), ("bidirectional", "causal"))))
@pytest.mark.parametrize("shift", [False, True])
def test_hidden_rows_of_the_cached_path_are_those_of_the_training_layout(
    clean: CleanAttention, noisy: NoisyAttention, shift: bool
) -> None:
    size, loaded = 4, tiny(5, clean=clean, noisy=noisy, logit_shift=shift)
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    noised = [7, MASK, 2, MASK]
    full = layout_logits(loaded, [0] * 8 + noised, text[:8] + [0] * 4, size)
    request = request_of(clean_causal=clean == "causal", noisy_causal=noisy == "causal", logit_shift=shift)
    runner = Runner(loaded.model, max_tokens=64)
    logits: list[torch.Tensor] = []

    def record(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        logits.append(output)

    loaded.model.head.register_forward_hook(record)
    runner.run([Work(request=request, kind="prefill", start=0, tokens=tuple(text[:4]), num_clean=4)])
    fused = Work(
        request=request,
        kind="denoise",
        start=4,
        tokens=(*text[4:8], *noised),
        num_clean=4,
        places=(8, 9, 10, 11),
    )
    runner.run([fused])
    again = Work(request=request, kind="denoise", start=8, tokens=tuple(noised), num_clean=0, places=(8, 11))
    runner.run([again])
    layout_row = {8: 12 + 7, 9: 8, 10: 9, 11: 10} if shift else {8: 8, 9: 9, 10: 10, 11: 11}
    expected = full[[layout_row[place] for place in (8, 9, 10, 11)]]
    assert torch.allclose(logits[0], expected, atol=1e-12)
    assert torch.allclose(logits[1], expected[[0, 3]], atol=1e-12)


def test_a_masked_forward_leaves_the_prefix_as_it_was() -> None:
    loaded = tiny(1)
    request, runner = request_of(), Runner(loaded.model, max_tokens=64)
    runner.run([Work(request=request, base=8, kind="prefill", start=0, tokens=(1, 2, 3, 4), num_clean=4)])
    before = runner.pool.key[:, :, 8:12].clone()
    runner.run([Work(request=request, base=8, kind="denoise", start=4, tokens=(MASK,) * 4, num_clean=0, places=(4,))])
    assert torch.equal(runner.pool.key[:, :, 8:12], before)
    assert runner.slots[0].length == 4
    runner.release(0)
    assert not runner.slots
