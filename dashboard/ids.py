"""Ids of components that several modules refer to, each written once. A page may keep ids of its own in its module."""

from __future__ import annotations

from typing import Final

# The frame around every page.
LOCATION: Final = "location"
PAGE: Final = "page"
ROUTE: Final = "route"  # store: page and subject of the address, written by the router
VIEW: Final = "view"  # store: the view of this browser, written by view.js
TAB: Final = "tab"  # store: name of this page load
RESUME: Final = "resume"  # store: view.js writes to it to request a new live session
BEAT: Final = "beat"  # store: written with every push; view.js shows "offline since" if it stops
SIGNED_OUT: Final = -1.0  # value of the beat after the login has ended; view.js then opens the login
STATUS: Final = "status"
NOTICE: Final = "notice"
FORM_ACTION: Final = "form-action"  # store: the form or button that forms.js sends
FORM_RESULT: Final = "form-result"  # store: errors of fields and the message of a form; forms.js shows them

# The page of all runs.
FLEET: Final = "fleet-rows"  # store: rows for fleet.js
FLEET_TABLE: Final = "fleet-table"
FLEET_COUNTS: Final = "fleet-counts"
FLEET_PROJECT: Final = "fleet-project"
FLEET_GROUP: Final = "fleet-group"
FLEET_DANGER: Final = "fleet-danger"  # one line for each endangered run; empty in calm times

# The page of one run.
RUN_HEAD: Final = "run-head"
RUN_LOSS: Final = "run-loss"  # the line and the form of the loss; hidden before the first record
LOSS_LINE: Final = "loss-line"
LOSS_FORM: Final = "loss-form"
REPLAY_RESULT: Final = "replay-result"
RUN_KPIS: Final = "run-kpis"
RUN_DANGER: Final = "run-danger"  # the sentence about the most urgent alert; empty in calm times
RUN_EMPTY: Final = "run-empty"
RUN_PANELS: Final = "run-panels"
ALERT_COLUMN: Final = "alert-column"
STAT_PICK: Final = "stat-pick"
METRIC_PICK: Final = "metric-pick"
ATTEMPT_PICK: Final = "attempt-pick"
ATTEMPT_CONTROL: Final = "attempt-control"  # label of the select; hidden while the run has one attempt
RUN_DRAWER: Final = "run-drawer"  # dialog with configuration, environment, notes, attempts, export, deletion
RUN_DETAILS: Final = "run-details"  # its contents, which are read when it is opened
HISTOGRAM_CARD: Final = "histogram-card"
RUN_AUDIT: Final = "run-audit"
HISTOGRAM_TITLE: Final = "histogram-title"

# The page of alert rules.
RULE_LIST: Final = "rule-list"
RULE_EDITOR: Final = "rule-editor"
RULE_BACKTEST: Final = "rule-backtest"  # store: the rule and its backtest
RULE_RESULT: Final = "rule-result"

# The settings.
CHANNEL_LIST: Final = "channel-list"
CHANNEL_EDITOR: Final = "channel-editor"
QUIET_FORM: Final = "quiet-form"
DIGEST_FORM: Final = "digest-form"
SILENCE_LIST: Final = "silence-list"
TOKEN_LIST: Final = "token-list"  # noqa: S105 - the id of a component


def nav(page: str) -> str:
    """Return the id of a page's entry in the navigation."""
    return f"nav-{page}"


def panel(name: str) -> dict[str, str]:
    """Return the id of a graph that shares the step axis of the run page, such as "loss", "curvature" or "layers"."""
    return {"panel": name}


def panel_card(name: str) -> str:
    """Return the id of the card of a panel."""
    return f"{name}-card"


def panel_title(name: str) -> str:
    """Return the id of the heading of a panel."""
    return f"{name}-title"


def panel_note(name: str) -> str:
    """Return the id of the sentence beside the heading of a panel."""
    return f"{name}-note"


def metric_pick(slot: int) -> str:
    """Return the id of the select of a further panel's scalar; the panels are counted from 0."""
    return f"more-{slot}-pick"


def more(slot: int) -> str:
    """Return the name of a further panel of one scalar."""
    return f"more-{slot}"


def panel_box(name: str) -> str:
    """Return the id of the box that holds the graph of a panel."""
    return f"{name}-box"


def histogram(which: str) -> str:
    """Return the id of the box that holds one histogram: "update" or "ratio"."""
    return f"histogram-{which}"
