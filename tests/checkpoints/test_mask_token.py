"""The mask token's rules: id, row and tokenizer entry; no constant ids, nothing that already has a meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.config import TokenizerFacts
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.mask_token import (
    MaskChoice,
    MaskedParameters,
    choose_mask_token,
    mean_row,
    require_spare,
    reserved_ids,
    with_row,
    write_mask_token,
)
from difflm.checkpoints.tokens import load_tokenizer, vocabulary
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import make_tokenizer

FACTS = TokenizerFacts(ids={"a": 0, "<eos>": 1, "<spare>": 2}, special={"eos_token": 1})


def choose(facts: TokenizerFacts | None = FACTS, **options: Any) -> MaskChoice:
    values = {"vocab_size": 3, "mask_token": None, "mask_token_id": None, "reserved": {1: "an EOS"}, "where": "m"}
    return choose_mask_token(facts, **(values | options))


def test_the_next_id_after_the_tokenizers_last() -> None:
    grown = choose()
    assert (grown.token, grown.token_id, grown.vocab_size, grown.adds_row) == ("<|mask|>", 3, 4, True)
    padded = choose(vocab_size=8)
    assert (padded.token_id, padded.vocab_size, padded.adds_row) == (3, 8, False)
    assert padded.known_ids == 3, "padding rows are no part of the mean"
    gap = choose(TokenizerFacts(ids={"a": 0, "b": 9}, special={}), vocab_size=10)
    assert (gap.token_id, gap.adds_row) == (10, True)


def test_a_spare_token_is_reused_only_by_name() -> None:
    named = choose(mask_token="<spare>")
    assert (named.token, named.token_id, named.vocab_size, named.adds_row) == ("<spare>", 2, 3, False)
    already = TokenizerFacts(ids={**FACTS.ids, "<|mask|>": 3}, special={})
    assert choose(already, mask_token="<|mask|>", vocab_size=4).token_id == 3
    with pytest.raises(CheckpointError, match=r"already has '<\|mask\|>' \(id 3\); name it"):
        choose(already, vocab_size=4)
    assert choose(mask_token="<|mask|>") == choose(), "the default name, spelled out"


def test_without_tokenizer() -> None:
    grown = choose(None)
    assert (grown.token, grown.token_id, grown.vocab_size, grown.adds_row) == (None, 3, 4, True)
    assert choose(None, mask_token_id=2).adds_row is False
    assert choose(None, mask_token_id=3).adds_row is True


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        (FACTS, {"mask_token": "<eos>"}, "mask token '<eos>' has id 1, which is an EOS"),
        (
            FACTS,
            {"mask_token": "<none>"},
            "'<none>' is not a token of the tokenizer; name a spare one (such as <spare>)",
        ),
        (FACTS, {"mask_token_id": 2}, "mask_token_id is 2 but there is a tokenizer"),
        (None, {"mask_token": "<spare>"}, "mask_token is '<spare>' but the checkpoint has no tokenizer"),
        (None, {"mask_token_id": 4}, "mask_token_id is 4; expected 0 to 3"),
        (None, {"mask_token_id": -1}, "mask_token_id is -1"),
        (None, {"mask_token_id": 1}, "mask token 1 has id 1, which is an EOS"),
        (FACTS, {"reserved": {3: "the pad_token_id"}, "vocab_size": 5}, "has id 3, which is the pad_token_id"),
    ],
)
def test_impossible_choices_are_named(facts: TokenizerFacts | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        choose(facts, **options)
    assert str(caught.value).startswith("m: ")
    assert message in str(caught.value)


def test_reserved_ids_say_what_they_are() -> None:
    found = reserved_ids({"unk_token": 5}, [1, 2], {"pad_token_id": (7,), "bos_token_id": ()}, [3])
    assert set(found) == {1, 2, 3, 5, 7}
    assert found[2] == "an end-of-text (EOS) token"
    assert found[5] == "the tokenizer's unk_token"


def test_ordinary_text_is_not_spare() -> None:
    tokenizer = make_tokenizer()
    ids = vocabulary(tokenizer)

    def check(token: str) -> None:
        facts = TokenizerFacts(ids=ids, special={})
        choice = choose_mask_token(
            facts, vocab_size=len(ids), mask_token=token, mask_token_id=None, reserved={}, where="m"
        )
        require_spare(tokenizer, choice, "m")

    check("<spare_0>")
    with pytest.raises(CheckpointError, match=r"mask_token 'the' \(id \d+\) is ordinary text"):
        check("the")


def test_mean_row_is_that_of_the_known_ids() -> None:
    matrix = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = sum(matrix[i].double() for i in range(6)) / 6
    assert torch.equal(mean_row(matrix, 6), expected.to(torch.bfloat16))  # type: ignore[union-attr]
    assert not torch.equal(mean_row(matrix, 6), mean_row(matrix, 9))


def test_with_row_copies() -> None:
    matrix, row = torch.zeros(3, 2), torch.ones(2)
    assert torch.equal(with_row(matrix, 1, row), torch.tensor([[0.0, 0], [1, 1], [0, 0]]))
    assert torch.equal(with_row(matrix, 3, row)[3], row)
    assert torch.equal(matrix, torch.zeros(3, 2))


@pytest.mark.parametrize("init", ["mean", "keep"])
@pytest.mark.parametrize("adds_row", [True, False])
def test_only_the_mask_row_changes(init: Any, adds_row: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    parent = {name: torch.randn(6, 3, generator=generator) for name in ("embedding.weight", "head.weight", "x")}
    token_id = 6 if adds_row else 4
    choice = MaskChoice(token=None, token_id=token_id, vocab_size=7 if adds_row else 6, adds_row=adds_row, known_ids=5)
    made = MaskedParameters(parent, choice, init)
    assert list(made) == list(parent)
    assert made["x"] is parent["x"]
    others = [row for row in range(6) if row != token_id]
    for name in ("embedding.weight", "head.weight"):
        assert made[name].shape[0] == choice.vocab_size
        assert torch.equal(made[name][others], parent[name][others])
    if init == "mean" or adds_row:
        assert torch.equal(made["embedding.weight"][token_id], mean_row(parent["embedding.weight"], 5))
    else:
        assert torch.equal(made["embedding.weight"], parent["embedding.weight"])
    if adds_row:
        assert torch.equal(made["head.weight"][token_id], mean_row(parent["head.weight"], 5))
    else:
        assert torch.equal(made["head.weight"], parent["head.weight"]), "an existing row of the head is kept"


@pytest.mark.parametrize("token", ["<|mask|>", "<spare_1>"])
def test_the_tokenizer_file_gets_a_special_token(token: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    ids = vocabulary(tokenizer)
    token_id = ids.get(token, len(ids))
    write_mask_token(
        tmp_path, MaskChoice(token=token, token_id=token_id, vocab_size=999, adds_row=False, known_ids=len(ids))
    )
    written: Any = load_tokenizer(tmp_path)
    assert vocabulary(written) == ids | {token: token_id}
    assert (written.mask_token, written.mask_token_id) == (token, token_id)
    assert written.added_tokens_decoder[token_id].special
    entries = [each for each in read_json(tmp_path / "tokenizer.json")["added_tokens"] if each["id"] == token_id]
    assert [(each["content"], each["special"]) for each in entries] == [(token, True)], "for other readers of the file"
    assert token in written.all_special_tokens
    assert written.encode(f"the{token}fox") == [*tokenizer.encode("the"), token_id, *tokenizer.encode("fox")]
    assert written.chat_template == tokenizer.chat_template


def test_files_of_transformers_4_are_kept_consistent(tmp_path: Path) -> None:
    """added_tokens_decoder and special_tokens_map.json, which transformers 4 writes, name the token too."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = read_json(tmp_path / "tokenizer_config.json") | {"tokenizer_class": "PreTrainedTokenizerFast"}
    added = {str(i): {"content": str(t), "special": True} for i, t in tokenizer.added_tokens_decoder.items()}
    write_json(tmp_path / "tokenizer_config.json", config | {"added_tokens_decoder": added, "mask_token": None})
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": "<|im_end|>"})
    token_id = len(vocabulary(tokenizer))
    write_mask_token(
        tmp_path, MaskChoice(token="<|mask|>", token_id=token_id, vocab_size=0, adds_row=True, known_ids=token_id)
    )
    config = read_json(tmp_path / "tokenizer_config.json")
    assert config["mask_token"] == "<|mask|>"
    assert config["added_tokens_decoder"][str(token_id)]["content"] == "<|mask|>"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read_json(tmp_path / "special_tokens_map.json") == {"eos_token": "<|im_end|>", "mask_token": "<|mask|>"}
    written: Any = load_tokenizer(tmp_path)
    assert written.mask_token_id == token_id


def test_a_tokenizer_without_tokenizer_json(tmp_path: Path) -> None:
    choice = MaskChoice(token="<|mask|>", token_id=1, vocab_size=2, adds_row=False, known_ids=1)
    with pytest.raises(CheckpointError, match=r"only tokenizers with a tokenizer\.json are supported"):
        write_mask_token(tmp_path, choice)
