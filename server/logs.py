"""How log records are written: lines for people, or JSON objects for machines. Secrets are blotted out in both.

Every record has a stable ``action`` and its fields in ``extra``; docs/metrics.md lists them.
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
    """Write what this process logs, uvicorn's records included, from now on in this form. Replaces what was set."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").addFilter(_as_fault_of_client)


def _as_fault_of_client(record: logging.LogRecord) -> bool:
    """A text frame that is no UTF-8 is answered as it should be; uvicorn's traceback of it tells nobody anything, and
    is a way to fill the log."""
    if record.msg == "Invalid UTF-8 sequence received from client.":
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
    return True


def blotted(text: str) -> str:
    """The text without tokens, passwords and webhook addresses."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return blotted(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message, the fields of ``extra``, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
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
    return blotted(str(value))
