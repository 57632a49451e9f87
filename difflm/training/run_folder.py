"""The folder of a run: created or recognised, its configuration recorded and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from difflm.errors import ConfigError
from difflm.training import state as run_state
from difflm.training.config import TrainConfig
from difflm.training.config_io import config_to_tree, dump_config, load_config

Resume = Literal["auto", "never"]


def open_run(config: TrainConfig, resume: Resume) -> Path | None:
    """Create or check the run folder; return the checkpoint to continue from, or None for a new run.

    Raises:
        ConfigError: a folder that is not empty under "never", or a configuration that differs from the recorded one.
    """
    run, record = config.output, config.output / "config.yaml"
    aside = record.with_suffix(".tmp")  # all that a run killed in its first moment leaves
    if resume == "auto" and record.is_file():
        asked, recorded = config_to_tree(config), config_to_tree(load_config(record))
        for name, mine in asked.items():
            # "output" is where the record was found: a folder that was moved or copied is still that run.
            if name in ("output", "recipe", "device", "threads", "log_every", "checkpoint"):
                continue
            if mine != recorded[name]:
                raise ConfigError(
                    f"train.{name}: differs from the run in {run} ({recorded[name]} there, {mine} here); "
                    "resume with the recorded config.yaml, or choose another output folder"
                )
    elif run.exists() and not run.is_dir():
        raise ConfigError(f"train.output: {run} is a file; choose another path for the run folder")
    elif run.exists() and any(each != aside for each in run.iterdir()):
        advice = "resume with --resume auto, or choose another folder" if record.is_file() else "choose another folder"
        raise ConfigError(f"train.output: {run} is not empty; {advice}")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output: {run} cannot be created ({error.strerror}); choose another path") from None
    aside.write_text(dump_config(config), encoding="utf-8")
    aside.replace(record)
    checkpoints = run_state.checkpoint_folders(run)
    return checkpoints[-1] if checkpoints else None
