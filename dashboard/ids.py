"""Ids of the components that callbacks and stylesheets name, each written once."""

from __future__ import annotations

from typing import Final

# The shell, on every page.
LOCATION: Final = "location"
PAGE: Final = "page"
ROUTE: Final = "route"  # store: which page the address asks for; set by the router
VIEW: Final = "view"  # store: what this browser looks at; set by view.js
TAB: Final = "tab"  # store: names this page load
RESUME: Final = "resume"  # store: view.js writes it to ask for a new live callback
BEAT: Final = "beat"  # store: written with every push; view.js says "offline since" when it stops
SIGNED_OUT: Final = (
    -1.0
)  # in place of a beat: the login is over, and view.js loads the page anew, which asks for another
STATUS: Final = "status"
NOTICE: Final = "notice"
NAV_FLEET: Final = "nav-fleet"
NAV_RUN: Final = "nav-run"
NAV_ALERTS: Final = "nav-alerts"
NAV_RULES: Final = "nav-rules"
NAV_SETTINGS: Final = "nav-settings"
FORM_ACTION: Final = "deed"  # store: the form or button that forms.js sends
TROUBLE: Final = "trouble"  # store: what is wrong with which field; forms.js shows it there

# The fleet page.
FLEET: Final = "fleet-rows"  # store: rows for fleet.js
FLEET_TABLE: Final = "fleet-table"
FLEET_COUNTS: Final = "fleet-counts"

# The run page.
RUN_HEAD: Final = "run-head"
RUN_KPIS: Final = "run-kpis"
RUN_EMPTY: Final = "run-empty"
RUN_PANELS: Final = "run-panels"
ALERT_COLUMN: Final = "alert-column"
LOSS_TITLE: Final = "loss-title"
LOSS_NOTE: Final = "loss-note"
LAYERS_NOTE: Final = "layers-note"
STAT_PICK: Final = "stat-pick"
METRIC_PICK: Final = "metric-pick"
HISTOGRAM_CARD: Final = "histogram-card"
HISTOGRAM_TITLE: Final = "histogram-title"

# The alerts page.
ALERT_LIST: Final = "alert-list"
ALERT_PRECISION: Final = "alert-precision"

# The page of rules.
RULE_LIST: Final = "rule-list"
RULE_EDITOR: Final = "rule-editor"
RULE_TRIED: Final = "rule-tried"  # store: what a test found
RULE_RESULT: Final = "rule-result"

# The settings.
CHANNEL_LIST: Final = "channel-list"
CHANNEL_EDITOR: Final = "channel-editor"
QUIET_FORM: Final = "quiet-form"
DIGEST_FORM: Final = "digest-form"
SILENCE_LIST: Final = "silence-list"
TOKEN_LIST: Final = "token-list"  # noqa: S105 - the id of a component

# The page of one alert, which messages lead to.
ALERT_ONE: Final = "alert-one"


def panel(name: str) -> dict[str, str]:
    """Id of a graph that shares the step axis of the run page: "loss", "curvature" or "layers"."""
    return {"panel": name}


def panel_box(name: str) -> str:
    """Id of the box that holds the graph of a panel."""
    return f"{name}-box"


def histogram(which: str) -> str:
    """Id of the box that holds one histogram: "update" or "ratio"."""
    return f"histogram-{which}"
