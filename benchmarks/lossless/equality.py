"""Whether drafting changes the text: verified against next-token decoding, and against transformers' greedy `generate`.

Prompts are decoded in batches, the same ones both ways. Where two answers differ, the row says by how much the two best
logits differ at the first differing place, from a forward of the whole text: rounding can only turn a near tie. (Of
drawn tokens the margin says less: there noise is added to the logits before the best is taken.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.lossless.prompts import Prompt
from benchmarks.lossless.records import Results, Row, share, table
from benchmarks.lossless.speed import FUSED
from difflm import Completion, Engine, LoadedModel, SamplingParams, load_model, logits, policy
from difflm.checkpoints.hf_generate import TransformersGenerator

GREEDY, SAMPLED, TRANSFORMERS = "greedy", "sampled", "transformers"
DRAWING = {"temperature": 0.8, "top_p": 0.95}
TIES = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.0625}
"""Dtype -> margin of the two best logits below which their order is a matter of rounding.

In the halves: four steps from one number to the next, of logits between 16 and 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How answers are made.

    Attributes:
        window, fused: settings of "verified"; it never falls back, so that drafts are verified all along.
        max_new_tokens: tokens of each answer.
        ignore_eos: go on behind the end of an answer, so that each has all tokens.
        batch: requests that are decoded together.
    """

    window: int = 8
    fused: str = "auto"
    max_new_tokens: int = 128
    ignore_eos: bool = True
    batch: int = 32


def parameters(check: Check, mode: str, *, drafted: bool, seed: int) -> SamplingParams:
    """Return how one request is decoded.

    Args:
        check: settings.
        mode: "greedy" or "sampled".
        drafted: with drafts, or a token per forward.
        seed: of the request.
    """
    drawing: dict[str, Any] = dict(DRAWING) if mode == SAMPLED else {}
    shared: dict[str, Any] = {"max_new_tokens": check.max_new_tokens, "ignore_eos": check.ignore_eos, "seed": seed}
    if not drafted:
        return SamplingParams(decoding="next_token", **shared, **drawing)
    drafting = policy("verified", window=check.window, fused=FUSED[check.fused], fallback=False, **drawing)
    return SamplingParams(policy=drafting, **shared)


def answer_of(done: Completion) -> list[int]:
    """Return the ids of an answer with what ended it."""
    return [*done.tokens, *([done.stopped_by] if isinstance(done.stopped_by, int) else [])]


def first_difference(one: Sequence[int], two: Sequence[int]) -> int | None:
    """Return the first place at which two answers differ; None: they are equal."""
    for place, (mine, other) in enumerate(zip(one, two, strict=False)):
        if mine != other:
            return place
    return None if len(one) == len(two) else min(len(one), len(two))


def compared(loaded: LoadedModel, prompt: Sequence[int], one: Sequence[int], two: Sequence[int]) -> Row:
    """Return whether two answers to a prompt are equal; if not, where and with which margin of the two best logits."""
    place = first_difference(one, two)
    if place is None:
        return {"same": True, "tokens": len(one)}
    row_V = logits(loaded, torch.tensor([[*prompt, *one[:place]]]), attention="causal")[0, -1]
    row_V[list(loaded.config.suppressed_token_ids)] = -torch.inf
    best = row_V.topk(2).values.tolist()
    return {"same": False, "tokens": len(one), "first": place, "margin": best[0] - best[1]}


@torch.inference_mode()
def run(loaded: LoadedModel, prompts: Sequence[Prompt], check: Check, results: Results, modes: Sequence[str]) -> None:
    """Add a row of kind "answer" for every prompt and mode that the results do not have yet.

    Args:
        loaded: base with an adapter that drafts.
        prompts: what is answered.
        check: settings.
        results: where the rows go.
        modes: "greedy", "sampled", "transformers" (greedy).
    """
    encoded = {prompt.id: ids_of(loaded, prompt.text) for prompt in prompts}
    engine = Engine(loaded, max_requests=check.batch)
    for mode in (each for each in modes if each != TRANSFORMERS):
        done = results.done("answer", "mode", "prompt")
        left = [each for each in enumerate(prompts) if (mode, each[1].id) not in done]
        for first in range(0, len(left), check.batch):
            chunk = left[first : first + check.batch]
            plain, drafted = (
                engine.complete(
                    [(encoded[each.id], parameters(check, mode, drafted=way, seed=seed)) for seed, each in chunk]
                )
                for way in (False, True)
            )
            for (_, each), one, two in zip(chunk, plain, drafted, strict=True):
                row = compared(loaded, encoded[each.id], answer_of(one), answer_of(two))
                assert two.drafts is not None, "it drafted"
                counts = {"cycles": two.drafts.cycles, "drafted": two.drafts.drafted, "accepted": two.drafts.accepted}
                answer = answer_of(two) if mode == GREEDY else []
                results.add({"kind": "answer", "mode": mode, "prompt": each.id, **row, **counts, "answer": answer})
            print(f"{mode}: {min(first + check.batch, len(left))} of {len(left)}", flush=True)
    if TRANSFORMERS in modes:
        _against_transformers(loaded, prompts, encoded, check, results)


def ids_of(loaded: LoadedModel, text: str) -> list[int]:
    """Return the ids of a user's turn; of the text itself where the checkpoint has no chat template."""
    if loaded.require_tokenizer().chat_template:
        return loaded.encode_chat([{"role": "user", "content": text}])
    return loaded.encode(text)


def _against_transformers(
    loaded: LoadedModel, prompts: Sequence[Prompt], encoded: dict[str, list[int]], check: Check, results: Results
) -> None:
    """Compare the verified greedy answers with those of transformers, one prompt at a time."""
    answers = {row["prompt"]: row["answer"] for row in results.of("answer") if row["mode"] == GREEDY}
    done = results.done("answer", "mode", "prompt")
    left = [each for each in prompts if (TRANSFORMERS, each.id) not in done and each.id in answers]
    if not left:
        return
    base = load_model(loaded.path, dtype=loaded.model.embedding.weight.dtype)
    generate = TransformersGenerator(base, ends=() if check.ignore_eos else base.config.eos_token_ids)
    for number, each in enumerate(left, start=1):
        theirs = generate(encoded[each.id], check.max_new_tokens)
        row = compared(loaded, encoded[each.id], theirs, answers[each.id])
        results.add({"kind": "answer", "mode": TRANSFORMERS, "prompt": each.id, **row})
        if number % 10 == 0 or number == len(left):
            print(f"{TRANSFORMERS}: {number} of {len(left)}", flush=True)


def summary(rows: Sequence[Row]) -> str:
    """Return a line per mode, and one per difference."""
    found = [row for row in rows if row.get("kind") == "answer"]
    tie = TIES[next((row["dtype"] for row in rows if row.get("kind") == "subject"), "float32")]
    lines: list[list[Any]] = []
    for mode in (GREEDY, SAMPLED, TRANSFORMERS):
        mine = [row for row in found if row["mode"] == mode]
        if not mine:
            continue
        differ = [row for row in mine if not row["same"]]
        away = sum(row["margin"] >= tie for row in differ)
        cycles, drafted = (sum(row.get(name, 0) for row in mine) for name in ("cycles", "drafted"))
        tokens, accepted = sum(row["tokens"] for row in mine), sum(row.get("accepted", 0) for row in mine)
        largest = max((row["margin"] for row in differ), default=None)
        line = [mode, len(mine), tokens, share(len(mine) - len(differ), len(mine)), away]
        line.append(largest if largest is None else f"{largest:.2e}")
        lines.append([*line, tokens / cycles if cycles else None, share(accepted, drafted) if drafted else None])
    head = ["against", "prompts", "tokens", "equal", f"different away from ties (margin >= {tie:g})", "largest margin"]
    parts = [table([*head, "tokens per cycle", "drafts accepted"], lines)]
    differences = [
        [row["mode"], row["prompt"], row["first"], f"{row['margin']:.2e}"] for row in found if not row["same"]
    ]
    if differences:
        parts.append(
            table(["against", "prompt", "first differing token", "margin of the two best logits"], differences)
        )
    return "\n\n".join(parts)
