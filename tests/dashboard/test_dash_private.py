"""The private interfaces of Dash on which the dashboard relies, for the versions that were checked."""

from __future__ import annotations

import inspect
from pathlib import Path

import dash
from dash.backends.ws import DashWebsocketCallback

from dashboard.dash_private import component_key
from dashboard.stream.session import PageSocket

CHECKED_VERSIONS = {"4.4"}


def test_this_version_of_dash_was_checked() -> None:
    minor = ".".join(dash.__version__.split(".")[:2])
    assert minor in CHECKED_VERSIONS, (
        f"Dash {dash.__version__} was not checked, only {sorted(CHECKED_VERSIONS)}. Check that (1) the functions of "
        "dashboard/dash_private.py still do what their docstrings promise, (2) ctx.websocket still has the methods of "
        "dashboard.stream.session.PageSocket, (3) the renderer still opens its websocket in a SharedWorker, which "
        "dashboard/assets/early.js replaces, and posts it the messages connected and disconnected, and (4) "
        "tests/dashboard/test_browser.py passes. Then add the version to CHECKED_VERSIONS."
    )


def test_component_ids_have_the_form_that_the_renderer_uses() -> None:
    assert component_key("status") == "status"
    assert component_key({"panel": "loss", "also": "this"}) == '{"also":"this","panel":"loss"}'


def test_the_websocket_of_a_callback_has_the_methods_of_a_page_socket() -> None:
    for name in ("set_prop_sync", "get_prop"):
        expected = list(inspect.signature(getattr(PageSocket, name)).parameters)
        assert list(inspect.signature(getattr(DashWebsocketCallback, name)).parameters)[: len(expected)] == expected


def test_the_renderer_opens_its_websocket_in_a_shared_worker() -> None:
    folder = Path(dash.__file__).parent / "dash-renderer" / "build"
    assert any("SharedWorker" in script.read_text("utf-8") for script in folder.glob("*.js"))
