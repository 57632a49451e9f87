"""Choosing the mask token of a converted checkpoint, its embedding row, and the tokenizer's entry for it.

Rules:
    - A spare token is reused only when it is named by its string; it must be one id of the tokenizer and none that
      ends a text, starts one, pads, stands for unknown text or is used by the chat template.
    - Otherwise `<|mask|>` becomes the id after the tokenizer's last. If the embedding has a row for it (a padded
      vocabulary) that row is used, else exactly one row is added (and one row of an untied head).
    - The row is the mean of the embedding rows of the tokenizer's ids ("mean"), or stays as it is ("keep", only
      where the row exists). A new row of an untied head is the mean of the head's rows; an existing one is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from difflm.checkpoints.buffers import buffer, pieces
from difflm.checkpoints.config import TokenizerFacts
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.hf import listed
from difflm.checkpoints.parameters import Parameters, outline, take
from difflm.checkpoints.tokens import is_ordinary
from difflm.errors import CheckpointError

DEFAULT_MASK_TOKEN = "<|mask|>"
MaskInit = Literal["mean", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskChoice:
    """Which token masks.

    Attributes:
        token: its string, None without a tokenizer.
        token_id: its id.
        vocab_size: rows of the embedding afterwards.
        adds_row: the embedding grows by one row.
        known_ids: rows below this are those of the tokenizer (of the embedding, without one); "mean" averages them.
    """

    token: str | None
    token_id: int
    vocab_size: int
    adds_row: bool
    known_ids: int


def choose_mask_token(
    facts: TokenizerFacts | None,
    *,
    vocab_size: int,
    mask_token: str | None,
    mask_token_id: int | None,
    reserved: Mapping[int, str],
    where: str,
) -> MaskChoice:
    """Decide the mask token; see the module's rules.

    Args:
        facts: the tokenizer, None without one.
        vocab_size: rows of the parent's embedding.
        mask_token: string of a spare token to reuse; None appends `<|mask|>`.
        mask_token_id: id to use in a checkpoint without tokenizer; None adds a row.
        reserved: ids that cannot be the mask, and what they are.
        where: path of the checkpoint, for errors.

    Raises:
        CheckpointError: the token does not exist, or is reserved.
    """
    if facts is None:
        token_id = _without_tokenizer(vocab_size, mask_token, mask_token_id, where)
        token, known = None, vocab_size
    else:
        token, token_id = _with_tokenizer(facts, mask_token, mask_token_id, reserved, where)
        known = facts.length
    if token_id in reserved:
        raise CheckpointError(
            f"{where}: mask token {token or token_id!r} has id {token_id}, which is {reserved[token_id]}; "
            "name a spare token, or none to append one"
        )
    return MaskChoice(
        token=token,
        token_id=token_id,
        vocab_size=max(vocab_size, token_id + 1),
        adds_row=token_id == vocab_size,
        known_ids=known,
    )


def _without_tokenizer(vocab_size: int, mask_token: str | None, mask_token_id: int | None, where: str) -> int:
    if mask_token is not None:
        raise CheckpointError(
            f"{where}: mask_token is {mask_token!r} but the checkpoint has no tokenizer; use mask_token_id, or neither"
        )
    if mask_token_id is None:
        return vocab_size
    if not 0 <= mask_token_id <= vocab_size:
        raise CheckpointError(f"{where}: mask_token_id is {mask_token_id}; expected 0 to {vocab_size} (a new row)")
    return mask_token_id


def _with_tokenizer(
    facts: TokenizerFacts,
    mask_token: str | None,
    mask_token_id: int | None,
    reserved: Collection[int],
    where: str,
) -> tuple[str, int]:
    if mask_token_id is not None:
        raise CheckpointError(
            f"{where}: mask_token_id is {mask_token_id} but there is a tokenizer; name mask_token instead"
        )
    if mask_token is None or (mask_token == DEFAULT_MASK_TOKEN and mask_token not in facts.ids):
        if DEFAULT_MASK_TOKEN in facts.ids:
            raise CheckpointError(
                f"{where}: the tokenizer already has {DEFAULT_MASK_TOKEN!r} (id {facts.ids[DEFAULT_MASK_TOKEN]}); "
                f"name it: mask_token={DEFAULT_MASK_TOKEN!r}"
            )
        return DEFAULT_MASK_TOKEN, facts.length
    if mask_token not in facts.ids:
        named = [(i, token) for token, i in facts.ids.items() if token.startswith("<") and token.endswith(">")]
        spare = [token for token_id, token in sorted(named) if token_id not in reserved]
        found = f" (such as {listed(spare, 4)})" if spare else ""
        raise CheckpointError(
            f"{where}: mask_token {mask_token!r} is not a token of the tokenizer; name a spare one{found}, "
            f"or none to append {DEFAULT_MASK_TOKEN!r}"
        )
    return mask_token, facts.ids[mask_token]


def require_spare(tokenizer: Any, choice: MaskChoice, where: str) -> None:
    """Check that a reused token is not what ordinary text is made of.

    Raises:
        CheckpointError: encoding the token's characters as text gives the token itself.
    """
    token, token_id = choice.token, choice.token_id
    if token is not None and token_id < choice.known_ids and is_ordinary(tokenizer, token, token_id):
        raise CheckpointError(
            f"{where}: mask_token {token!r} (id {token_id}) is ordinary text; name a spare special token, "
            "or none to append one"
        )


@dataclass(frozen=True, slots=True, eq=False)
class MaskedParameters(Parameters):
    """The parent's parameters with the mask row put in; everything else passes through untouched.

    Attributes:
        parent: the parent's parameters.
        choice: the mask token.
        init: how the row starts.
    """

    parent: Mapping[str, Tensor]
    choice: MaskChoice
    init: MaskInit

    def take(self, names: Sequence[str], experts: range | None = None) -> list[Tensor]:
        """Return parameters, or some experts of stacks."""
        found = take(self.parent, names, experts)
        return [self._masked(name, tensor) for name, tensor in zip(names, found, strict=True)]

    def outline(self, name: str) -> Tensor:
        """Return a parameter's shape and dtype."""
        found = outline(self.parent, name)
        grows = self.choice.adds_row and name in ("embedding.weight", "head.weight")
        return found.new_empty((found.shape[0] + 1, *found.shape[1:])) if grows else found

    def _masked(self, name: str, tensor: Tensor) -> Tensor:
        choice = self.choice
        if name == "embedding.weight" and (self.init == "mean" or choice.adds_row):
            return with_row(tensor, choice.token_id, mean_row(tensor, choice.known_ids))
        if name == "head.weight" and choice.adds_row:
            return with_row(tensor, choice.token_id, mean_row(tensor, choice.known_ids))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.parent)

    def __len__(self) -> int:
        return len(self.parent)


def mean_row(matrix_VD: Tensor, known_ids: int) -> Tensor:
    """Return the mean of the first `known_ids` rows, accumulated in float64, in the matrix's dtype."""
    # Some rows at a time: all of them in float64 are four times the largest tensor of a large model.
    total_D = matrix_VD.new_zeros(matrix_VD.shape[1], dtype=torch.float64)
    for part_RD in pieces(matrix_VD[:known_ids]):
        total_D += part_RD.sum(dim=0, dtype=torch.float64)
    return (total_D / known_ids).to(matrix_VD.dtype)


def with_row(matrix_VD: Tensor, index: int, row_D: Tensor) -> Tensor:
    """Return a copy of the matrix with row `index` replaced, or added where it is the next one."""
    rows, columns = matrix_VD.shape
    changed_VD = buffer((max(rows, index + 1), columns), matrix_VD.dtype, matrix_VD.device)
    changed_VD[:rows] = matrix_VD
    changed_VD[index] = row_D
    return changed_VD


def reserved_ids(
    special: Mapping[str, int], eos: Collection[int], others: Mapping[str, Collection[int]], turns: Collection[int]
) -> dict[int, str]:
    """Return the ids that cannot be the mask, each with what it is.

    Args:
        special: named special tokens of the tokenizer.
        eos: every id that ends a text.
        others: further named ids of the configuration.
        turns: ids that the chat template uses.
    """
    found = dict.fromkeys(turns, "a turn token of the chat template")
    found |= {token_id: f"the {name}" for name, ids in others.items() for token_id in ids}
    found |= {token_id: f"the tokenizer's {name}" for name, token_id in special.items()}
    return found | dict.fromkeys(eos, "an end-of-text (EOS) token")


def write_mask_token(folder: Path, choice: MaskChoice) -> None:
    """Enter the mask token as a special token into the tokenizer files of a folder.

    Raises:
        CheckpointError: the folder has no tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: only tokenizers with a tokenizer.json are supported; convert it with transformers"
        )
    state = read_json(path)
    entry = {"id": choice.token_id, "content": choice.token, "single_word": False, "lstrip": False, "rstrip": False}
    entry |= {"normalized": False, "special": True}
    kept = [each for each in state.get("added_tokens") or [] if each["id"] != choice.token_id]
    state["added_tokens"] = sorted([*kept, entry], key=lambda each: each["id"])
    write_json(path, state)
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    config["mask_token"] = choice.token
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"][str(choice.token_id)] = {k: v for k, v in entry.items() if k != "id"}
    write_json(folder / "tokenizer_config.json", config)
    special = folder / "special_tokens_map.json"
    if special.is_file():
        write_json(special, read_json(special) | {"mask_token": choice.token})
