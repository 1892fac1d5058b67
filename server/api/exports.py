"""``/runs/{id}/export`` and the deletion of runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Collection
from typing import Annotated, cast
from urllib.parse import quote

from fastapi import Query
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from client_sdk import answers
from client_sdk.vocabulary import SCALARS
from server.api.access import Operator, Reader, ServicesOf, visible_run
from server.api.names import NAMES, Value, listed
from server.api.router import AnswerRouter
from server.api.runs import RunId
from server.errors import ApiError, ServerError
from server.exports.exporter import MEDIA_TYPES, Format
from server.log_actions import LogAction
from server.storage.measurements.steps import RunSteps, Selection

logger = logging.getLogger(__name__)

MAX_NAMES = 1_000  # values of a parameter

router = AnswerRouter(tags=["runs"])


class Download(StreamingResponse):
    """A stream that may fail midway: it then lacks its end, so that no client takes it for complete, and the log has
    the reason.

    When the client disconnects, the stream ends between two pieces and never within one: a cancellation there would
    close objects that a thread is still writing, and lose a connection of the database.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(_departure(receive))
        stream = cast(AsyncGenerator[bytes, None], self.body_iterator)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    if leaving.done():
                        return
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ServerError as error:
            # The status is already sent. A response without its end makes the server close the connection.
            logger.warning("an export failed midway (%s)", error, extra={"action": LogAction.EXPORT_BROKE_OFF})
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/runs/{run_id}/export",
    summary="A run as a file: every step, or everything, streamed",
    response_class=Download,
    responses={
        200: {
            "description": "The file. docs/how-to/export-and-import.md describes its columns.",
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
        }
    },
)
async def export_run(
    *,
    services: ServicesOf,
    principal: Reader,
    run_id: RunId,
    form: Annotated[
        Format, Query(alias="format", description="zip is everything; msgpack is for `client_sdk.read`.")
    ] = Format.PARQUET,
    layers: Annotated[bool, Query(description="In a CSV: one row for each step and layer.")] = False,
    keys: Annotated[
        list[Value] | None, Query(max_length=MAX_NAMES, description=f"Scalars; default: all; empty: none. {NAMES}")
    ] = None,
    stats: Annotated[
        list[Value] | None,
        Query(max_length=MAX_NAMES, description=f"Layer statistics; default: all; empty: none. {NAMES}"),
    ] = None,
) -> Response:
    await visible_run(services, principal, run_id)
    run = await services.fleet.details(run_id)
    if run is None:
        raise ApiError(410, "run_deleted", f"the run {run_id!r} was deleted")
    steps = await services.exporter.begin(run_id)
    if form is Format.ZIP:
        if keys is not None or stats is not None:
            message = "keys, stats: a zip holds the whole run; use parquet to select"
            raise ApiError(400, "invalid_parameter", message, field="keys" if keys is not None else "stats")
        stream = services.archiver.stream(run, steps)
    else:
        statistics = _statistics_of(steps)
        selection = Selection(
            scalars=None if keys is None else tuple(listed(keys, steps.scalars)),
            statistics=None if stats is None else tuple(listed(stats, statistics)),
        )
        _check(selection, steps, statistics, run_id)
        stream = services.exporter.stream(run, steps, form, selection=selection, layers=layers)
    file_name = quote(f"{run_id}{'-layers' if layers and form is Format.CSV else ''}.{form}")
    headers = {
        "Content-Disposition": f'attachment; filename="{file_name}"',
        "Link": f'</api/v1/runs/{quote(run_id)}>; rel="describedby"',
    }
    return Download(stream, media_type=MEDIA_TYPES[form], headers=headers)


@router.delete("/runs/{run_id}", status_code=202, summary="Delete a run for good")
async def delete_run(services: ServicesOf, principal: Operator, run_id: RunId) -> answers.Deletion:
    """The run is absent from every answer at once; its data is removed in the background."""
    await visible_run(services, principal, run_id)
    if not await services.deleter.delete(run_id):
        raise ApiError(410, "run_deleted", f"the run {run_id!r} was deleted")
    return answers.Deletion(id=run_id)


def _statistics_of(steps: RunSteps) -> set[str]:
    return {name for writer in steps.writers for layout in writer.layouts.values() for name in layout.statistics}


def _check(selection: Selection, steps: RunSteps, known: Collection[str], run_id: str) -> None:
    for name in selection.statistics or ():
        if name not in known:
            message = f"no layer of the run has {name!r}; GET /runs/{run_id} lists the statistics"
            raise ApiError(404, "unknown_statistic", message, field="stats")
    for name in selection.scalars or ():
        if name not in steps.scalars and name not in SCALARS:
            message = f"the run never logged {name!r}; GET /runs/{run_id} lists its scalars"
            raise ApiError(404, "unknown_scalar", message, field="keys")
