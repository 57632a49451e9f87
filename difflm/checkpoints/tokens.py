"""Tokenizers: loading without remote code, and encoding in which text can never become the mask id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difflm.checkpoints.fields import one_line, read_json
from difflm.checkpoints.templates import Render, render_here
from difflm.errors import CheckpointError, DataError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
TURN_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|role_end|>", "<role>", "</role>", "<|endoftext|>", "<|startoftext|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|eot|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "<s>", "</s>"),
)
"""Markers of turns and texts in common chat formats; a base model's tokenizer has them without a template."""
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(folder: Path, *, gguf_file: str | None = None) -> Any | None:
    """Return the transformers tokenizer of a folder (or of a GGUF file in it), None where there is none.

    Code that comes with a checkpoint is never run.

    Raises:
        CheckpointError: the tokenizer's files are damaged, or it needs code of its own.
    """
    if gguf_file is None and not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        return None
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file is not None else _without_config(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True, **options)
    # Damaged files surface as whatever the tokenizers library happens to raise, plain Exception included.
    except Exception as error:
        where = folder / gguf_file if gguf_file else folder
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{where}: the tokenizer names code of its own (auto_map), which is never run; use a "
                "tokenizer.json with a tokenizer_class of transformers"
            ) from None
        raise CheckpointError(
            f"{where}: the tokenizer cannot be loaded ({one_line(error)}); copy its files again"
        ) from None


def _without_config(folder: Path) -> dict[str, Any]:
    """Return what keeps transformers from reading the config.json of a model that it does not know.

    It would read it into a class without fields, and trip over a rope scaling that refers to one of them.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    path = folder / "config.json"
    kind = read_json(path).get("model_type") if path.is_file() else None
    return {"config": PretrainedConfig()} if isinstance(kind, str) and kind not in CONFIG_MAPPING else {}


def vocabulary(tokenizer: Any) -> dict[str, int]:
    """Return every token of a transformers tokenizer with its id, added tokens included."""
    return dict(tokenizer.get_vocab())


def turn_token_ids(tokenizer: Any, render: Render = render_here) -> frozenset[int]:
    """Return the ids of turn, role and tool markers: what the chat template uses, and the well-known markers."""
    ids = vocabulary(tokenizer)
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    templates = tokenizer.chat_template or ""
    sources = list(templates.values()) if isinstance(templates, dict) else [templates]
    found = {token_id for token, token_id in added.items() if any(token in source for source in sources)}
    known = {ids[token] for token in TURN_TOKENS if token in ids}
    return frozenset(found | known | _rendered_ids(tokenizer, set(added.values()), render))


def _rendered_ids(tokenizer: Any, added: set[int], render: Render) -> set[int]:
    """Return the added ids in a rendered conversation: a template may assemble `<|user|>` from the role."""
    if not tokenizer.chat_template:
        return set()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = render(tokenizer, messages)
    # A template of tools only, or one that wants other roles: its own tokens were found in its source.
    except Exception:
        return set()
    return set(tokenizer.encode(text, add_special_tokens=False)) & added


@dataclass(slots=True)
class SafeEncoder:
    """Encodes text so that a literal mask token in it is tokenised as ordinary characters.

    Attributes:
        tokenizer: a transformers tokenizer.
        mask_token, mask_token_id: the control token, None where the checkpoint has none.
    """

    tokenizer: Any
    mask_token: str | None
    mask_token_id: int | None
    _stripped: Any | None = field(default=None, init=False, repr=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without added special tokens; special strings in it are recognised.

        Raises:
            DataError: the text is not Unicode, or the tokenizer makes the mask id of plain text (a spelling that it
                normalises to the token).
        """
        refuse_half_characters(text)
        return self._safe(text, list(self.tokenizer.encode(text, add_special_tokens=False)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, equal to those of `encode`; on all cores where the tokenizer has a backend.

        Raises:
            DataError: see `encode`.
        """
        backend = self.tokenizer.backend_tokenizer if self.tokenizer.is_fast else None
        # A backend that cuts or pads does so in its own calls; transformers switches that off in its.
        if backend is None or backend.truncation is not None or backend.padding is not None:
            return [self.encode(text) for text in texts]
        for text in texts:
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                return [self.encode(text) for text in texts]  # which names the text
        encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._safe(text, each.ids) for text, each in zip(texts, encoded, strict=True)]

    def _safe(self, text: str, ids: list[int]) -> list[int]:
        """Return the ids of a text, without the mask id that a literal mask token in it became."""
        if self.mask_token_id is None or self.mask_token_id not in ids:
            return ids
        stripped = self._stripped or without_token(self.tokenizer, self.mask_token_id)
        self._stripped = stripped
        ids = list(stripped.encode(text, add_special_tokens=False).ids)
        if self.mask_token_id in ids:
            ids = self._encode_in_pieces(text, stripped)
        if self.mask_token_id in ids:
            raise DataError(f"text contains {self.mask_token!r}, the mask token of this model; remove it from the text")
        return ids

    def _encode_in_pieces(self, text: str, stripped: Any) -> list[int]:
        """Break every literal after its first character: a vocabulary of whole words matches it otherwise."""
        assert self.mask_token is not None
        head, tail = self.mask_token[0], self.mask_token[1:]
        ids: list[int] = []
        for number, piece in enumerate(text.split(self.mask_token)):
            for part in (*((head, tail) if number else ()), piece):
                ids += stripped.encode(part, add_special_tokens=False).ids
        return ids


def refuse_half_characters(text: str) -> None:
    """Refuse text that is not Unicode.

    Raises:
        DataError: it holds half of a surrogate pair (which is also how Python holds bytes that are not UTF-8).
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"text: {text!r:.60} holds bytes that are not UTF-8, or half a surrogate pair; repair it")


def without_token(tokenizer: Any, token_id: int) -> Any:
    """Return a copy of the tokenizer's backend in which an added token is not recognised in text.

    Raises:
        CheckpointError: the tokenizer has no tokenizer.json form.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        raise CheckpointError(
            "tokenizer: only tokenizers with a tokenizer.json are supported; convert it with transformers"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["id"] != token_id]
    return Tokenizer.from_str(json.dumps(state))


def is_ordinary(tokenizer: Any, token: str, token_id: int) -> bool:
    """Return whether ordinary text is made of a token: its characters give its id, and it is neither added nor marked.

    Raises:
        CheckpointError: the tokenizer has no tokenizer.json form.
    """
    if token_id in tokenizer.added_tokens_decoder or (len(token) > 2 and token[0] in "<[" and token[-1] in ">]"):
        return False
    return token_id in without_token(tokenizer, token_id).encode(token, add_special_tokens=False).ids


def tokenizer_fingerprint(tokenizer: Any, mask_token_id: int | None) -> str:
    """Return a hash of what decides the ids of a text: equal for a parent and for what was converted from it.

    The mask token is left out, because text never becomes it; so are truncation, padding and the post-processor,
    which add nothing to plain ids.
    """
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        added = [entry for entry in state.get("added_tokens") or () if entry["id"] != mask_token_id]
        state = {name: state.get(name) for name in ("normalizer", "pre_tokenizer", "model")} | {"added_tokens": added}
    else:
        state = {"model": {token: each for token, each in vocabulary(tokenizer).items() if each != mask_token_id}}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode("ascii")).hexdigest()


def special_token_ids(tokenizer: Any) -> Mapping[str, int]:
    """Return the ids of the named special tokens (bos, eos, pad, unk, sep, cls), the mask token excepted."""
    names = ("bos", "eos", "pad", "unk", "sep", "cls")
    found = {
        f"{name}_token": tokenizer.convert_tokens_to_ids(token) for name in names if (token := _named(tokenizer, name))
    }
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _named(tokenizer: Any, name: str) -> str | None:
    value = tokenizer.special_tokens_map.get(f"{name}_token")
    return None if value is None else str(value)


def carried_text_files(folder: Path) -> Sequence[Path]:
    """Return the tokenizer files of a folder, chat templates included."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return files + sorted((folder / "additional_chat_templates").glob("*.jinja"))
