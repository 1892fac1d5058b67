"""The control of a run's page that shows which scalar is the loss and lets people choose another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import RunDetail
from dashboard import ids
from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties, form_result
from dashboard.forms.fields import Options, button, choice, form
from dashboard.numbers import ellipsis

FORM: Final = "loss"
AUTOMATIC: Final = ""
OF_PROJECT: Final = "project"
NAME_SHOWN: Final = 48
"""Maximum number of characters of a name that are shown."""
ORIGINS: Final = {"run": "chosen for this run", "code": "chosen by init", "project": "default of the project"}
"""Words for where a choice comes from."""
HINT: Final = "The detectors begin anew with it at the run's next record. What they said before stays."


def control() -> Component:
    """Return the line with the loss and the form that opens under it, hidden until the first record.

    They are updated apart from each other, so that a form that is open stays as it is.
    """
    return html.Details(
        [
            html.Summary([html.Span(id=ids.LOSS_LINE), html.Span("change", className="link")]),
            html.Div(id=ids.LOSS_FORM),
        ],
        id=ids.RUN_LOSS,
        className="loss-choice hidden",
    )


def line(run: RunDetail) -> list[Component | str]:
    """Return the name of the loss, where its choice comes from and which steps were judged with it."""
    name = run.loss_words
    parts: list[Component | str] = ["Loss: ", html.B(ellipsis(name, NAME_SHOWN) or "none found", title=name)]
    notes = [ORIGINS.get(run.loss_choice.by, "") if run.loss_choice is not None else "", run.loss_note]
    note = "; ".join(part for part in notes if part)
    return [*parts, html.Span(f" · {note}", className="note")] if note else parts


def editor(run: RunDetail) -> Component:
    """Return the form in which another scalar is chosen."""
    own = run.loss_choice.scalar if run.loss_choice is not None and run.loss_choice.by == "run" else AUTOMATIC
    fields = [
        choice("scalar", "Scalar", _options(run), own),
        choice("scope", "For", [("run", "this run"), (OF_PROJECT, f"all runs of {run.project}")], "run", hint=HINT),
    ]
    return form(FORM, fields, [button("Save", "choose-loss", strong=True)], subject=run.id)


def _options(run: RunDetail) -> Options:
    """Return the scalars that can be chosen. The API separates names by commas, so a name with one cannot be drawn."""
    names = sorted(name for name in run.scalars if "," not in name)
    return [(AUTOMATIC, "automatic"), *((name, ellipsis(name, NAME_SHOWN)) for name in names)]


async def choose_loss(action: FormAction, context: ActionContext) -> Properties:
    """Choose the loss of a run, or of all runs of its project. The page receives the change as news."""
    scalar = action.fields.get("scalar") or None
    words = "automatic" if scalar is None else scalar
    if action.fields.get("scope") != OF_PROJECT:
        await context.client.choose_loss(action.subject, scalar)
        return form_result(action, message=f"Saved for this run: {words}.")
    run = await context.client.run(action.subject)
    await context.client.choose_project_loss(run.project, scalar)
    # The run must follow its project too, so a choice of its own ends.
    run = await context.client.choose_loss(action.subject, None)
    kept = run.loss_choice is not None and run.loss_choice.by == "code"
    more = f" This run keeps {run.loss_choice.scalar}, which its code chose." if kept and run.loss_choice else ""
    return form_result(action, message=f"Saved for the project: {words}.{more}")


ACTIONS: Final[Mapping[str, Handler]] = {"choose-loss": choose_loss}
"""Handlers keyed by verb."""
