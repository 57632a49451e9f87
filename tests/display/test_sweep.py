from __future__ import annotations

import io

from difflm.display.sweep import SweepProgress, show_points, sweep_watcher
from tests.display.consoles import output, terminal

ROW = {
    "policy": "native:threshold=0.9[red]", "items": 500, "score": 0.5, "low": 0.4, "high": 0.6,
    "tpf": 3.14159, "tps": 99.96, "prefill": 1, "denoise": 2, "commit": 3, "stuck": 0, "pareto": True,
}  # fmt: skip


def test_away_from_a_terminal_a_point_is_a_line() -> None:
    file = io.StringIO()
    with sweep_watcher(file) as watcher:
        watcher.begin("a", 2)
        watcher.item()
        watcher.item()
        watcher.end("a: done")
        watcher.begin("b", 0)
        watcher.end("b: found [red]")
    assert file.getvalue() == "a: done\nb: found [red]\n"


def test_on_a_terminal_the_items_of_a_point_are_counted() -> None:
    console = terminal(width=100)
    watcher = SweepProgress(console)
    with watcher.progress:
        watcher.begin("a", 3)
        watcher.item()
        watcher.progress.refresh()
        watcher.end("a: done")
    assert "1/3" in output(console)
    assert "a: done" in output(console)


def test_the_table_names_figures_and_marks_the_best() -> None:
    file = io.StringIO()
    show_points([ROW, ROW | {"pareto": False, "stuck": 2}], file=file)
    lines = [line.rstrip() for line in file.getvalue().splitlines() if "native" in line]
    assert lines[0].split() == [
        "*", "native:threshold=0.9[red]", "500", "0.500", "(0.400-0.600)", "3.14", "100.0", "1+2+3",
    ]  # fmt: skip
    assert "(2 stuck)" in lines[1]
    assert "*" not in lines[1]


def test_drafts_have_columns_where_there_are_some() -> None:
    file = io.StringIO()
    plain, drafted = ({"tokens_per_cycle": None, "acceptance": None}, {"tokens_per_cycle": 4.125, "acceptance": 0.5})
    show_points([ROW | plain, ROW | drafted], file=file)
    head, _, *lines = [line.split() for line in file.getvalue().splitlines() if line.strip()]
    assert head[-2:] == ["tokens/cycle", "accepted"]
    assert [line[-2:] for line in lines] == [["-", "-"], ["4.12", "0.50"]]
    file = io.StringIO()
    show_points([ROW | plain], file=file)
    assert "accepted" not in file.getvalue()
