"""Logs: a line of JSON for each event, without prompts, answers or keys."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, TextIO


def told(**facts: Any) -> dict[str, Any]:
    """Return what `logging` takes as `extra`: facts of an event, by their names."""
    return {"facts": facts}


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, its facts, and a defect's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record.

        Args:
            record: of the log.
        """
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **vars(record).get("facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_logs(stream: TextIO, level: str) -> None:
    """Write the logs of the server to a stream from now on.

    Args:
        stream: where to.
        level: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("difflm.serving", "uvicorn", "opentelemetry"):
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [handler], False
        log.setLevel(level.upper() if name == "difflm.serving" else "WARNING")
