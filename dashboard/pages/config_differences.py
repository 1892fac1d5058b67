"""The table of the configuration keys in which compared runs differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from dash import html
from dash.development.base_component import Component

from client_sdk.answers import RunSummary
from client_sdk.run_settings import settings_of
from dashboard.forms.attributes import aria
from dashboard.numbers import count, exact

VALUE_CHARS: Final = 60
ABSENT: Final = "–"


def differences(runs: Sequence[RunSummary]) -> tuple[list[tuple[str, list[str]]], int]:
    """Return the keys in which the runs differ with the value of each run in words, and the number of equal keys."""
    known = [settings_of(run) for run in runs]
    keys = sorted({key for each in known for key in each})
    rows: list[tuple[str, list[str]]] = []
    for key in keys:
        values = [words(each[key]) if key in each else ABSENT for each in known]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows, len(keys) - len(rows)


def words(value: Any) -> str:
    """Return a value of a configuration as people write it.

    >>> [words(value) for value in (0.001, 1000000, True, "adam", [1, 2], None)]
    ['0.001', '1,000,000', 'true', 'adam', '[1,2]', 'null']
    """
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return exact(value)
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def difference_table(runs: Sequence[RunSummary], titles: Mapping[str, str]) -> list[Component]:
    """Return the table with one column for each run, under a sentence that says how many keys are equal."""
    rows, same = differences(runs)
    equal = f"{count(same)} other {'key is' if same == 1 else 'keys are'} equal"
    if not rows:
        said = "The configurations are the same." if same else "The runs have logged no configuration."
        return [html.P(said, className="muted none")]
    head = html.Tr(
        [
            html.Th("Key", scope="col"),
            *(
                html.Th([html.I(className=f"run-mark run-{place}"), titles[run.id]], scope="col", title=titles[run.id])
                for place, run in enumerate(runs)
            ),
        ]
    )
    body = [
        html.Tr([html.Th(key, scope="row"), *(html.Td(_cut(value), title=value) for value in values)])
        for key, values in rows
    ]
    return [
        html.Div(html.Table([html.Thead(head), html.Tbody(body)], className="differences"), className="scrolling",
                 tabIndex=0, role="region", **aria(label="Configuration differences")),
        html.P(f"{equal}." if same else "No key is equal.", className="note"),
    ]  # fmt: skip


def _cut(value: str) -> str:
    return value if len(value) <= VALUE_CHARS else value[: VALUE_CHARS - 1] + "…"
