"""Tests of figures as dictionaries: their contents, not the drawing by Plotly."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from client_sdk.answers import Alert, Buckets, Event, Histogram, Outcome, PredictedStep
from client_sdk.vocabulary import CURVE_MEANINGS, STAGE_MEANINGS, STATISTICS, Stage
from dashboard.figures.curvature import curvature_figure
from dashboard.figures.heatmap import heatmap_figure, heatmap_height
from dashboard.figures.held_loss import held_loss, held_words
from dashboard.figures.histogram import histogram_figure
from dashboard.figures.histograms_over_time import histograms_figure
from dashboard.figures.loss import loss_figure, smoothed
from dashboard.figures.marks import Marks, Spike, marks_of
from dashboard.figures.scales import colour_bar_ticks, colour_scale
from dashboard.figures.sparkline import HEIGHT, PAD, sparkline
from dashboard.figures.stage_strip import Span, spans
from dashboard.figures.theme import DARK, LIGHT, STAGE_COLOURS, Frame
from dashboard.figures.usual_level import against_usual
from dashboard.models import Heatmap

FRAME = Frame(palette=DARK, step_from=0, step_to=100)
EXPECTED = PredictedStep(low=70, best=80, high=95)


def buckets(values: Sequence[float | None], *, size: int = 1, spike: dict[int, float] | None = None) -> Buckets:
    steps = tuple(i * size for i in range(len(values)))
    high = tuple((spike or {}).get(i, value) for i, value in enumerate(values))
    missing = tuple(int(value is None) for value in values)
    return Buckets(step=steps, min=tuple(values), max=high, last=tuple(values), nonfinite=missing)


def plain(part: Any) -> Any:
    """Return a figure as a dictionary, with Plotly's encoded arrays decoded."""
    if isinstance(part, go.Figure):
        return plain(part.to_dict())
    if isinstance(part, dict) and "bdata" in part:
        values = np.frombuffer(base64.b64decode(part["bdata"]), dtype=part["dtype"])
        return values.reshape([int(size) for size in part["shape"].split(",")]) if "shape" in part else values
    if isinstance(part, dict):
        return {key: plain(value) for key, value in part.items()}
    return [plain(value) for value in part] if isinstance(part, list | tuple) else part


def texts(figure: dict[str, Any]) -> list[str]:
    return [note["text"] for note in figure["layout"].get("annotations", [])]


def test_no_figure_uses_a_default_of_plotly() -> None:
    figures = [
        loss_figure(buckets([1.0, 2.0]), Marks(), FRAME),
        curvature_figure({"lambda_max": buckets([1.0, 2.0])}, [], Marks(), FRAME),
        heatmap_figure(None, Marks(), FRAME, stat="grad_norm", scale="log"),
        histogram_figure(Histogram(layer="w", step=1, edges=(0.0, 1.0, 2.0), counts=(3, 4)), FRAME),
    ]
    for figure in figures:
        written = json.dumps(figure.to_dict(), default=str)
        assert "template" not in figure.to_dict()["layout"]
        assert "#636efa" not in written.lower()
        assert "E5ECF6" not in written


def test_panels_share_margins_and_the_step_axis() -> None:
    layouts = [
        plain(figure)["layout"]
        for figure in (
            loss_figure(buckets([1.0]), Marks(), FRAME),
            curvature_figure({}, [], Marks(), FRAME),
            heatmap_figure(None, Marks(), FRAME, stat="grad_norm", scale="log"),
        )
    ]
    assert len({(layout["margin"]["l"], layout["margin"]["r"]) for layout in layouts}) == 1
    assert all(layout["xaxis"]["range"] == [0, 100] for layout in layouts)
    assert all(layout["margin"]["autoexpand"] is False for layout in layouts)


def test_a_single_step_spike_in_a_bucket_reaches_the_figure() -> None:
    figure = plain(loss_figure(buckets([2.0] * 50, size=100, spike={20: 9.0}), Marks(), FRAME))
    upper_edge = figure["data"][1]
    assert upper_edge["fill"] == "tonexty"
    assert max(upper_edge["y"]) == 9.0
    assert figure["layout"]["yaxis"]["range"][1] > 9.0
    assert "from 2 to 9" in figure["data"][2]["customdata"][20]


def test_loss_is_logarithmic_only_when_it_spans_decades() -> None:
    wide = plain(loss_figure(buckets([1.0, 1e-14]), Marks(), FRAME))["layout"]["yaxis"]
    assert wide["type"] == "log"
    assert "10<sup>−10</sup>" in wide["ticktext"]
    assert "type" not in plain(loss_figure(buckets([2.0, 1.5]), Marks(), FRAME))["layout"]["yaxis"]
    assert "type" not in plain(loss_figure(buckets([-1.0, 1e6]), Marks(), FRAME))["layout"]["yaxis"]


def test_what_the_unstable_direction_holds_climbs_into_the_loss_on_a_log_axis() -> None:
    loss = buckets([2.0] * 40)
    growing = buckets([2e-6 * math.exp(0.2 * step) for step in range(40)])
    held = held_loss(growing, loss, growth=0.1)
    assert held is not None
    figure = plain(loss_figure(loss, Marks(expected=EXPECTED), FRAME, held=held))
    line, trend = figure["data"][-2:]
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert list(line["x"]) == list(range(40))
    assert line["customdata"][0] == "2.0e-6, 0.0001 % of the loss"
    # The loss held is the square of the amplitude: at 0.2 a step it reaches the loss after 69 steps.
    assert list(trend["x"]) == pytest.approx([39, math.log(1e6) / 0.2])
    assert trend["y"][1] == 2.0
    assert "held by the unstable direction" in texts(figure)
    assert held_words(held) == "0.24 % of the loss held by the unstable direction"


def test_what_the_unstable_direction_holds_is_drawn_only_where_it_says_something() -> None:
    loss, calm, alive = buckets([2.0] * 3), buckets([1e-5] * 3), buckets([None, 1e-5, 0.5])
    assert held_loss(calm, loss) is None
    assert held_loss(calm, loss, growth=0.0) is None
    assert held_loss(None, loss, growth=0.1) is None
    assert held_loss(alive, buckets([-1.0] * 3), growth=0.1) is None, "no logarithmic axis"
    assert held_loss(alive, buckets([None] * 3), growth=0.1) is None, "nothing to compare it with"
    held = held_loss(alive, loss)
    assert held is not None
    assert (list(held.steps), held.trend) == ([1.0, 2.0], None)
    # Dips far below the loss leave the panel, so that the loss keeps its height.
    deep = held_loss(buckets([1e-30, 1e-30, 1.0]), loss)
    assert plain(loss_figure(loss, Marks(), FRAME, held=deep))["layout"]["yaxis"]["range"][0] > -5


def test_values_that_are_not_finite_are_crosses_not_gaps() -> None:
    figure = plain(loss_figure(buckets([1.0, None, 1.0]), Marks(), FRAME))
    cross = figure["data"][-1]
    assert cross["marker"]["symbol"] == "x"
    assert list(cross["x"]) == [1.0]
    low, high = figure["layout"]["yaxis"]["range"]
    assert 1.0 < cross["y"][0] < high
    assert low < 1.0
    wide = plain(loss_figure(buckets([1.0, None, 1e-9]), Marks(), FRAME))
    assert 1.0 < wide["data"][-1]["y"][0] < 10 ** wide["layout"]["yaxis"]["range"][1]
    assert "yaxis2" not in wide["layout"], "Plotly fails if a second axis appears under the pointer"


def test_figures_survive_having_no_data() -> None:
    for series in (None, buckets([]), buckets([None, None])):
        assert plain(loss_figure(series, Marks(), FRAME))["layout"]["yaxis"]["range"] == [0.0, 1.0]
    empty = plain(curvature_figure({}, [], Marks(), FRAME))
    assert any(trace.get("yaxis", "y") == "y" for trace in empty["data"])  # otherwise Plotly does not lay out the axes
    assert empty["layout"]["yaxis"]["showticklabels"] is False
    missing = plain(heatmap_figure(None, Marks(), FRAME, stat="bimodality", scale="log"))
    assert texts(missing) == ["bimodality of r: not measured in these steps"]


def spikes(*steps: int, rises: Sequence[float] = ()) -> Marks:
    """Return the marks of spikes at these steps, whose heights are ``rises``."""
    return Marks(
        spikes=tuple(
            Spike(number=number, step=step, peak_step=step + 1, rise=rises[number - 1] if rises else math.nan)
            for number, step in enumerate(steps, start=1)
        )
    )


def test_labels_of_spikes_do_not_overlap_on_a_phone() -> None:
    phone = Frame(palette=DARK, step_from=0, step_to=100, narrow=True)
    marks = spikes(50, 62, 95)
    assert texts(plain(loss_figure(buckets([1.0]), marks, FRAME))) == ["3 · spike 95", "2 · spike 62", "1 · spike 50"]
    assert texts(plain(loss_figure(buckets([1.0]), marks, phone))) == ["3 · spike 95", "2", "1"]


def test_the_main_spike_is_labelled_and_not_its_aftershock() -> None:
    marks = spikes(50, 53, 56, rises=(1.5, 40.0, 2.0))
    assert texts(plain(loss_figure(buckets([1.0]), marks, FRAME))) == ["2 · spike 53", "1"]


def test_a_spike_that_rose_twice_is_one_mark_that_its_alert_shares() -> None:
    events = [
        Event(step=507, kind="spike", loss=25.0, baseline=2.5, peak_step=515),
        Event(step=507, kind="spike", loss=800.0, baseline=4.0, peak_step=540),
        Event(step=833, kind="spike", loss=8.0, baseline=4.0, peak_step=834),
    ]

    def alert(step: int, **evidence: float) -> Alert:
        return Alert(
            id=str(step), run_id="r", kind="spike", level="warning", state="open", step=step, title="", message="",
            evidence=dict(evidence),
        )  # fmt: skip

    rising = alert(895, peak_step=897, loss_peak=9.0, loss_baseline=3.0)
    marks = marks_of([alert(510, peak_step=540), alert(835, peak_step=834), rising], events)
    assert [(spike.step, spike.peak_step, spike.rise) for spike in marks.spikes] == [
        (507, 540, 200.0), (833, 834, 2.0), (895, 897, 3.0)
    ]  # fmt: skip
    assert marks.numbers == {"510": 1, "835": 2, "895": 3}
    assert set(marks.eventful) == {515, 540, 834, 897}


def test_the_line_goes_through_the_extreme_of_a_bucket_with_an_event() -> None:
    spiky = Buckets(step=(0, 100, 200, 300), min=(2.0, 2.0, 2.0, 0.5), max=(2.1, 9.0, 3.0, 2.1), last=(2.0,) * 4,
                    nonfinite=(0,) * 4)  # fmt: skip
    marks = Marks(eventful=(150, 399))
    line = plain(loss_figure(spiky, marks, FRAME))["data"][-1]
    assert list(line["y"]) == [2.0, 9.0, 2.0, 0.5]
    assert "from 2 to 9" in line["customdata"][1]


def test_smoothing_leaves_the_values_visible_and_keeps_their_level() -> None:
    values = [1.0, 3.0] * 20
    raw, line = plain(loss_figure(buckets(values), Marks(), FRAME, smoothing=4))["data"]
    assert list(raw["y"]) == values
    assert list(line["y"])[5:-5] == pytest.approx([2.0] * 30)
    assert line["customdata"][1] == "3"
    gaps = smoothed(np.array([1.0, math.nan, 4.0, 0.0]), 3, logarithmic=True)
    assert gaps.tolist() == pytest.approx([1.0, 2.0, 4.0, 4.0])
    assert np.isnan(smoothed(np.full(3, math.nan), 2, logarithmic=False)).all()


def test_the_axis_follows_the_choice_where_it_can() -> None:
    def axis(values: list[float | None], scale: str) -> dict[str, Any]:
        return dict(plain(loss_figure(buckets(values), Marks(), FRAME, scale=scale))["layout"]["yaxis"])

    assert axis([1.0, 2.0], "log")["type"] == "log"
    assert "type" not in axis([1.0, 1e-9], "linear")
    assert "type" not in axis([1.0, 0.0], "log")


def test_an_open_prediction_is_a_band_a_dotted_line_and_its_date() -> None:
    figure = plain(loss_figure(buckets([1.0]), Marks(expected=EXPECTED), FRAME))
    band, line = figure["layout"]["shapes"]
    assert (band["x0"], band["x1"], line["x0"]) == (70, 95, 80)
    assert line["line"]["dash"] != "solid"
    assert texts(figure) == ["predicted 80"]


def test_an_attempt_is_marked_where_it_begins() -> None:
    events = [
        Event(step=250, kind="rollback", attempt=1, from_step=399),
        Event(step=450, kind="rollback", attempt=2, from_step=499),
        Event(step=260, kind="spike", attempt=1),
        Event(step=300, kind="spike", attempt=0),
    ]
    assert marks_of([], events).attempts == ((250, 1), (450, 2))
    first = marks_of([], events, 1)
    assert (first.attempts, [spike.step for spike in first.spikes]) == (((250, 1),), [260])
    figure = loss_figure(None, marks_of([], events), Frame(palette=DARK, step_from=0, step_to=600)).to_dict()
    assert {"attempt 1", "attempt 2"} <= {note["text"] for note in figure["layout"]["annotations"]}
    lines = [shape["x0"] for shape in figure["layout"]["shapes"] if shape["line"]["color"] == DARK.muted]
    assert lines == [250, 450]


def test_marks_come_from_alerts_and_events() -> None:
    def prediction(step: int, state: str, best: int, outcome: Outcome | None = None) -> Alert:
        return Alert(
            id=str(step), run_id="r", kind="spike-predicted", level="warning", state=state, step=step, outcome=outcome,
            title="", message="",
            predicted_step=PredictedStep(low=best - 5, best=best, high=best + 5),
        )  # fmt: skip

    alerts = [
        prediction(10, "resolved", 6, Outcome(result="false", step=None, lead=None)),
        prediction(40, "acknowledged", 60),
        prediction(50, "open", 65),
    ]
    marks = marks_of(alerts, [Event(step=30, kind="spike"), Event(step=0, kind="stage", stage="stable")])
    assert [(spike.number, spike.step) for spike in marks.spikes] == [(1, 30)]
    assert marks.expected is not None
    assert marks.expected.best == 65, "the newest open one"
    figure = plain(loss_figure(buckets([1.0]), marks, FRAME))
    assert texts(figure) == ["predicted 65", "1 · spike 30", "predicted 6, none came"]


def test_the_limit_says_its_value_and_reaches_the_right_edge() -> None:
    series = {"stability_limit": buckets([200.0] * 40), "lambda_max": buckets([100.0 + i for i in range(40)])}
    figure = plain(curvature_figure(series, [], Marks(), FRAME))
    assert "2/η = 200" in texts(figure)
    limit = next(trace for trace in figure["data"] if trace.get("name") == "2/η")
    assert limit["x"][-1] == 100
    assert figure["layout"]["yaxis"]["type"] == "log"


def test_a_changing_limit_says_what_it_is_now() -> None:
    series = {
        "stability_limit": buckets([2000.0 * (1 + i) for i in range(20)]), "lambda_max": buckets([900.0] * 20),
    }  # fmt: skip
    assert "2/η, now 40,000" in texts(plain(curvature_figure(series, [], Marks(), FRAME)))


def test_the_limit_of_a_warm_up_is_written_where_its_line_is_in_sight() -> None:
    limits = [1e6 / (1 + i) ** 2 for i in range(100)]
    series = {"stability_limit": buckets(limits), "lambda_max": buckets([50.0] * 100)}
    figure = plain(curvature_figure(series, [], Marks(), FRAME))
    label = next(note for note in figure["layout"]["annotations"] if note["text"].startswith("2/η"))
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < label["y"] < high


def test_the_forecast_goes_on_dotted_to_the_end_of_its_band() -> None:
    series = {"lambda_max": buckets([180.0] * 40)}
    figure = plain(curvature_figure(series, [], Marks(expected=EXPECTED), FRAME, growth_per_step=0.01))
    forecast = next(trace for trace in figure["data"] if trace.get("line", {}).get("dash"))
    assert (forecast["x"][0], forecast["x"][-1]) == (39, 95)
    assert forecast["y"][-1] == pytest.approx(180.0 * math.exp(0.01 * 56))
    without = plain(curvature_figure(series, [], Marks(expected=EXPECTED), FRAME))
    assert not any(trace.get("line", {}).get("dash") for trace in without["data"])


def test_a_transient_far_over_the_limit_does_not_flatten_the_rest() -> None:
    values = [50_000.0, 5_000.0, *[150.0] * 98]
    series = {"stability_limit": buckets([200.0] * 100), "lambda_max": buckets(values)}
    low, high = plain(curvature_figure(series, [], Marks(), FRAME))["layout"]["yaxis"]["range"]
    assert 10**high < 2_000
    assert 10**low > 50


def test_a_curvature_that_stays_over_the_limit_stays_in_view() -> None:
    series = {"stability_limit": buckets([200.0] * 100), "lambda_max": buckets([90_000.0] * 100)}
    low, high = plain(curvature_figure(series, [], Marks(), FRAME))["layout"]["yaxis"]["range"]
    assert 10**low < 200
    assert 10**high > 90_000


def test_stages_become_spans_and_say_their_word() -> None:
    events = [
        Event(step=0, kind="stage", stage="stable"),
        Event(step=40, kind="stage", stage="decoupled"),
        Event(step=40, kind="spike"),
        Event(step=60, kind="stage", stage="decoupled"),
    ]
    found = spans(events, 90)
    assert found == [Span(stage="stable", step_from=0, step_to=40), Span(stage="decoupled", step_from=40, step_to=90)]
    strip = plain(curvature_figure({}, found, Marks(), FRAME))["data"][-1]
    assert strip["text"] == ["stable", "decoupled"]
    assert strip["marker"]["color"] == [STAGE_COLOURS["stable"], STAGE_COLOURS["decoupled"]]


def test_curves_and_stages_say_what_they_mean_in_the_words_of_the_glossary() -> None:
    series = {name: buckets([100.0] * 9) for name in ("lambda_max", "lambda_grad", "stability_limit")}
    figure = plain(curvature_figure(series, [Span(stage="stable", step_from=0, step_to=9)], Marks(), FRAME))
    hovers = {note["text"]: note["hovertext"] for note in figure["layout"]["annotations"]}
    assert hovers["λ<sub>max</sub>"] == CURVE_MEANINGS["lambda_max"]
    assert hovers["λ<sub>grad</sub>"] == CURVE_MEANINGS["lambda_grad"]
    assert hovers["2/η = 100"] == CURVE_MEANINGS["stability_limit"]
    assert figure["data"][-1]["customdata"][0][3] == STAGE_MEANINGS["stable"]
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
    assert set(STAGE_MEANINGS) == set(Stage)
    for sentence in (*STAGE_MEANINGS.values(), *CURVE_MEANINGS.values()):
        assert sentence in glossary


def test_a_short_spiking_stage_is_never_merged_away() -> None:
    found = [
        Span(stage="stable", step_from=0, step_to=50_000),
        Span(stage="spiking", step_from=50_000, step_to=50_003),
        Span(stage="recovering", step_from=50_003, step_to=50_010),
        Span(stage="stable", step_from=50_010, step_to=100_000),
    ]
    frame = Frame(palette=DARK, step_from=0, step_to=100_000)
    strip = plain(curvature_figure({}, found, Marks(), frame))["data"][-1]
    stages = [row[0] for row in strip["customdata"]]
    assert "spiking" in stages
    assert strip["x"][stages.index("spiking")] >= 100


def heatmap(layers: tuple[str, ...], z: Any) -> Heatmap:
    values = np.asarray(z, dtype=np.float32)
    return Heatmap(layers=layers, step=tuple(range(values.shape[1])), bucket_steps=1, z=values)


def test_the_layer_that_leaves_its_own_level_is_the_one_that_is_seen() -> None:
    large, small = np.full(120, 1e3), np.full(120, 1e-4)
    small[115:] = 1e-3  # ten times its usual level, and still a millionth of the other layer
    small[40:50] = 1.0  # an earlier spike does not become the usual level
    cells = plain(heatmap_figure(heatmap(("large", "small"), [large, small]), Marks(), FRAME, stat="grad_norm",
                                 scale="usual"))["data"][0]  # fmt: skip
    shown = np.asarray(cells["z"])
    assert shown[0] == pytest.approx(1.0)
    assert shown[1, 115:] == pytest.approx(10.0)
    assert shown[1, 60:115] == pytest.approx(1.0)
    assert "× its recent level" in cells["hovertemplate"]


def test_a_slow_trend_is_as_usual() -> None:
    falling = np.exp(-np.arange(600) / 100)
    assert np.abs(np.log(against_usual(falling[None, :].astype(np.float32)))).max() < 2.0
    assert against_usual(np.full((2, 1), 5.0, np.float32)).tolist() == [[1.0], [1.0]]


def test_zeros_and_gaps_against_the_usual_level() -> None:
    row = np.array([[2.0, 2.0, 0.0, math.nan, math.inf, 4.0], [0.0] * 6, [math.nan] * 6], np.float32)
    found = against_usual(row)
    assert found[0].tolist()[:3] == [1.0, 1.0, 0.0]
    assert np.isnan(found[0, 3:5]).all()
    assert found[0, 5] == 2.0
    assert (found[1] == 1.0).all(), "a layer that is always zero is as usual"
    assert np.isnan(found[2]).all()
    assert against_usual(np.empty((3, 0), np.float32)).shape == (3, 0)


def test_statistics_with_signs_shares_or_counts_keep_their_values() -> None:
    z = [[-0.5, 0.5]]
    cells = plain(heatmap_figure(heatmap(("a",), z), Marks(), FRAME, stat="grad_momentum_cosine", scale="usual"))
    assert np.asarray(cells["data"][0]["z"]).tolist() == z


def test_heatmap_holds_exact_values_under_a_logarithmic_colour() -> None:
    z = [[1e-3, 1.0, 10.0], [1e-2, 0.1, 1000.0]]
    figure = plain(heatmap_figure(heatmap(("a", "b"), z), Marks(), FRAME, stat="grad_norm", scale="log"))
    cells, bar = figure["data"]
    assert np.array_equal(np.asarray(cells["z"]), np.asarray(z, dtype=np.float32))
    assert cells["zmax"] == pytest.approx(1000.0)
    places = [stop[0] for stop in cells["colorscale"]]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 1.0)
    assert bar["marker"]["colorbar"]["ticktext"] == ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_every_statistic_has_a_scale_that_clips_no_spike(theme: str, name: str) -> None:
    values = np.array([[0.4, 0.5, 0.6, 0.9]], dtype=np.float32)
    for logarithmic in (True, False):
        scale = colour_scale(values, STATISTICS[name].kind, logarithmic=logarithmic, theme=theme)
        assert scale is not None
        assert scale.high >= float(values.max())
        ticks, words = colour_bar_ticks(scale)
        assert len(ticks) == len(words) > 0


def test_a_ratio_is_neutral_at_one() -> None:
    values = np.array([[1e-6, 1.0, 30.0]], dtype=np.float32)
    scale = colour_scale(values, "ratio", logarithmic=True, theme="dark")
    assert scale is not None
    span = math.log10(scale.high) - math.log10(scale.low)
    neutral = min(scale.bar, key=lambda stop: abs(stop[0] - (0 - math.log10(scale.low)) / span))
    assert neutral[1] == "rgb(38, 40, 45)"


def test_scales_survive_zeros_constants_and_nothing() -> None:
    for values in ([[0.0, 0.0]], [[3.0, 3.0]], [[math.nan, 2.0]]):
        assert (
            colour_scale(np.array(values, dtype=np.float32), "magnitude", logarithmic=True, theme="light") is not None
        )
    assert colour_scale(np.array([[math.nan]], dtype=np.float32), "magnitude", logarithmic=True, theme="light") is None


def test_layer_names_are_thinned_shortened_and_text() -> None:
    layers = (*(f"blocks.{i}.attention.projection.weight" for i in range(299)), "<b>evil</b>")
    data = heatmap(layers, np.ones((300, 4)))
    figure = plain(heatmap_figure(data, Marks(), FRAME, stat="grad_norm", scale="log"))
    shown = texts(figure)
    assert 20 < len(shown) < 40
    assert all(len(text) <= 24 for text in shown)
    assert figure["data"][0]["y"][-1] == "&lt;b&gt;evil&lt;/b&gt;"
    assert figure["layout"]["meta"][-1] == "<b>evil</b>"
    assert heatmap_height(300) < 500


def test_layers_of_the_same_name_stay_apart() -> None:
    figure = plain(heatmap_figure(heatmap(("w", "w"), [[1], [2]]), Marks(), FRAME, stat="x", scale="log"))
    assert figure["data"][0]["y"] == ["w", "w (2)"]


def test_cells_that_are_not_finite_are_crossed() -> None:
    data = Heatmap(layers=("a", "b"), step=(0, 10), bucket_steps=10, z=np.array([[1, np.nan], [1, 1]], np.float32),
                   nonfinite=((0, 1, 7),))  # fmt: skip
    cross = plain(heatmap_figure(data, Marks(), FRAME, stat="grad_norm", scale="log"))["data"][-1]
    assert (list(cross["x"]), cross["y"], cross["customdata"]) == ([14], ["a"], [7])


def test_thinned_columns_join_and_a_lost_range_stays_blank() -> None:
    z = np.full((2, 600), np.nan, np.float32)
    measured = [*range(0, 200, 8), *range(200, 240), *range(240, 320, 8), *range(480, 600, 8)]
    z[:, measured] = 1.0
    data = Heatmap(
        layers=("a", "b"), step=tuple(range(1000, 1600)), bucket_steps=1, z=z, nonfinite=((1, 208, 3), (0, 487, 2))
    )
    figure = plain(heatmap_figure(data, Marks(), FRAME, stat="grad_norm", scale="log"))["data"]
    cells, crosses = figure[0], figure[-1]
    steps = np.asarray(cells["x"]) - 1000
    blank = np.isnan(np.asarray(cells["z"], np.float32)).all(axis=0)
    assert set(steps[~blank].tolist()) == set(measured)
    # 487 has values that are not finite; 593 to 599 have not been measured yet.
    assert steps[blank].tolist() == [313, 479, 487, *range(593, 600)]
    assert (np.asarray(crosses["x"]) - 1000).tolist() == [208, 487]


def test_a_heatmap_of_sparse_logs_has_no_stripes() -> None:
    z = np.full((1, 600), np.nan, np.float32)
    z[:, 99::100] = 1.0
    cells = plain(heatmap_figure(heatmap(("a",), z), Marks(), FRAME, stat="grad_norm", scale="log"))["data"][0]
    assert np.asarray(cells["x"]).tolist() == [*range(99), *range(99, 600, 100)]


def test_sparkline_keeps_the_spike_and_breaks_at_what_is_not_finite() -> None:
    path = sparkline([1.0, 1.0, 9.0, 1.0])
    heights = [float(part.split(" ")[1]) for part in path.replace("M", "L").split("L")[1:]]
    assert min(heights) == PAD
    assert max(heights) == HEIGHT - PAD
    assert sparkline([1.0, 2.0, None, 2.0, 1.0]).count("M") == 2
    assert sparkline([1.0]) == ""
    assert sparkline([None, math.nan, 5.0, 5.0]) != ""


def test_histograms_over_time_share_an_axis_and_keep_their_mass() -> None:
    found = [
        Histogram(layer="w", which="ratio", step=10, edges=(-1.0, 0.0, 1.0), counts=(1, 3)),
        Histogram(layer="w", which="ratio", step=20, edges=(-2.0, 0.0, 2.0), counts=(2, 2)),
        Histogram(layer="w", which="ratio"),
    ]
    cells = plain(histograms_figure(found, 15, FRAME))["data"][0]
    assert list(cells["x"]) == [10, 20]
    assert np.nansum(np.asarray(cells["z"]), axis=0) == pytest.approx([100.0, 100.0], rel=1e-5)
    assert (cells["y"][0] < -1.9, cells["y"][-1] > 1.9) == (True, True)
    assert np.isnan(np.asarray(cells["z"])[0, 0]), "nothing of the first lies below -1"
    assert plain(histograms_figure([], 15, FRAME))["data"][0]["type"] == "scatter"


def test_both_themes_have_every_token() -> None:
    for name in DARK.__dataclass_fields__:
        assert getattr(DARK, name)
        assert getattr(LIGHT, name)
