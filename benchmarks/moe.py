"""Experts of a mixture on CPU: our sorted loop, torch's grouped product, and an index loop over experts, in pairs.

    python benchmarks/moe.py [--experts 8 16 32 64] [--json FILE] > benchmarks/DATE-moe.md

All three run on the same weights and choices, in rounds whose order rotates, in one process on one thread; what counts
is the ratio inside a round, so a busy machine moves all three. A case ends when the median ratios are known to 2 %, or
after `--most` rounds. Times are CPU seconds of the thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.models import moe as moe_module
from difflm.models.config import MoEConfig
from difflm.models.moe import Experts, looped_linear

HIDDEN, INNER, PER_TOKEN = 512, 256, 4
TOKENS = (32, 512, 2048)
"""A block of a decoder, and micro-batches of a small and a usual training step."""

PRECISION = 0.02
"""Half width of what is known of a median ratio (two standard errors) before a case may end."""


def grouped(rows_PD: Tensor, weight_EOD: Tensor, stop_E: Tensor) -> Tensor:
    """Return the product of each group by torch's grouped product, whatever the dtype."""
    return F.grouped_mm(rows_PD, weight_EOD.transpose(1, 2), offs=stop_E.to(torch.int32))


def indexed(experts: Experts, hidden_ND: Tensor, weight_NK: Tensor, expert_NK: Tensor) -> Tensor:
    """Return the layer's output by a loop over experts that gathers and adds each one's rows by index.

    The matrices are cut apart once: taken one by one, each would get a gradient of the whole stack.
    """
    out_ND = torch.zeros_like(hidden_ND)
    hit_EKN = F.one_hot(expert_NK, experts.down.shape[0]).permute(2, 1, 0)
    matrices = list(zip(experts.gate_up.unbind(), experts.down.unbind(), strict=True))
    for expert in hit_EKN.sum((1, 2)).nonzero()[:, 0].tolist():
        slot_M, row_M = hit_EKN[expert].nonzero(as_tuple=True)
        gate_up, down = matrices[expert]
        gate, up = F.linear(hidden_ND[row_M], gate_up).chunk(2, dim=-1)
        each = F.linear(F.silu(gate) * up, down) * weight_NK[row_M, slot_M, None]
        out_ND.index_add_(0, row_M, each.to(out_ND.dtype))
    return out_ND


Contender = Callable[[Experts, Tensor, Tensor, Tensor], Tensor]


def _ours(linear: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Contender:
    def forward(experts: Experts, hidden_ND: Tensor, weight_NK: Tensor, expert_NK: Tensor) -> Tensor:
        with patch.object(moe_module, "grouped_linear", linear):
            return experts(hidden_ND, weight_NK, expert_NK)

    return forward


CONTENDERS: dict[str, Contender] = {
    "sorted loop": _ours(looped_linear),
    "grouped_mm": _ours(grouped),
    "index loop": indexed,
}


def case_of(experts: int, tokens: int, dtype: torch.dtype) -> tuple[Experts, list[Tensor]]:
    """Return a layer and (hidden states, weights, choices): experts differ in how many tokens they get."""
    generator = torch.Generator().manual_seed(0)
    config = MoEConfig(num_experts=experts, experts_per_token=PER_TOKEN, expert_size=INNER, score="softmax")
    layer = Experts(HIDDEN, config).to(dtype)
    score_NE = torch.randn(tokens, experts, generator=generator) + 0.5 * torch.randn(experts, generator=generator)
    weight_NK, expert_NK = score_NE.softmax(-1).topk(PER_TOKEN, dim=-1)
    hidden_ND = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    return layer, [hidden_ND, weight_NK / weight_NK.sum(-1, keepdim=True), expert_NK]


def once(contender: Contender, layer: Experts, inputs: list[Tensor], *, backward: bool) -> tuple[float, list[Tensor]]:
    """Return the CPU seconds of one call, and its output or gradients."""
    hidden_ND, weight_NK, expert_NK = inputs
    started = time.process_time()
    if not backward:
        with torch.no_grad():
            found = [contender(layer, hidden_ND, weight_NK, expert_NK)]
        return time.process_time() - started, found
    tensors = [hidden_ND.detach().requires_grad_(), *layer.parameters()]
    out_ND = contender(layer, tensors[0], weight_NK, expert_NK)
    found = list(torch.autograd.grad(out_ND, tensors, torch.ones_like(out_ND)))
    return time.process_time() - started, found


def compare(experts: int, tokens: int, dtype: torch.dtype, *, backward: bool, least: int, most: int) -> dict[str, Any]:
    """Return the median milliseconds of each contender, and the ratios of the others to the sorted loop."""
    layer, inputs = case_of(experts, tokens, dtype)
    names = list(CONTENDERS)
    results = {name: once(CONTENDERS[name], layer, inputs, backward=backward)[1] for name in names}
    for name in names[1:]:
        for one, other in zip(results[names[0]], results[name], strict=True):
            apart = float((one.double() - other.double()).norm() / one.double().norm())
            assert apart < (1e-4 if dtype == torch.float32 else 0.03), f"{name} computes something else: {apart}"
    del results
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(most):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            seconds[name].append(once(CONTENDERS[name], layer, inputs, backward=backward)[0])
        if number + 1 >= least and all(spread(ratios(seconds, name))[2] <= PRECISION for name in names[1:]):
            break
    found: dict[str, Any] = {
        "experts": experts, "tokens": tokens, "dtype": str(dtype).removeprefix("torch."),
        "pass": "forward + backward" if backward else "forward", "rounds": len(seconds[names[0]]),
    }  # fmt: skip
    for name in names:
        found[f"{name}, ms"] = 1000 * statistics.median(seconds[name])
    for name in names[1:]:
        found[f"{name} / sorted loop"] = spread(ratios(seconds, name))
    return found


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
    """Return the ratio of a contender's time to the sorted loop's in each round."""
    return [one / other for one, other in zip(seconds[name], seconds["sorted loop"], strict=True)]


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return (median, interquartile range, two standard errors of the median relative to it)."""
    low, middle, high = statistics.quantiles(values, n=4)
    # 1.2533 sigma / sqrt(n) of a normal distribution, whose sigma is 0.7413 of its interquartile range.
    return middle, high - low, 2 * 1.2533 * 0.7413 * (high - low) / len(values) ** 0.5 / middle


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table."""
    names = list(CONTENDERS)
    lines = [
        f"| dtype | pass | experts | tokens | {names[0]}, ms | {names[1]} / loop | {names[2]} / loop | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = [f"{row[f'{name} / sorted loop'][0]:.2f} ({row[f'{name} / sorted loop'][1]:.2f})" for name in names[1:]]
        lines.append(
            f"| {row['dtype']} | {row['pass']} | {row['experts']} | {row['tokens']} | {row[f'{names[0]}, ms']:.2f} | "
            f"{' | '.join(parts)} | {row['rounds']} |"
        )
    return lines


def main() -> None:
    """Compare all cases; a line each to stderr, the table to stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--least", type=int, default=11, help="rounds of a case")
    parser.add_argument("--most", type=int, default=50, help="rounds of a case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        for backward in (False, True):
            for experts in options.experts:
                for tokens in options.tokens:
                    rows.append(
                        compare(experts, tokens, dtype, backward=backward, least=options.least, most=options.most)
                    )
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    if options.json:
        facts = {
            "torch": torch.__version__, "machine": platform.processor() or platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability(), "threads": options.threads,
            "hidden": HIDDEN, "inner": INNER, "experts_per_token": PER_TOKEN,
        }  # fmt: skip
        options.json.write_text(json.dumps({**facts, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
