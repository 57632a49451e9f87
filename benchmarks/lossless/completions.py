"""Text to learn drafting from: the parent's own completions of chat prompts, as the very ids that decoding sees.

A prompt is rendered in the chat template and decoded left to right by our engine, many at once. `completions.jsonl`
grows by a line an answer and an interrupted run goes on where it stopped; the files of a training run are written from
it at the end:

- train.jsonl, validation.jsonl: `input_ids` with `labels`, -100 on the prompt. Text would do for most answers, but
  not every answer encodes to the ids that were generated, and one that was cut at the limit would get an EOS that the
  parent did not write. `--form text` writes `prompt` and `completion` instead, without those answers.
- test.jsonl: held-out prompts with their kinds, for `general-measure`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lossless.equality import answer_of, ids_of
from benchmarks.lossless.prompts import Prompt, bucket
from benchmarks.lossless.records import Results, Row
from difflm import Engine, LoadedModel, SamplingParams
from difflm.checkpoints.folders import replace_text
from difflm.data.records import IGNORED_LABEL
from difflm.decode.events import Finished

GREEDY, SAMPLED = "greedy", "sampled"
SHARES = 1000
LEAST = 24
"""Tokens that an answer needs room for; a longer prompt is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is written.

    Attributes:
        row_length: tokens of a training row: prompt and answer fit into it.
        max_new_tokens: longest answer.
        sampled_share: part of the training prompts that are answered once more, drawn at `temperature`.
        temperature: of those.
        batch: requests that are decoded together.
    """

    row_length: int = 256
    max_new_tokens: int = 160
    sampled_share: float = 0.25
    temperature: float = 0.7
    batch: int = 48


def wanted(prompts: Sequence[Prompt], plan: Plan) -> list[tuple[Prompt, str]]:
    """Return prompts and how each is answered; test prompts are not."""
    answered = [prompt for prompt in prompts if prompt.side != "test"]
    chosen = [
        prompt
        for prompt in answered
        if prompt.side == "train" and bucket(f"sampled:{prompt.id}", SHARES) < plan.sampled_share * SHARES
    ]
    return [(prompt, GREEDY) for prompt in answered] + [(prompt, SAMPLED) for prompt in chosen]


@torch.inference_mode()
def complete(loaded: LoadedModel, prompts: Sequence[Prompt], plan: Plan, results: Results) -> None:
    """Add a row of kind "completion" for every prompt and mode that the results do not have yet.

    Args:
        loaded: the parent, converted or not.
        prompts: of all sides.
        plan: sizes.
        results: where the rows go.
    """
    done = results.done("completion", "id", "mode")
    left = [each for each in wanted(prompts, plan) if (each[0].id, each[1]) not in done]
    engine = Engine(loaded, max_requests=plan.batch)
    asked: dict[int, tuple[Prompt, str, list[int]]] = {}
    for prompt, mode in left:
        ids = ids_of(loaded, prompt.text)
        room = min(plan.max_new_tokens, plan.row_length - len(ids))
        if room < LEAST:
            continue
        drawing: dict[str, Any] = {}
        if mode == SAMPLED:
            drawing = {"temperature": plan.temperature, "seed": bucket(f"seed:{prompt.id}", 2**31)}
        params = SamplingParams(decoding="next_token", max_new_tokens=room, **drawing)
        asked[engine.submit(ids, params)] = (prompt, mode, ids)
    count = tokens = 0
    while count < len(asked):
        for event in engine.step():
            if not isinstance(event, Finished):
                continue
            prompt, mode, ids = asked[event.request_id]
            results.add(_row(loaded, prompt, mode, ids, answer_of(event.completion), event.completion.text or ""))
            count, tokens = count + 1, tokens + event.completion.num_tokens
            if count % 50 == 0 or count == len(asked):
                print(f"{count} of {len(asked)} answers, {tokens} tokens", flush=True)


def _row(loaded: LoadedModel, prompt: Prompt, mode: str, ids: list[int], answer: list[int], text: str) -> Row:
    about = {"id": prompt.id, "mode": mode, "of": prompt.kind, "side": prompt.side}
    return {
        "kind": "completion",
        **about,
        "prompt": loaded.decode(ids, skip_special_tokens=False),
        "completion": text,
        "prompt_ids": ids,
        "answer_ids": answer,
    }


def as_text(loaded: LoadedModel, row: Row) -> Row | None:
    """Return a completion as prompt and completion; None where training on them would see other ids."""
    ends = loaded.config.eos_token_ids
    same_prompt = loaded.encode(row["prompt"]) == row["prompt_ids"]
    same_answer = [*loaded.encode(row["completion"]), ends[0]] == row["answer_ids"]
    same = same_prompt and same_answer and row["completion"].strip()
    return {"prompt": row["prompt"], "completion": row["completion"]} if same else None


def as_ids(row: Row) -> Row:
    """Return a completion as ids and labels."""
    prompt, answer = row["prompt_ids"], row["answer_ids"]
    return {"input_ids": [*prompt, *answer], "labels": [*([IGNORED_LABEL] * len(prompt)), *answer]}


def write_data(loaded: LoadedModel, prompts: Sequence[Prompt], rows: Sequence[Row], folder: Path, form: str) -> str:
    """Write the files of a training run and return what is in them, one line.

    Args:
        loaded: the parent.
        prompts: of all sides.
        rows: of kind "completion".
        folder: where to.
        form: "ids" or "text".
    """
    said: list[str] = []
    for side in ("train", "validation"):
        # Validation is what greedy decoding will see.
        mine = [row for row in rows if row["side"] == side and (side == "train" or row["mode"] == GREEDY)]
        records = [as_ids(row) if form == "ids" else as_text(loaded, row) for row in mine]
        kept = [record for record in records if record is not None]
        replace_text(folder / f"{side}.jsonl", _lines(kept))
        tokens = sum(len(row["answer_ids"]) for row in mine)
        said.append(f"{side}: {len(kept)} of {len(mine)} answers ({tokens} tokens)")
    tests = [{"prompt": each.text, "kind": each.kind} for each in prompts if each.side == "test"]
    replace_text(folder / "test.jsonl", _lines(tests))
    return "; ".join([*said, f"test: {len(tests)} prompts"])


def _lines(records: Sequence[Row]) -> str:
    def each() -> Iterator[str]:
        for record in records:
            yield json.dumps(record) + "\n"

    return "".join(each())
