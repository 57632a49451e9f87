"""What `difflm bench speed` compares: one model in each precision, and who decodes it how.

Speed does not depend on what the numbers of a model say, so the schedule of every block is forced and nothing needs
to be trained: a shape with random weights, or any checkpoint.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from difflm.bench.gpu_moe import FAMILIES
from difflm.bench.steps import random_model, shape_of
from difflm.checkpoints.architectures import ARCHITECTURES
from difflm.checkpoints.config import CheckpointConfig
from difflm.checkpoints.hf_generate import TransformersGenerator
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import Engine
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError
from difflm.models.attention import DenseAttention
from difflm.models.cache import CachePool, PackedAttention, Part
from difflm.models.quantised import check_weights, quantise

BLOCK = 32
"""Tokens of a block."""

PRECISIONS = ("float32", "bfloat16", "int8")
"""Types of the weights; "int8": 8-bit linear maps, everything else float32."""

TINY_LLADA2 = "tiny-llada2"

ENGINE, LOOP = "difflm, blocks", "released loop, no cache"
NEXT_TOKEN, TRANSFORMERS, LLAMA = "difflm, next token", "transformers, next token", "llama.cpp, next token"
AR_SYSTEMS = (NEXT_TOKEN, TRANSFORMERS, LLAMA)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured, loaded once per precision.

    Attributes:
        name: a published shape (random weights), "tiny-llada2" (a small mixture of experts), or a checkpoint's path.
    """

    name: str
    _kept: dict[str, LoadedModel] = field(default_factory=dict[str, LoadedModel])

    def refusal(self, precision: str) -> str | None:
        """Return why the model cannot be had in a precision; None: it can."""
        try:
            check_weights("int8" if precision == "int8" else "float", self.config.model, device="cpu", gate=None)
        except ConfigError as error:
            return str(error)
        return None

    @property
    def config(self) -> CheckpointConfig:
        """Return the facts of the model."""
        return self.loaded("float32").config

    @property
    def gguf(self) -> Path | None:
        """Return the GGUF file of the model, if it is one."""
        path = Path(self.name)
        return path if path.suffix == ".gguf" else None

    def loaded(self, precision: str) -> LoadedModel:
        """Return the model, with a mask id and block size for forced schedules.

        Raises:
            ConfigError: neither a shape nor a path.
            CheckpointError: a checkpoint that cannot be used.
        """
        if precision not in self._kept:
            self._kept[precision] = self._load(precision)
        return self._kept[precision]

    def _load(self, precision: str) -> LoadedModel:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        if Path(self.name).exists():
            loaded = load_model(self.name, dtype=dtype, weights="int8" if precision == "int8" else "float")
            mask = loaded.config.mask_token_id
            mask = loaded.config.model.vocab_size - 1 if mask is None else mask
            return replace(loaded, config=replace(loaded.config, mask_token_id=mask, block_size=BLOCK))
        config = FAMILIES["llada2_moe"] if self.name == TINY_LLADA2 else shape_of(self.name)
        raw = dict(ARCHITECTURES.get(self.name.lower(), {"model_type": "llada2_moe"}))
        model = random_model(config, device="cpu", dtype=dtype).eval()
        if precision == "int8":
            quantise(model)
        facts = CheckpointConfig(
            family=raw["model_type"], model=config, mask_token_id=config.vocab_size - 1, block_size=BLOCK, raw=raw
        )
        return LoadedModel(model, None, facts, Path(self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one decoding gave.

    Attributes:
        tokens: generated, all prompts together.
        forwards: of the model (a forward of many requests counts once); None where a system does not say.
        answers: generated ids per prompt.
        seconds: where a system measures itself; None: its caller does.
    """

    tokens: int
    forwards: int | None
    answers: tuple[tuple[int, ...], ...]
    seconds: float | None = None


Decode = Callable[[Sequence[Sequence[int]], int], Run]
"""Decodes prompts, all of the same length, to so many new tokens each."""


def random_prompts(config: CheckpointConfig, count: int, length: int) -> list[list[int]]:
    """Return prompts of random ordinary tokens, the same at every call."""
    vocabulary = config.model.vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary // 8, vocabulary - 1, (count, length), generator=generator).tolist()


def engine_decode(loaded: LoadedModel, forwards: int) -> Decode:
    """Return our engine with a forced schedule; all prompts are decoded together.

    Args:
        loaded: the model.
        forwards: denoising forwards per block; must divide it.
    """
    engine = Engine(loaded)

    def decode(prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
        forced = policy("native", fixed=BLOCK // forwards, block_length=BLOCK, gen_length=new_tokens)
        done = engine.generate(prompts, SamplingParams(policy=forced, ignore_eos=True))
        counts = done[0].forwards
        return Run(
            tokens=sum(each.num_tokens for each in done),
            forwards=counts.prefill + counts.denoise + counts.commit,
            answers=tuple(tuple(each.tokens) for each in done),
        )

    return decode


def next_token_decode(loaded: LoadedModel) -> Decode:
    """Return next-token decoding of the same weights in our engine."""
    engine = Engine(loaded)

    def decode(prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
        params = SamplingParams(decoding="next_token", max_new_tokens=new_tokens, ignore_eos=True)
        done = engine.generate(prompts, params)
        answers = tuple(tuple(each.tokens) for each in done)
        return Run(tokens=sum(map(len, answers)), forwards=done[0].forwards.denoise, answers=answers)

    return decode


def transformers_decode(loaded: LoadedModel) -> Decode:
    """Return transformers' `generate` on the same weights, one prompt after the other."""
    generate = TransformersGenerator(loaded, ends=())

    def decode(prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
        answers = tuple(tuple(generate(prompt, new_tokens)) for prompt in prompts)
        tokens = sum(map(len, answers))
        return Run(tokens=tokens, forwards=tokens, answers=answers)

    return decode


def loop_decode(loaded: LoadedModel, forwards: int) -> Decode:
    """Return the released code's loop: the whole prefix again in every forward, logits of every row, no cache.

    Source: the `generate` shipped with LLaDA2.0, at threshold 1 (the schedule alone), arg-max; MASK is never proposed.

    Args:
        loaded: the model.
        forwards: denoising forwards per block; must divide it.
    """

    @torch.inference_mode()
    def decode(prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
        answers = tuple(_loop(loaded, list(prompt), new_tokens, forwards) for prompt in prompts)
        blocks = sum(math.ceil((len(each) + new_tokens) / BLOCK) - len(each) // BLOCK for each in prompts)
        return Run(tokens=new_tokens * len(prompts), forwards=blocks * forwards, answers=answers)

    return decode


def _loop(loaded: LoadedModel, prompt: list[int], new_tokens: int, forwards: int) -> tuple[int, ...]:
    mask_id = loaded.config.mask_token_id
    assert mask_id is not None, "a subject has a mask id"
    blocks = math.ceil((len(prompt) + new_tokens) / BLOCK)
    token_N = torch.tensor(prompt + [mask_id] * (blocks * BLOCK - len(prompt)))
    block_N = torch.arange(len(token_N)) // BLOCK
    visible_NN = block_N[:, None] >= block_N[None, :]
    for block in range(len(prompt) // BLOCK, blocks):
        start, stop = block * BLOCK, (block + 1) * BLOCK
        attend = DenseAttention(visible_NN[None, None, :stop, :stop])
        for _ in range(forwards):
            hidden_ND = loaded.model(token_N[None, :stop], torch.arange(stop)[None], attend)[0]
            logits_BV = loaded.model.head(hidden_ND).float()[start:]
            logits_BV[:, mask_id] = -torch.inf
            best_B, token_B = logits_BV.softmax(-1).max(-1)
            masked_B = token_N[start:stop] == mask_id
            take = torch.where(masked_B, best_B, -1.0).topk(min(BLOCK // forwards, int(masked_B.sum()))).indices
            token_N[start + take] = token_B[take]
    return tuple(token_N[len(prompt) : len(prompt) + new_tokens].tolist())


class LlamaCpp:
    """llama.cpp in a process of its own, one prompt after the other; it stays loaded between calls.

    Args:
        python: interpreter that has the package llama-cpp-python.
        model: GGUF file.
        threads: of the process.

    Raises:
        ConfigError: it does not start.
    """

    def __init__(self, python: str, model: Path, *, threads: int) -> None:
        script = Path(__file__).with_name("llama_worker.py")
        command = [python, str(script), str(model), str(threads)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise ConfigError(f"--llama-python: {python} does not start ({error.strerror})") from None
        self.version = str(self._answer()["version"])

    def _answer(self) -> Mapping[str, object]:
        assert self.process.stdout is not None and self.process.stderr is not None  # noqa: PT018
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().strip().splitlines() or ["no message"]
            raise ConfigError(f"--llama-python: llama.cpp ended: {said[-1]}")
        return json.loads(line)

    def __call__(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
        """Return the answers; the worker measures the seconds, reading the prompts included."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
        self.process.stdin.flush()
        found = self._answer()
        answers = tuple(tuple(each) for each in found["answers"])  # type: ignore[attr-defined]
        tokens = sum(map(len, answers))
        return Run(tokens=tokens, forwards=tokens, answers=answers, seconds=float(found["seconds"]))  # type: ignore[arg-type]

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


class Probe:
    """One forward of the model over some sequences' rows, each behind its own cache: what a step cannot be faster than.

    Args:
        loaded: the model.
        sequences: rows of so many sequences in one forward.
        rows: of each sequence.
        cached: tokens of each sequence's cache.
        head: rows whose logits are computed, all sequences together.
    """

    def __init__(self, loaded: LoadedModel, *, sequences: int, rows: int, cached: int, head: int) -> None:
        self.model, self.head = loaded.model, head
        weight, span = self.model.embedding.weight, cached + rows
        pool = CachePool(self.model.config, device=weight.device, dtype=weight.dtype)
        pool.ensure(sequences * span, most=sequences * span)
        for stored in (pool.key, pool.value):
            stored.normal_(generator=torch.Generator(weight.device).manual_seed(0))
        place_N = torch.arange(cached, span, device=weight.device)
        entry_N = torch.cat([number * span + place_N for number in range(sequences)])
        parts = [Part(first=n * rows, count=rows, base=n * span, stop=span) for n in range(sequences)]
        self.attend = PackedAttention(pool, entry_N, parts)
        self.position_BN = place_N.repeat(sequences)[None]
        self.token_BN = torch.randint(
            0, self.model.config.vocab_size - 1, self.position_BN.shape, generator=torch.Generator().manual_seed(0)
        ).to(weight.device)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Run it; returns the logits."""
        hidden_ND = self.model(self.token_BN, self.position_BN, self.attend)[0]
        return self.model.head(hidden_ND[: self.head])


def timed(decode: Decode, prompts: Sequence[Sequence[int]], new_tokens: int, threads: int) -> tuple[float, Run]:
    """Return (seconds, result) of one decoding on so many CPU threads."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    run = decode(prompts, new_tokens)
    return (time.perf_counter() - started if run.seconds is None else run.seconds), run
