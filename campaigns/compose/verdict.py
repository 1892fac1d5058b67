"""The verdict on a campaign: a comparison of the logged steps with those that the API returns."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow.parquet as pq

from campaigns.compose.training import Entry
from server.demo.cases import TANH_NET
from server.demo.judge import Judgement, judge_tanh_net


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Differences between logged and stored steps; every step is stored exactly once if there are none."""

    logged: int
    """Number of logged steps."""
    lost: list[int]
    """Steps that are not stored."""
    twice: list[int]
    """Steps that are stored more than once."""
    altered: list[int]
    """Steps that are stored with another loss."""
    invented: list[int]
    """Steps that are stored but were not logged."""
    unshown: list[int]
    """Steps that the chart of the run lacks, or shows with another loss."""
    alert: Judgement
    """Judgement of the demo on the predicted spike."""

    @property
    def is_kept(self) -> bool:
        """Whether every step is stored exactly once and the spike was predicted."""
        return self.alert.held and not (self.lost or self.twice or self.altered or self.invented or self.unshown)


def run_of(api: httpx.Client) -> dict[str, Any] | None:
    """Return the run of the training, or None before its hello."""
    runs = api.get("/runs").raise_for_status().json()["runs"]
    return next((run for run in runs if run["name"] == TANH_NET), None)


def judge(api: httpx.Client, run_id: str, entries: Sequence[Entry]) -> Verdict:
    """Compare the logged ``entries`` with the API's answers. Raises `httpx.HTTPError` if the API fails."""
    logged = {entry.step: entry.loss for entry in entries}
    export = api.get(f"/runs/{run_id}/export", params={"format": "parquet"}).raise_for_status()
    table = pq.read_table(io.BytesIO(export.content), columns=["step", "loss"])
    rows = list(zip(table["step"].to_pylist(), table["loss"].to_pylist(), strict=True))
    counts = Counter(step for step, _ in rows)
    shown = api.get(f"/runs/{run_id}/series", params={"keys": "loss", "points": 10_000}).raise_for_status().json()
    series = shown["series"]["loss"]
    drawn = dict(zip(series["step"], series["max"], strict=True))
    alerts = sorted(api.get("/alerts", params={"run": run_id}).raise_for_status().json(), key=lambda a: a["step"])
    return Verdict(
        logged=len(logged),
        lost=sorted(logged.keys() - counts.keys()),
        twice=sorted(step for step, count in counts.items() if count > 1),
        altered=sorted(step for step, loss in rows if step in logged and logged[step] != loss),
        invented=sorted(counts.keys() - logged.keys()),
        unshown=sorted(step for step, loss in logged.items() if drawn.get(step) != loss),
        alert=judge_tanh_net(alerts, series["step"], series["max"]),
    )
