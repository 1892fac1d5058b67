"""The instructions that stand in place of data that nobody has logged yet. Pure."""

from __future__ import annotations

from typing import Final

from dash import html
from dash.development.base_component import Component

from dashboard.forms.attributes import data

SNIPPET: Final = """import client_sdk

client_sdk.init(project="my-project")
client_sdk.watch(model, optimizer)
for step, batch in enumerate(loader):
    loss = loss_fn(model, batch)
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    client_sdk.log({"loss": loss}, step=step, closure=lambda: loss_fn(model, batch))
"""


def no_data(*, connected: bool = False) -> list[Component]:
    """Return instructions with lines to copy. ``connected``: whether the run exists and only its data are missing."""
    words = (
        "The run is connected; its curves appear with its first "
        if connected
        else ("Add these lines to a training loop; its run appears here with its first ")
    )
    return [
        html.Div(
            [
                html.H2("No data yet"),
                html.P([words, html.Code("client_sdk.log(...)"), "."]),
                html.Div(
                    [
                        html.Pre(html.Code(SNIPPET), id="snippet"),
                        html.Button("Copy", className="button copy", type="button", **data(copy="snippet")),
                    ],
                    className="snippet",
                ),
                html.P(["No training at hand? ", html.Code("spikewatch demo"), " runs three."], className="muted"),
            ],
            className="card lonely",
        )
    ]
