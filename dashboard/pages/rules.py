"""The page of alert rules: the list, the editor and the backtest of a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from dash import Dash, Input, Output, dcc, html
from dash.development.base_component import Component

from client_sdk.answers import Backtest, Rule
from dashboard import ids
from dashboard.client import ApiClient, ApiRefusedError
from dashboard.forms.actions import ActionContext, FormAction, Properties, form_result
from dashboard.forms.fields import FieldError, button
from dashboard.numbers import count, exact, steps
from dashboard.pages.alert_cards import level_tone
from dashboard.pages.rule_backtest import backtest_sections
from dashboard.pages.rule_form import body, editor
from dashboard.shell.page import NavigationEntry, Page, PageRequest
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View, parse_view

REDUCED: Final = {"max": "greatest", "min": "least", "mean": "mean"}


def layout(request: PageRequest) -> Component:
    """Return the page before its first data."""
    may_change = request.viewer.is_administrator
    new = html.Div(button("New rule", "new-rule", subject="new"), className="form-buttons") if may_change else None
    rows = [html.Div(html.Span(className="skeleton"), className="item") for _ in range(3)]
    return html.Div(
        [
            html.H1("Rules"),
            html.P(
                "Alerts of your own, without code. Spikes, predictions, NaN and learning-rate jumps need no rule.",
                className="muted lead",
            ),
            html.Div(
                [
                    html.Section(
                        [
                            html.Div(rows, id=ids.RULE_LIST, className="card items"),
                            new,
                        ]
                    ),
                    html.Section(
                        [
                            html.Div(welcome(may_change=may_change), id=ids.RULE_EDITOR),
                            dcc.Store(id=ids.RULE_BACKTEST),
                            html.Div(id=ids.RULE_RESULT),
                        ]
                    ),
                ],
                className="halves",
            ),
        ],
        className="page",
    )


def welcome(*, may_change: bool = True) -> Component:
    """Return the text in place of the editor while no rule is chosen."""
    words = "Choose a rule to change it, or create a new one. Test it on the history of a run before you save it."
    if not may_change:
        words = "These rules watch the runs that you see. Only administrators of all projects can change them."
    return html.Div(html.P(words, className="muted"), className="card calm-form")


def items(rules: Sequence[Rule], *, may_change: bool = True) -> list[Component]:
    """Return the list of rules. ``may_change``: whether the viewer may change them, which adds the buttons."""
    if not rules:
        return [html.P("No rules. The built-in detectors are always active.", className="muted none")]
    return [_item(rule, may_change=may_change) for rule in rules]


def _item(rule: Rule, *, may_change: bool) -> Component:
    return html.Div(
        [
            html.Div(
                [
                    html.Div(
                        [
                            html.Span(
                                rule.level, className=f"pill {level_tone(rule.level)}" if rule.enabled else "pill"
                            ),
                            html.B(rule.name),
                            None if rule.enabled else html.Span("off", className="pill"),
                        ],
                        className="item-name",
                    ),
                    html.P(sentence(rule), className="muted"),
                ],
                className="item-words",
            ),
            html.Div(
                [
                    button("Edit", "edit-rule", subject=rule.id),
                    button("Switch off" if rule.enabled else "Switch on", "switch-rule", subject=rule.id),
                    button("Delete", "delete-rule", subject=rule.id, sure="Really delete?"),
                ],
                className="item-buttons",
            )
            if may_change
            else None,
        ],
        className="item" if rule.enabled else "item off",
    )


def sentence(rule: Rule) -> str:
    """Return a rule in words: its condition, then the runs that it watches."""
    subject = rule.scalar or "any record"
    if rule.statistic is not None:
        subject = f"{REDUCED.get(rule.reduce, rule.reduce)} {rule.statistic} of "
        subject += "all layers" if rule.layers == "*" else rule.layers
    way = {"up": "rises", "down": "falls"}.get(rule.direction, "changes")
    by = f"{exact(rule.value)}×" if rule.change_by == "factor" else exact(rule.value)
    side = {"up": "above", "down": "below"}.get(rule.direction, "off")
    words = {
        "above": f"{subject} above {exact(rule.value)}",
        "below": f"{subject} below {exact(rule.value)}",
        "change": f"{subject} {way} by {by} over {steps(rule.window)}",
        "z-score": f"{subject} {exact(rule.value)} deviations {side} its last {count(rule.window)} values",
        "no-data": f"{subject} missing for {exact(rule.value)} min",
    }.get(rule.condition, rule.condition)
    if rule.for_steps > 1 and rule.condition != "no-data":
        words += f", {count(rule.for_steps)} values in a row"
    runs = [
        *([f"project {rule.project}"] if rule.project else []),
        *([f"tag {rule.tag}"] if rule.tag else []),
        *([rule.run_name] if rule.run_name else []),
    ]
    return f"{words} · {', '.join(runs) if runs else 'all runs'}"


class RulesLive:
    """Live part with the rules. Training does not change them, so they are read once, and again after a gap."""

    run_id = None

    def __init__(self, client: ApiClient, *, may_change: bool) -> None:
        self._client = client
        self._may_change = may_change
        self._is_loaded = False

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read the list on the first call and after a gap."""
        if self._is_loaded and not news.resync:
            return self.idle(view, now)
        shown = items(await self._client.rules(), may_change=self._may_change)
        self._is_loaded = True
        return Refresh(updates=(Update(component=ids.RULE_LIST, props={"children": shown}),))

    def idle(self, view: View, now: float) -> Refresh:
        """Return the header without updates."""
        return Refresh()


async def edit_rule(action: FormAction, context: ActionContext) -> Properties:
    """Open the editor with a rule, or with a new one."""
    rule = await _rule(context.client, action.subject) if action.verb == "edit-rule" else None
    return {
        ids.RULE_EDITOR: {"children": editor(rule, await context.client.runs())},
        ids.RULE_BACKTEST: {"data": None},
    }


async def save_rule(action: FormAction, context: ActionContext) -> Properties:
    """Store the rule in the editor."""
    known, taken = await _rule_and_ids(context.client, action.subject)
    rule = await context.client.put_rule(body(action.fields, known, taken))
    return {
        **await _rule_list(context.client),
        ids.RULE_EDITOR: {"children": editor(rule, await context.client.runs())},
        **form_result(action, message="Saved. It applies from the next record on."),
    }


async def backtest_rule(action: FormAction, context: ActionContext) -> Properties:
    """Run the rule in the editor over the history of a run or a project, without storing it."""
    known, taken = await _rule_and_ids(context.client, action.subject)
    rule = body(action.fields, known, taken)
    kind, _, name = action.fields.get("backtest_on", "").partition(":")
    if not name:
        raise FieldError("backtest_on", "there is no run yet to test it on")
    backtest = await context.client.backtest_rule(
        rule, run=name if kind == "run" else None, project=name if kind == "project" else None
    )
    times = "not have fired" if not backtest.fired else f"have fired {backtest.fired}×"
    return {
        ids.RULE_BACKTEST: {"data": {"rule": rule, "backtest": msgspec.to_builtins(backtest)}},
        **form_result(action, message=f"It would {times}."),
    }


async def switch_rule(action: FormAction, context: ActionContext) -> Properties:
    """Switch a rule on or off."""
    rule = await _rule(context.client, action.subject)
    await context.client.put_rule({**msgspec.to_builtins(rule), "enabled": not rule.enabled})
    return await _rule_list(context.client)


async def delete_rule(action: FormAction, context: ActionContext) -> Properties:
    """Delete a rule and close the editor."""
    await context.client.delete_rule(action.subject)
    return {
        **await _rule_list(context.client),
        ids.RULE_EDITOR: {"children": welcome()},
        ids.RULE_BACKTEST: {"data": None},
    }


async def _rule_list(client: ApiClient) -> Properties:
    return {ids.RULE_LIST: {"children": items(await client.rules())}}


async def _rule(client: ApiClient, rule_id: str) -> Rule:
    known, _ = await _rule_and_ids(client, rule_id)
    if known is None:
        raise ApiRefusedError(404, "unknown_rule", "the rule has been deleted in the meantime")
    return known


async def _rule_and_ids(client: ApiClient, rule_id: str) -> tuple[Rule | None, list[str]]:
    """Return the rule of this id, if there is one, and the ids of all rules."""
    found = await client.rules()
    return next((rule for rule in found if rule.id == rule_id), None), [rule.id for rule in found]


def _register_callbacks(app: Dash) -> None:
    @app.callback(
        Output(ids.RULE_RESULT, "children"), Input(ids.RULE_BACKTEST, "data"), Input(ids.VIEW, "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def show_backtest(data: Any, view: Any) -> Any:
        """Draw the backtest, and again if the theme changes."""
        current = parse_view(view)
        if not data or current is None:
            return None
        return backtest_sections(msgspec.convert(data["backtest"], Backtest), data["rule"], current)


PAGE: Final = Page(
    name="rules",
    path="/rules",
    navigation=NavigationEntry(label="Rules", order=5),
    layout=layout,
    live=lambda client, request: RulesLive(client, may_change=request.viewer.is_administrator),
    actions={
        "new-rule": edit_rule,
        "edit-rule": edit_rule,
        "save-rule": save_rule,
        "backtest-rule": backtest_rule,
        "switch-rule": switch_rule,
        "delete-rule": delete_rule,
    },
    callbacks=_register_callbacks,
)
