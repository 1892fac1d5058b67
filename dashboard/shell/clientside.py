"""Callbacks that run in the browser: functions of `window.dash_clientside.spikewatch`, defined in the assets."""

from __future__ import annotations

from dash import ClientsideFunction, Dash, Input, Output, State


def clientside(app: Dash, function: str, *wiring: Input | Output | State) -> None:
    """Register a JavaScript function as a callback. ``wiring``: its outputs, inputs and states, in this order."""
    reference = ClientsideFunction(namespace="spikewatch", function_name=function)
    app.clientside_callback(reference, *wiring)  # type: ignore[no-untyped-call]
