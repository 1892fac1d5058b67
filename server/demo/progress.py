"""Progress lines for the terminal. Pure: run summaries in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.demo.cases import MODULES

BAR_WIDTH = 18  # characters


def line(name: str, run: Mapping[str, Any] | None, steps: int) -> str:
    """Return the line of one run: a bar, step, loss, λ_max over the limit, stage and the last alert."""
    if run is None or run["last_step"] is None:
        return f"  {name:<17} {'·' * BAR_WIDTH}  starting"
    step = run["last_step"]
    filled = round(BAR_WIDTH * min(1.0, step / steps))
    bar = "█" * filled + "·" * (BAR_WIDTH - filled)
    loss = "      –" if run["loss"] is None else f"{run['loss']:7.1e}"
    ratio = "   –" if run["stability_ratio"] is None else f"{run['stability_ratio']:4.2f}"
    alert = run["last_alert"]["title"] if run["last_alert"] is not None else ""
    stage = run["stage"] or ""
    return f"  {name:<17} {bar}  step {step:>3}/{steps}  loss {loss}  λmax/limit {ratio}  {stage:<10}  {alert}"


def lines(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each training of the demo."""
    return [line(name, runs.get(name), steps) for name, (_, steps) in MODULES.items()]
