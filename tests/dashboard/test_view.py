"""Tests of views, routes and the range of visible steps."""

from __future__ import annotations

from typing import Any

import pytest

from client_sdk.answers import PredictedStep, Series
from dashboard.figures.marks import Marks
from dashboard.pages.registry import PAGES
from dashboard.pages.run import make_frame, visible_steps
from dashboard.shell.routing import Route, Router
from dashboard.stream.view import View, parse_view


def test_a_full_view_is_parsed() -> None:
    view = parse_view(
        {"page": "run", "subject": "r1", "range": [10.5, 90], "window": "1000", "attempt": "0",
         "metric": "lr", "stat": "v_rms",
         "more-1": "val", "axis-loss": "log", "smooth-more-0": "20", "order": "risk", "search": "attn",
         "unfolded": ["h.3"],
         "scale": "linear", "reduce": "min", "theme": "light", "narrow": True, "follows": 3,
         "cell": {"layer": "w", "step": 12.7}}
    )  # fmt: skip
    assert view == View(
        page="run", subject="r1", step_range=(10.5, 90.0), window=1000, attempt=0, metric="lr", stat="v_rms",
        scale="linear", reduce="min", theme="light", narrow=True, follows=3, cell=("w", 12),
        more=(None, "val", None), axes={"loss": "log"}, smoothing={"more-0": 20}, order="risk", search="attn",
        unfolded=("h.3",),
    )  # fmt: skip


@pytest.mark.parametrize("data", [None, 7, "run", [], {}, {"page": 3}])
def test_data_that_is_no_view_gives_none(data: Any) -> None:
    assert parse_view(data) is None


@pytest.mark.parametrize(
    "bad",
    [{"range": [1]}, {"range": ["a", "b"]}, {"range": [float("nan"), 2]}, {"window": -5}, {"window": True},
     {"attempt": ""}, {"attempt": "-1"},
     {"window": "1e9"}, {"reduce": "avg"}, {"metric": "x" * 300}, {"stat": 5}, {"cell": {"layer": 1}}, {"cell": "w"},
     {"theme": "<script>"}, {"narrow": "yes"}, {"scale": "square"},
     {"order": "best"}, {"search": 3}, {"unfolded": "h.3"}, {"unfolded": [None, ""]}, {"more-0": 7},
     {"axis-loss": "cubic"}, {"smooth-loss": "-2"}, {"axis-else": "log"}],
)  # fmt: skip
def test_malformed_choices_fall_back_to_the_default(bad: dict[str, Any]) -> None:
    assert parse_view({"page": "fleet", **bad}) == View(page="fleet")


def test_a_range_is_at_least_a_step_wide_and_the_right_way_round() -> None:
    assert parse_view({"page": "run", "range": [9, 3]}) == View(page="run", step_range=(3.0, 9.0))
    assert parse_view({"page": "run", "range": [5, 5]}) == View(page="run", step_range=(4.0, 6.0))


@pytest.mark.parametrize(
    ("path", "route"),
    [("/", Route(page="fleet")), (None, Route(page="fleet")), ("/runs/a%2Fb", Route(page="run", subject="a/b")),
     ("/alerts/", Route(page="alerts")), ("/alerts/a%2Fb", Route(page="alert", subject="a/b")),
     ("/nowhere", Route(page="missing")), ("/runs", Route(page="missing"))],
)  # fmt: skip
def test_paths_lead_to_pages(path: str | None, route: Route) -> None:
    assert Router(PAGES).route(path) == route


def test_only_the_visible_steps_are_fetched() -> None:
    assert visible_steps(5000, View(page="run")) == (None, None)
    assert visible_steps(5000, View(page="run", window=200)) == (4801, None)
    assert visible_steps(100, View(page="run", window=200)) == (None, None)
    assert visible_steps(5000, View(page="run", step_range=(-3.5, 40.2))) == (0, 41)


def test_following_leaves_room_for_the_prediction() -> None:
    marks = Marks(expected=PredictedStep(low=634, best=646, high=661))
    frame = make_frame(Series(step_from=0, step_to=622), marks, View(page="run"), 622)
    assert frame.step_from == 0
    assert frame.step_to > 661
    far = Marks(expected=PredictedStep(low=90_000, best=99_000, high=110_000))
    assert make_frame(Series(step_from=0, step_to=622), far, View(page="run"), 622).step_to < 700


def test_a_zoom_is_shown_as_it_is_and_forgotten_on_return() -> None:
    zoomed = make_frame(Series(step_from=0), Marks(), View(page="run", step_range=(10, 20)), 622)
    assert (zoomed.step_from, zoomed.step_to) == (10, 20)
    before = make_frame(Series(step_from=0), Marks(), View(page="run", follows=1), 622)
    after = make_frame(Series(step_from=0), Marks(), View(page="run", follows=2), 622)
    assert before.revision != after.revision != zoomed.revision
