"""``/runs/{id}/replay``: a stored run through the present detectors."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request

from client_sdk import answers
from client_sdk.vocabulary import Sensitivity
from server.api.access import Reader, Services, ServicesOf, visible_run
from server.api.presence import while_present
from server.api.router import AnswerRouter

router = AnswerRouter(tags=["runs"])

REPLAY_SECONDS = 20.0  # time limit of one call
RunId = Annotated[str, Path(max_length=128, description="Id of the run.")]


@router.get("/runs/{run_id}/replay", summary="Replay a run: what would the present detectors have told?")
async def replay(
    services: ServicesOf,
    principal: Reader,
    request: Request,
    run_id: RunId,
    sensitivity: Annotated[
        Sensitivity, Query(description="Fewer, the usual, or more warnings of predicted spikes.")
    ] = Sensitivity.USUAL,
) -> answers.Replay:
    """Reads the run's steps for at most 20 seconds; `complete` is false if they were not enough. Nothing is stored and
    nobody is notified. A client that disconnects ends it."""
    await visible_run(services, principal, run_id)
    return await while_present(request, _replay(services, run_id, sensitivity))


async def _replay(services: Services, run_id: str, sensitivity: Sensitivity) -> answers.Replay:
    async with services.backtest_slots:
        until = time.monotonic() + REPLAY_SECONDS
        return await services.replay.of_run(run_id, sensitivity, is_over=lambda: time.monotonic() > until)
