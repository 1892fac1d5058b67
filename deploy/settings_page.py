"""Writes docs/settings.md, on standard output, from the descriptions in server/config.py."""

from __future__ import annotations

import sys
from typing import Any

from pydantic.fields import FieldInfo

from server.config import SECRETS, Config

HEAD = """# Settings

What `spikewatch up`, `serve`, `dashboard` and `migrate` read from the environment; `make settings` writes this page
from `server/config.py`. A secret may stand in a file instead, as Docker and Kubernetes hand them over: the variable
with `_FILE` behind its name then holds the path. [operations.md](operations.md) says which of them matter when, and
[delivery.md](delivery.md) names those of the SDK.

| variable | default | what it is |
|---|---|---|
"""


def page() -> str:
    rows = [
        f"| {_variable(name)} | {_default(field)} | {_text(field)} |" for name, field in Config.model_fields.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _variable(name: str) -> str:
    return f"`SPIKEWATCH_{name.upper()}`" + (" or `…_FILE`" if name in SECRETS else "")


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return "`1`" if value else "`0`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return f"`{value}`"


def _text(field: FieldInfo) -> str:
    text = field.description or ""
    head, _, tail = text.rpartition(" Or SPIKEWATCH_")
    return (head if head and tail.endswith("_FILE names a file that holds it.") else text).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
