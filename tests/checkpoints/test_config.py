"""Facts of a checkpoint: diffusion fields, special ids, ids that must never be emitted."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.checkpoints.config import CheckpointConfig, TokenizerFacts, checkpoint_config
from difflm.errors import CheckpointError
from difflm.types import Parametrisation
from tests.checkpoints.tiny import LLAMA

IDS = {"<eos>": 0, "<mask>": 1, "a": 2, "b": 4}
FACTS = TokenizerFacts(ids=IDS, special={"eos_token": 0})


def read(facts: TokenizerFacts | None = None, generation: dict[str, Any] | None = None, **raw: Any) -> CheckpointConfig:
    return checkpoint_config(LLAMA | {"vocab_size": 8} | raw, generation or {}, facts, where="config.json")


def test_absent_fields_mean_the_papers_choice() -> None:
    config = read()
    assert config.parametrisation == Parametrisation()
    assert (config.logit_shift, config.clean_attention, config.noisy_attention) == (False, "block", "bidirectional")
    assert (config.mask_token_id, config.block_size, config.eos_token_ids) == (None, None, ())
    assert config.suppressed_token_ids == ()


def test_fields_are_read() -> None:
    config = read(mask_token_id=0, block_size=4, logit_shift=True, clean_attention="causal", noisy_attention="causal")
    assert (config.mask_token_id, config.block_size) == (0, 4)
    assert config.parametrisation == Parametrisation(
        logit_shift=True, clean_attention="causal", noisy_attention="causal"
    )
    assert config.suppressed_token_ids == (0,)


def test_ids_without_a_token_are_suppressed() -> None:
    config = read(FACTS, mask_token_id=1)
    assert config.tokenizer_length == 5
    assert config.mask_token == "<mask>"
    assert config.suppressed_token_ids == (1, 3, 5, 6, 7), "mask, the gap, and the padded rows"
    assert read(FACTS).suppressed_token_ids == (3, 5, 6, 7)


def test_eos_is_the_union_the_tokenizers_first() -> None:
    config = read(FACTS, {"eos_token_id": [4, 2]}, eos_token_id=2)
    assert config.eos_token_ids == (0, 4, 2)
    assert read(None, {"eos_token_id": 5}).eos_token_ids == (5,)


def test_bos_and_pad() -> None:
    facts = TokenizerFacts(ids=IDS, special={"bos_token": 2})
    config = read(facts, {"pad_token_id": 4}, bos_token_id=0, pad_token_id=2)
    assert (config.bos_token_id, config.pad_token_id) == (2, 4)
    assert read(pad_token_id=-1).pad_token_id is None, "old llama files mean none by -1"


@pytest.mark.parametrize(
    ("facts", "raw", "message"),
    [
        (TokenizerFacts(ids={"a": 8}, special={}), {}, "vocab_size is 8 but the tokenizer has ids up to 8"),
        (None, {"mask_token_id": 8}, "mask_token_id is 8; expected an id below vocab_size (8)"),
        (None, {"mask_token_id": -1}, "mask_token_id is -1"),
        (None, {"mask_token_id": 3, "eos_token_id": [2, 3]}, "mask_token_id is 3; expected an id that does not end"),
        (None, {"mask_token_id": 3, "pad_token_id": 3}, "mask_token_id is 3; expected an id that does not pad"),
        (FACTS, {"mask_token_id": 1, "mask_token": "a"}, "mask_token_id is 1; expected the tokenizer's id of 'a' (2)"),
        (FACTS, {"mask_token_id": 6}, "mask_token_id is 6; expected the id of a token (5 ids, none is this one)"),
        (
            TokenizerFacts(ids=IDS, special={"cls_token": 1}),
            {"mask_token_id": 1},
            "mask_token_id is 1; expected an id with no other use (this one is the tokenizer's cls_token)",
        ),
        (
            TokenizerFacts(ids=IDS, special={}, is_ordinary=lambda _, token_id: token_id == 2),
            {"mask_token_id": 2},
            "mask_token_id is 2; expected the id of a spare token (text is made of this one, 'a')",
        ),
        (None, {"eos_token_id": 8}, "eos_token_id is 8"),
        (None, {"pad_token_id": 9}, "pad_token_id is 9"),
        (FACTS, {"mask_token_id": 1, "mask_token": ["a"]}, "mask_token is ['a']; expected a string"),
        (None, {"block_size": 0}, "block_size is 0"),
        (None, {"logit_shift": 1}, "logit_shift is 1; expected true or false"),
        (None, {"clean_attention": "full"}, "clean_attention is 'full'; expected one of block, causal"),
        (None, {"noisy_attention": "block"}, "noisy_attention is 'block'"),
    ],
)
def test_contradictions_are_named(facts: TokenizerFacts | None, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(facts, **raw)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)
