"""Configurations of tiny runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from difflm.training.config import TrainConfig
from difflm.training.config_io import config_from_tree
from difflm.training.metrics import Metrics


def config_of(files: dict[str, Path], output: Path, *, model: str = "paper", **changes: Any) -> TrainConfig:
    tree: dict[str, Any] = {
        "model": str(files[model]),
        "output": str(output),
        "data": {"paths": [str(files["texts"])], "row_length": 64, "validation_fraction": 0.2},
        "curriculum": [{"block_size": 4, "tokens": 600}],
        "optimizer": {"learning_rate": 1e-3},
        "validation": {"rows": 3, "block_sizes": [4]},
        "threads": 1,
    }
    tree.update(changes)
    return config_from_tree(tree)


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rows: list[Metrics] = []

    def start(self, total_tokens: int, done_tokens: int) -> None:
        pass

    def update(self, metrics: Metrics) -> None:
        self.rows.append(metrics)

    def message(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        pass
