"""What a run was made from: hashes of the starting model, its tokenizer and the rows, compared on resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from difflm.checkpoints.adapter import copy_adapter, digest_of, read_adapter
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.checkpoints.source import open_checkpoint
from difflm.checkpoints.tokens import carried_text_files
from difflm.errors import CheckpointError
from difflm.training.state import TrainingState, read_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Hashes of what a run starts from, under the names they have in `TrainingState`.

    Attributes:
        model: configuration and weights of the starting checkpoint, whatever its path.
        tokenizer: its tokenizer files; of a GGUF file, the file.
        data: training rows.
        validation_data: validation rows; "" without any.
    """

    model: str
    tokenizer: str
    data: str
    validation_data: str

    def check(self, recorded: TrainingState, *, model: Path, where: Path) -> None:
        """Compare with what a checkpoint of the run recorded.

        Args:
            recorded: of the checkpoint.
            model: path of the starting model now.
            where: the checkpoint, for errors.

        Raises:
            CheckpointError: something is not what the run started from; the message names it.
        """
        for mine, theirs, text in (
            (self.model, recorded.model, f"train.model: config.json or weights of {model} are not those"),
            (self.tokenizer, recorded.tokenizer, f"train.model: the tokenizer files of {model} are not those"),
            (self.data, recorded.data, "train.data.paths: the training rows are not those"),
            (
                self.validation_data,
                recorded.validation_data,
                "train.data.validation_paths: the validation rows are not those",
            ),
        ):
            if mine != theirs:
                raise CheckpointError(
                    f"{text} that the run started from ({where}); restore the files, or choose another output folder"
                )


def continued_state(
    checkpoint: Path | None, loaded: LoadedModel, *, data: str, validation_data: str, model: Path
) -> TrainingState:
    """Return the state a run begins or goes on with; `loaded` gets the weights of the checkpoint.

    Args:
        checkpoint: where to continue; None for a new run.
        loaded: the starting model, with the run's adapter if it trains one.
        data: fingerprint of the training rows.
        validation_data: fingerprint of the validation rows, "" without any.
        model: path of the starting model, for errors.

    Raises:
        CheckpointError: the run did not start from these files.
    """
    origin = Origin(
        model=model_hash(loaded.path),
        tokenizer=tokenizer_hash(loaded.path),
        data=data,
        validation_data=validation_data,
    )
    if loaded.adapter is not None:
        loaded.adapter = replace(loaded.adapter, base_sha256=origin.model)
    if checkpoint is None:
        return TrainingState(**asdict(origin))
    state = read_state(checkpoint)
    origin.check(state, model=model, where=checkpoint)
    if loaded.adapter is not None:
        family = FAMILIES[loaded.config.family]
        copy_adapter(loaded.model, read_adapter(checkpoint, family, loaded.config.model))
        return state
    # Only the weights come from the checkpoint: it may be pruned, while later ones carry the parent's files.
    # By way of the CPU: an accelerator need not hold the model twice.
    loaded.model.load_state_dict(load_model(checkpoint).model.state_dict())
    return state


def model_hash(path: Path) -> str:
    """Return a hash of the configuration and the weights in an HF folder, or of a GGUF file."""
    return open_checkpoint(path).digest()


def tokenizer_hash(path: Path) -> str:
    """Return a hash of the tokenizer files that a run carries into its checkpoints."""
    source = open_checkpoint(path)
    return digest_of(source.weights.files if source.is_gguf else carried_text_files(source.path))
