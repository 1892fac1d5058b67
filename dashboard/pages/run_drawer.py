"""The drawer of a run: its name, tags and notes to edit, configuration, environment, attempts, export and deletion.

It is read from the server when it is opened, and stays as it is while it is open, so that nothing that is typed is
lost to an update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Attempt, RunDetail
from client_sdk.run_settings import flat, settings_of
from client_sdk.vocabulary import RunState
from dashboard import ids
from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties, form_result
from dashboard.forms.attributes import aria, data
from dashboard.forms.fields import FieldError, button, form, long_text, text
from dashboard.numbers import count, duration, unix_time
from dashboard.pages.config_differences import words

FORM: Final = "run-details"
ARCHIVE: Final = "run-archive"
"""Id of the part with the button that archives the run or lists it again."""
EXPORTS: Final = (
    ("format=parquet", "Parquet", "every step with all statistics"),
    ("format=csv", "CSV", "a row for each step"),
    ("format=csv&layers=true", "CSV of layers", "a row for each step and layer"),
    ("format=zip", "ZIP", "everything, with histograms, events and alerts as JSON lines; can be imported again"),
)
"""Query, name and contents of each export."""
ENVIRONMENT: Final[Mapping[str, str]] = {"cpus": "CPUs", "gpus": "GPUs", "cuda": "CUDA", "git_commit": "git commit"}
"""Names of keys of the environment, where they are not the key itself."""
TAGS_HINT: Final = "separated by commas"
ARCHIVED_NOTE: Final = "The list of runs leaves an archived run out, unless its state “archived” is chosen."
DELETE_QUESTION: Final = "Delete for good?"


def drawer() -> Component:
    """Return the drawer before it is opened. dialogs.js opens and closes it."""
    return html.Dialog(
        [
            html.Div(
                [
                    html.H2("Details of the run"),
                    html.Button("Close", type="button", className="button", **data(closes=ids.RUN_DRAWER)),
                ],
                className="drawer-head",
            ),
            html.Div(html.Span(className="skeleton"), id=ids.RUN_DETAILS),
        ],
        id=ids.RUN_DRAWER,
        className="drawer",
        **aria(label="Details of the run"),
    )


def opener() -> Component:
    """Return the button that opens the drawer."""
    return html.Button(
        "Details",
        type="button",
        className="button",
        title="Configuration, environment, tags, notes, attempts, export",
        **data(opens=ids.RUN_DRAWER),
    )


def contents(run: RunDetail, now: float) -> list[Component]:
    """Return everything in the drawer."""
    settings = {key: words(value) for key, value in sorted(settings_of(run).items())}
    found = flat(run.environment)
    machine = {ENVIRONMENT.get(key, key.removeprefix("packages.")): _described(value) for key, value in found.items()}
    return [
        _form(run),
        *_part("Configuration", [_table(settings) or _none("The run has logged no configuration.")]),
        *_part("Environment", [_table(machine) or _none("Its client has not described the machine.")]),
        *_part("Attempts", [_attempts(run, now)]),
        *_part("Export", [_exports(run.id)]),
        *_part("Remove", [html.Div(archive_button(run), id=ARCHIVE), _deletion(run)]),
    ]


def archive_button(run: RunDetail) -> list[Component]:
    """Return the button that archives the run, or lists it again, with what it does."""
    word, verb = ("List again", "unarchive-run") if run.archived else ("Archive", "archive-run")
    return [button(word, verb, subject=run.id), html.P(ARCHIVED_NOTE, className="note")]


def _form(run: RunDetail) -> Component:
    fields = [
        text("name", "Name", run.name),
        text("tags", "Tags", ", ".join(run.tags), hint=TAGS_HINT),
        long_text("notes", "Notes", run.notes, placeholder="What was tried, what came of it"),
    ]
    return form(FORM, fields, [button("Save", "save-run", strong=True)], subject=run.id)


def _part(title: str, parts: Sequence[Component]) -> list[Component]:
    return [html.H3(title), *parts]


def _none(sentence: str) -> Component:
    return html.P(sentence, className="note")


def _described(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return f"{len(value)} × {value[0]}" if len(set(value)) == 1 and len(value) > 1 else ", ".join(value)
    return words(value)


def _table(rows: Mapping[str, str]) -> Component | None:
    if not rows:
        return None
    body = [html.Tr([html.Th(key, scope="row"), html.Td(value)]) for key, value in rows.items()]
    return html.Table(html.Tbody(body), className="facts")


def _attempts(run: RunDetail, now: float) -> Component:
    ranks = {item.rank for item in run.attempts}
    first = [item for item in run.attempts if item.rank == min(ranks)]
    if not first:
        return _none("No record has arrived yet.")
    note = f"of rank {min(ranks)}; the run has {len(ranks)} ranks" if len(ranks) > 1 else ""
    rows = [_attempt(run, item, now) for item in first]
    head = html.Tr([html.Th(name, scope="col") for name in ("Attempt", "Steps", "Began")])
    return html.Div(
        [
            html.Table([html.Thead(head), html.Tbody(rows)], className="facts attempts"),
            html.P(note, className="note") if note else None,
        ]
    )


def _attempt(run: RunDetail, attempt: Attempt, now: float) -> Component:
    began = unix_time(attempt.started_at)
    link = html.A(str(attempt.attempt), href=f"/runs/{quote(run.id, safe='')}?attempt={attempt.attempt}")
    return html.Tr(
        [
            html.Td(link),
            html.Td(f"{count(attempt.first_step)} to {count(attempt.last_step)}"),
            html.Td("" if not began else f"{duration(max(now - began, 0.0))} ago"),
        ]
    )


def _exports(run_id: str) -> Component:
    items = [
        html.Li(
            [
                html.A(name, href=f"/runs/{quote(run_id, safe='')}/export?{query}", download=""),
                html.Span(f" {what}", className="note"),
            ]
        )
        for query, name, what in EXPORTS
    ]
    return html.Ul(items, className="exports")


def _deletion(run: RunDetail) -> Component:
    note = (
        "The training goes on, and the server refuses what it sends."
        if run.state == RunState.RUNNING
        else "Measurements, alerts and notes are removed for good."
    )
    return html.Div(
        [button("Delete", "delete-run", subject=run.id, sure=DELETE_QUESTION), html.P(note, className="note")]
    )


async def save_run(action: FormAction, context: ActionContext) -> Properties:
    """Store name, tags and notes. The page receives the change as news."""
    name = action.fields.get("name", "").strip()
    if not name:
        raise FieldError("name", "a run needs a name")
    tags = [tag.strip() for tag in action.fields.get("tags", "").split(",") if tag.strip()]
    changes = {"name": name, "tags": tags, "notes": action.fields.get("notes", "")}
    await context.client.change_run(action.subject, changes)
    return form_result(action, message="Saved.")


async def archive_run(action: FormAction, context: ActionContext) -> Properties:
    """Put a run away, or list it again."""
    is_archived = action.verb == "archive-run"
    run = await context.client.change_run(action.subject, {"archived": is_archived})
    return {ARCHIVE: {"children": archive_button(run)}}


async def delete_run(action: FormAction, context: ActionContext) -> Properties:
    """Delete a run for good and open the list of runs."""
    await context.client.delete_run(action.subject)
    return {ids.LOCATION: {"pathname": "/", "search": "", "hash": ""}}


ACTIONS: Final[Mapping[str, Handler]] = {
    "save-run": save_run,
    "archive-run": archive_run,
    "unarchive-run": archive_run,
    "delete-run": delete_run,
}
"""Handlers keyed by verb."""
