"""Every use of Dash's private interfaces. No other module imports or calls one.

`tests/dashboard/test_dash_private.py` names the versions of Dash with which these uses were checked.
"""

from __future__ import annotations

from dash import Dash
from dash._utils import stringify_id
from dash.backends._fastapi import reset_current_request, set_current_request
from fastapi import Request


def component_key(component: str | dict[str, str]) -> str:
    """Return the text by which Dash's renderer identifies a component, also if the id is a dictionary."""
    return str(stringify_id(component))


def set_up_server(app: Dash) -> None:
    """Register scripts and assets now. Dash does it on the first request for "/", but the first may be for a run."""
    app._setup_server()  # type: ignore[no-untyped-call]


def document(app: Dash, request: Request) -> str:
    """Return the HTML document of the application. Dash reads cookies and host from its current request."""
    token = set_current_request(request)  # type: ignore[no-untyped-call]
    try:
        return str(app.index())  # type: ignore[no-untyped-call]
    finally:
        reset_current_request(token)  # type: ignore[no-untyped-call]
