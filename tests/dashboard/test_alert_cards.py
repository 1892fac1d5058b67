"""Tests of alerts as cards: order, texts and evidence."""

from __future__ import annotations

from typing import Any

from dash import dcc
from dash.development.base_component import Component

from client_sdk.answers import Alert, Coincidence, Outcome, PredictedStep, SameStep
from client_sdk.protocol import Forecast
from dashboard.pages.alert_cards import column, headline, result, single, urgency
from dashboard.pages.evidence import growth_per_step, lines
from dashboard.pages.symbols import symbols

NOW = 1_000.0


def alert(**changes: Any) -> Alert:
    known: dict[str, Any] = {
        "id": "a", "run_id": "r", "kind": "spike-predicted", "level": "warning", "state": "open", "step": 497,
        "title": "Spike predicted at step 646", "message": "λ_max grew 0.09 % a step through 2/η.",
        "predicted_step": PredictedStep(low=634, best=646, high=661), "cause": "stale-second-moment",
        "layers": ("0.weight", "2.weight"), "layer_shares": (0.71, None), "advice": ("Save a checkpoint now",),
        "evidence": {"sign": "approach", "stability_ratio": 1.118, "lambda_max_growth_per_step": 0.0009,
                     "decoupled_steps": 191, "crossing_step": 628, "lambda_grad_ratio": None, "own_key": 3.0,
                     "lead_steps": 12, "prediction_id": "x"},
    }  # fmt: skip
    return Alert(**(known | changes))


def words(part: Any) -> str:
    """All text in a tree of components."""
    if isinstance(part, Component):
        return words(getattr(part, "children", None))
    if isinstance(part, list | tuple):
        return "".join(words(child) for child in part)
    return "" if part is None else str(part)


def all_links(part: Any) -> list[dcc.Link]:
    """All links in a tree of components."""
    if isinstance(part, dcc.Link):
        return [part]
    inner = getattr(part, "children", None) if isinstance(part, Component) else part
    return [link for child in inner for link in all_links(child)] if isinstance(inner, list | tuple) else []


def test_the_headline_of_a_prediction_is_its_date() -> None:
    assert headline(alert()) == ("Step 646", "between 634 and 661")
    assert headline(alert(predicted_step=None)) == ("Spike predicted at step 646", "")
    assert headline(alert(kind="bad-batch", title="")) == ("bad batch", "")


def test_evidence_is_a_table_that_people_read() -> None:
    shown = {words(line.label): line.value for line in lines(alert())}
    assert shown == {
        "λmax / limit": "1.12",
        "λmax grows": "+0.09 % a step",
        "v decays on its own": "191 steps",
        "λmax crosses the limit": "step 628",
        "own key": "3.00",
        "lead": "12 steps",
        "leading layers": "0.weight, 2.weight",
    }


def test_a_card_shows_four_lines_of_evidence_and_folds_the_rest() -> None:
    (card, *_) = column([alert()], "running", NOW)
    assert "3 more" in words(card)
    assert "3 more" not in words(column([alert(evidence={"stability_ratio": 1.1}, layers=())], "running", NOW)[0])


def test_buttons_that_stand_above_the_panels_are_not_repeated_on_the_card() -> None:
    assert "Acknowledge" not in words(column([alert()], "running", NOW, above="a"))
    assert words(column([alert(), alert(id="b", step=1)], "running", NOW, above="a")).count("Acknowledge") == 1


def test_counts_have_no_decimals() -> None:
    counted = alert(evidence={"passed_without": 1.0, "nonfinite_gradients": 1200}, layers=())
    assert [line.value for line in lines(counted)] == ["1", "1,200"]


def test_the_column_shows_headline_reason_evidence_advice_and_buttons_in_this_order() -> None:
    text = words(column([alert()], "running", NOW))
    order = ["spike predicted", "Step 646", "Stale second moment", "λmax / limit", "What to try", "Acknowledge",
             "Silence 1 h", "Layer risk", "71 %"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_most_urgent_open_alert_comes_first() -> None:
    seen = alert(id="seen", state="acknowledged", level="critical", step=600)
    watch = alert(id="watch", level="watch", step=700)
    grave = alert(id="grave", kind="divergence", level="critical", step=10)
    assert sorted([seen, watch, grave], key=urgency, reverse=True) == [grave, watch, seen]


def test_an_alert_that_the_run_ended_with_is_shown_in_full_and_never_as_resolved() -> None:
    ended = alert(kind="nonfinite", title="NaN loss", state="ended", attempt=1, predicted_step=None)
    text = words(column([ended], "finished", NOW, attempt=1))
    assert "run ended so, since step 497" in text
    assert "No open alert" not in text
    assert "esolved" not in text
    later = words(column([ended], "finished", NOW, attempt=2))
    assert "No open alert" in later
    assert "run ended so" in later
    assert result(ended) == "run ended so"


def test_no_alert_is_said_and_history_tells_how_predictions_ended() -> None:
    hit = alert(state="resolved", outcome=Outcome(result="hit", step=640, lead=143))
    missed = alert(id="b", state="resolved", outcome=Outcome(result="false", step=None, lead=None))
    text = words(column([hit, missed], "running", NOW))
    assert "No open alert" in text
    assert "hit, lead 143" in text
    assert result(missed) == "did not come"


def forecast(step: int, best: int, level: str) -> Forecast:
    return Forecast(step=step, low=best - 10, best=best, high=best + 20, level=level)


def test_a_card_says_what_was_forecast_when() -> None:
    path = (forecast(563, 786, "watch"), forecast(688, 751, "warning"))
    text = words(single(alert(forecasts=path), "tanh-net", NOW))
    assert "said at step 563: 786 (776 to 806), watch" in text
    assert "said at step 688: 751 (741 to 771), warning" in text
    assert "between them" not in text


def test_the_names_of_runs_that_spiked_at_the_same_step_lead_to_them() -> None:
    runs = (SameStep(run_id="b/1", name="gpt-b", step=2_263), SameStep(run_id="c", name="gpt-b2", step=2_263))
    sentence = "gpt-b and gpt-b2 spiked at the same step (2,263)."
    said = Coincidence(step=2_263, runs=runs, same=2, sentence=sentence)
    spike = alert(kind="spike", message=f"The loss rose from 2.4 to 7.2. {sentence}", coincidence=said)
    for card in (single(spike, "gpt-a", NOW), column([alert(id="first", level="critical"), spike], "running", NOW)):
        links = {words(link): vars(link)["href"] for link in all_links(card)}
        assert links["gpt-b"] == "/runs/b%2F1?step=2263"
        assert links["gpt-b2"] == "/runs/c?step=2263"
        assert "7.2. gpt-b and gpt-b2 spiked at the same step (2,263)." in words(card)


def test_a_long_path_shows_its_turning_points() -> None:
    path = tuple(forecast(100 + i, 800 + i, "watch" if i < 20 else "warning") for i in range(50))
    text = words(single(alert(forecasts=path), "tanh-net", NOW))
    assert text.count("said at step") == 3
    assert "said at step 120: 820 (810 to 840), warning" in text
    assert "and 47 between them" in text


def test_a_lead_counts_from_the_warning() -> None:
    def words_of(lead: int | None) -> str:
        return result(alert(outcome=Outcome(result="hit", step=752, lead=lead, first_seen_lead=189)))

    assert words_of(64) == "hit, lead 64, first seen 189 before"
    assert words_of(189) == "hit, lead 189"
    assert words_of(None) == words_of(-2) == "hit, without a warning"


def test_an_acknowledged_alert_says_so_and_can_still_be_silenced() -> None:
    text = words(column([alert(state="acknowledged")], "running", NOW))
    assert "Acknowledged" in text
    assert "Silence" in text


def test_a_silenced_alert_says_so_until_it_is_over() -> None:
    assert "Silenced" in words(column([alert(silenced_until=NOW + 60)], "running", NOW))
    assert "Silence 1 h" in words(column([alert(silenced_until=NOW - 60)], "running", NOW))


def test_symbols_are_set_with_subscripts() -> None:
    assert symbols("from 2e-12 to e-mail") == ["from 2e−12 to e-mail"]
    parts = symbols("λ_max over λ_grad")
    assert words(parts) == "λmax over λgrad"
    assert [type(part).__name__ for part in parts] == ["str", "Sub", "str", "Sub", "str"]


def test_the_forecast_slope_is_a_number_or_nothing() -> None:
    assert growth_per_step(alert().evidence) == 0.0009
    assert growth_per_step({"lambda_max_growth_per_step": None}) is None
    assert growth_per_step({}) is None


def test_one_alert_alone_has_its_buttons_while_it_is_open() -> None:
    said = words(single(alert(), "tanh-net", NOW))
    assert said.startswith("Open the run tanh-net at step 497AcknowledgeSilence 1 h")
    assert said.count("Acknowledge") == 1
    assert "Save a checkpoint now" in said
    over = alert(state="resolved", outcome=Outcome(result="hit", step=650, lead=153))
    settled = words(single(over, "tanh-net", NOW))
    assert "Settled: hit, lead 153" in settled
    assert "Acknowledge" not in settled
