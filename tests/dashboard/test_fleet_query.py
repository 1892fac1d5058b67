"""Tests of the runs that the list of runs shows, of their order and of their groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import pytest

from client_sdk.answers import LastAlert, RunSummary
from client_sdk.run_settings import settings_of
from dashboard.pages.fleet_query import FleetQuery, Group, group_keys, grouped, parse_fleet_query
from dashboard.pages.fleet_rows import tail


def run(run_id: str, **changes: Any) -> RunSummary:
    return RunSummary(**({"id": run_id, "name": run_id, "project": "nets", "state": "running"} | changes))


def listed(query: str, *runs: RunSummary, pinned: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Return the ids of the runs under each heading."""
    found = grouped(runs, parse_fleet_query(query), settings_of, pinned=pinned)
    return {group.label: [each.id for each in group.runs] for group in found}


def shown(query: str, *runs: RunSummary) -> set[str]:
    return {run_id for ids in listed(query, *runs).values() for run_id in ids}


RUNS = (
    run("small", config={"lr": 0.01, "model": {"width": 64}, "optim": "adam"}, tags=("baseline",)),
    run("wide", config={"lr": 0.001, "model": {"width": 512}, "optim": "Lion"}, tags=("baseline", "Long")),
    run("old", config={"lr": "3e-2"}, state="finished", project="attic"),
)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("", {"small", "wide", "old"}),
        ("lr>1e-3", {"small", "old"}),
        ("lr>=1e-3", {"small", "wide", "old"}),
        ("lr<0.02 lr>0.005", {"small"}),
        ("lr=0.001", {"wide"}),
        ("model.width=512", {"wide"}),
        ("width>100", {"wide"}),
        ("optim=lion", {"wide"}),
        ("optim!=lion", {"small"}),
        ("optim>lion", set()),
        ("nothing=1", set()),
        ("tag:baseline", {"small", "wide"}),
        ("tag:LONG", {"wide"}),
        ("tag:base", set()),
        ("attic", {"old"}),
        ("wide lr<1", {"wide"}),
        ("finished", {"old"}),
    ],
)
def test_words_tags_and_conditions_select(typed: str, found: set[str]) -> None:
    assert shown("?" + urlencode({"q": typed}), *RUNS) == found


def test_project_and_state_select_and_archived_runs_are_seen_on_request_only() -> None:
    runs = (*RUNS, run("gone", archived=True))
    assert shown("?project=attic", *runs) == {"old"}
    assert shown("?state=live", *runs) == {"small", "wide"}
    assert shown("?state=archived", *runs) == {"gone"}
    assert shown("", *runs) == {"small", "wide", "old"}
    assert shown("?state=nonsense&sort=nonsense", *runs) == {"small", "wide", "old"}


def groups(query: str, *runs: RunSummary) -> list[Group]:
    return grouped(runs, parse_fleet_query(query), settings_of)


def test_live_runs_come_first_and_ended_ones_are_folded_until_they_are_looked_for() -> None:
    diverged = LastAlert(id="a", kind="divergence", level="critical", state="ended", title="", step=1)
    ended = (
        run("done", state="finished"),
        run("bad", state="finished", ended_with=diverged),
        run("x", state="crashed"),
    )
    found = groups("", run("now"), *ended)
    assert [(group.label, group.is_folded) for group in found] == [
        ("Live · 1", False),
        ("Ended · 3 · 1 crashed, 1 diverged", True),
    ]
    assert [group.is_folded for group in groups("?q=o", run("now"), run("old", state="finished"))] == [False, False]
    assert [(group.label, group.is_folded) for group in groups("", *ended)] == [("", False)]
    assert [group.label for group in groups("", run("now"))] == [""]


def test_pinned_runs_stand_above_all_others() -> None:
    assert listed("?sort=name", *RUNS, pinned=("old", "unknown")) == {
        "Pinned · 1": ["old"],
        "Live · 2": ["small", "wide"],
    }


def test_runs_are_grouped_by_a_key_of_the_configuration_live_ones_first() -> None:
    runs = (
        run("a", config={"lr": 0.1}, state="finished"), run("b", config={"lr": 0.1}), run("c", config={"lr": 0.2}),
        run("d"),
    )  # fmt: skip
    found = listed("?group=lr&sort=name", *runs)
    assert found == {"lr = 0.1 · 2": ["b", "a"], "lr = 0.2 · 1": ["c"], "without lr · 1": ["d"]}
    assert set(listed("?group=project", *RUNS)) == {"nets · 2", "attic · 1"}
    assert group_keys(map(settings_of, RUNS)) == ["lr", "model.width", "optim"]


def test_orders_are_by_risk_age_and_natural_name() -> None:
    runs = (
        run("net-10", created_at=1.0, stability_ratio=0.2), run("net-9", created_at=3.0, stability_ratio=0.9),
        run("net-1", created_at=2.0, stage="spiking"),
    )  # fmt: skip
    orders: Mapping[str, list[str]] = {
        "": ["net-1", "net-9", "net-10"], "?sort=newest": ["net-9", "net-1", "net-10"],
        "?sort=name": ["net-1", "net-9", "net-10"],
    }  # fmt: skip
    for query, order in orders.items():
        assert listed(query, *runs) == {"": order}


@pytest.mark.parametrize(
    "query", ["", "?", "?q=%ff%00", "?q=" + "a>b+" * 100, "?group=" + "x" * 300, "?" + "a=1&" * 90]
)
def test_any_address_is_read(query: str) -> None:
    assert isinstance(parse_fleet_query(query), FleetQuery)


def test_the_end_of_a_layer_is_kept() -> None:
    assert tail("transformer.h.3.mlp.c_proj.weight", 14) == "…c_proj.weight"
    assert len(tail("w" * 50, 10)) == 10
