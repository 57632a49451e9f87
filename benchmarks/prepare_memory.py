"""Peak memory and speed of `difflm prepare` on synthetic corpora of growing size.

    python -m benchmarks.prepare_memory --megabytes 100 500 2000 --output benchmarks/2026-11-25-prepare.md

Each size runs in a process of its own; the kernel counts its peak resident memory (wait4's ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from difflm.bench.environment import environment
from tests.standins import EOS, write_parent

SENTENCES, DUPLICATE_SHARE, NEAR_SHARE = 40_000, 0.01, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run: wall and CPU seconds, peak resident memory in MiB, counts of the manifest."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    figures: dict[str, int]


def sentences(seed: int = 0) -> list[str]:
    """Return sentences of words whose frequencies fall like those of a language."""
    generator = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = [
        "".join(generator.choices(letters, weights=range(26, 0, -1), k=generator.randint(2, 9))) for _ in range(20_000)
    ]
    weights = [1.0 / (rank + 3) for rank in range(len(words))]
    return [" ".join(generator.choices(words, weights, k=generator.randint(6, 18))) + "." for _ in range(SENTENCES)]


def tokenizer_of(pool: list[str]) -> Tokenizer:
    """Return a tokenizer of whole words: the fastest there is, because the reading is to be measured, not BPE."""
    words = sorted({word for sentence in pool for word in sentence.split()})
    vocabulary = {"<unk>": 0} | {word: number for number, word in enumerate(words, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def documents(pool: list[str], seed: int = 0) -> Iterator[str]:
    """Yield documents of 2 to 30 sentences without end; some repeat, or nearly repeat, a recent one."""
    generator = random.Random(seed)
    recent: list[list[str]] = []
    while True:
        chance = generator.random()
        if recent and chance < DUPLICATE_SHARE:
            text = generator.choice(recent)
        elif recent and chance < DUPLICATE_SHARE + NEAR_SHARE:
            text = list(generator.choice(recent))
            text[generator.randrange(len(text))] = generator.choice(pool)
        else:
            text = generator.choices(pool, k=generator.randint(2, 30))
        recent = [*recent[-99:], text]
        yield " ".join(text)


def write_corpus(path: Path, pool: list[str], size: int) -> int:
    """Write about `size` bytes of JSONL and return the number of documents."""
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents(pool):
            line = json.dumps({"text": text}) + "\n"
            file.write(line)
            written += len(line)
            count += 1
            if written >= size:
                return count
    return count


def measure(corpus: Path, model: Path, output: Path) -> Measured:
    """Measure one `difflm prepare`."""
    command = [sys.executable, "-m", "difflm", "prepare", str(corpus), "--model", str(model), "--output", str(output)]
    started = time.perf_counter()
    child = subprocess.Popen([*command, "--validation-fraction", "0.01"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"prepare failed on {corpus}")
    manifest = json.loads((output / "manifest.json").read_text())
    sides = [source[side] for source in manifest["sources"] for side in ("train", "validation")]
    figures = {name: sum(side[name] for side in sides) for name in ("documents", "tokens")}
    figures |= {name: manifest["duplicates"][name] for name in ("exact", "near")}
    return Measured(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
        figures=figures,
    )


def table(rows: list[tuple[int, Measured]]) -> str:
    """Return the measurements as a Markdown table."""
    lines = [
        "| corpus | documents | tokens | exact copies | near copies | peak RSS | CPU s | MB per CPU s | wall s |",
        "|-------:|----------:|-------:|-------------:|------------:|---------:|------:|-------------:|-------:|",
    ]
    lines += [
        f"| {size} MB | {each.figures['documents']:,} | {each.figures['tokens']:,} | {each.figures['exact']:,} | "
        f"{each.figures['near']:,} | {each.peak_mib:.0f} MiB | {each.cpu_seconds:.0f} | "
        f"{size / each.cpu_seconds:.1f} | {each.seconds:.0f} |"
        for size, each in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument(
        "--work", type=Path, help="folder for the corpora, three times the largest; temporary if absent"
    )
    arguments = parser.parse_args()
    pool = sentences()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        write_parent(folder / "model", tokenizer=tokenizer_of(pool))
        for size in arguments.megabytes:
            corpus, output = folder / "corpus.jsonl", folder / f"prepared-{size}"
            write_corpus(corpus, pool, size * 1_000_000)
            rows.append((size, measure(corpus, folder / "model", output)))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            for file in [*output.iterdir(), corpus]:
                file.unlink()
    text = table(rows)
    if arguments.output:
        facts = environment()
        about = "\n".join(f"- {key}: {value}" for key, value in facts.items())
        command = f"python -m benchmarks.prepare_memory --megabytes {' '.join(map(str, arguments.megabytes))}"
        arguments.output.write_text(f"# Memory of `difflm prepare`\n\n`{command}`\n\n{about}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
