"""Log lines as JSON objects; never the text of a query or document."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import TextIO

FIELDS = "fields"
"""The attribute of a record that holds what else is told, by name."""


class JsonLines(logging.Formatter):
    """A record as one JSON object.

    An exception is told by its class and its places in the code: its message may quote a client's text.

    >>> record = logging.makeLogRecord({"msg": "ready", "levelname": "INFO", "created": 0.0, "fields": {"port": 80}})
    >>> JsonLines().format(record)
    '{"time": "1970-01-01T00:00:00.000Z", "level": "info", "message": "ready", "port": 80}'
    """

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.created % 1 * 1000):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, trace = record.exc_info
            frames = traceback.extract_tb(trace)
            line["exception"] = kind.__name__
            line["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


class Lines(logging.StreamHandler[TextIO]):
    """Writes lines; a full disk loses lines, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Nothing: there is no place left to complain."""


def log_to(stream: TextIO | None = None, level: str = "info") -> None:
    """Sends the log of this package, the HTTP server and what sends traces to `stream`, default standard error."""
    handler = Lines(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("rerank", level.upper()), ("uvicorn", "WARNING"), ("opentelemetry", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False
