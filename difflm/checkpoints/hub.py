"""Hugging Face hub ids: downloaded only when asked for by id and commit, and only files that are data.

Rules:
    - A path that exists is that path, always; an id is looked up only where nothing of that name lies there.
    - An id needs a commit (40 hexadecimal digits). Branches and tags move, so they are refused, not resolved.
    - Weights (safetensors), JSON, tokenizer files and the model card are fetched; a GGUF file only where it is named
      (`org/name/file.gguf`). Never pickle files, never code.
    - HF_HUB_OFFLINE=1: nothing is asked for; what the hub's cache holds of that commit is used.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from difflm.checkpoints.card import LICENCES
from difflm.checkpoints.fields import one_line
from difflm.errors import CheckpointError, ConfigError

DATA_FILES = (
    *("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "README.md"),
    *(f"{name}{suffix}" for name in LICENCES for suffix in ("", ".md", ".txt")),
)
"""Files of a checkpoint folder; patterns of the hub, in which * crosses folders."""
NOT_THE_MODEL = ("consolidated*", "original/*", "onnx/*", "*/*.safetensors", "*/*.json")
"""The same weights once more in other formats, and everything in subfolders but chat templates."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOrigin:
    """Where a checkpoint came from.

    Attributes:
        repository: "org/name".
        revision: its commit.
    """

    repository: str
    revision: str


def locate(source: str | Path, revision: str | None = None) -> tuple[Path, HubOrigin | None]:
    """Return the local folder or file of a checkpoint, downloaded if it is a hub id; and its origin on the hub.

    Args:
        source: path, or "org/name" or "org/name/file.gguf".
        revision: commit of a hub id.

    Raises:
        CheckpointError: a hub id without commit, or one that cannot be downloaded; the message says what to do.
        ConfigError: `revision` is a branch, a tag or no revision at all.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            warnings.warn(f"{path} exists here: it is used, and revision {revision} is not", stacklevel=2)
        return path, None
    repository, file = _hub_id(path)
    if repository is None:
        return path, None
    if revision is None:
        raise CheckpointError(
            f"{path}: no such file or folder; a hub id needs its commit (40 hexadecimal digits): revision= in Python, "
            "--revision on the command line, revision: in a training configuration"
        )
    if not _COMMIT.fullmatch(revision):
        raise ConfigError(
            f"revision is {revision!r}; expected a commit of {repository}, 40 hexadecimal digits: branches and tags "
            f"move (git ls-remote https://huggingface.co/{repository} shows the commit of each)"
        )
    folder = _download(repository, revision.lower(), file)
    return (folder if file is None else folder / file), HubOrigin(repository=repository, revision=revision.lower())


def _hub_id(path: Path) -> tuple[str | None, str | None]:
    """Return (repository, file) of a name that can be a hub id; (None, None) for one that can only be a path."""
    if path.is_absolute():
        return None, None
    *first, last = path.parts
    if len(first) == 2 and last.endswith(".gguf") and _HUB_ID.fullmatch("/".join(first)):
        return "/".join(first), last
    name = path.as_posix()
    return (name, None) if _HUB_ID.fullmatch(name) and not name.endswith(".gguf") else (None, None)


def is_offline() -> bool:
    """Return whether the environment forbids to ask the hub."""
    return any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _download(repository: str, revision: str, file: str | None) -> Path:
    """Return the snapshot folder of a commit in the hub's cache, complete for the files that are asked for."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise CheckpointError(f"{repository}: reading from the hub needs huggingface_hub; install it") from None
    place, offline = f"{repository}@{revision[:12]}", is_offline()
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(DATA_FILES) if file is None else [file, "README.md"],
            ignore_patterns=list(NOT_THE_MODEL),
            local_files_only=offline,
        )
    except GatedRepoError:
        raise CheckpointError(
            f"{place}: access is restricted; accept its terms on huggingface.co and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{place}: no such repository on the hub, or a private one; check the id, or set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if offline else f"the hub was not reached ({one_line(error)[:120]})"
        raise CheckpointError(
            f"{place}: not complete in the hub's cache, and {reason}; go online once, or give a local folder"
        ) from None
    # Whatever the network, the cache's disk and the hub's server can raise: several libraries' errors.
    except Exception as error:
        raise CheckpointError(
            f"{place}: not downloaded ({type(error).__name__}: {one_line(error)[:200]}); check id, revision and network"
        ) from None
    return Path(folder)
