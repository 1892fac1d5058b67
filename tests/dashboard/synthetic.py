"""Synthetic runs for the dashboard's tests: shaped like the full-batch tanh net whose loss spikes around step 720."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.vocabulary import STATISTICS

ONSET = 718
LIMIT = 200.0
EPOCH = 1_700_000_000.0
CHANGES = ((0, "stable"), (300, "decoupled"), (628, "unstable"), (ONSET - 4, "spiking"), (ONSET + 16, "recovering"),
           (ONSET + 60, "stable"))  # fmt: skip


@dataclass(kw_only=True)
class SyntheticRun:
    """A whole run, of which the first `length` steps have happened."""

    id: str
    name: str
    project: str = "demo"
    state: str = "running"
    layers: tuple[str, ...] = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    healthy: bool = False
    total: int = 1200
    length: int = 0
    seed: int = 0
    optimizer: str | None = "Adam"
    loss_at: dict[int, float] = field(default_factory=dict)
    acknowledged: bool = False
    silenced_until: float | None = None

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        step = np.arange(self.total, dtype=np.float64)
        noise = random.normal(0, 1, self.total)
        if self.healthy:
            self.loss = 2.4 + 5 * np.exp(-step / 150) + 0.06 * noise
            self.lambda_max = 60 + 25 * np.tanh(step / 400) + 2 * noise
            self.lambda_grad = 18 + 3 * random.normal(0, 1, self.total)
        else:
            decay = np.maximum(10 ** (-step / 28), 1e-14) * np.exp(0.25 * noise)
            spike = 1e-2 * np.exp(-0.5 * ((step - ONSET - 3) / 4.0) ** 2)
            tail = np.where(step > ONSET, 1e-3 * np.exp(-(step - ONSET) / 25), 0)
            self.loss = decay + spike + tail
            rise = 60 + 140 * (step / 628) ** 0.8
            self.lambda_max = (
                np.where(step < ONSET + 3, rise, 155 + 25 * (1 - np.exp(-(step - ONSET) / 200))) + 0.4 * noise
            )
            self.lambda_grad = np.clip(
                60 + 60 * np.tanh((step - 300) / 200) + 14 * random.normal(0, 1, self.total)
                + 150 * np.exp(-0.5 * ((step - ONSET) / 12.0) ** 2), 2, None,
            )  # fmt: skip
        for at, value in self.loss_at.items():
            self.loss[at] = value
        rows = len(self.layers)
        depth = np.linspace(0, 1, rows)[:, None]
        wave = random.normal(0, 0.25, (rows, self.total)) + 0.4 * np.sin(step / 60 + 6 * depth)
        burst = 2.2 * np.exp(-0.5 * ((step - ONSET) / 10.0) ** 2) if not self.healthy else 0.0 * step
        self.cells = {
            name: (10 ** (-1.2 + 0.4 * index / 12 + 0.6 * depth + 0.4 * wave + burst)).astype(np.float32)
            for index, name in enumerate(STATISTICS)
        }
        self.cells["rms_ratio"] = (10 ** (-0.5 + 0.35 * wave + burst * (1 - 0.6 * depth))).astype(np.float32)
        self.cells["grad_momentum_cosine"] = np.clip(np.tanh(wave), -1, 1).astype(np.float32)
        self.cells["eps_fraction"] = np.clip(0.2 * depth + 0.05 * wave, 0, 1).astype(np.float32)
        self.cells["nonfinite"] = np.zeros((rows, self.total), np.float32)

    @property
    def last_step(self) -> int | None:
        return self.length - 1 if self.length else None

    def column(self, key: str) -> NDArray[np.float64]:
        """One scalar up to now; NaN where not measured."""
        known = {
            "loss": self.loss,
            "lambda_max": self.lambda_max,
            "lambda_grad": self.lambda_grad,
            "stability_limit": np.full(self.total, LIMIT),
            "lr": np.full(self.total, 0.01),
        }
        return known[key][: self.length] if key in known else np.full(self.length, math.nan)

    def stage(self) -> str | None:
        if not self.length:
            return None
        if self.healthy:
            return "stable"
        return [stage for step, stage in CHANGES if step <= self.length - 1][-1]

    def events(self) -> list[dict[str, Any]]:
        changes = ((0, "stable"),) if self.healthy else CHANGES
        found: list[dict[str, Any]] = [
            {"step": step, "kind": "stage", "attempt": 0, "stage": stage}
            for step, stage in changes
            if step < self.length
        ]
        if not self.healthy and self.length > ONSET + 20:
            found.append({"step": ONSET, "kind": "spike", "attempt": 0, "loss": 0.01, "baseline": 1e-14})
        return found

    def alerts(self) -> list[dict[str, Any]]:
        if self.healthy or self.length < 560:
            return []
        settled = self.length > ONSET
        state = "resolved" if settled else ("acknowledged" if self.acknowledged else "open")
        prediction = {
            "id": f"{self.id}-prediction", "run_id": self.id, "kind": "spike-predicted", "level": "warning",
            "state": state, "step": 560, "title": f"Spike predicted at step {ONSET - 6}",
            "message": "v has been decaying on its own for 191 steps while λ_max grew 0.09 % a step through 2/η.",
            "predicted_step": {"low": ONSET - 20, "best": ONSET - 6, "high": ONSET + 12},
            "layers": ["0.weight", "2.weight", "4.weight"], "layer_shares": [0.71, 0.22, 0.05],
            "cause": "stale-second-moment",
            "evidence": {
                "sign": "approach", "stability_ratio": float(self.lambda_max[self.length - 1] / LIMIT),
                "lambda_grad_ratio": 0.81, "decoupling": 7e-12, "decoupled_steps": 191,
                "lambda_max_growth_per_step": 0.0009, "gradient_growth_per_step": None,
            },
            "advice": [
                "Save a checkpoint now", "β2 0.999 → 0.99: v forgets in 100 steps instead of 1,000",
                "Raise ε to 1e-4: curvature along stale directions is the cause here", "Lower lr by half for 200 steps",
            ],
            "outcome": {"result": "hit", "step": ONSET, "lead": ONSET - 560} if settled else None,
            "opened_at": EPOCH + 560, "closed_at": EPOCH + ONSET if settled else None, "updated_step": self.length - 1,
            "attempt": 0, "silenced_until": self.silenced_until,
        }  # fmt: skip
        return [prediction]

    def summary(self) -> dict[str, Any]:
        loss = self.column("loss")
        alerts = self.alerts()
        still_open = [alert for alert in alerts if alert["state"] != "resolved"]
        newest = alerts[-1] if alerts else None
        return {
            "id": self.id, "project": self.project, "name": self.name, "state": self.state,
            "created_at": EPOCH + self.seed, "last_seen_at": EPOCH + self.length, "last_step": self.last_step,
            "step_rate": 18.4 if self.length else None, "loss": _finite(loss[-1]) if self.length else None,
            "stage": self.stage(),
            "stability_ratio": float(self.lambda_max[self.length - 1] / LIMIT)
            if self.length and self.optimizer else None,
            "open_alerts": len(still_open), "layer_count": len(self.layers), "parameter_count": 7489, "tags": [],
            "config": {}, "sparkline": [_finite(part.max()) for part in np.array_split(loss, min(64, self.length) or 1)]
            if self.length else [],
            "predicted_step": still_open[-1]["predicted_step"] if still_open else None,
            "last_alert": {key: newest[key] for key in ("id", "kind", "level", "state", "title", "step")}
            if newest else None,
            "optimizer": {"name": "Adam", "family": "adam", "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
                          "weight_decay": 0.0} if self.optimizer else None,
            "lr": 0.01, "attempt": 0, "rank_count": 1,
        }  # fmt: skip

    def detail(self) -> dict[str, Any]:
        return self.summary() | {
            "layers": list(self.layers),
            "scalars": ["loss", "lr", "lambda_max", "lambda_grad", "stability_limit"],
            "statistics": list(STATISTICS) if self.length else [],
            "attempts": [],
        }

    def series(self, keys: list[str], low: int | None, high: int | None, points: int) -> dict[str, Any]:
        start, end = self._range(low, high)
        size = max(1, math.ceil((end - start) / points))
        found: dict[str, Any] = {}
        for key in keys:
            values = self.column(key)[start:end]
            parts = [values[at : at + size] for at in range(0, len(values), size)]
            keep = [part[np.isfinite(part)] for part in parts]
            found[key] = {
                "step": [start + at for at in range(0, len(values), size)],
                "min": [float(part.min()) if part.size else None for part in keep],
                "max": [float(part.max()) if part.size else None for part in keep],
                "last": [float(part[-1]) if part.size else None for part in keep],
                "nonfinite": [int(part.size - kept.size) if key == "loss" else 0
                              for part, kept in zip(parts, keep, strict=True)],
            }  # fmt: skip
        return {"step_from": start, "step_to": max(end - 1, start), "bucket_steps": size, "series": found}

    def heatmap(self, stat: str, low: int | None, high: int | None, columns: int, reduce: str) -> dict[str, Any]:
        start, end = self._range(low, high)
        size = max(1, math.ceil((end - start) / columns))
        cells = self.cells[stat][:, start:end]
        pick = {
            "max": lambda part: part.max(axis=1),
            "min": lambda part: part.min(axis=1),
            "last": lambda part: part[:, -1],
        }
        parts = [pick[reduce](cells[:, at : at + size]) for at in range(0, cells.shape[1], size)]
        z = np.stack(parts, axis=1) if parts else np.zeros((len(self.layers), 0), np.float32)
        steps = [start + at for at in range(0, cells.shape[1], size)]
        return {"layers": list(self.layers), "step": steps, "bucket_steps": size, "z": z.astype("<f4").tobytes()}

    def _range(self, low: int | None, high: int | None) -> tuple[int, int]:
        start = min(max(low or 0, 0), self.length)
        end = self.length if high is None else min(max(high + 1, start), self.length)
        return start, end


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
