"""Lines of the log are JSON, whatever is logged."""

from __future__ import annotations

import io
import json
import logging

from difflm.serving.logs import JsonLines, told, write_logs


def test_lines(monkeypatch: object) -> None:
    stream = io.StringIO()
    names = ("difflm.serving", "uvicorn", "opentelemetry")
    kept = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in names}
    try:
        write_logs(stream, "info")
        log = logging.getLogger("difflm.serving.bridge")
        log.info("one %s", "two\nthree", extra=told(path="/a\r\nb", status=200))
        log.debug("not this")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("four")
        logging.getLogger("uvicorn.error").info("not this")
    finally:
        for name, (handlers, propagate) in kept.items():
            logging.getLogger(name).handlers[:], logging.getLogger(name).propagate = handlers, propagate
            logging.getLogger(name).setLevel(logging.NOTSET)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["message"], first["path"], first["status"]) == (
        "info",
        "one two\nthree",
        "/a\r\nb",
        200,
    )
    assert first["time"].endswith("Z")
    assert "ValueError: broken" in second["traceback"]


def test_facts_of_other_types_are_written_as_text() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "m", (), None)
    vars(record).update(told(value={1, 2}))
    assert json.loads(JsonLines().format(record))["value"] == "{1, 2}"
