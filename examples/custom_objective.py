"""A training objective of your own: block diffusion that looks away from what the model already knows.

    python examples/custom_objective.py CONVERTED TEXTS.jsonl RUN_FOLDER

CONVERTED is a checkpoint from `difflm convert`; every line of TEXTS.jsonl is {"text": ...}.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import difflm
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import Objective
from difflm.types import Batch, ModelInput, TokenScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Focal:
    """The loss of `base` with every token weighed by (1 - p) ** gamma, p its probability now (focal loss)."""

    base: Objective
    gamma: float = 1.0

    def prepare(self, batch: Batch, *, mask_id: int | None, noise: RowNoise) -> ModelInput:
        """Return what `base` feeds to the model: masks, attention and the rows to score."""
        return self.base.prepare(batch, mask_id=mask_id, noise=noise)

    def loss(self, scores: tuple[TokenScores, ...], inputs: ModelInput) -> tuple[torch.Tensor, ...]:
        """Return one weighted sum per term; the trainer divides it by the term's count."""
        return tuple(
            (term.weight_M * (1 - torch.exp(-score.nll_M.detach())) ** self.gamma * score.nll_M).sum()
            for score, term in zip(scores, inputs.terms, strict=True)
        )


def main(model: Path, texts: Path, output: Path) -> Path:
    """Train `model` on `texts` and return the last checkpoint."""
    run = {
        "model": str(model),
        "output": str(output),
        "data": {"paths": [str(texts)], "row_length": 64, "validation_fraction": 0.1},
        "curriculum": [{"block_size": 4, "tokens": 2000}, {"block_size": 8, "tokens": 2000}],
    }
    return difflm.train(run, objective=lambda base: Focal(base=base))


if __name__ == "__main__":
    print(main(*map(Path, sys.argv[1:4])))
