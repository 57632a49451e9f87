"""The study's tokenizer and its model before the first step."""

from __future__ import annotations

from pathlib import Path

import torch

import difflm
from study.parent import EOS, SPARE, learn_tokenizer, write_parent

TEXTS = [f"Sort these numbers in order: ['-{number}', '7'] now\nAnswer:" for number in range(40)]


def test_digits_and_signs_stand_apart_and_fixed_words_are_one_token() -> None:
    tokenizer = learn_tokenizer(TEXTS, 320)
    tokens = tokenizer.encode(TEXTS[12]).tokens
    assert [each for each in tokens if any(sign in each for sign in "0123456789")] == ["1", "2", "7"]
    assert len(tokens) <= 14
    for text in (TEXTS[0], "Grosse \u00c4pfel: 3\n\n 4,5"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(EOS) == 0
    assert tokenizer.token_to_id(SPARE) == 1


def test_the_model_is_a_function_of_its_seed_and_loads(tmp_path: Path) -> None:
    tokenizer = learn_tokenizer(TEXTS, 300)
    before = torch.get_rng_state()
    size = write_parent(tmp_path / "one", tokenizer, layers=1, hidden=64, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    write_parent(tmp_path / "two", tokenizer, layers=1, hidden=64, seed=3)
    name = "model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    loaded = difflm.load_model(tmp_path / "one")
    assert sum(each.numel() for each in loaded.model.parameters()) == size
    assert loaded.config.eos_token_ids == (0,)
    converted = difflm.convert(tmp_path / "one", tmp_path / "converted", mask_token=SPARE, block_size=4)
    assert converted is not None
    assert difflm.load_model(tmp_path / "converted").config.mask_token_id == 1
