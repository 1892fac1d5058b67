"""Formats log records as text lines or as JSON objects, and redacts secrets in both.

Records carry a stable ``action`` (`server.log_actions`) and further fields in ``extra``, listed in
docs/reference/server-metrics.md.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_SECRETS = (
    (re.compile(r"\bsws?_[A-Za-z0-9_-]{8,}"), "sw_…"),
    (re.compile(r"(?i)(\bbearer\s+)[^\s,;'\"]+"), r"\1…"),
    (re.compile(r"(?i)([?&]token=)[^&\s'\"]+"), r"\1…"),
    (re.compile(r"(://[^/\s:@]+:)[^/\s@]+@"), r"\1…@"),
    (re.compile(r"(https://hooks\.slack\.com/)[^\s'\"]+"), r"\1…"),
)


def configure(form: Literal["text", "json"], level: str, stream: TextIO | None = None) -> None:
    """Set the format and the minimum level of all log records of this process, including those of uvicorn.

    Replaces an earlier configuration.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").addFilter(_downgrade_client_error)


def _downgrade_client_error(record: logging.LogRecord) -> bool:
    """Downgrade uvicorn's error about a text frame that is not UTF-8 to a warning without a traceback.

    Such a frame is answered correctly. With a traceback for each, a client could fill the log.
    """
    if record.msg == "Invalid UTF-8 sequence received from client.":
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
    return True


def redacted(text: str) -> str:
    """Return the text with tokens, passwords and webhook addresses replaced.

    >>> redacted("no answer from postgresql://me:secret@db/x")
    'no answer from postgresql://me:…@db/x'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """Formats a record as a line with time, level and message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without secrets."""
        return redacted(super().format(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: time (RFC 3339, UTC), level, logger, message, ``extra`` fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line, without secrets."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in entry}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: _plain(value) for key, value in entry.items()}, ensure_ascii=False)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(str(value))
