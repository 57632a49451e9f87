"""Systems of the speed benchmark: the loop without a cache answers as the engine does; llama.cpp is asked rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from difflm.bench.speed_systems import (
    BLOCK,
    TINY_LLADA2,
    LlamaCpp,
    Probe,
    Subject,
    engine_decode,
    loop_decode,
    next_token_decode,
    random_prompts,
    timed,
    transformers_decode,
)
from difflm.errors import ConfigError
from difflm.models.quantised import QuantisedLinear
from tests.products import needs_products
from tests.standins import write_parent

FAKE = """
import itertools
__version__ = "0.0-fake"
class Llama:
    def __init__(self, model_path, n_ctx, n_threads, **rest):
        if "absent" in model_path:
            raise ValueError("Model path does not exist: " + model_path)
        self.fresh, self.threads = True, n_threads
    def reset(self):
        self.fresh = True
    def generate(self, tokens, temp):
        assert self.fresh and temp == 0.0
        self.fresh = False
        return (sum(tokens) + step + self.threads for step in itertools.count())
"""


@pytest.fixture
def parent(tmp_path: Path) -> Subject:
    return Subject(str(write_parent(tmp_path / "parent")))


@pytest.mark.parametrize("forwards", [1, 8, 32])
@pytest.mark.parametrize("length", [32, 40])
def test_the_loop_answers_as_the_engine(parent: Subject, forwards: int, length: int) -> None:
    new_tokens = 96 - length  # to the end of a block: the engine decides nothing behind the last token
    loaded, prompts = parent.loaded("float32"), random_prompts(parent.config, 2, length)
    slow, fast = (each(loaded, forwards)(prompts, new_tokens) for each in (loop_decode, engine_decode))
    assert slow.answers == fast.answers
    assert slow.tokens == fast.tokens == 2 * new_tokens
    if length % BLOCK == 0:
        # The engine: both requests in one forward, and one more that reads the prompts.
        assert (slow.forwards, fast.forwards) == (4 * forwards, 1 + 2 * forwards)


def test_next_token_systems_agree_and_count(parent: Subject) -> None:
    loaded, prompts = parent.loaded("float32"), random_prompts(parent.config, 1, 20)
    ours, theirs = (each(loaded)(prompts, 10) for each in (next_token_decode, transformers_decode))
    assert ours.answers == theirs.answers
    assert (ours.tokens, ours.forwards) == (theirs.tokens, theirs.forwards) == (10, 10)


@needs_products
def test_precisions_of_a_shape_and_of_a_checkpoint(parent: Subject) -> None:
    narrow = parent.loaded("int8")
    assert isinstance(narrow.model.head, QuantisedLinear)
    assert parent.loaded("int8") is narrow
    assert parent.loaded("bfloat16").model.embedding.weight.dtype == torch.bfloat16
    assert parent.refusal("int8") is None
    tiny = Subject(TINY_LLADA2)
    assert tiny.config.family == "llada2_moe"
    assert tiny.config.block_size == BLOCK
    assert "experts" in (tiny.refusal("int8") or "")
    assert tiny.gguf is None
    with pytest.raises(ConfigError, match="neither a path nor one of"):
        Subject("no-such-shape").loaded("float32")


def test_a_probe_is_the_engine_s_forward_and_its_rows_see_their_own_cache() -> None:
    loaded = Subject(TINY_LLADA2).loaded("float32")
    together = Probe(loaded, sequences=3, rows=4, cached=8, head=12)
    assert together().shape == (12, loaded.config.model.vocab_size)
    assert Probe(loaded, sequences=3, rows=4, cached=8, head=5)().shape[0] == 5
    before = together()
    span = 12
    together.attend.pool.key[:, :, span : 2 * span] += 1.0
    apart = (together() - before).abs().amax(-1) > 1e-6
    assert apart.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_llama_cpp_is_asked_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = LlamaCpp(sys.executable, Path("model.gguf"), threads=2)
    try:
        assert worker.version == "0.0-fake"
        seconds, run = timed(worker, [[1, 2], [3]], 3, 1)
        assert run.answers == ((5, 6, 7), (5, 6, 7))
        assert (run.tokens, run.forwards) == (6, 6)
        assert seconds == run.seconds
    finally:
        worker.close()
    with pytest.raises(ConfigError, match=r"llama.cpp ended: ValueError: Model path does not exist: absent.gguf"):
        LlamaCpp(sys.executable, Path("absent.gguf"), threads=1)
    with pytest.raises(ConfigError, match="no-such-python does not start"):
        LlamaCpp("no-such-python", Path("model.gguf"), threads=1)


def test_without_the_package_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError(\"No module named 'llama_cpp'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match="No module named 'llama_cpp'"):
        LlamaCpp(sys.executable, Path("model.gguf"), threads=1)


def test_prompts_are_ordinary_tokens() -> None:
    config = Subject(TINY_LLADA2).config
    prompts = random_prompts(config, 3, 50)
    assert prompts == random_prompts(config, 3, 50)
    assert max(map(max, prompts)) < config.model.vocab_size - 1
