"""Tables of measured items: speed against the fastest left-to-right decoding, drafts by place, kinds of prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from benchmarks.lossless.records import Row, share, table
from benchmarks.lossless.speed import NEXT_TOKEN, VERIFIED
from difflm.decode.events import DraftCounts

SLOWER = 1 / 1.05
"""Ratio below which a token of a request took more than 5 % longer than without drafts."""

Items = dict[str, dict[int, Row]]
"""System -> item -> row."""


def grouped(rows: Sequence[Row]) -> Items:
    """Return the rows of kind "item" by system and item."""
    found: Items = defaultdict(dict)
    for row in rows:
        if row.get("kind") == "item":
            found[row["system"]][row["item"]] = row
    return dict(found)


def ratio(base: dict[int, Row], other: dict[int, Row]) -> float | None:
    """Return the paired ratio: tokens per second of `other` over those of `base`, on the items that both have.

    Of seconds alone where both gave the same texts, as they do in float32; an answer that ends elsewhere is not counted
    as a gain or a loss.
    """
    both = base.keys() & other.keys()
    return rate([other[each] for each in both]) / rate([base[each] for each in both]) if both else None


def fastest(items: Items, dtype: str | None = None) -> str | None:
    """Return the fastest left-to-right system without drafts, of a dtype or of any; None: there is none."""
    able = {
        name: rows
        for name, rows in items.items()
        if (row := next(iter(rows.values())))["way"] != VERIFIED and dtype in (None, row["dtype"])
    }
    return max(able, key=lambda name: rate(able[name].values()), default=None)


def rate(rows: Collection[Row]) -> float:
    """Return tokens per second of rows: all tokens over all seconds."""
    return sum(row["num_tokens"] for row in rows) / sum(row["seconds"] for row in rows)


def same_answers(items: Items, name: str) -> str | None:
    """Return how many answers are those of our next-token decoding in the same dtype, token for token."""
    rows = items[name]
    reference = items.get(f"{NEXT_TOKEN} ({next(iter(rows.values()))['dtype']})", {})
    both = reference.keys() & rows.keys()
    return share(sum(reference[each]["tokens"] == rows[each]["tokens"] for each in both), len(both)) if both else None


def drafts_of(rows: Collection[Row]) -> DraftCounts:
    """Return what became of the drafts of all rows together."""
    given = (row["drafts"] for row in rows if row.get("drafts"))
    each = (DraftCounts(**one | {key: tuple(one[key]) for key in ("verified_at", "accepted_at")}) for one in given)
    return sum(each, DraftCounts())


def per_cycle(rows: Collection[Row]) -> float | None:
    """Return tokens per cycle; None without any cycle."""
    return drafts_of(rows).tokens_per_cycle or None


def per_forward(rows: Collection[Row]) -> float | None:
    """Return tokens per forward, those of the prompt included; None for a system that does not say."""
    counted = [row for row in rows if row.get("forwards")]
    return sum(row["num_tokens"] for row in counted) / sum(row["forwards"] for row in counted) if counted else None


def acceptance(rows: Collection[Row]) -> tuple[float, ...]:
    """Return by place of a draft the share of drafts there that were accepted."""
    return drafts_of(rows).acceptance_at


def speed_table(rows: Sequence[Row]) -> str:
    """Return one line per system; exact match where rows say whether an answer is right."""
    items = grouped(rows)
    scored = any("correct" in row for each in items.values() for row in each.values())
    head = ["system", "dtype", "items", "tokens/s", "x fastest AR, same dtype", "x fastest AR, any dtype"]
    head += ["tokens per cycle", "tokens per forward", "equal to next token", *(["exact match"] if scored else [])]
    lines: list[list[Any]] = []
    for name, each in items.items():
        first, values = next(iter(each.values())), each.values()
        ratios = [ratio(items[base], each) for base in (fastest(items, first["dtype"]), fastest(items)) if base]
        line = [first["name"], first["dtype"], len(each), rate(values), *ratios, *([None] * (2 - len(ratios)))]
        line += [per_cycle(values), per_forward(values), same_answers(items, name)]
        if scored:
            line.append(share(sum(row["correct"] for row in values), len(each)))
        lines.append(line)
    return table(head, lines)


def place_table(rows: Sequence[Row], most: int = 15) -> str:
    """Return acceptance by place in the window, the first draft of a forward's own MASK rows standing at place 2."""
    drafted = {name: acceptance(each.values()) for name, each in grouped(rows).items()}
    drafted = {name: shares for name, shares in drafted.items() if shares}
    longest = min(most, max((len(shares) for shares in drafted.values()), default=0))
    head = ["system", *(str(place + 2) for place in range(longest))]
    return table(
        head, [[name, *shares[:longest], *([None] * (longest - len(shares)))] for name, shares in drafted.items()]
    )


def kind_table(rows: Sequence[Row]) -> str:
    """Return a line per kind of prompt and verifying system: against our next-token decoding in the same dtype."""
    items = grouped(rows)
    kinds = sorted({row["of"] for each in items.values() for row in each.values()})
    lines: list[list[Any]] = []
    for name, each in items.items():
        first = next(iter(each.values()))
        base = items.get(f"{NEXT_TOKEN} ({first['dtype']})", {})
        if first["way"] != VERIFIED or not base:
            continue
        for kind in [*kinds, "all"]:
            mine = {number: row for number, row in each.items() if kind in ("all", row["of"])}
            if not mine:
                continue
            shares = [round(share, 2) for share in acceptance(mine.values())[:3]]
            paired = [rate([row]) / rate([base[number]]) for number, row in mine.items() if number in base]
            slower = share(sum(value < SLOWER for value in paired), len(paired))
            line = [kind, name, len(mine), per_cycle(mine.values()), " ".join(map(str, shares)), ratio(base, mine)]
            lines.append([*line, min(paired, default=None), slower])
    head = ["kind", "system", "items", "tokens per cycle", "accepted at 2 3 4", "x next token, same dtype"]
    return table([*head, "worst item", "items more than 5 % slower"], lines)
