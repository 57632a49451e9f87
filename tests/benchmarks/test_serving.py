"""The server under many clients, and the parts of its measurement of speed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lossless.records import Results
from benchmarks.serving import __main__ as command
from benchmarks.serving import load, speed, tables
from benchmarks.serving.wire import Response, parsed, unchunked
from difflm.checkpoints.loading import LoadedModel
from difflm.errors import DifflmError
from difflm.serving.server import Served
from difflm.serving.service import Service
from difflm.serving.tickets import Ticket
from tests.serving.conftest import loaded
from tests.serving.servers import serving

__all__ = ["loaded"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load.tiny_model(tmp_path_factory.mktemp("load"))


def test_under_a_load_every_answer_is_the_engines_and_nothing_is_left(model: LoadedModel) -> None:
    """Reports 47 and 53: who leaves is forgotten, and who else is there changes no answer."""
    report = load.run(model, streams=64, requests=160)
    assert report.wrong == []
    assert report.left == {}
    assert sum(report.requests.values()) == 160
    assert min(report.requests[kind] for kind in load.KINDS) > 0
    assert report.lines[0].startswith(f"{sum(report.requests.values())} requests in ")


def test_a_wrong_answer_and_what_is_left_are_found(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load.expected
    monkeypatch.setattr(load, "expected", lambda *given: [f"{text}." for text in real(*given)])
    monkeypatch.setattr(load, "WEIGHTS", [1, 1] + [0] * (len(load.KINDS) - 2))
    report = load.run(model, streams=2, requests=4, different=2)
    assert len(report.wrong) == sum(report.requests.values())
    with load.Host(model) as host:
        before = host.held()
        assert list(load.left_over(host, {**before, "tasks": 0}, seconds=0)) == ["tasks"]


class Hoard(dict[Any, Any]):
    def pop(self, *given: Any) -> Any:
        return None


def never_forgets_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Served, "transports", property(lambda self: hoard, lambda self, value: None), raising=False)
    hoard = Hoard()


def never_forgets_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, init = list[Ticket](), Ticket.tell
    monkeypatch.setattr(Ticket, "tell", lambda self, what: (kept.append(self), init(self, what))[1])


def never_forgets_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, plan = list[list[bytes]](), Service.plan
    monkeypatch.setattr(Service, "plan", lambda self, kind, body: (kept.append([body] * 9), plan(self, kind, body))[1])


@pytest.mark.parametrize(
    ("fault", "kind", "requests", "left"),
    [
        (never_forgets_a_connection, "invalid", 8, "connections"),
        (never_forgets_an_answer, "whole", 8, "objects of Ticket"),
        (never_forgets_a_body, "invalid", 80, "more of builtins.list"),
    ],
)
def test_a_planted_leak_is_found(
    fault: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    requests: int,
    left: str,
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "WEIGHTS", [int(each == kind) for each in load.KINDS])
    fault(monkeypatch)
    report = load.run(model, streams=8, requests=requests, different=2, patience=0)
    assert report.left[left] >= requests // 2


def test_memory_that_grows_is_found() -> None:
    early, late = (100.0, Counter(a=1)), (200.0, Counter(a=31, b=29))
    assert load.grown(early, late, 100) == {"MB of memory more": 100}
    assert load.grown(early, (100.0, Counter(a=51, b=50)), 100) == {"more of a": 50, "more of b": 50}
    assert load.grown(early, (100.0, Counter(a=51, b=50)), 400) == {}


def test_requests_differ_and_are_the_same_again() -> None:
    assert load.bodies(1, 20) == load.bodies(1, 20) != load.bodies(2, 20)
    assert len({body["prompt"] for body in load.bodies(1, 20)}) > 10


def test_a_response_is_read_whole_or_cut_short() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"5\r\ndata:\r\n2;x=1\r\n \n\r\n0\r\n\r\n"
    assert parsed(head + body) == (200, b"data: \n")
    assert parsed(head + body[:9]) == (200, b"data:")
    assert parsed(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\n{}") == (413, b"{}")
    assert parsed(b"") == parsed(b"nonsense") == (0, b"")
    assert unchunked(b"") == b""


# Speed.


def test_figures_of_a_measurement() -> None:
    answers = [
        speed.Answered(text="a b", first=0.5, seconds=1.0),
        speed.Answered(text="", first=None, seconds=3.0),
    ]
    found = speed.figures(answers, 4.0, lambda text: len(text.split()))
    assert found == {"answers": 2, "tokens": 2, "seconds": 4.0, "latency": [1.0, 3.0], "first": [0.5]}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), (list(range(1, 101)), 0.99, 99)],
)
def test_percentiles(values: list[float], share: float, expected: float | None) -> None:
    assert tables.percentile(values, share) == expected


def test_ratios_are_taken_round_by_round() -> None:
    def row(system: str, number: int, seconds: float) -> dict[str, Any]:
        about = {"kind": "speed", "system": system, "clients": 2, "round": number, "answers": 1}
        return {**about, "tokens": 12, "seconds": seconds, "latency": [seconds], "first": []}

    rows = [
        row("difflm serve", 0, 2.0),
        row("engine", 0, 1.0),
        row("peer", 1, 2.0),
        row("difflm serve", 1, 8.0),
        row("engine", 1, 4.0),
    ]
    lines = tables.summary([{"kind": "subject"}, *rows]).splitlines()
    assert lines[0].startswith("| clients | system | tokens/s | of engine | tokens of an answer | latency p50 s |")
    assert lines[2] == "| 2 | engine | 7.50 | 1.00 | 12.00 | 1.00 | 4.00 |  |  |"
    assert lines[3] == "| 2 | difflm serve | 3.75 | 0.50 | 12.00 | 2.00 | 8.00 |  |  |"
    assert lines[4] == "| 2 | peer | 6.00 | 2.00 | 12.00 | 2.00 | 2.00 |  |  |"
    assert lines[6:] == [
        "| clients | system | ms more than the engine | of its latency |",
        "|---|---|---|---|",
        "| 2 | difflm serve | 2500.00 | +100.0 % |",
    ]


def test_without_a_common_round_nothing_is_compared() -> None:
    assert tables.over_http({0: {"latency": [1.0]}}, {1: {"latency": [2.0]}}) == (None, None)


def test_a_peer_is_a_name_a_model_and_a_command() -> None:
    peer = speed.Peer.of("llama-cpp,m,python -m llama_cpp.server --chat a,b --port {port}")
    assert peer == speed.Peer(
        name="llama-cpp", model="m", command="python -m llama_cpp.server --chat a,b --port {port}"
    )
    assert (peer.port, speed.Peer.of("a,b,http://127.0.0.1:8080/").port) == (None, 8080)
    for text in ("a,b", "a,b,run", "a,,run {port}", "a,b,http://elsewhere.org:80"):
        with pytest.raises(DifflmError, match="--peer: "):
            speed.Peer.of(text)


def test_a_server_that_ends_is_said_with_what_it_wrote() -> None:
    words = ["sh", "-c", "echo no such model; exit 3"]
    with (
        pytest.raises(DifflmError, match=r"(?s)peer: .* ended with 3.*no such model"),
        speed.started(words, name="peer", model="m", port=speed.free_port()),
    ):
        pass


def test_engine_and_server_are_measured_alike_and_once(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    with serving(loaded, prefix_caching=False) as server:
        systems = [speed.Ours(loaded), speed.Remote("difflm serve", server.port, "tiny")]
        texts = [[each.text for each in system.answer(speed.QUESTIONS[:3], 2, 10)] for system in systems]
        assert texts[0] == texts[1]
        assert all(texts[0])
        more = {"diffusion": {"decoding": "verified"}}
        with pytest.raises(DifflmError, match=r"status 400.*diffusion\.decoding"):
            speed.Remote("difflm serve", server.port, "tiny", more).answer(["a"], 1, 4)
        for rounds in (1, 2):
            results = Results(path, {"command": "speed"})
            given = {"clients": [1, 2], "requests": 2, "most": 6, "count": len}
            speed.measure(systems, results, rounds=rounds, **given)
    rows = Results(path).of("speed")
    assert {(row["system"], row["clients"], row["round"]) for row in rows} == {
        (name, clients, number) for name in ("engine", "difflm serve") for clients in (1, 2) for number in (0, 1)
    }
    assert len(rows) == 8
    assert all(len(row["first"]) == row["answers"] == max(2, 2 * row["clients"]) for row in rows)


def test_a_system_that_fails_is_named(loaded: LoadedModel) -> None:
    with serving(loaded) as server, pytest.raises(DifflmError, match="peer: status 404"):
        speed.Remote("peer", server.port, "other").answer(["a"], 2, 4)


def test_the_command_says_how_it_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = load.Report(left={"tasks": 2})
    monkeypatch.setattr(load, "tiny_model", lambda folder: None)
    monkeypatch.setattr(load, "run", lambda *given, **options: replace(report, seconds=options["seconds"]))
    assert command.main(["load", "--seconds", "3"]) == 1
    assert "LEFT: 2 tasks" in capsys.readouterr().out
    report.left.clear()
    assert command.main(["load"]) == 0
    assert command.main(["speed", "--results", "x.jsonl"]) == 1
    assert "--model: it is missing" in capsys.readouterr().err


def test_the_command_prints_the_table_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.jsonl"
    Results(path, {"command": "speed"})
    assert command.main(["speed", "--results", str(path), "--table"]) == 0
    assert capsys.readouterr().out.startswith("| clients | system |")


def test_a_stream_is_read_whatever_stands_between_its_events() -> None:
    event = {"choices": [{"delta": {"content": "a\n\nb\u2028"}}]}
    line = f"data: {json.dumps(event, ensure_ascii=False)}"
    for end in ("\n", "\r\n"):
        body = end.join([": ping - now", "", line, "", ": ping - later", "", line, "", "data: [DONE]", "", ""])
        assert Response(status=200, body=body.encode()).text == "a\n\nb\u2028" * 2
    whole = {"choices": [{"message": {"content": "c"}}]}
    assert Response(status=200, body=json.dumps(whole).encode()).text == "c"
