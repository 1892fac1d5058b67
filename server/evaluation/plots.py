"""The plots of an evaluation: how early spikes are told of, and whether they come within the forecast ranges. Pure.

The lead-time plot has one curve for each method: the share of all spikes that it told of at least so many steps before
the onset. The reliability plot has one bar for each early alarm of the detectors: the forecast range against the number
of steps that it took, both counted from the alarm; a bar that crosses the diagonal held the onset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import plotly.graph_objects as go

from server.evaluation.evaluation import WITH, WITHOUT, Evaluation
from server.evaluation.scores import Recall, RunScore

SURFACE, LINE, INK, MUTED = "#ffffff", "#e4e4e0", "#1b1d21", "#6d7178"
ACCENT, DANGER, PLAIN = "#2f6fde", "#c8371b", "#b9b9b4"
FONT: Final = "Inter, system-ui, sans-serif"
LONGEST: Final = 100
"""Largest lead that is drawn, in steps; earlier alarms are not early."""
GAP: Final = 0.045
"""Least distance between the names of two curves, as a share of the spikes."""
COMPARED: Final = ("combination with curvature", "combination without", "gradient norm", "W&B z-score", "bare λ_grad")
"""Plain rules that have a curve in the lead-time plot."""


def lead_figure(evaluation: Evaluation) -> go.Figure:
    """Return the share of spikes that each method told of at least so many steps before."""
    figure = go.Figure()
    styles = {WITH: (ACCENT, "solid", 3), WITHOUT: (ACCENT, "dot", 2.5)}
    methods = evaluation.methods
    curves = {name: _shares(methods[name]) for name in (*COMPARED, WITHOUT, WITH) if methods.get(name)}
    for name, shares in curves.items():
        colour, dash, width = styles.get(name, (PLAIN, "solid", 1.5))
        figure.add_scatter(
            x=list(range(1, LONGEST + 1)),
            y=shares,
            mode="lines",
            name=name,
            line={"color": colour, "dash": dash, "width": width},
            hovertemplate="%{y:.0%} at least %{x} steps before<extra>" + name + "</extra>",
        )
    below = 2.0
    for name, shares in sorted(curves.items(), key=lambda curve: -curve[1][0]):
        below = min(shares[0], below - GAP)
        figure.add_annotation(
            x=1,
            y=below,
            text=name,
            xanchor="right",
            xshift=-6,
            showarrow=False,
            font={"color": styles.get(name, (INK, "", 0))[0], "size": 12},
        )
    _style(figure, "How early spikes are told of", "steps before the onset, at least", "share of spikes")
    figure.update_xaxes(range=[-30, LONGEST], tickvals=[1, 20, 40, 60, 80, 100])
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%")
    return figure


def band_figure(evaluation: Evaluation) -> go.Figure:
    """Return the forecast range of each early alarm against the steps that it took."""
    runs = [run for run in evaluation.methods[WITH] if run.truth.is_intrinsic]
    dated = [recall for run in runs for recall in run.recalled if recall.alarm.predicted is not None]
    figure = go.Figure()
    figure.add_scatter(x=[1, 200], y=[1, 200], mode="lines", line={"color": MUTED, "dash": "dot", "width": 1})
    held = [recall for recall in dated if recall.is_in_band]
    missed = [recall for recall in dated if not recall.is_in_band]
    for title, own, colour in (("within the range", held, ACCENT), ("outside of it", missed, DANGER)):
        figure.add_scatter(**_bars(own), name=title, mode="markers", marker={"color": colour, "size": 6})
    share = f"{len(held)} of {len(dated)} onsets within their first range" if dated else "no early alarm with a date"
    _style(figure, f"Reliability of the forecast ranges: {share}", "steps to the onset", "steps that were forecast")
    figure.update_xaxes(type="log", tickvals=[1, 2, 5, 10, 20, 50, 100, 200])
    figure.update_yaxes(type="log", tickvals=[1, 2, 5, 10, 20, 50, 100, 200])
    return figure


def _shares(runs: Sequence[RunScore]) -> list[float]:
    own = [run for run in runs if run.truth.is_intrinsic]
    spikes = sum(len(run.events) for run in own)
    leads = [recall.lead for run in own for recall in run.recalled]
    return [sum(lead >= least for lead in leads) / max(1, spikes) for least in range(1, LONGEST + 1)]


def _bars(recalls: Sequence[Recall]) -> dict[str, Any]:
    """Return the points of some alarms with their ranges as error bars."""
    x, best, over, under = [], [], [], []
    for recall in recalls:
        band, step = recall.alarm.predicted, recall.alarm.step
        if band is None:
            continue
        x.append(recall.lead)
        best.append(max(1, band.best - step))
        over.append(band.high - band.best)
        under.append(max(1, band.best - step) - max(1, band.low - step))
    bars = {"type": "data", "array": over, "arrayminus": under, "thickness": 1, "width": 0}
    return {"x": x, "y": best, "error_y": bars}


def _style(figure: go.Figure, title: str, x: str, y: str) -> None:
    figure.update_layout(
        title={"text": title, "x": 0.01, "font": {"size": 18, "color": INK}},
        font={"family": FONT, "size": 13, "color": MUTED},
        paper_bgcolor=SURFACE,
        plot_bgcolor=SURFACE,
        showlegend=False,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
    )
    figure.update_xaxes(title=x, gridcolor=LINE, zeroline=False)
    figure.update_yaxes(title=y, gridcolor=LINE, zeroline=False)
