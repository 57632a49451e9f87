"""Training and validation rows of a run, from its configuration."""

from __future__ import annotations

from difflm.checkpoints.loading import LoadedModel
from difflm.data.packing import PackedRows, pack
from difflm.data.sources import Document, check_disjoint, read_documents, split_validation
from difflm.data.tokens import tokenise
from difflm.errors import ConfigError
from difflm.training.config import TrainConfig


def load_rows(config: TrainConfig, loaded: LoadedModel) -> tuple[PackedRows, PackedRows | None]:
    """Return (training rows, validation rows or None); the two share no document.

    Raises:
        ConfigError: a checkpoint without tokenizer or EOS.
        DataError: files that cannot be used.
    """
    if loaded.tokenizer is None:
        raise ConfigError(f"train.model: {loaded.path} has no tokenizer; copy the parent's tokenizer files into it")
    if not loaded.config.eos_token_ids:
        raise ConfigError(f"train.model: {loaded.path} names no EOS token; set eos_token_id in its config.json")
    documents = list(read_documents(config.data.paths, format=config.data.format))
    held: list[Document] = []
    if config.data.validation_paths:
        held = list(read_documents(config.data.validation_paths, format=config.data.format))
        check_disjoint(documents, held)
    elif config.data.validation_fraction > 0:
        documents, held = split_validation(
            documents, fraction=config.data.validation_fraction, seed=config.data.split_seed
        )
    train = _pack(documents, config, loaded)
    return train, _pack(held, config, loaded) if held else None


def _pack(documents: list[Document], config: TrainConfig, loaded: LoadedModel) -> PackedRows:
    eos = loaded.config.eos_token_ids[0]
    tokens = tokenise(documents, loaded.encode, eos_id=eos, mask_id=loaded.config.mask_token_id)
    pad = loaded.config.pad_token_id
    return pack(
        tokens,
        row_length=config.data.row_length,
        pad_id=eos if pad is None else pad,
        eos_id=eos,
        fill_multiple=config.fill_multiple,
        overlong=config.data.overlong,
    )
