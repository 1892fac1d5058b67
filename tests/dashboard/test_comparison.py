"""Tests of comparisons: their addresses, the axes of runs, the envelope and the differences of configurations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.answers import Buckets, Optimizer, RunSummary
from dashboard.figures.overlay import MARGIN_RIGHT, overlay_figure
from dashboard.figures.run_curves import (
    RunCurve,
    envelope,
    left_envelope,
    run_curve,
    step_places,
    time_places,
    token_places,
)
from dashboard.figures.small_multiples import RunHeatmap, multiples_figure, multiples_height
from dashboard.figures.theme import Frame, palette
from dashboard.models import Heatmap
from dashboard.pages.comparison import MAX_RUNS, Comparison, parse_comparison
from dashboard.pages.config_differences import difference_table, differences
from dashboard.pages.run_titles import distinct_titles
from tests.dashboard.test_alert_cards import words

FRAME = Frame(palette=palette("dark"), step_from=0, step_to=100)


def buckets(values: list[float | None], every: int = 1) -> Buckets:
    steps = tuple(range(0, every * len(values), every))
    return Buckets(step=steps, min=tuple(values), max=tuple(values), last=tuple(values), nonfinite=(0,) * len(values))


def curve(values: list[float], name: str = "run", place: int = 0) -> RunCurve:
    return run_curve(buckets(list(values)), step_places(0, len(values) - 1), name=name, place=place)


def test_an_address_holds_the_whole_comparison() -> None:
    full = Comparison(
        runs=("a", "b/c d"), metric="val/loss,mean", axis="tokens", start="spike", scale="log", reference="healthy",
        stat="grad_norm", colours="linear", zoom=(-1.5, 20.0),
    )  # fmt: skip
    path, _, query = full.href.partition("?")
    assert path == "/compare"
    assert parse_comparison(f"?{query}") == full
    assert Comparison().href == "/compare"
    assert parse_comparison(full.without("a").href.partition("?")[2]).runs == ("b/c d",)
    assert full.everything().zoom is None


@given(st.text(max_size=200))
def test_any_query_gives_a_comparison_that_its_address_holds(query: str) -> None:
    found = parse_comparison(query)
    assert len(found.runs) <= MAX_RUNS
    assert parse_comparison(found.href.partition("?")[2]) == found


def test_time_is_added_up_from_the_seconds_of_each_step() -> None:
    axis = time_places(buckets([60.0, 120.0, None, 60.0]))
    assert axis is not None
    assert axis.at(np.array([0.0, 1.0, 2.0, 3.0])).tolist() == [0.0, 1.0, 3.0, 3.0]
    assert axis.step_at(2.0) == 1.5
    assert axis.moved(1.0).at(np.array([1.0])).tolist() == [0.0]
    assert time_places(None) is None
    in_buckets = time_places(buckets([60.0, 60.0, 60.0], every=10))
    assert in_buckets is not None
    assert in_buckets.at(np.array([20.0, 25.0])).tolist() == [20.0, 25.0], "the rate goes on beyond the last bucket"


def test_tokens_never_go_back_and_a_run_without_them_has_no_axis() -> None:
    axis = token_places(buckets([10.0, 20.0, 15.0, None, 40.0]))
    assert axis is not None
    assert axis.at(np.array([2.0, 4.0])).tolist() == [20.0, 40.0]
    assert token_places(buckets([None, 3.0])) is None


def test_an_envelope_holds_the_extremes_and_needs_two_runs() -> None:
    assert envelope([curve([1.0, 2.0])]) is None
    band = envelope([curve([1.0, 2.0, 3.0]), curve([3.0, 2.0, 1.0, 0.5])])
    assert band is not None
    assert (band.low[0], band.high[0], band.middle[0]) == (1.0, 3.0, 2.0)
    assert math.isnan(band.high[-1]), "one run alone has no envelope where the others have ended"
    assert left_envelope(curve([1.0, 2.0, 2.0]), band) is None
    assert left_envelope(curve([1.0, 9.0, 9.0]), band) == 1.0
    assert left_envelope(curve([1.0, 9.0, 2.0]), band) is None, "it has come back"


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_curves_are_named_at_their_ends_without_collisions(theme: str) -> None:
    frame = Frame(palette=palette(theme), step_from=0, step_to=2)
    curves = [curve([1.0, 1.0, 1.0 + 1e-4 * place], f"run-{place}", place) for place in range(8)]
    drawn = overlay_figure(curves, frame, unit="step", limit=1.0).to_dict()
    notes = [note for note in drawn["layout"]["annotations"] if note["text"].startswith("run-")]
    heights = sorted(note["y"] for note in notes)
    assert len(heights) == 8
    assert all(0 <= height <= 1 for height in heights)
    assert min(np.diff(heights)) >= 0.07
    assert len({(note["font"]["color"]) for note in notes}) == 8
    assert drawn["layout"]["margin"]["r"] == MARGIN_RIGHT


def test_curves_over_decades_have_a_log_axis_unless_chosen_otherwise() -> None:
    wide = [curve([1e-4, 1.0, 10.0])]
    assert overlay_figure(wide, FRAME, unit="step").layout.yaxis.type == "log"
    assert overlay_figure(wide, FRAME, unit="step", scale="linear").layout.yaxis.type is None
    assert overlay_figure([curve([1.0, 2.0])], FRAME, unit="step").layout.yaxis.type is None
    assert overlay_figure([curve([-1.0, -2.0])], FRAME, unit="step", scale="log").layout.yaxis.type is None
    assert overlay_figure([], FRAME, unit="step").layout.yaxis.type is None


def test_heatmaps_share_rows_and_colours() -> None:
    def heatmap(layers: tuple[str, ...], scale: float) -> Heatmap:
        z = scale * np.ones((len(layers), 5), np.float32)
        return Heatmap(layers=layers, step=(0, 1, 2, 3, 4), bucket_steps=1, z=z)

    maps = [
        RunHeatmap(name="one", data=heatmap(("a", "b"), 1.0), axis=step_places(0, 4)),
        RunHeatmap(name="two", data=heatmap(("b", "c"), 50.0), axis=step_places(0, 4)),
    ]
    drawn = multiples_figure(maps, FRAME, stat="grad_norm", colours="log", unit="step")
    cells = [trace for trace in drawn.data if trace.type == "heatmap"]
    assert [list(trace.y) for trace in cells] == [["a", "b", "c"]] * 2
    assert (cells[0].zmin, cells[0].zmax) == (cells[1].zmin, cells[1].zmax)
    assert cells[0].zmax >= 50
    assert np.isnan(cells[0].z[2]).all()
    assert np.isnan(cells[1].z[0]).all()
    assert multiples_height(maps, narrow=True) == 2 * multiples_height(maps, narrow=False) - 8
    assert not multiples_figure([], FRAME, stat="grad_norm", colours="log", unit="step").data


def test_only_the_keys_that_differ_are_listed() -> None:
    adam = Optimizer(name="Adam", lr=0.01)
    runs = [
        RunSummary(id="a", name="net", config={"model": {"width": 8}, "seed": 0, "lr": 0.01}, optimizer=adam),
        RunSummary(id="b", name="net", config={"model": {"width": 16}, "seed": 0, "extra": [1]}, optimizer=adam),
    ]
    rows, same = differences(runs)
    assert rows == [("extra", ["–", "[1]"]), ("lr", ["0.01", "–"]), ("model.width", ["8", "16"])]
    assert same == 3
    text = words(difference_table(runs, distinct_titles(runs)))
    assert "net · a" in text
    assert "3 other keys are equal." in text
    assert words(difference_table(runs[:1], distinct_titles(runs))) == "The configurations are the same."
    assert words(difference_table([RunSummary(id="a")], {"a": "a"})) == "The runs have logged no configuration."
