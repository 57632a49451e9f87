"""Training an adapter that drafts: noisy rows per CPU second, the clean stream without gradient against one forward.

    python benchmarks/drafting.py [--rows 2] [--steps 4] [--dtype bfloat16] > benchmarks/drafting.json

SmolLM2-135M's shape with random weights, LoRA of rank 64 on every linear map, rows of 256 tokens with 256 noisy rows,
windows of 8. A step is forward and backward. The three forms take turns; figures are medians of process CPU time, which
a busy machine disturbs least. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from difflm.bench.steps import shape_of
from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.families import FAMILIES
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.windows import Drafting
from difflm.models.adapters import AdapterSite, adapter_parameters, attach_adapter
from difflm.models.transformer import Transformer
from difflm.scoring import forward_hidden, score_input
from difflm.types import Batch, ModelInput, Parametrisation

LENGTH, WINDOW, RANK = 256, 8, 64


def model_of(dtype: torch.dtype) -> Transformer:
    """Return the model with its adapter, nothing else learning."""
    config = shape_of("smollm2-135m")
    model = Transformer(config).to(dtype)
    layout = adapter_layout(FAMILIES["llama"], config)
    sites = [AdapterSite(weights=place.weights, rank=RANK, alpha=2.0 * RANK) for place in layout.places]
    attach_adapter(model, sites, generator=torch.Generator().manual_seed(0), gate="noisy")
    learnt = {id(each) for each in adapter_parameters(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learnt)
    return model


def inputs_of(rows: int) -> tuple[Drafting, ModelInput]:
    """Return the objective and a prepared batch of full rows."""
    place_BL = torch.arange(LENGTH).expand(rows, LENGTH).clone()
    batch = Batch(
        token_BL=torch.randint(40_000, (rows, LENGTH), generator=torch.Generator().manual_seed(0)),
        document_BL=torch.zeros_like(place_BL),
        position_BL=place_BL,
        trainable_BL=torch.ones_like(place_BL, dtype=torch.bool),
        row_B=torch.arange(rows),
        epoch_B=torch.zeros(rows, dtype=torch.int64),
    )
    parametrisation = Parametrisation(logit_shift=True, clean_attention="causal", noisy_attention="causal")
    objective = Drafting(window=WINDOW, noisy_rows=LENGTH, ar_weight=0.0, parametrisation=parametrisation)
    return objective, objective.prepare(batch, mask_id=0, noise=RowNoise(0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = model_of(getattr(torch, given.dtype))
    objective, inputs = inputs_of(given.rows)
    width = inputs.layout.noisy_length
    noisy_BN = (torch.arange(inputs.token_BN.shape[1]) < width).expand_as(inputs.token_BN)

    def two_forwards() -> None:
        objective.loss(score_input(model, inputs), inputs)[0].backward()

    def one_forward() -> None:
        hidden = forward_hidden(model, inputs.token_BN, inputs.position_BN, inputs.layout, adapter=noisy_BN)
        term = inputs.terms[0]
        logits = torch.nn.functional.linear(hidden.flatten(0, 1)[term.row_M], model.head.weight).float()
        torch.nn.functional.cross_entropy(logits, term.target_M, reduction="sum").backward()

    def clean_alone() -> None:
        with torch.no_grad():
            place_BL = inputs.position_BN[:, width:]
            layout = type(inputs.layout)(document_BL=inputs.layout.document_BL, block_BL=place_BL, causal_inside=True)
            forward_hidden(model, inputs.token_BN[:, width:], place_BL, layout)

    forms: dict[str, Callable[[], None]] = {
        "clean stream without gradient": two_forwards,
        "one forward over both streams, gated": one_forward,
        "clean forward alone": clean_alone,
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for step in range(given.steps + 1):
        for name, form in forms.items():
            started = time.process_time()
            form()
            if step:
                seconds[name].append(time.process_time() - started)
    rows = given.rows * width
    found = {name: statistics.median(each) for name, each in seconds.items()}
    for name, each in found.items():
        print(f"{name:40} {each:7.2f} CPU s a step, {rows / each:7.1f} noisy rows per CPU second")
    print(json.dumps({"rows": rows, "dtype": given.dtype, "seconds": found, "machine": platform.processor()}))


if __name__ == "__main__":
    main()
