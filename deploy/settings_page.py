"""Writes docs/reference/settings.md to standard output, from the descriptions in server/config.py."""

from __future__ import annotations

import sys
from typing import Any

from pydantic.fields import FieldInfo

from server.config import SECRETS, Config

HEAD = """# Settings

`spikewatch up`, `serve`, `dashboard` and `migrate` read these variables from the environment. `make settings`
generates this page from `server/config.py`. A secret may be stored in a file instead, as Docker and Kubernetes provide
them: append `_FILE` to the name of the variable and set it to the path. [The guide](../how-to/operate.md)
explains which settings matter when, and [SDK settings](sdk-settings.md) lists those of the SDK.

| variable | default | what it is |
|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
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
