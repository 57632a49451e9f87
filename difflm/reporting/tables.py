"""The figures and tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from difflm.data.shards import is_prepared, open_prepared
from difflm.errors import DataError
from difflm.reporting.facts import CheckpointFact, Row, RunFacts, number
from difflm.reporting.markup import Html, colored, element, escaped, join, table

_MOST_ROWS = 25
Item = TypeVar("Item")


def summary_cards(run: RunFacts) -> Html:
    """Return the run at a glance: state, length, speed, last loss and perplexities."""
    last, config = run.last, run.config
    tokens, seconds = last["num_tokens"], number(last, "seconds") or 0.0
    state, why = run.status
    cards = [
        ("state", colored(state, good=state in ("finished", "running")), why),
        ("tokens", escaped(f"{tokens:,}"), f"{min(tokens / config.total_tokens, 1.0):.1%} of {config.total_tokens:,}"),
        ("steps", escaped(f"{last['step']:,}"), _skipped(run)),
        ("training time", escaped(duration(seconds)), "validation and saving not counted"),
        ("speed", escaped(f"{tokens / seconds:,.0f} tokens/s" if seconds else "-"), "mean of the run"),
    ]
    if run.train:
        cards.append(("last loss", escaped(shown(number(run.train[-1], "loss"))), "nats per token"))
    if run.validation:
        row = run.validation[-1]
        where = f"at step {row['step']:,}"
        cards += [
            (f"perplexity, block {size}", escaped(shown(number(row, "perplexity", size))), where)
            for size in _block_sizes([row])
        ]
        if (causal := number(row, "ar_perplexity")) is not None:
            cards.append(("AR perplexity", escaped(shown(causal)), where))
    cards.append(("recipe", escaped(config.recipe or "-"), f"objective {config.objective.kind}"))
    items = [
        element("div", element("dt", escaped(name)), element("dd", value, element("small", escaped(note))))
        for name, value, note in cards
    ]
    return element("dl", *items, kind="cards")


def validation_table(run: RunFacts) -> Html:
    """Return the validations: a row each, a column for every block size."""
    if not run.validation:
        return _nothing("The run has no validation rows.")
    sizes = _block_sizes(run.validation)
    columns = [("step", "number"), ("tokens", "number"), *((f"block {size}", "number") for size in sizes)]
    chosen, left_out = _ends(run.validation)
    rows = [
        [
            escaped(f"{row['step']:,}"),
            escaped(f"{row['num_tokens']:,}"),
            *(escaped(shown(number(row, "perplexity", size))) for size in sizes),
            escaped(shown(number(row, "ar_perplexity"))),
        ]
        for row in chosen
    ]
    words = "Perplexity per token by block size, an upper bound (exp of the NELBO); AR: of the next-token loss."
    return join(_note(words), table([*columns, ("AR", "number")], rows), _note(left_out))


def checkpoint_table(run: RunFacts) -> Html:
    """Return the checkpoints on the disk."""
    if not run.checkpoints:
        return _nothing("There is no checkpoint yet.")
    final = run.config.block_sizes[-1]
    figure = "AR perplexity" if final is None else f"perplexity, block {final}"
    columns = [
        ("checkpoint", ""),
        ("step", "number"),
        ("tokens", "number"),
        ("block size", "number"),
        (figure, "number"),
        ("size", "number"),
        ("resumable", ""),
        ("merge", ""),
        ("files", ""),
    ]
    words = (
        "Merge: what `difflm merge` takes, best first. Files: every recorded file is there in its recorded size; "
        "hashes are compared when the checkpoint is used."
    )
    return join(_note(words), table(columns, [_checkpoint_cells(each) for each in run.checkpoints]))


def _checkpoint_cells(each: CheckpointFact) -> list[Html]:
    return [
        escaped(each.name),
        escaped(_count(each.step)),
        escaped(_count(each.tokens)),
        escaped(_count(each.block_size)),
        escaped(shown(each.perplexity)),
        escaped(byte_size(each.size) if each.size else "-"),
        escaped("yes" if each.resumable else "no"),
        colored(f"candidate {each.rank}", good=True) if each.rank else escaped("-"),
        colored(each.damage, good=False) if each.damage else colored("whole", good=True),
    ]


def sample_table(run: RunFacts) -> Html:
    """Return the completions of the last time that the run sampled itself."""
    if not run.samples:
        return _nothing("The run writes no samples (samples.every_tokens).")
    step = run.samples[-1]["step"]
    rows = [
        [
            escaped(row.get("prompt", "-")),
            escaped(row.get("text", "-")),
            escaped(shown(number(row, "tokens"))),
            escaped(shown(number(row, "tokens_per_forward"))),
        ]
        for row in run.samples
        if row["step"] == step
    ]
    columns = [("prompt", "text"), ("completion", "text"), ("tokens", "number"), ("TPF", "number")]
    return join(_note(f"At step {step:,}; all of them: samples.jsonl."), table(columns, rows))


def fault_section(run: RunFacts) -> Html:
    """Return skipped steps, dumps and restarts."""
    parts = []
    if run.skipped:
        chosen, left_out = _ends(run.skipped)
        columns = [("step", "number"), ("tokens", "number"), ("skipped so far", "number"), ("reason", "text")]
        rows = [
            [
                escaped(f"{row['step']:,}"),
                escaped(f"{row['num_tokens']:,}"),
                escaped(f"{shown(number(row, 'skipped'))} of {shown(number(row, 'budget'))}"),
                escaped(row.get("reason", "-")),
            ]
            for row in chosen
        ]
        parts += [table(columns, rows), _note(left_out)]
    if run.dumps:
        parts.append(element("p", escaped(f"Dumps: {', '.join(f'dumps/{name}' for name in run.dumps)}.")))
    if run.restarts:
        seen = f"Begun anew at least {run.restarts} time{'s' if run.restarts > 1 else ''}: peak memory fell."
        parts.append(element("p", escaped(seen)))
    return join(*parts) or _nothing("No step was skipped, nothing was dumped, no restart left a trace.")


def data_table(run: RunFacts) -> Html:
    """Return the training data: paths, shares, and what the manifest of a prepared folder counts."""
    data = run.config.data
    weights = data.weights or (None,) * len(data.paths)
    total = sum(data.weights) or 1.0
    rows = []
    for path, weight in zip(data.paths, weights, strict=True):
        share = "-" if weight is None else f"{weight / total:.1%}"
        documents, tokens = "-", "-"
        if is_prepared(path):
            try:
                sides = [each.train for each in open_prepared(path, hashes=False).sources]
                documents = f"{sum(len(side) for side in sides):,}"
                tokens = f"{sum(int(side.column('length').sum()) for side in sides):,}"
            except DataError as error:
                documents = str(error)
        rows.append([escaped(path), escaped(share), escaped(documents), escaped(tokens)])
    columns = [("path", "text"), ("share", "number"), ("training documents", "number"), ("tokens", "number")]
    facts = [f"Rows of {data.row_length} tokens, packing {data.packing}."]
    if run.train and (epoch := number(run.train[-1], "epoch")) is not None:
        facts.append(f"{epoch:g} whole passes over the data so far.")
    held = ", ".join(map(str, data.validation_paths)) or (
        f"{data.validation_fraction:g} of the documents" if data.validation_fraction else "none"
    )
    return join(table(columns, rows), _note(" ".join([*facts, f"Validation: {held}."])))


def shown(value: float | None) -> str:
    """Return a figure with four significant digits; "-" for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:#.4g}"


def duration(seconds: float) -> str:
    """Return a time in the two largest units that matter, e.g. "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def byte_size(size: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1024:.1f} KiB"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _skipped(run: RunFacts) -> str:
    return f"{len(run.skipped)} skipped" if run.skipped else "none skipped"


def _block_sizes(rows: Sequence[Row]) -> list[str]:
    sizes = {size for row in rows if isinstance(row.get("perplexity"), dict) for size in row["perplexity"]}
    return sorted(sizes, key=lambda size: (len(size), size))


def _ends(rows: Sequence[Item]) -> tuple[list[Item], str]:
    """Return the first and the last rows of a long table, and what to say about the others."""
    if len(rows) <= _MOST_ROWS:
        return list(rows), ""
    return [rows[0], *rows[1 - _MOST_ROWS :]], f"{len(rows) - _MOST_ROWS} rows after the first are left out."


def _note(text: str) -> Html:
    return element("p", escaped(text), kind="note") if text else Html("")


def _nothing(text: str) -> Html:
    return element("p", escaped(text))
