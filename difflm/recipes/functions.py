"""The shipped recipes as Python functions that return a `TrainConfig`, to train as it is or to change further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difflm.recipes.resolving import PathLike, resolve
from difflm.training.config import TrainConfig


def recipe(
    name: str,
    *,
    model: PathLike,
    output: PathLike,
    data: PathLike | Sequence[PathLike],
    overrides: Sequence[str] = (),
    tokens: int | None = None,
) -> TrainConfig:
    """Return the configuration of a recipe.

    Args:
        name: of a shipped recipe, a YAML file, or "module:function" of a function that returns a configuration.
        model: folder of a converted checkpoint, or a hub id (then `overrides` sets `revision`).
        output: run folder.
        data: training files, folders or patterns.
        overrides: "dotted.path=value", as on the command line, applied in order.
        tokens: length of the run; every token count of the recipe is scaled to it. None keeps the recipe's.

    Raises:
        ConfigError: no such recipe, or a field that cannot be used.
    """
    paths = [data] if isinstance(data, str | Path) else list(data)
    return resolve(name, overrides, model=model, output=output, data=paths, tokens=tokens)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A shipped recipe; calling it returns its configuration.

    Attributes:
        name: of the recipe.
    """

    name: str

    def __call__(
        self,
        *,
        model: PathLike,
        output: PathLike,
        data: PathLike | Sequence[PathLike],
        overrides: Sequence[str] = (),
        tokens: int | None = None,
    ) -> TrainConfig:
        """Return the configuration; see `recipe` for the arguments."""
        return recipe(self.name, model=model, output=output, data=data, overrides=overrides, tokens=tokens)


llada2_mini = Recipe("llada2_mini")
llada2_flash = Recipe("llada2_flash")
qwen3_0_6b = Recipe("qwen3_0_6b")
llama3_2_1b = Recipe("llama3_2_1b")
smollm2 = Recipe("smollm2")
paper_wsd = Recipe("paper-wsd")
lossless_smollm2 = Recipe("lossless_smollm2")
laptop = Recipe("laptop")
laptop_wsd = Recipe("laptop-wsd")
sft = Recipe("sft")
cap = Recipe("cap")
dpo = Recipe("dpo")
next_token = Recipe("next-token")
