"""Rows of a run: what of the configuration decides them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.data import Document, PackedRows
from difflm.data.mixture import row_order
from difflm.data.splitting import Split
from difflm.errors import ConfigError, DataError
from difflm.training import rows as rows_module
from difflm.training.config import BlockDiffusionConfig, DataConfig, StageConfig, TrainConfig
from difflm.training.prepare import prepare
from difflm.training.rows import describe_rows, load_rows
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_parent(tmp_path_factory.mktemp("rows") / "parent"))


def config(path: Path, **data: Any) -> TrainConfig:
    return TrainConfig(
        model=Path("m"),
        output=Path("o"),
        data=DataConfig(**({"paths": (path,), "row_length": 32} | data)),
        curriculum=(StageConfig(tokens=10, block_size=4), StageConfig(tokens=10, block_size=8)),
    )


def pairs(path: Path, *records: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in records))
    return path


def test_answers_are_filled_to_the_last_block_size_with_the_models_eos(loaded: LoadedModel, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", ("abc", "xy"))
    batch = load_rows(config(path), loaded)[0].batch([0], [0])
    eos = loaded.config.eos_token_ids[0]
    ids = [*loaded.encode("abc"), *loaded.encode("xy"), eos, eos, eos]
    assert len(ids) == 8
    assert batch.token_BL[0, :8].tolist() == ids
    assert batch.trainable_BL[0].tolist() == [False] * 3 + [True] * 5 + [False] * 24
    bare = load_rows(config(path, fill="none"), loaded)[0].batch([0], [0])
    assert bare.trainable_BL.sum() == 3


def test_documents_longer_than_a_row_are_dropped_or_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", ("abc", "xy"), ("a" * 40, "b"))
    assert load_rows(config(path), loaded)[0].counts.dropped == 1
    with pytest.raises(DataError, match=r"pairs.jsonl:2"):
        load_rows(config(path, overlong="refuse"), loaded)


def test_validation_by_fraction_is_apart_and_decided_by_its_own_seed(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    split = config(path, validation_fraction=0.25)
    train, held = load_rows(split, loaded)
    assert held is not None
    assert train.counts.documents + held.counts.documents == 40
    again, _ = load_rows(dataclasses.replace(split, seed=9), loaded)
    assert again.fingerprint == train.fingerprint, "the run's seed does not move the split"
    other, _ = load_rows(config(path, validation_fraction=0.25, split_seed=1), loaded)
    assert other.fingerprint != train.fingerprint
    assert load_rows(config(path), loaded)[1] is None


def test_validation_files_must_not_hold_training_documents(loaded: LoadedModel, tmp_path: Path) -> None:
    train, held = write_texts(tmp_path / "train.jsonl"), tmp_path / "held.jsonl"
    held.write_text('{"text": "something else"}\n')
    rows = load_rows(config(train, validation_paths=(held,)), loaded)[1]
    assert rows is not None
    assert rows.counts.documents == 1
    held.write_text(train.read_text().splitlines()[3] + "\n")
    with pytest.raises(DataError, match=r"held.jsonl:1: this validation document is also a training document"):
        load_rows(config(train, validation_paths=(held,)), loaded)


def test_checkpoints_without_tokenizer_or_eos_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    mute = LoadedModel(model=loaded.model, tokenizer=None, config=loaded.config, path=loaded.path)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        load_rows(config(path), mute)
    endless = dataclasses.replace(loaded.config, eos_token_ids=())
    with pytest.raises(ConfigError, match="names no EOS token"):
        load_rows(
            config(path),
            LoadedModel(model=loaded.model, tokenizer=loaded.tokenizer, config=endless, path=loaded.path),
        )


def tensors(rows: PackedRows) -> list[Any]:
    batch = rows.batch(range(len(rows)))
    return [batch.token_BL.tolist(), batch.document_BL.tolist(), batch.trainable_BL.tolist()]


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["text", "pairs", "ids"])
def test_prepared_rows_equal_raw_ones(loaded: LoadedModel, tmp_path: Path, kind: str, fraction: float) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    if kind == "pairs":
        pairs(path, *((text[:9], text[9:]) for text in texts))
    if kind == "ids":
        ids = [[*loaded.encode(text[:20]), 256] for text in texts]
        labels = [[token if place % 3 else -100 for place, token in enumerate(row)] for row in ids]
        records = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare(path, model=loaded.path, output=tmp_path / "p", validation_fraction=fraction, shard_tokens=300)
    settings: dict[str, Any] = {"row_length": 64, "validation_fraction": fraction}
    raw, raw_held = load_rows(config(path, **settings), loaded)
    stored, stored_held = load_rows(config(tmp_path / "p", **settings), loaded)
    assert raw.fingerprint == stored.fingerprint
    assert raw.counts == stored.counts
    assert tensors(raw) == tensors(stored)
    assert (raw_held is None) == (stored_held is None) == (fraction == 0.0)
    if raw_held is not None and stored_held is not None:
        assert tensors(raw_held) == tensors(stored_held)
        assert len(raw_held) > 1


def test_a_prepared_folder_without_a_split_is_split_like_raw_files(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    prepare(path, model=loaded.path, output=tmp_path / "p")
    for split_seed in (0, 1):
        settings: dict[str, Any] = {"validation_fraction": 0.25, "split_seed": split_seed}
        raw, stored = (load_rows(config(each, **settings), loaded) for each in (path, tmp_path / "p"))
        assert [rows.fingerprint for rows in raw if rows] == [rows.fingerprint for rows in stored if rows]


def test_a_mixture_has_a_source_for_each_path(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", documents=count) for name, count in (("a", 30), ("b", 12))]
    mixed = config(paths[0], paths=tuple(paths), weights=(1.0, 3.0), validation_fraction=0.2)
    rows, held = load_rows(mixed, loaded)
    assert held is not None
    assert held.sources[0].weight is None, "validation takes every row once"
    assert [source.weight for source in rows.sources] == [1.0, 3.0]
    order = row_order(rows, seed=0, shuffle=True)
    first = rows.sources[0].counts.rows
    assert sum(row >= first for row in order.epoch(0)) == pytest.approx(0.75 * order.num_rows, abs=1)
    lines = describe_rows(rows)
    assert lines[0].startswith(f"data: {paths[0]}: jsonl (")
    assert f"25.0% {paths[0]} ({first} rows), 75.0% {paths[1]}" in lines[-1]
    prepare(paths, model=loaded.path, output=tmp_path / "p", weights=(1.0, 3.0), validation_fraction=0.2)
    stored, stored_held = load_rows(config(tmp_path / "p"), loaded)
    assert stored.fingerprint == rows.fingerprint
    assert stored_held is not None
    assert stored_held.fingerprint == held.fingerprint


def test_a_source_that_validates_whole_is_named(loaded: LoadedModel, tmp_path: Path) -> None:
    one, two = write_texts(tmp_path / "a.jsonl"), tmp_path / "b.jsonl"
    two.write_text('{"text": "b"}\n')
    seed = next(seed for seed in range(99) if Split(fraction=0.5, seed=seed).rank(Document(text="b").content) < 2**63)
    mixed = config(one, paths=(one, two), weights=(1.0, 1.0), validation_fraction=0.5, split_seed=seed)
    with pytest.raises(DataError, match=r"b.jsonl: every document of this source went to validation"):
        load_rows(mixed, loaded)


def test_the_description_names_packing_fill_and_losses(loaded: LoadedModel, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", ("abc", "xy"), ("a" * 40, "b"), ("abcdefgh", "uvwxyz"))
    line = describe_rows(load_rows(config(path, packing="greedy"), loaded)[0])[-1]
    assert line.startswith(
        "data: 3 documents, 24 tokens (13 trainable, 3 of them EOS fill) in 1 rows of 32, fill 75.0% "
        "(greedy; best_fit 75.0%"
    )
    assert line.endswith(f"1 dropped (first: {path}:2)")


def test_options_of_packing_reach_the_rows(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "x" * 2000}) + "\n" + json.dumps({"text": "y" * 20}) + "\n")
    assert load_rows(config(path), loaded)[0].counts.split == 1
    assert load_rows(config(path, long_text="drop"), loaded)[0].counts.dropped_text == 1
    short = load_rows(config(path, random_length=0.5), loaded)[0]
    assert short.counts.rows > short.counts.rows_best_fit
    held = (
        load_rows(config(path, random_length=0.5, validation_paths=(path.with_name("v.jsonl"),)), loaded)[1]
        if (path.with_name("v.jsonl").write_text(json.dumps({"text": "z" * 2000}) + "\n"))
        else None
    )
    assert held is not None
    assert held.counts.rows == held.counts.rows_best_fit, "validation rows have full room"


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "q <|endoftext|>"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "no"},
]


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    loaded = load_model(write_parent(tmp_path_factory.mktemp("rows") / "parent"))
    loaded.require_tokenizer().chat_template = TEMPLATE
    return loaded


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_each_answer_of_a_conversation_stands_behind_the_prompt_of_use(chatting: LoadedModel, tmp_path: Path) -> None:
    path = lines(tmp_path / "chat.jsonl", {"messages": TALK})
    rows, _ = load_rows(config(path, row_length=128), chatting)
    batch, eos = rows.batch([0]), chatting.config.eos_token_ids[0]
    for number, (turn, answer) in enumerate(((1, "yes"), (3, "no"))):
        inside = batch.document_BL[0] == number
        prompt = chatting.encode_chat(TALK[:turn])
        ids = [*prompt, *chatting.encode(answer), eos]
        fill = -len(ids) % 8
        assert batch.token_BL[0][inside].tolist() == ids + [eos] * fill
        assert batch.trainable_BL[0][inside].tolist() == [place >= len(prompt) for place in range(len(ids) + fill)]
        assert prompt.count(eos) == (turn - 1) // 2, "typed, it is text"
    (line,) = describe_rows(rows)[1:]
    assert f"trainable, {rows.counts.fill} of them EOS fill)" in line
    assert describe_rows(rows)[0] == f"data: {path}: jsonl of messages (the first line is an object)"


def test_pairs_need_an_objective_that_learns_them(
    chatting: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [*TALK[:3], {"role": "assistant", "content": "well"}]
    path = lines(
        tmp_path / "pairs.jsonl", {"chosen": TALK, "rejected": bad}, {"chosen": TALK, "rejected": TALK[:1] + bad[3:]}
    )
    with pytest.raises(DataError, match="behind what both sides share, 'chosen' holds assistant, user, assistant"):
        load_rows(config(path), chatting)
    answers = lines(tmp_path / "answers.jsonl", {"messages": TALK})
    long = {"prompt": "q", "chosen": "a" * 200, "rejected": "b"}
    path = lines(tmp_path / "pairs.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}, long)
    message = "pairs.jsonl:1: preference pairs, but objective block_diffusion learns documents with one answer"
    with pytest.raises(DataError, match=message):
        load_rows(config(path), chatting)
    monkeypatch.setattr(rows_module, "PAIR_OBJECTIVES", (BlockDiffusionConfig,))
    rows, _ = load_rows(config(path), chatting)
    assert rows.batch([0]).pairs().count == 1
    assert "data: 2 preference pairs, 16 tokens" in describe_rows(rows)[-1]
    assert f", 1 dropped (first: {path}:2)" in describe_rows(rows)[-1]
    with pytest.raises(DataError, match=r"answers.jsonl:1: documents with one answer, but .* learns preference pairs"):
        load_rows(config(answers, row_length=128), chatting)


def test_both_sides_of_a_pair_validate_together(
    chatting: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "PAIR_OBJECTIVES", (BlockDiffusionConfig,))
    records = [{"prompt": f"q{number}", "chosen": "a", "rejected": "b"} for number in range(40)]
    path = lines(tmp_path / "pairs.jsonl", *records)
    train, held = load_rows(config(path, validation_fraction=0.3), chatting)
    assert held is not None
    found = [rows.batch(range(len(rows))).pairs().count for rows in (train, held)]
    assert sum(found) == 40
    assert min(found) > 3


def test_what_is_cut_is_said(loaded: LoadedModel, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", ("abc", "x" * 40), ("a" * 40, "b"))
    rows, _ = load_rows(config(path, overlong="cut"), loaded)
    assert f", 1 cut, 1 dropped (1 would learn nothing; first: {path}:2)" in describe_rows(rows)[-1]


def test_what_records_hold_can_be_forced(chatting: LoadedModel, tmp_path: Path) -> None:
    path = lines(tmp_path / "both.jsonl", {"prompt": "p", "completion": "c", "messages": TALK})
    with pytest.raises(
        DataError, match=r"ambiguous; say what is meant \(data.records, --records\): prompt_completion or"
    ):
        load_rows(config(path, row_length=128), chatting)
    found = [
        load_rows(config(path, row_length=128, records=each), chatting)[0].counts.documents
        for each in ("prompt_completion", "messages")
    ]
    assert found == [1, 2]


def test_rows_whose_answers_see_what_comes_behind_are_told(loaded: LoadedModel, tmp_path: Path) -> None:
    learnt = [[-100, 6, 7], [-100, 6, -100], [5, -100, 7], [5, 6, 7]]
    path = lines(tmp_path / "ids.jsonl", *({"input_ids": [5, 6, 7], "labels": labels} for labels in learnt))
    told = describe_rows(load_rows(config(path), loaded)[0])
    assert told[-1].startswith(
        "data: 2 rows of ids have given tokens behind learnt ones, which see them where they share"
    )
    clean = lines(tmp_path / "clean.jsonl", {"input_ids": [5, 6, 7], "labels": learnt[0]})
    assert "behind learnt ones" not in "".join(describe_rows(load_rows(config(clean), loaded)[0]))
