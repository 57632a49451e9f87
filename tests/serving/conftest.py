"""A tiny model that writes words, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import LoadedModel, load_model
from tests.serving.servers import Running, serving
from tests.standins import word_tokenizer, write_parent

TEXTS = ["in the beginning was a word and the word was light", "naïve café \U0001fae0 \u9f9c \U0001f600"] * 4
TURNS = ("<|user|>", "<|assistant|>", "<|system|>")


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model of 300 tokens with a chat template, block size 8, context 512."""
    folder = tmp_path_factory.mktemp("serving")
    parent = write_parent(folder / "parent", tokenizer=word_tokenizer(TEXTS, special=TURNS, vocabulary=300))
    convert(parent, folder / "tiny", block_size=8)
    return load_model(folder / "tiny")


@pytest.fixture(scope="session")
def server(loaded: LoadedModel) -> Iterator[Running]:
    """A server of it; prompts are always read, so that forwards can be compared."""
    with serving(loaded, prefix_caching=False) as running:
        yield running
