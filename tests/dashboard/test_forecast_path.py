"""Tests of the panel that shows what was forecast when, and what came."""

from __future__ import annotations

from typing import Any

from client_sdk.answers import Alert, Forecast, Outcome
from dashboard.figures.forecast_path import MAX_ROWS, ROWS_EACH, forecast_figure, forecast_height, path_rows
from dashboard.figures.marks import Marks, Spike
from dashboard.figures.theme import DARK, Frame

FRAME = Frame(palette=DARK, step_from=0, step_to=1000)


def prediction(*said: tuple[int, int], result: str = "", attempt: int = 0) -> Alert:
    """Return a prediction with forecasts, each given by its step and the likeliest step that it named."""
    path = tuple(
        Forecast(low=best - 10, best=best, high=best + 20, step=step, level="watch" if i == 0 else "warning")
        for i, (step, best) in enumerate(said)
    )
    outcome = Outcome(result=result, step=said[-1][1], lead=4) if result else None  # type: ignore[arg-type]
    return Alert(
        id=str(said[0]), run_id="r", kind="spike-predicted", level="warning", state="open", step=said[0][0], title="",
        message="", forecasts=path, outcome=outcome, attempt=attempt,
    )  # fmt: skip


def traces(alerts: list[Alert], marks: Marks | None = None) -> dict[str, Any]:
    return dict(forecast_figure(path_rows(alerts), marks or Marks(), FRAME).to_dict())


def test_every_forecast_is_a_dot_where_it_was_said_and_a_bar_where_it_points() -> None:
    figure = traces([prediction((100, 160), (110, 150), result="hit")])
    way, bar, tick, dot = figure["data"][4:]
    assert list(dot["x"]) == [110]
    assert list(tick["x"]) == [150]
    assert list(bar["x"])[:2] == [140, 170]
    assert list(way["x"])[:2] == [110, 140]
    assert dot["marker"]["color"] == DARK.danger
    assert figure["data"][3]["marker"]["color"] == DARK.warn, "a mere watch has another colour"
    assert dot["customdata"][0] == "said at step 110: 150, between 140 and 170 (warning)"
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["hit"]


def test_the_spikes_that_came_are_the_lines_of_the_other_panels() -> None:
    marks = Marks(spikes=(Spike(number=1, step=151, peak_step=155),))
    assert [shape["x0"] for shape in traces([prediction((100, 160))], marks)["layout"]["shapes"]] == [151]


def test_predictions_after_one_another_share_rows_and_others_do_not() -> None:
    rows = path_rows([prediction((100, 160), (110, 150)), prediction((400, 450)), prediction((140, 170))])
    assert {(row.forecast.step, row.row) for row in rows} == {(400, 0), (140, 0), (100, 1), (110, 2)}
    assert forecast_height(rows) > forecast_height(rows[:1])


def test_a_long_path_keeps_its_first_its_turn_and_its_last_forecast() -> None:
    rows = path_rows([prediction(*((step, 500) for step in range(100, 130)))])
    steps = [row.forecast.step for row in rows]
    assert len(steps) == ROWS_EACH
    assert {100, 101, 129} <= set(steps)


def test_what_does_not_fit_is_left_out_and_the_newest_stays() -> None:
    rows = path_rows([prediction((100 + i, 900)) for i in range(MAX_ROWS + 5)])
    assert len(rows) == MAX_ROWS
    assert max(row.forecast.step for row in rows) == 100 + MAX_ROWS + 4


def test_only_the_forecasts_of_the_chosen_attempt_are_shown() -> None:
    alerts = [prediction((100, 160)), prediction((100, 170), attempt=1)]
    assert [row.forecast.best for row in path_rows(alerts, 1)] == [170]
    assert path_rows([]) == []
