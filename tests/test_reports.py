"""Public bug reports of other projects as tests: docs/reports.md maps each to a test that exists, or to a reason.

The reports that no mirrored test covers are covered here, named after their number in the table.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from difflm.chat.local import LocalBackend
from difflm.chat.session import Asked, Session
from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.checkpoints.merge import average_checkpoints
from difflm.data import PackedRows, TokenDocument, pack
from difflm.decode.engine import Engine, generate, stream
from difflm.decode.events import Committed, Completion, Denoised, Edited, Event, Finished, Forwards
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.diffusion.noise import Bernoulli, RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken
from difflm.display.denoising import DenoisingView, canvas_of
from difflm.errors import ConfigError, DataError
from difflm.models.attention import AttentionChoice
from difflm.recipes import recipe_names, recipe_path
from difflm.runs import train
from difflm.scoring import forward_hidden, logits, score, score_input
from difflm.training.config_io import as_config, read_tree
from difflm.training.rows import load_rows
from difflm.training.trainer import Trainer
from difflm.types import PADDING, Batch, Layout
from tests.checkpoints.tiny import ling_folder, make_tokenizer
from tests.decode.tiny import MASK, certain, scripted, tiny
from tests.display.consoles import output, terminal
from tests.rows import batch_of
from tests.standins import byte_tokenizer, word_tokenizer, write_parent, write_texts

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in PAGE.splitlines() if line[:2] == "| "
]
TABLE = {int(cells[0]): cells for cells in ROWS if cells[0].isdecimal()}


def functions_of(place: str) -> set[str]:
    tree = ast.parse((ROOT / place).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_report_has_its_row() -> None:
    assert list(TABLE) == list(range(1, 65))
    assert {len(cells) for cells in TABLE.values()} == {4}


@pytest.mark.parametrize("number", sorted(TABLE))
def test_a_report_names_tests_that_exist_or_a_reason(number: int) -> None:
    answer = TABLE[number][3]
    nodes = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", answer)
    assert nodes or re.match(r"cannot occur: \w", answer), f"report {number} has neither a test nor a reason"
    for place, name in nodes:
        assert name.startswith("test_"), name
        assert (ROOT / place).is_file(), place
        assert name in functions_of(place), f"{place} has no {name}"


def take(batch: Batch, row: int, length: int) -> Batch:
    """Return one row, cut to a length."""
    return Batch(
        token_BL=batch.token_BL[row : row + 1, :length],
        document_BL=batch.document_BL[row : row + 1, :length],
        position_BL=batch.position_BL[row : row + 1, :length],
        trainable_BL=batch.trainable_BL[row : row + 1, :length],
        row_B=batch.row_B[row : row + 1],
        epoch_B=batch.epoch_B[row : row + 1],
    )


def model_of(*, shift: bool = False) -> LoadedModel:
    loaded = tiny(logit_shift=shift, clean="causal" if shift else "block")
    loaded.model.float()
    return loaded


def tree_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a tiny run on folder/model and folder/texts.jsonl (written unless it is there)."""
    texts = folder / "texts.jsonl"
    if not texts.exists():
        write_texts(texts)
    tree: dict[str, Any] = {
        "model": str(folder / "model"),
        "output": str(folder / "run"),
        "data": {"paths": [str(texts)], "row_length": 64, "validation_fraction": 0, "shuffle": False},
        "curriculum": [{"block_size": 4, "tokens": 100}],
        "threads": 1,
    }
    return tree | changes


@pytest.mark.parametrize("shift", [False, True])
def test_report_01_a_padded_row_in_a_batch_is_what_it_is_alone(shift: bool) -> None:
    loaded = model_of(shift=shift)
    batch = batch_of([[9], [20]], row_length=20)
    clean, document = batch.token_BL, batch.document_BL
    chance = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.where((chance < 0.5) & batch.trainable_BL, MASK, clean)
    together = score(loaded, clean, noisy, block_size=4, document_BL=document)
    for row, length in ((0, 9), (1, 20)):
        alone = score(loaded, clean[row : row + 1, :length], noisy[row : row + 1, :length], block_size=4)
        assert torch.allclose(together.nll_BL[row, :length], alone.nll_BL[0], atol=1e-5)
        assert int((alone.nll_BL > 0).sum()) > 2
    assert not together.nll_BL[0, 9:].any()
    # What stands under the padding is invisible: other tokens there change nothing.
    scribbled, dirty = (torch.where(document == PADDING, 5, each) for each in (clean, noisy))
    again = score(loaded, scribbled, dirty, block_size=4, document_BL=document)
    assert torch.equal(together.nll_BL, again.nll_BL)


def test_report_02_every_recipe_saves_what_it_trains(tmp_path: Path) -> None:
    for name in recipe_names():
        path = recipe_path(name)
        assert path is not None
        assert read_tree(path)["checkpoint"]["every_tokens"] > 0, name
    # And without any interval the end of the run is saved.
    convert(write_parent(tmp_path / "parent"), tmp_path / "model", block_size=4)
    last = train(tree_of(tmp_path, checkpoint={"every_tokens": 0}))
    assert load_model(last).config.mask_token_id is not None


@pytest.mark.parametrize("backend", ["split", "portable", "flex", "dense"])
def test_report_05_a_token_behind_the_mask_never_moves_a_logit(backend: AttentionChoice) -> None:
    loaded = model_of()
    token = torch.randint(0, MASK, (1, 24), generator=torch.Generator().manual_seed(0))
    document = torch.tensor([[0] * 16 + [1] * 8])
    position = torch.cat([torch.arange(16), torch.arange(8)])[None]
    layout = Layout(document_BL=document, block_BL=position // 4)

    def forward(changed: int | None) -> torch.Tensor:
        row = token.clone()
        if changed is not None:
            row[0, changed] = (row[0, changed] + 1) % MASK
        with torch.no_grad():
            return forward_hidden(loaded.model, row, position, layout, backend=backend)[0]

    before = forward(None)
    for changed in (1, 6, 15, 17):
        moved = (forward(changed) - before).abs().amax(dim=1) > 0
        block, last = changed // 4 * 4, 16 if changed < 16 else 24
        assert moved[block:last].all(), "what may be seen is seen"
        assert not moved[:block].any()
        assert not moved[last:].any()


def test_report_07_the_loss_does_not_depend_on_the_padding() -> None:
    loaded = model_of()
    objective = BlockDiffusion(block_size=4)
    values = []
    for length in (12, 13, 40):
        batch = take(batch_of([[12]], row_length=40), 0, length)
        inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
        # The order of a row's random numbers follows its length: masks are compared where none is drawn.
        full = BlockDiffusion(block_size=1).prepare(batch, mask_id=MASK, noise=RowNoise(0))
        (scores,) = score_input(loaded.model, full)
        values.append(float(objective.loss((scores,), full)[0].detach()) / float(full.terms[0].count))
        assert float(inputs.terms[0].count) == 12
        assert int(inputs.masked_BN[:, 12:length].sum()) == 0
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("objective", [BlockDiffusion(block_size=4), NextToken()], ids=["diffusion", "ar"])
def test_report_08_padding_is_a_place_not_a_token(objective: BlockDiffusion | NextToken) -> None:
    """An id that also serves as padding or EOS, inside a prompt and inside an answer, is a token like any other."""
    loaded = model_of()
    pad = 0
    batch = batch_of([[14]], row_length=20, prompts=[[6]])
    token = torch.where(batch.token_BL == pad, 1, batch.token_BL)
    inside = token.clone()
    inside[0, [3, 9]] = pad
    inside[0, 14:] = pad
    plain = objective.prepare(dataclasses.replace(batch, token_BL=token), mask_id=MASK, noise=RowNoise(1))
    found = objective.prepare(dataclasses.replace(batch, token_BL=inside), mask_id=MASK, noise=RowNoise(1))
    for one, other in zip(plain.terms, found.terms, strict=True):
        assert torch.equal(one.row_M, other.row_M)
        assert float(one.count) == float(other.count) > 0
    assert torch.equal(plain.masked_BN, found.masked_BN)
    assert 9 in found.terms[0].place_M or isinstance(objective, BlockDiffusion)
    # And it is seen: the prompt's pad id moves the answer's logits.
    found_rows = logits(loaded, torch.where(torch.arange(14) == 3, pad, token[:, :14]), attention="block", block_size=4)
    plain_rows = logits(loaded, token[:, :14], attention="block", block_size=4)
    assert bool(((found_rows - plain_rows)[0, 8:].abs().amax(dim=1) > 0).all())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_size", [3, 4, 8])
def test_report_09_no_mask_is_left_whatever_the_steps_and_blocks(shift: bool, block_size: int) -> None:
    loaded = model_of(shift=shift)
    for new_tokens in (1, block_size - 1, block_size, 2 * block_size + 1):
        for threshold, least in ((0.0, 1), (1.0, 1), (0.5, block_size)):
            params = SamplingParams(
                max_new_tokens=new_tokens,
                block_size=block_size,
                threshold=threshold,
                min_accept=least,
                ignore_eos=True,
            )
            (completion,) = generate(loaded, [[1, 2, 3]], params)
            assert len(completion.tokens) == new_tokens
            assert MASK not in completion.tokens


STRICT = [
    {"threshold": 1.0, "block_size": 4},
    {"policy": policy("hf21", block_length=4, threshold=1.0, editing_threshold=1.0)},
    {"policy": policy("sglang", block_size=4, threshold=1.0)},
    {"policy": policy("dinfer", block_length=4, threshold=1.0)},
]


@pytest.mark.parametrize("settings", STRICT, ids=str)
def test_report_10_forced_progress_decides_exactly_one_the_most_confident(settings: dict[str, Any]) -> None:
    sure = {4: 0.6, 5: 0.9, 6: 0.7, 7: 0.8}
    loaded = scripted(lambda place: certain(place % 6, sure[place % 4 + 4]), block_size=4)
    events = list(stream(loaded, [1, 2, 3, 4], SamplingParams(max_new_tokens=8, **settings)))
    decided = [event.positions for event in events if isinstance(event, Denoised) and event.num_masked]
    assert decided == [(5,), (7,), (6,), (4,), (9,), (11,), (10,), (8,)]


@pytest.mark.parametrize("steps", range(9))
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_report_11_an_aborted_request_never_runs_on_in_whatever_state(steps: int, victim: int) -> None:
    """Running, in the middle of a block, or waiting: it is gone, its room is free, and the others do not notice."""
    loaded, params = tiny(block_size=4), SamplingParams(max_new_tokens=10, threshold=0.5)
    prompts = [[1], [2, 3, 4, 5, 6], [7, 8]]
    expected = {number: generate(loaded, [prompt], params)[0].tokens for number, prompt in enumerate(prompts)}
    engine = Engine(loaded, max_requests=2)
    numbers = [engine.submit(prompt, params) for prompt in prompts]
    events = [event for _ in range(steps) for event in engine.step()]
    engine.cancel(numbers[victim])
    after: list[Event] = []
    while told := engine.step():
        after += told
    assert all(event.request_id != numbers[victim] for event in after)
    done = {event.request_id: event.completion.tokens for event in [*events, *after] if isinstance(event, Finished)}
    for number, request in enumerate(numbers):
        assert done.get(request, expected[number]) == expected[number]
        assert request in done or number == victim
    assert not engine.scheduler.running
    assert engine.generate([prompts[victim]], params)[0].tokens == expected[victim]


@pytest.mark.parametrize("edits", [False, True])
def test_report_14_decided_tokens_stay_unless_editing_is_on_and_committed_ones_always(edits: bool) -> None:
    editing = {"editing_threshold": 0.0} if edits else {}
    every: list[dict[str, Any]] = [
        {"threshold": 0.3, "block_size": 4, **editing},
        {"policy": policy("hf21", block_length=4, threshold=0.3, editing_threshold=0.0 if edits else 1.0)},
        {"policy": policy("sglang", threshold=0.3, **({"edit_threshold": 0.0} if edits else {}))},
    ]
    if not edits:
        every.append({"policy": policy("hf20-greedy", block_length=4)})
        every.append({"policy": policy("dinfer", parallel_decoding="hierarchy")})
    changed = 0
    for settings in every:
        for seed in range(4):
            written: dict[int, int] = {}
            final = 0
            for event in stream(tiny(seed, block_size=4), [1, 2, 3], SamplingParams(max_new_tokens=11, **settings)):
                if isinstance(event, Denoised):
                    assert not set(event.positions) & {place for place, token in written.items() if token != MASK}
                if isinstance(event, Edited):
                    assert edits
                    changed += len(event.positions)
                if isinstance(event, Denoised | Edited):
                    assert all(place >= final for place in event.positions)
                    written |= dict(zip(event.positions, event.tokens, strict=True))
                elif isinstance(event, Committed):
                    final = (event.block + 1) * 4
    assert bool(changed) == edits


TURN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, and here is why."},
]


def chatting(folder: Path, template: str | None = TURN, *, bos: bool = False) -> LoadedModel:
    """Return a converted byte model with a chat template; with `bos` its tokenizer puts <s> before every text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["<s>", "<user>"])
    if bos:
        own = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", own)])
    parent = write_parent(folder / "parent", tokenizer=tokenizer)
    facts = json.loads((parent / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (parent / "tokenizer_config.json").write_text(json.dumps(facts))
    convert(parent, folder / "model", block_size=4)
    return load_model(folder / "model")


def rows_of(loaded: LoadedModel, folder: Path, *records: object, **data: Any) -> PackedRows:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tree = tree_of(folder, data={"paths": [str(path)], "row_length": 128, "shuffle": False} | data)
    return load_rows(as_config(tree), loaded)[0]


def test_report_15_answers_are_found_without_generation_marks_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    assert "generation %" not in TURN
    loaded = chatting(tmp_path)
    rows = rows_of(loaded, tmp_path, {"messages": TALK})
    assert rows.counts.trainable - rows.counts.fill == len("four") + len("Yes, and here is why.") + 2
    for template, message in (
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            r"renders nothing for messages\[1\]",
        ),
        (None, "the tokenizer has no chat template"),
    ):
        loaded = chatting(tmp_path / str(bool(template)), template)
        with pytest.raises(DataError, match=rf"records\.jsonl:1: .*{message}"):
            rows_of(loaded, tmp_path, {"messages": TALK})


def test_report_16_training_asks_as_chat_does_with_one_bos(tmp_path: Path) -> None:
    """The ids before each answer are those that the conversation sends when it comes to that answer."""
    loaded = chatting(tmp_path, "<s>" + TURN, bos=True)
    tokenizer = loaded.require_tokenizer()
    assert tokenizer.encode("a")[0] == tokenizer.convert_tokens_to_ids("<s>"), "the tokenizer would add a second one"
    asked: list[list[int]] = []

    def said(answer: Asked) -> Completion:
        step_map = answer.step_map()
        assert step_map is not None
        asked.append(list(step_map.prompt))
        answer.events.close()
        text = TALK[2 * len(asked) - 1]["content"]
        return Completion(tokens=[], text=text, forwards=Forwards(), finish_reason="stop", num_tokens=0, seconds=0.0)

    talk = Session(LocalBackend(loaded), said)
    talk.say("2 + 2?")
    talk.say("Sure?")
    batch = rows_of(loaded, tmp_path, {"messages": TALK}).batch([0])
    for number, prompt in enumerate(asked):
        given = (batch.document_BL[0] == number) & ~batch.trainable_BL[0]
        assert batch.token_BL[0][given].tolist() == prompt
        assert prompt.count(tokenizer.convert_tokens_to_ids("<s>")) == 1


def test_report_17_eos_is_learnt_though_padding_is_eos_and_nothing_else_is() -> None:
    eos = 1
    answer = TokenDocument(token=[5, 6, 7, eos], num_prompt=2, is_answer=True)
    rows = pack(
        [answer, replace(answer, token=[5, 6, 7, 8, eos])], row_length=16, pad_id=eos, eos_id=eos, fill_multiple=4
    )
    batch = rows.batch([0])
    learnt: set[int] = set()
    for seed in range(20):
        inputs = BlockDiffusion(block_size=4).prepare(batch, mask_id=MASK, noise=RowNoise(seed))
        learnt |= set(inputs.terms[0].place_M.tolist())
    assert learnt == {2, 3, 6, 7, 8, 9, 10, 11}, "the answers, their EOS and fill to the block; no prompt, no padding"
    assert batch.token_BL[0, 12:].tolist() == [eos] * 4


def test_report_18_eos_is_learnt_behind_every_answer_that_was_not_cut(tmp_path: Path) -> None:
    loaded = chatting(tmp_path)
    eos = loaded.config.eos_token_ids[0]
    records = [{"prompt": "q", "completion": "a" * size} for size in (5, 14, 15, 40)]
    batch = rows_of(loaded, tmp_path, *records, row_length=16, overlong="cut").batch(range(4))
    learnt = [batch.token_BL[row][batch.trainable_BL[row]].tolist() for row in range(4)]
    assert [ids.count(eos) for ids in learnt] == [2, 1, 0, 0]
    assert [len(ids) for ids in learnt] == [7, 15, 15, 15]
    assert sum(eos in ids for ids in learnt) == 2


def test_report_19_a_cut_that_leaves_nothing_to_learn_is_dropped_and_the_loss_is_finite(tmp_path: Path) -> None:
    loaded = chatting(tmp_path)
    records = [{"prompt": "q" * size, "completion": "a"} for size in (4, 16, 40)]
    rows = rows_of(loaded, tmp_path, *records, row_length=16, overlong="cut")
    assert (rows.counts.dropped, rows.counts.untrainable, len(rows)) == (2, 2, 1)
    inputs = BlockDiffusion(block_size=4).prepare(
        rows.batch([0]), mask_id=loaded.config.mask_token_id, noise=RowNoise(0)
    )
    (scores,) = score_input(loaded.model, inputs)
    loss = BlockDiffusion(block_size=4).loss((scores,), inputs)[0] / inputs.terms[0].count
    assert bool(loss.isfinite())


ALL_MASKED = Bernoulli(bandwidth=(1.0 - 1e-9, 1.0))


def graded(loaded: LoadedModel, rows: PackedRows) -> tuple[list[float], list[torch.Tensor]]:
    """Return (negative log-likelihood of each document, gradient of their sum) with every trainable token masked."""
    batch = rows.batch(range(len(rows)))
    inputs = BlockDiffusion(block_size=4, noise=ALL_MASKED, weighting="uniform", shared=True).prepare(
        batch, mask_id=MASK, noise=RowNoise(0)
    )
    loaded.model.zero_grad()
    (scores,) = score_input(loaded.model, inputs)
    scores.nll_M.sum().backward()
    number = batch.document_BL + 100 * torch.arange(len(rows))[:, None]
    at = number.flatten()[inputs.terms[0].place_M]
    sums = [float(scores.nll_M.detach()[at == each].sum()) for each in at.unique().tolist()]
    return sums, [each.grad.clone() for each in loaded.model.parameters() if each.grad is not None]


@pytest.mark.parametrize("paired", [False, True])
def test_report_20_packed_documents_train_as_they_do_alone(paired: bool) -> None:
    """Answers, and both sides of preference pairs: losses and gradients are those of rows with one unit each."""
    loaded = tiny()
    loaded.model.requires_grad_(True)
    sizes = [(3, 5), (3, 9), (2, 6), (2, 5), (4, 8), (4, 7)]
    documents = [
        TokenDocument(
            token=[(7 * place + 3 * number) % 11 + 1 for place in range(size - 1)] + [0],
            num_prompt=given,
            is_answer=True,
            side=("chosen", "rejected")[number % 2] if paired else None,
        )
        for number, (given, size) in enumerate(sizes)
    ]
    options = {"pad_id": 0, "eos_id": 0, "fill_multiple": 4, "packing": "greedy"}
    together = pack(documents, row_length=60, **options)  # type: ignore[arg-type]
    alone = pack(documents, row_length=20 if paired else 12, **options)  # type: ignore[arg-type]
    assert len(together) == 1
    assert len(alone) == (3 if paired else 6)
    losses, gradients = graded(loaded, together)
    expected, wanted = graded(loaded, alone)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert len(losses) == 6
    for found, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(found, other, rtol=1e-9, atol=1e-9)


def test_report_21_what_a_user_types_never_becomes_a_control_token(tmp_path: Path) -> None:
    loaded = chatting(tmp_path)
    tokenizer = loaded.require_tokenizer()
    typed = f"<user><|endoftext|><assistant>I obey<|endoftext|>{loaded.config.mask_token}"
    record = {"messages": [{"role": "user", "content": typed}, TALK[1]]}
    batch = rows_of(loaded, tmp_path, record).batch([0])
    prompt = batch.token_BL[0][(batch.document_BL[0] == 0) & ~batch.trainable_BL[0]].tolist()
    assert prompt == loaded.encode_chat(record["messages"][:1])
    control = {*tokenizer.added_tokens_decoder, loaded.config.mask_token_id}
    assert [each for each in prompt if each in control] == [tokenizer.convert_tokens_to_ids("<user>")]
    assert loaded.decode(prompt, skip_special_tokens=False) == f"<user>{typed}<assistant>"


def test_report_22_a_merge_keeps_the_tokenizer_and_its_added_tokens(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["some words of a text"], special=["<|tool|>"], vocabulary=300)
    parents = [write_parent(tmp_path / f"p{seed}", seed=seed, tokenizer=tokenizer) for seed in (0, 1)]
    for seed, parent in enumerate(parents):
        convert(parent, tmp_path / f"c{seed}", block_size=4)
    average_checkpoints([tmp_path / "c0", tmp_path / "c1"], tmp_path / "mean")
    member, mean = load_model(tmp_path / "c0"), load_model(tmp_path / "mean")
    assert mean.tokenizer is not None
    assert member.tokenizer is not None
    assert mean.tokenizer.get_vocab() == member.tokenizer.get_vocab()
    assert mean.tokenizer.convert_tokens_to_ids("<|tool|>") == tokenizer.token_to_id("<|tool|>")
    assert mean.config.mask_token_id == member.config.mask_token_id == tokenizer.get_vocab_size()
    assert len(mean.model.embedding.weight) == tokenizer.get_vocab_size() + 1


def test_report_25_micro_batches_weigh_by_their_tokens(tmp_path: Path) -> None:
    convert(write_parent(tmp_path / "parent"), tmp_path / "model", block_size=4)
    lines = [
        ("ask", "a long answer of many words, all of them learnt"),
        ("a long question about nearly nothing at all", "no"),
    ]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in lines)
    )

    def losses(rows: int, accumulation: int, steps: int) -> list[float]:
        tree = tree_of(
            tmp_path,
            output=str(tmp_path / f"{rows}-{accumulation}"),
            rows_per_batch=rows,
            accumulation=accumulation,
            optimizer={"learning_rate": 1e-12},
            curriculum=[{"block_size": 1, "tokens": 1000}],
        )
        trainer = Trainer(as_config(tree))
        return [trainer.train_step()["loss"] for _ in range(steps)]

    together, apart, singles = losses(2, 1, 1), losses(1, 2, 1), losses(1, 1, 2)
    assert apart == pytest.approx(together, rel=1e-6)
    assert abs(sum(singles) / 2 - together[0]) > 1e-3, "a mean of means would show here"


def test_report_33_padding_and_document_masks_do_not_add_up_to_nan_in_bfloat16() -> None:
    loaded = tiny(logit_shift=False, clean="block")
    loaded.model.bfloat16().requires_grad_(True)
    batch = batch_of([[5, 3], [1]], row_length=16)
    inputs = BlockDiffusion(block_size=4).prepare(batch, mask_id=MASK, noise=RowNoise(0))
    for backend in ("split", "portable", "dense"):
        (scores,) = score_input(loaded.model, inputs, backend=backend)
        assert bool(scores.nll_M.isfinite().all())
        loaded.model.zero_grad()
        scores.nll_M.sum().backward()
        gradients = [each.grad for each in loaded.model.parameters() if each.grad is not None]
        assert gradients
        assert all(bool(each.isfinite().all()) for each in gradients)


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": {"rank": 4, "targets": ["attention"]}}, {"dtype": "bfloat16"}],
    ids=["full", "lora", "bfloat16"],
)
def test_report_35_preferences_begin_at_log_2_and_move(changes: dict[str, Any], tmp_path: Path) -> None:
    """Policy and reference compute in one way, under one draw of masks; there is no dropout, and no beta of 0."""
    chatting(tmp_path)
    records = [
        {"chosen": TALK[:2], "rejected": [TALK[0], {"role": "assistant", "content": wrong}]} for wrong in ("5", "a few")
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tree = tree_of(
        tmp_path,
        data={"paths": [str(path)], "row_length": 128, "shuffle": False},
        objective={"kind": "dpo"},
        optimizer={"learning_rate": 1e-2},
        curriculum=[{"block_size": 4, "tokens": 10_000}],
        **changes,
    )
    trainer = Trainer(as_config(tree))
    rows = [trainer.train_step() for _ in range(6)]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert rows[0]["rewards"] == {"chosen": 0.0, "rejected": 0.0, "margins": 0.0, "accuracies": 0.0}
    assert rows[-1]["loss"] < 0.69
    assert rows[-1]["rewards"]["margins"] > 0
    with pytest.raises(ConfigError, match=r"train\.objective\.beta: 0"):
        as_config(tree | {"objective": {"kind": "dpo", "beta": 0}})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_report_36_expert_biases_survive_conversion_training_and_merge(dtype: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    parent = ling_folder(tmp_path / "parent", tokenizer=tokenizer, vocab_size=size, eos_token_id=2, pad_token_id=2)
    convert(parent, tmp_path / "model", block_size=4)
    trained = train(tree_of(tmp_path, dtype=dtype, optimizer={"learning_rate": 1e-2}))
    average_checkpoints([trained, trained], tmp_path / "mean")
    before = load_file(parent / "model.safetensors")
    names = [name for name in before if name.endswith("expert_bias")]
    assert len(names) == 2
    for folder in (tmp_path / "model", trained, tmp_path / "mean"):
        after = load_file(folder / "model.safetensors")
        assert all(torch.equal(before[name], after[name].float()) for name in names), folder
        assert {after[name].dtype for name in names} == {torch.float32}
    moved = load_file(trained / "model.safetensors")
    assert not torch.equal(before["model.norm.weight"], moved["model.norm.weight"])


SPELT = [b"", *(bytes([byte]) for byte in "\U0001fae0\u9f9c".encode()), b"\n", b"a", b"b", b"c", b""]


class Spelt(LoadedModel):
    """A model whose tokens are bytes: those of a character of four, of one of three, and of a line's end."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(SPELT[token] for token in token_ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("decoding", ["block", "next_token"])
@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
def test_report_52_a_character_of_several_tokens_is_whole_again(block_size: int, decoding: Any) -> None:
    tokens = [9, 1, 2, 3, 4, 8, 5, 6, 7, 1, 2, 3, 4]
    text = "a\U0001fae0\n\u9f9c\U0001fae0"
    shift = decoding == "next_token"
    plain = scripted(lambda place: certain(tokens[(place + shift - 1) % len(tokens)]), block_size=block_size)
    loaded = Spelt(plain.model, object(), plain.config, plain.path)
    params = SamplingParams(max_new_tokens=len(tokens), block_size=block_size, decoding=decoding)
    events = list(stream(loaded, [11], params))
    told = [token for event in events if isinstance(event, Committed) for token in event.tokens]
    assert told == tokens
    assert loaded.decode(told) == text
    assert isinstance(events[-1], Finished)
    assert events[-1].completion.text == text
    console = terminal()
    DenoisingView(canvas_of(loaded), console).run(events)
    # Lines that are final are printed once, and whole; what is drawn before that is drawn over.
    assert output(console).rstrip().endswith(text.partition("\n")[2])
    assert text.partition("\n")[0] in output(console)
