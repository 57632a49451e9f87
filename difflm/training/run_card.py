"""What a checkpoint's model card says about the run that wrote it: objective, data, settings, measured figures."""

from __future__ import annotations

import json
from typing import Any

from difflm.training.config import TrainConfig
from difflm.training.config_io import config_to_tree


def training_section(
    config: TrainConfig, *, tokens: int, perplexity: dict[str, float], ar_perplexity: float | None
) -> str:
    """Return the section on training of a README.md.

    Args:
        config: of the run.
        tokens: training tokens done.
        perplexity: block size -> perplexity at this step; empty if it was not measured.
        ar_perplexity: next-token perplexity at this step, if measured.
    """
    tree = config_to_tree(config)
    facts: dict[str, Any] = {
        "recipe": config.recipe,
        "data": ", ".join(map(str, config.data.paths)),
        "tokens": f"{tokens} of {config.total_tokens}",
        "objective": _json(tree["objective"]),
        "curriculum": _json(tree["curriculum"]),
        "learning rate": f"{config.optimizer.learning_rate} ({config.optimizer.kind}, {config.lr_schedule.kind})",
        "rows of a step": f"{config.rows_per_batch * config.accumulation} of {config.data.row_length} tokens",
        "LoRA": _json(tree["lora"]) if config.lora else "none",
        "seed": config.seed,
    }
    facts |= {f"validation perplexity, block {size}": f"{value:.4g}" for size, value in perplexity.items()}
    if ar_perplexity is not None:
        facts["validation perplexity, next token"] = f"{ar_perplexity:.4g}"
    rows = (f"| {name} | `{str(value).replace('|', chr(92) + '|')}` |" for name, value in facts.items())
    return "\n".join(["", "## Training", "", "| | |", "|---|---|", *rows, ""])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
