"""Tests of the declarations of pages, and of the routing and navigation that are built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from dash import html

from dashboard import ids
from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties
from dashboard.pages.registry import PAGES
from dashboard.shell.navigation import Navigation
from dashboard.shell.page import NavigationEntry, Page, action_handlers
from dashboard.shell.routing import Route, Router
from dashboard.viewer import NOBODY, Viewer


async def save(action: FormAction, context: ActionContext) -> Properties:
    return {}


async def other(action: FormAction, context: ActionContext) -> Properties:
    return {}


def page(name: str, path: str, *, actions: Mapping[str, Handler] | None = None, **fields: Any) -> Page:
    """Return a page without contents."""
    return Page(
        name=name,
        path=path,
        layout=lambda _request: html.Div(name),
        live=lambda _client, _request: None,
        actions=actions or {},
        **fields,
    )


def test_names_and_paths_of_pages_are_unique() -> None:
    assert len({page.name for page in PAGES}) == len({page.path for page in PAGES}) == len(PAGES)
    assert all(page.section is None or Router(PAGES).page(page.section) is not None for page in PAGES)


def test_a_new_page_needs_no_code_but_its_declaration() -> None:
    pages = (*PAGES, page("notes", "/runs/{run_id}/notes", section="run"))
    router = Router(pages)
    assert router.route("/runs/a%2Fb/notes") == Route(page="notes", subject="a/b")
    assert router.route("/runs/a") == Route(page="run", subject="a")
    assert router.page("notes") is pages[-1]
    navigation = Navigation(pages)
    shown = dict(zip([output.component_id for output in navigation.outputs()], navigation.values("notes"), strict=True))
    assert shown[ids.nav("run")] is False, "the entry of its section is not hidden"


def test_the_entry_of_the_open_page_is_highlighted() -> None:
    navigation = Navigation(PAGES)
    order = [output.component_id for output in navigation.outputs()]
    assert order == [ids.nav(name) for name in ("fleet", "run", "compare", "alerts", "rules", "settings")]
    assert navigation.values("fleet") == ["here", True, "", "", "", ""]
    assert navigation.values("run") == ["", False, "", "", "", ""]
    assert navigation.values("compare") == ["", True, "here", "", "", ""]
    assert navigation.values("alert") == ["", True, "", "here", "", ""]
    assert navigation.values("missing") == ["", True, "", "", "", ""]


def test_entries_for_administrators_are_hidden_from_others() -> None:
    navigation = Navigation([page("a", "/a", navigation=NavigationEntry(label="A", order=1, administrators_only=True))])
    assert navigation.layout(NOBODY).children[0].style is None
    assert navigation.layout(Viewer(credential="x", scope="write")).children[0].style == {"display": "none"}


def test_pages_may_share_a_handler_but_not_a_verb() -> None:
    shared = [page("a", "/a", actions={"save": save}), page("b", "/b", actions={"save": save})]
    assert action_handlers(shared) == {"save": save}
    with pytest.raises(ValueError, match="'save'"):
        action_handlers([*shared, page("c", "/c", actions={"save": other})])
