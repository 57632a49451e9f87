"""What an estimate needs to know of a model and of this machine; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from difflm.checkpoints.architectures import ARCHITECTURES, architecture, architecture_fields
from difflm.checkpoints.config import checkpoint_config
from difflm.checkpoints.families import find_family, model_config
from difflm.checkpoints.fields import read_json
from difflm.checkpoints.rope_fields import with_rope_scaling
from difflm.checkpoints.source import open_checkpoint
from difflm.errors import ConfigError
from difflm.models.config import ModelConfig
from difflm.training.config import BlockDiffusionConfig, DraftingConfig, TrainConfig
from difflm.types import Parametrisation


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an estimate needs of a checkpoint.

    Attributes:
        family: name of the model family.
        model: architecture.
        parametrisation: of the training layout.
        mask_id: mask token; an id that is surely none of the text where there is none.
    """

    family: str
    model: ModelConfig
    parametrisation: Parametrisation
    mask_id: int


def model_facts(config: TrainConfig) -> ModelFacts:
    """Return the facts of a published architecture, a folder with config.json, or a GGUF file; no weight is read.

    An architecture alone says nothing of the training layout: it is the report's, with the token-causal clean stream
    that an AR co-loss asks for.

    Args:
        config: a run; `model` is a name or a path.

    Raises:
        ConfigError: neither.
        CheckpointError: a config.json that cannot be used.
    """
    model = str(config.model)
    if model.lower() in ARCHITECTURES:
        shape, objective = _scaled(architecture(model), config), config.objective
        causal = isinstance(objective, DraftingConfig) or (
            isinstance(objective, BlockDiffusionConfig) and objective.ar_weight > 0
        )
        layout = Parametrisation(clean_attention="causal" if causal else "block")
        family = find_family(architecture_fields(model), model).name
        return ModelFacts(family=family, model=shape, parametrisation=layout, mask_id=shape.vocab_size - 1)
    path = Path(model)
    if not path.exists():
        raise ConfigError(
            f"train.model: {model!r} is neither a folder nor one of {', '.join(ARCHITECTURES)}; give the checkpoint's "
            "folder (its config.json is enough)"
        )
    if (path / "config.json").is_file():
        raw, where = read_json(path / "config.json"), str(path / "config.json")
    else:
        source = open_checkpoint(path)
        raw, where = source.raw, source.where
    shape = _scaled(model_config(raw, where), config)
    facts = checkpoint_config(raw, {}, None, model=shape, where=where)
    mask_id = shape.vocab_size - 1 if facts.mask_token_id is None else facts.mask_token_id
    return ModelFacts(family=facts.family, model=shape, parametrisation=facts.parametrisation, mask_id=mask_id)


def _scaled(model: ModelConfig, config: TrainConfig) -> ModelConfig:
    """Return the architecture with the run's rope scaling, which also says how long its context is."""
    return model if config.rope_scaling is None else with_rope_scaling(model, config.rope_scaling)


def available_memory() -> int | None:
    """Return the bytes that a new program can use here without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None
