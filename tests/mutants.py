"""One-line faults that the tests must catch, and what applies them (`make mutants`, `python -m tests.mutants WORD`).

Each fault is applied to a copy of the package; the test that is named for it has to fail there. A test that passes
without and with the fault proves nothing about the line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        file: file of the package, relative to the repository.
        old: text to replace; stands exactly once in the file.
        new: the fault.
        test: pytest node that must fail, relative to the repository.
    """

    file: str
    old: str
    new: str
    test: str

    @property
    def name(self) -> str:
        """Return a short name: the file and the start of the fault."""
        return f"{Path(self.file).stem}: {' '.join(self.new.split())[:50]}"


MUTANTS = (
    Mutant(
        "difflm/training/config.py",
        "if low >= high:",
        "if low > high:",
        "tests/training/test_config.py::test_empty_band_is_refused",
    ),
    Mutant(
        "difflm/training/config.py",
        'if size != "row" and length % size:',
        'if size != "row" and size > length:',
        "tests/training/test_config.py::test_row_length_that_a_stage_does_not_divide_names_both",
    ),
    Mutant(
        "difflm/training/config_io.py",
        "yaml.dump(config_to_tree(config), Dumper=_Dumper,",
        "yaml.dump(config_to_tree(config), Dumper=yaml.SafeDumper,",
        "tests/training/test_config_io.py::test_a_dump_loads_to_the_equal_configuration",
    ),
    Mutant(
        "difflm/training/config_io.py",
        "            if key.value in seen:",
        "            if key.value is seen:",
        "tests/training/test_config_io.py::test_bad_overrides_are_one_line_errors",
    ),
    Mutant(
        "difflm/__main__.py",
        '    os.environ.setdefault("OMP_WAIT_POLICY", "passive")\n',
        "",
        "tests/cli/test_main.py::test_threads_wait_passively_unless_told_otherwise",
    ),
    Mutant(
        "difflm/diffusion/acceptance.py",
        "(confidence_BS > threshold)",
        "(confidence_BS >= threshold)",
        "tests/diffusion/test_acceptance.py::test_the_threshold_is_strict",
    ),
    Mutant(
        "difflm/diffusion/acceptance.py",
        "keepdim=True) >= min_accept",
        "keepdim=True) >= 1",
        "tests/diffusion/test_acceptance.py::test_accept_equals_the_loops",
    ),
    Mutant(
        "difflm/diffusion/acceptance.py",
        "right=True",
        "right=False",
        "tests/diffusion/test_acceptance.py::test_the_ends_of_the_uniform_range_never_pick_a_token_of_mass_zero",
    ),
    Mutant(
        "difflm/decode/runner.py",
        "hidden_MD[0] = slot.last_hidden_D",
        "pass",
        "tests/decode/test_runner.py::test_hidden_rows_of_the_cached_path_are_those_of_the_training_layout",
    ),
    Mutant(
        "difflm/decode/runner.py",
        "hidden_ND[work.num_clean - 1]",
        "hidden_ND[-1]",
        "tests/decode/test_runner.py::test_hidden_rows_of_the_cached_path_are_those_of_the_training_layout",
    ),
    Mutant(
        "difflm/decode/runner.py",
        "own_NN, clean_NN | noisy_N[:, None])",
        "own_NN | ~noisy_N[:, None], clean_NN | noisy_N[:, None])",
        "tests/decode/test_runner.py::test_visibility_is_the_training_layout_of_the_rows",
    ),
    Mutant(
        "difflm/decode/runner.py",
        "suppressed_ids=self.suppressed",
        "suppressed_ids=None",
        "tests/decode/test_engine.py::test_a_model_that_prefers_mask_and_unassigned_ids_still_ends_and_never_emits_them",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "num_tokens=len(generated) + self.stopped",
        "num_tokens=len(generated)",
        "tests/decode/test_engine.py::test_eos_fill_does_not_count",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "stop = min(self.block_stop, self.end)",
        "stop = self.block_stop",
        "tests/decode/test_engine.py::test_positions_behind_an_accepted_eos_cost_no_forwards",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "if not self.decided[place])",
        "if self.tokens[place] == self.mask_id)",
        "tests/decode/test_sequences.py::test_a_decided_position_is_never_recognised_by_its_id",
    ),
    Mutant(
        "difflm/models/cache.py",
        "prefix = self.mask_NN.new_ones(",
        "prefix = self.mask_NN.new_zeros(",
        "tests/models/test_cache.py::test_the_mask_is_between_new_rows_only",
    ),
    Mutant(
        "difflm/bench/decode.py",
        "max(candidates, key",
        "min(candidates, key",
        "tests/bench/test_decode.py::test_the_fastest_setting_and_the_fastest_ar_system_win",
    ),
)


@contextmanager
def mutated(mutant: Mutant | None) -> Iterator[Path]:
    """Yield a folder with a copy of package, demo and tests, and the fault in it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for part in ("difflm", "tests", "demo"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "cache", "run"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        if mutant:
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8")
            assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} stands {text.count(mutant.old)} times"
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        yield copy


def outcome(folder: Path, tests: list[str]) -> int:
    """Run tests in a copy and return pytest's exit code: 0 all pass, 1 some fail; others are errors of ours."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "slow or not slow", "--hypothesis-profile=mutants"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


def caught(mutant: Mutant) -> bool:
    """Return whether the mutant's test fails on it."""
    with mutated(mutant) as folder:
        code = outcome(folder, [mutant.test])
    assert code in (0, 1), f"{mutant.test} could not be run (pytest exit code {code})"
    return code == 1


def main(words: list[str]) -> int:
    """Check the mutants whose file, fault or test contains one of the words; return the exit code."""
    chosen = [each for each in MUTANTS if not words or any(word in f"{each.name} {each.test}" for word in words)]
    with mutated(None) as folder:
        if outcome(folder, sorted({each.test for each in chosen})):
            print("the named tests do not pass without a fault")
            return 2
    survivors = 0
    for mutant in chosen:
        found = caught(mutant)
        survivors += not found
        print(f"{'caught' if found else 'SURVIVED'}  {mutant.name}  ({mutant.test})", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
