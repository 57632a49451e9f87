"""`difflm estimate`, and what `difflm train --dry-run` says about the cost of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from difflm.cli.options import DTYPES, folder, tokens_option
from difflm.errors import ConfigError, DifflmError

if TYPE_CHECKING:
    from difflm.training.config import TrainConfig


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option(
    "--model",
    show_default="the recipe's",
    help="Checkpoint folder (its config.json is enough) or name of a published architecture; short for model=.",
)
@click.option(
    "--data",
    multiple=True,
    type=folder(),
    show_default="the recipe's",
    help="Training file, folder or pattern, repeatable; read to find how full rows get.",
)
@tokens_option
@click.option(
    "--fill",
    type=click.FloatRange(0, 1, min_open=True),
    show_default="measured on the data, 1 without it",
    help="Share of row positions that hold a token.",
)
@click.option(
    "--tflops",
    type=click.FloatRange(0, min_open=True),
    show_default="measured on this machine",
    help="What the machine of the run sustains, 1e12 operations per second.",
)
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Whether to run a few steps on few layers, which gives the time and what the allocator adds.",
)
@click.option(
    "--architecture",
    metavar="NAME",
    show_default="none",
    help="Published architecture, instead of a RECIPE: rows of 4096, blocks of 32, bfloat16, activation checkpointing.",
)
@click.option(
    "--gpus", type=int, show_default="one device, measured", help="Compute for so many GPUs by arithmetic instead."
)
@click.option("--gpu-memory", metavar="SIZE", show_default="80GiB", help="Memory of a GPU, e.g. 80GiB or 141GB.")
@click.option(
    "--gpu-tflops",
    type=float,
    show_default="no time is computed",
    help="Peak of a GPU in the run's dtype, 1e12 operations per second.",
)
@click.option("--mfu", type=float, show_default="0.3", help="Share of the peak that goes into the model, in (0, 1].")
@click.option(
    "--shard",
    type=click.Choice(["fsdp", "none"]),
    show_default="fsdp",
    help="Parameters, gradients and moments over all GPUs, or whole on each.",
)
@click.option(
    "--expert-parallel", type=int, show_default="1", help="GPUs that share the experts of a layer instead of gathering."
)
@click.option("--dtype", type=DTYPES, show_default="the recipe's", help="Type of the run; short for dtype=.")
@click.option("--json/--table", "as_json", default=False, show_default=True, help="Print JSON, or a table.")
def estimate(
    recipe: str | None,
    overrides: tuple[str, ...],
    *,
    model: str | None,
    data: tuple[Path, ...],
    tokens: int | None,
    fill: float | None,
    tflops: float | None,
    measure: bool,
    architecture: str | None,
    dtype: str | None,
    as_json: bool,
    **cluster: Any,
) -> None:
    """Say what a run will cost, in steps, memory and time, from its RECIPE or config.yaml; nothing is trained.

    No weights and no data are needed: --model names an architecture or a folder with config.json. The time is measured
    with a few steps on few layers, on the device that the configuration names. With --gpus nothing is measured: memory
    of each GPU, how many are enough, and hours, by arithmetic.
    """
    from difflm.estimate.run import estimate as estimate_run
    from difflm.estimate.run import estimate_lines, estimate_tree

    if dtype is not None:
        overrides = (*overrides, f"dtype={dtype}")
    if architecture is not None:
        words = overrides if recipe is None else (recipe, *overrides)
        config = _named_run(architecture, words, tokens=tokens, gpus=cluster["gpus"])
    elif recipe is None:
        raise ConfigError("recipe: none given; name a recipe or a config.yaml, or a model with --architecture")
    else:
        config = _recipe_run(recipe, overrides, model=model, data=data, tokens=tokens)
    given = {name: value for name, value in cluster.items() if value is not None}
    if given:
        lines, tree = _on_cluster(config, given)
    else:
        found = estimate_run(config, fill=fill, measured=measure, tflops=tflops)
        lines, tree = estimate_lines(found), estimate_tree(found)
    click.echo(json.dumps(tree, indent=1) if as_json else "\n".join(lines))


def _recipe_run(
    recipe: str, overrides: tuple[str, ...], *, model: str | None, data: tuple[Path, ...], tokens: int | None
) -> TrainConfig:
    from difflm.checkpoints.architectures import ARCHITECTURES
    from difflm.recipes.resolving import resolve
    from difflm.recipes.shipped import recipe_path

    # A shipped recipe names neither data nor output, and an estimate needs none.
    if not data and recipe_path(recipe) and not any("data.paths" in each for each in overrides):
        data = (Path("data"),)
    try:
        return resolve(recipe, list(overrides), model=model, data=data, output=Path("run"), tokens=tokens)
    except ConfigError as error:
        if not str(error).startswith("train.model: missing"):
            raise
        raise ConfigError(
            f"model: recipe {recipe} names none; give --model FOLDER (its config.json is enough) or --model NAME, "
            f"one of {', '.join(ARCHITECTURES)}"
        ) from None


def _named_run(name: str, overrides: tuple[str, ...], *, tokens: int | None, gpus: int | None) -> TrainConfig:
    """Return a run of a published architecture: one micro-batch of one row on each GPU, 1e9 tokens."""
    from difflm.checkpoints.architectures import architecture_fields
    from difflm.recipes.resolving import assignments
    from difflm.training.config_io import config_from_tree
    from difflm.training.config_io import override as overridden

    architecture_fields(name)
    tree: dict[str, Any] = {
        "model": name, "output": "run", "data": {"paths": ["data"], "row_length": 4096},
        "curriculum": [{"block_size": 32, "tokens": tokens or 1_000_000_000}], "rows_per_batch": 1,
        "accumulation": max(gpus or 1, 1), "device": "cuda", "dtype": "bfloat16", "activation_checkpointing": True,
    }  # fmt: skip
    return config_from_tree(overridden(tree, assignments(overrides)))


def _on_cluster(config: TrainConfig, given: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the estimate of a run on many GPUs as lines and as JSON values."""
    from difflm.estimate.cluster import Cluster, cluster_estimate
    from difflm.estimate.cluster_report import cluster_lines, cluster_tree

    if "gpus" not in given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{names}: says nothing about one device; give --gpus as well")
    memory = memory_size(given.pop("gpu_memory", "80GiB"))
    fields = {"tflops" if name == "gpu_tflops" else name: value for name, value in given.items()}
    found = cluster_estimate(config, Cluster(memory=memory, **fields))
    return cluster_lines(found), cluster_tree(found)


def memory_size(text: str) -> int:
    """Return the bytes of a size such as 80GiB, 141GB or 85899345920.

    Raises:
        ConfigError: not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB)?", text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"gpu-memory: {text!r} is no size; write e.g. 80GiB or 141GB")
    units = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}
    size = round(float(found[1]) * units.get(found[2] or "", 1))
    if size < 10**6:
        raise ConfigError(f"gpu-memory: {text!r} is {size} bytes; write e.g. 80GiB or 141GB")
    return size


def commented_estimate(config: TrainConfig) -> str:
    """Return the estimate of a run as YAML comments; what stands in its way is said there too.

    Args:
        config: the run.
    """
    from difflm.estimate.run import estimate as estimate_run
    from difflm.estimate.run import estimate_lines

    try:
        lines = estimate_lines(estimate_run(config))
    except DifflmError as error:
        lines = [f"no estimate: {error}"]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
