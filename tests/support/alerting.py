"""Alerts as a follower stores them, without a training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from client_sdk.protocol import Alert, Hello, Outcome, PredictedStep
from server.auth.secret_box import SecretBox
from server.models import Progress
from server.notification import Channel
from server.notifications.messenger import Messenger
from server.notifications.outbound import Outbound
from server.notifications.recipients import recipients
from server.storage.database import Database
from server.storage.detector_states import DetectorStateSave, DetectorStateStore, StoredDetectorState
from server.storage.runs import RunStore
from tests.support.slack import TOKEN

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
SECRETS = SecretBox(lambda: KEY)
PUBLIC_URL = "https://spikes.example"


def prediction(run_id: str = "run", level: str = "warning", **changes: Any) -> Alert:
    """Return a prediction at step 627 of a spike at step 712."""
    return msgspec.structs.replace(
        Alert(
            id=f"p-{run_id}",
            run_id=run_id,
            kind="spike-predicted",
            level=level,
            state="open",
            step=603,
            title="Spike predicted at step 712",
            message="v has been decaying on its own for 541 steps and λ_max < 2/η no more (now 1.21 ×).",
            predicted_step=PredictedStep(low=698, best=712, high=731),
            first_predicted_step=PredictedStep(low=698, best=712, high=731),
            layers=("blocks.0.attn_proj.weight", "head.weight"),
            layer_shares=(0.41, 0.22),
            cause="stale-second-moment",
            evidence={"stability_ratio": 1.21, "lambda_max": 242.0, "stability_limit": 200.0, "decoupling": 4.8e-12},
            advice=("Save a checkpoint now", "β2 0.999 → 0.99"),
            opened_at=time.time(),
            updated_step=627,
        ),
        **changes,
    )


def settled(alert: Alert, result: Literal["hit", "early", "late", "false"], step: int) -> Alert:
    """Return a prediction with its outcome."""
    came = None if result == "false" else step
    return msgspec.structs.replace(
        alert,
        state="resolved",
        updated_step=step,
        closed_at=time.time(),
        outcome=Outcome(result=result, step=came, lead=None if came is None else came - alert.step),
    )


def spike(run_id: str = "run", settles: Alert | None = None, level: str = "warning", **changes: Any) -> Alert:
    """Return the alert of a spike at step 712."""
    return msgspec.structs.replace(
        prediction(run_id),
        kind="spike",
        level=level,
        step=712,
        updated_step=712,
        title="Loss spike at step 712",
        predicted_step=None,
        first_predicted_step=None,
        evidence={} if settles is None else {"prediction_id": settles.id},
        **{"id": f"s-{run_id}", **changes},
    )


def channel(kind: str, secret: str, channel_id: str = "channel", **changes: Any) -> Channel:
    """Return a channel that receives every alert from level watch on."""
    contents = {"secret": secret, "signing_key": "k" * 32}
    made = Channel(
        id=channel_id,
        name=channel_id,
        kind=kind,
        target="somewhere",
        encrypted_secrets=SECRETS.seal(contents),
        min_level="watch",
        settings={"channel": "#ml", "picture": False} if kind == "slack-bot" else {},
    )
    return dataclasses.replace(made, **changes)


def bot(**changes: Any) -> Channel:
    return channel("slack-bot", TOKEN, **changes)


def messenger(slack_api_url: str = "http://127.0.0.1:1/", *, timeout: float = 5.0) -> Messenger:
    """Return a messenger that may reach local servers."""
    return Messenger(
        outbound=Outbound(allow_private=True, timeout=timeout),
        secrets=SECRETS,
        slack_api_url=slack_api_url,
        public_url=PUBLIC_URL,
        clock=time.time,
    )


class Detectors:
    """Stores alerts as the follower of a run does."""

    def __init__(self, database: Database) -> None:
        self._runs = RunStore(database)
        self._monitors = DetectorStateStore(database, recipients)
        self._revisions: dict[str, int] = {}

    async def hold(self, *alerts: Alert, sdk: str = "python/test", now: float | None = None) -> None:
        """Store these alerts of one run as one change, and register the run first if it is new."""
        run_id = alerts[0].run_id
        now = time.time() if now is None else now
        before = self._revisions.get(run_id)
        if before is None:
            hello = Hello(
                version=1, run_id=run_id, writer=f"w-{run_id}", project="demo", name=f"name of {run_id}", sdk=sdk
            )
            await self._runs.register(hello, now)
        revision = self._revisions[run_id] = (before or 0) + 1
        save = DetectorStateSave(
            run_id=run_id,
            before=before,
            after=StoredDetectorState(rank=0, position=revision, state=b"", revision=revision),
            progress=Progress(stage="unstable"),
            changed=list(alerts),
            happened=(),
            now=now,
        )
        (saved,) = await self._monitors.save([save])
        assert saved.alerts is not None

    async def storm(self, runs: Sequence[str]) -> None:
        """Store predictions of many runs at once."""
        now = time.time()
        for run_id in runs:
            await self.hold(prediction(run_id), now=now)
