"""What a checkpoint says about itself: architecture, diffusion fields, special ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from difflm.checkpoints.families import find_family, model_config
from difflm.checkpoints.fields import Fields
from difflm.errors import CheckpointError
from difflm.models.config import ModelConfig
from difflm.types import CleanAttention, NoisyAttention, Parametrisation

DIFFUSION_FIELDS = ("block_size", "mask_token_id", "mask_token", "logit_shift", "clean_attention", "noisy_attention")
"""Top-level fields of config.json that make a checkpoint a diffusion model."""
DIFFUSION_TYPES = ("llada2_moe", "llada21_moe", "llada2_moe_veomni", "sdar", "sdar_moe")
"""Values of `model_type` that only diffusion models have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Facts of a loaded checkpoint, from config.json, generation_config.json and the tokenizer.

    Attributes:
        family: name of the model family, such as "llama" or "llada2_moe".
        model: architecture.
        mask_token_id: id of the mask token; None for a checkpoint that was not converted.
        mask_token: its string; None without a tokenizer.
        block_size: tokens of a diffusion block; None where the checkpoint does not say.
        parametrisation: how rows are read; absent fields mean the paper's choice.
        eos_token_ids: ids that end a document, the tokenizer's own first; may be empty.
        bos_token_id, pad_token_id: None where there is none.
        tokenizer_length: last id of the tokenizer plus one; None without a tokenizer.
        unassigned_token_ids: rows of the embedding that no token of the tokenizer names.
        raw: config.json as read.
        generation: generation_config.json as read.
    """

    family: str
    model: ModelConfig
    mask_token_id: int | None = None
    mask_token: str | None = None
    block_size: int | None = None
    parametrisation: Parametrisation = field(default_factory=Parametrisation)
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    tokenizer_length: int | None = None
    unassigned_token_ids: tuple[int, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def logit_shift(self) -> bool:
        """Whether token i is predicted at row i-1."""
        return self.parametrisation.logit_shift

    @property
    def clean_attention(self) -> CleanAttention:
        """Attention of the clean stream, "block" or "causal"."""
        return self.parametrisation.clean_attention

    @property
    def noisy_attention(self) -> NoisyAttention:
        """Attention inside a noisy block, "bidirectional" or "causal"."""
        return self.parametrisation.noisy_attention

    @property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Ids that must never be emitted: the mask and every embedding row without a token."""
        mask = () if self.mask_token_id is None else (self.mask_token_id,)
        return tuple(sorted({*mask, *self.unassigned_token_ids}))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What the configuration needs to know of a tokenizer.

    Attributes:
        ids: token -> id, added tokens included.
        special: named special tokens, such as "eos_token" -> id.
        turns: ids that mark turns in the chat template.
        is_ordinary: whether text is made of a token and its id.
    """

    ids: Mapping[str, int]
    special: Mapping[str, int]
    turns: Collection[int] = ()
    is_ordinary: Callable[[str, int], bool] = lambda token, token_id: False  # facts by hand, without a tokenizer

    @property
    def length(self) -> int:
        """Last id plus one."""
        return max(self.ids.values(), default=-1) + 1


def checkpoint_config(
    raw: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: TokenizerFacts | None,
    *,
    model: ModelConfig | None = None,
    where: str,
) -> CheckpointConfig:
    """Gather and check the facts of a checkpoint.

    Args:
        raw: config.json.
        generation: generation_config.json, empty where there is none.
        tokenizer: facts of the tokenizer, if there is one.
        model: architecture to use instead of the one in `raw` (a rope override).
        where: path of config.json, for errors.

    Raises:
        CheckpointError: fields that are wrong or contradict each other.
    """
    architecture = model_config(raw, where) if model is None else model
    fields, special = Fields(raw, where), tokenizer.special if tokenizer else {}
    if tokenizer and tokenizer.length > architecture.vocab_size:
        raise CheckpointError(
            f"{where}: vocab_size is {architecture.vocab_size} but the tokenizer has ids up to {tokenizer.length - 1}; "
            "tokenizer and embedding do not belong together"
        )
    eos, all_bos, all_pad = (named_token_ids(each, raw, generation, special, where) for each in ("eos", "bos", "pad"))
    bos, pad = next(iter(all_bos), None), next(iter(all_pad), None)
    for name, token_id in (*(("eos", each) for each in eos), ("bos", bos), ("pad", pad)):
        if token_id is not None and token_id >= architecture.vocab_size:
            raise CheckpointError(
                f"{where}: {name}_token_id is {token_id}; expected an id below vocab_size ({architecture.vocab_size})"
            )
    mask_token_id = _mask_token_id(_with_mask(fields, tokenizer), architecture.vocab_size, eos, all_pad, tokenizer)
    taken = set(tokenizer.ids.values()) if tokenizer else set(range(architecture.vocab_size))
    return CheckpointConfig(
        family=find_family(raw, where).name,
        model=architecture,
        mask_token_id=mask_token_id,
        mask_token=_mask_token(fields, mask_token_id, tokenizer),
        block_size=fields.integer("block_size") if raw.get("block_size") is not None else None,
        parametrisation=_parametrisation(fields),
        eos_token_ids=eos,
        bos_token_id=bos,
        pad_token_id=pad,
        tokenizer_length=tokenizer.length if tokenizer else None,
        unassigned_token_ids=tuple(sorted(set(range(architecture.vocab_size)) - taken)),
        raw=dict(raw),
        generation=dict(generation),
    )


def named_token_ids(
    name: str, raw: Mapping[str, Any], generation: Mapping[str, Any], special: Mapping[str, int], where: str
) -> tuple[int, ...]:
    """Return every id of "bos", "eos" or "pad", without repeats: the tokenizer's, generation_config's, config's."""
    own = (special[f"{name}_token"],) if f"{name}_token" in special else ()
    files = (Fields(generation, _generation_where(where)), Fields(raw, where))
    listed = (each.token_ids(f"{name}_token_id") for each in files)
    return tuple(dict.fromkeys((*own, *(token_id for ids in listed for token_id in ids))))


def _generation_where(where: str) -> str:
    """Return the path of the generation_config.json beside a config.json; a GGUF file holds both."""
    folder, name, _ = where.rpartition("config.json")
    return f"{folder}generation_{name}" if name else where


def check_files(raw: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> None:
    """Check what the files say by themselves, before transformers reads them, which would blame the tokenizer.

    Raises:
        CheckpointError: a field of the wrong type, or one that is not implemented.
    """
    model_config(raw, where)
    for name in ("eos", "bos", "pad"):
        named_token_ids(name, raw, generation, {}, where)


def _with_mask(fields: Fields, tokenizer: TokenizerFacts | None) -> Fields:
    """Return the fields with the mask id that published LLaDA2 files leave to the tokenizer, found by its string."""
    raw = fields.raw
    if raw.get("mask_token_id") is not None or raw.get("model_type") not in DIFFUSION_TYPES or tokenizer is None:
        return fields
    found = tokenizer.special.get("mask_token", tokenizer.ids.get("<|mask|>"))
    return fields if found is None else Fields({**raw, "mask_token_id": found}, fields.where)


def _mask_token_id(
    fields: Fields, vocab_size: int, eos: Collection[int], pad: Collection[int], tokenizer: TokenizerFacts | None
) -> int | None:
    if fields.raw.get("mask_token_id") is None:
        return None
    token_id = fields.integer("mask_token_id", minimum=0)
    if token_id >= vocab_size:
        raise fields.error("mask_token_id", f"an id below vocab_size ({vocab_size})")
    if token_id in eos:
        raise fields.error("mask_token_id", f"an id that does not end a text (end-of-text ids are {sorted(eos)})")
    if token_id in pad:
        raise fields.error("mask_token_id", f"an id that does not pad (padding ids are {sorted(pad)})")
    if tokenizer is None:
        return token_id
    if token_id in tokenizer.turns:
        raise fields.error("mask_token_id", "an id that the chat template does not use (this one marks a turn)")
    for name, named_id in tokenizer.special.items():
        if token_id == named_id and name != "mask_token":
            raise fields.error("mask_token_id", f"an id with no other use (this one is the tokenizer's {name})")
    return token_id


def _mask_token(fields: Fields, mask_token_id: int | None, tokenizer: TokenizerFacts | None) -> str | None:
    if mask_token_id is None or tokenizer is None:
        return None
    token = fields.raw.get("mask_token")
    if token is None:
        token = next((name for name, token_id in tokenizer.ids.items() if token_id == mask_token_id), None)
        if token is None:
            raise fields.error("mask_token_id", f"the id of a token ({tokenizer.length} ids, none is this one)")
    if not isinstance(token, str):
        raise fields.error("mask_token", "a string")
    if tokenizer.ids.get(token) != mask_token_id:
        raise fields.error("mask_token_id", f"the tokenizer's id of {token!r} ({tokenizer.ids.get(token)})")
    if tokenizer.is_ordinary(token, mask_token_id):
        raise fields.error("mask_token_id", f"the id of a spare token (text is made of this one, {token!r})")
    return token


def _parametrisation(fields: Fields) -> Parametrisation:
    default = Parametrisation()
    clean = fields.choice("clean_attention", ("block", "causal"), default.clean_attention)
    noisy = fields.choice("noisy_attention", ("bidirectional", "causal"), default.noisy_attention)
    return Parametrisation(
        logit_shift=fields.flag("logit_shift", default.logit_shift),
        clean_attention="causal" if clean == "causal" else "block",
        noisy_attention="causal" if noisy == "causal" else "bidirectional",
    )
