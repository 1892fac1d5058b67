"""``/runs`` and everything under one run."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Header, Path, Query
from pydantic import Field
from starlette.requests import Request

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS, MAX_STEP
from client_sdk.vocabulary import LOSS, SCALARS, STATISTICS, RunState, loss_among
from server.api.access import Reader, Services, ServicesOf, visible_projects, visible_run
from server.api.encoding import JSON, MSGPACK, Rendered, Tag, accepts_msgpack, compressed, float32_bytes, numbers
from server.api.names import MAX_FILTERS, NAMES, REPEATED, Value, listed
from server.api.presence import while_present
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.errors import ApiError
from server.storage.fleet import decode_cursor
from server.storage.layouts import layer_rows
from server.storage.measurements.heatmap import Heatmap
from server.storage.measurements.series import Series

router = AnswerRouter(tags=["runs"])

MAX_POINTS = 10_000
MAX_COLUMNS = 4_096
MAX_HISTOGRAMS = 200
MAX_KEYS = 100
MAX_PAGE = 500

UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The answer is still the one whose ETag the request sent in If-None-Match."}
}
"""Response of calls whose answers have a `Tag`, for the OpenAPI document."""

RunId = Annotated[str, Path(max_length=128, description="Id of the run.")]
From = Annotated[
    int | None, Query(alias="from", ge=0, le=MAX_STEP, description="First step; default: the run's first.")
]
To = Annotated[int | None, Query(ge=0, le=MAX_STEP, description="Last step, included; default: the run's last.")]
Attempt = Annotated[
    int | None,
    Query(ge=0, le=2**31 - 1, description="Only this attempt; default: steps that no later one replaced."),
]


@router.get("/runs", responses=refusals(403), summary="Runs, newest first")
async def list_runs(
    *,
    services: ServicesOf,
    principal: Reader,
    project: Annotated[
        list[Annotated[str, Field(max_length=MAX_NAME_CHARS)]] | None,
        Query(max_length=MAX_FILTERS, description=f"Only runs of this project. {REPEATED}"),
    ] = None,
    state: Annotated[
        list[RunState] | None, Query(max_length=MAX_FILTERS, description=f"Only runs in this state. {REPEATED}")
    ] = None,
    archived: Annotated[
        bool | None, Query(description="true: only archived runs; false: only the others; default: both.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    cursor: Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")] = None,
) -> answers.RunPage:
    projects = visible_projects(principal, project)
    try:
        after = None if cursor is None else decode_cursor(cursor)
    except ValueError as error:
        raise ApiError(400, "invalid_cursor", str(error), field="cursor") from error
    return await services.fleet.page(projects=projects, states=state, is_archived=archived, limit=limit, cursor=after)


@router.get("/runs/{run_id}", summary="One run")
async def get_run(services: ServicesOf, principal: Reader, run_id: RunId) -> answers.RunDetail:
    await visible_run(services, principal, run_id)
    details = await services.fleet.details(run_id)
    if details is None:
        raise ApiError(404, "unknown_run", f"the run {run_id!r} was deleted")
    return details


@router.get("/runs/{run_id}/series", responses=UNCHANGED, summary="Scalars over the steps")
async def get_series(
    *,
    services: ServicesOf,
    principal: Reader,
    request: Request,
    run_id: RunId,
    keys: Annotated[list[Value], Query(min_length=1, max_length=MAX_KEYS, description=f"Scalars. {NAMES}")],
    step_from: From = None,
    to: To = None,
    points: Annotated[int, Query(ge=1, le=MAX_POINTS, description="Maximum number of buckets of a series.")] = 1_000,
    attempt: Attempt = None,
) -> Rendered[answers.Series]:
    """Buckets are aligned: each begins at a multiple of `bucket_steps`, a power of two, and holds only steps of the
    requested range. Buckets without values are left out. The key `loss` is the run's loss, under whatever name it was
    logged (`loss_name`), unless a scalar is called loss."""
    _check_range(step_from, to)
    run = await visible_run(services, principal, run_id)
    await _check_attempt(services, run_id, attempt)
    logged = await services.runs.scalar_ranks(run_id)
    names = listed(keys, logged)
    if not 1 <= len(names) <= MAX_KEYS:
        raise ApiError(400, "invalid_parameter", f"keys: 1 … {MAX_KEYS} names", field="keys")
    stored = {name: name for name in names}
    if LOSS in stored and LOSS not in logged:
        stored[LOSS] = await services.runs.loss_name(run_id) or loss_among(logged) or LOSS
    for name in names:
        if name not in logged and name not in SCALARS:
            message = f"the run never logged {name!r}; GET /runs/{run_id} lists its scalars"
            raise ApiError(404, "unknown_scalar", message, field="keys")
    tag = Tag(request, run.version)
    if tag.is_known:
        return tag.unchanged()
    found = await while_present(
        request,
        services.series.read(
            run_id,
            list(dict.fromkeys(stored.values())),
            ranks=logged,
            step_from=step_from,
            step_to=to,
            points=points,
            attempt=attempt,
        ),
    )
    return tag.on(await asyncio.to_thread(_series_response, found, stored, request.headers.get("accept-encoding", "")))


def _series_response(found: Series, stored: dict[str, str], accept_encoding: str) -> Rendered[answers.Series]:
    series: dict[str, answers.Buckets] = {}
    for name, stored_name in stored.items():
        buckets = found.series.get(stored_name)
        series[name] = (
            answers.Buckets()
            if buckets is None
            else answers.Buckets(
                step=numbers(buckets.numbers * found.bucket_steps),
                min=numbers(buckets.min[0]),
                max=numbers(buckets.max[0]),
                last=numbers(buckets.last[0]),
                nonfinite=numbers(buckets.counts()[0]),
            )
        )
    answer = answers.Series(
        step_from=found.step_from, step_to=found.step_to, bucket_steps=found.bucket_steps, series=series
    )
    return compressed(Rendered(msgspec.json.encode(answer), media_type=JSON), accept_encoding)


@router.get(
    "/runs/{run_id}/heatmap",
    responses={
        200: {
            "description": "As JSON; or as msgpack with `z` as bytes: float32, little-endian, row-major.",
            "content": {MSGPACK: {"schema": {"type": "string", "format": "binary"}}},
        },
        **UNCHANGED,
    },
    summary="A statistic of every layer over the steps",
)
async def get_heatmap(
    *,
    services: ServicesOf,
    principal: Reader,
    request: Request,
    run_id: RunId,
    stat: Annotated[str, Query(min_length=1, max_length=MAX_NAME_CHARS, description="Name of the statistic.")],
    step_from: From = None,
    to: To = None,
    columns: Annotated[int, Query(ge=1, le=MAX_COLUMNS, description="Maximum number of columns.")] = 600,
    reduce: Annotated[Literal["max", "min", "last"], Query(description="The value that stands for a column.")] = "max",
    attempt: Attempt = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Rendered[answers.Heatmap]:
    """Columns are consecutive aligned buckets, empty ones included. `nonfinite` lists `[row, column, count]` of the
    cells with values that are not finite."""
    _check_range(step_from, to)
    run = await visible_run(services, principal, run_id)
    await _check_attempt(services, run_id, attempt)
    if stat not in STATISTICS:
        stored = await services.layouts.of_run(run_id)
        if not any(stat in item.layout.statistics for item in stored):
            message = f"no layer of the run has {stat!r}; GET /runs/{run_id} lists the statistics"
            raise ApiError(404, "unknown_statistic", message, field="stat")
    tag = Tag(request, run.version)
    if tag.is_known:
        return tag.unchanged()
    found = await while_present(
        request,
        services.heatmap.read(
            run_id, stat, step_from=step_from, step_to=to, columns=columns, reduce=reduce, attempt=attempt
        ),
    )
    accept_encoding = request.headers.get("accept-encoding", "")
    return tag.on(await asyncio.to_thread(_heatmap_response, found, accepts_msgpack(accept), accept_encoding))


def _heatmap_response(found: Heatmap, as_msgpack: bool, accept_encoding: str) -> Rendered[answers.Heatmap]:
    step, nonfinite = numbers(found.step), tuple(found.nonfinite)
    if as_msgpack:
        packed = answers.PackedHeatmap(
            layers=tuple(found.layers),
            step=step,
            bucket_steps=found.bucket_steps,
            nonfinite=nonfinite,
            z=float32_bytes(found.z),
        )
        return compressed(Rendered(msgspec.msgpack.encode(packed), media_type=MSGPACK), accept_encoding)
    answer = answers.Heatmap(
        layers=tuple(found.layers),
        step=step,
        bucket_steps=found.bucket_steps,
        nonfinite=nonfinite,
        z=found.z.tolist(),
    )
    return compressed(Rendered(msgspec.json.encode(answer), media_type=JSON), accept_encoding)


@router.get("/runs/{run_id}/histogram", summary="A histogram of one layer")
async def get_histogram(
    *,
    services: ServicesOf,
    principal: Reader,
    run_id: RunId,
    layer: Annotated[
        str, Query(min_length=1, max_length=2 * MAX_NAME_CHARS, description="Name of the layer, from GET /runs/{id}.")
    ],
    which: Annotated[Literal["update", "ratio"], Query()] = "update",
    step: Annotated[
        int | None,
        Query(ge=0, le=MAX_STEP, description="The nearest recorded step is taken; default: the last."),
    ] = None,
) -> answers.Histogram:
    """`step` is null and there are no counts where the layer has no histogram."""
    await visible_run(services, principal, run_id)
    rank, name = await _row_of(services, run_id, layer)
    found = await services.histograms.nearest(run_id, rank, name, which, step)
    if found is None:
        return answers.Histogram(layer=layer, which=which)
    return answers.Histogram(
        layer=layer,
        which=which,
        step=found.step,
        attempt=found.attempt,
        edges=numbers(found.edges),
        counts=numbers(found.counts),
        dip=found.dip,
    )


@router.get("/runs/{run_id}/histograms", summary="Histograms of one layer over the steps")
async def get_histograms(
    *,
    services: ServicesOf,
    principal: Reader,
    run_id: RunId,
    layer: Annotated[
        str, Query(min_length=1, max_length=2 * MAX_NAME_CHARS, description="Name of the layer, from GET /runs/{id}.")
    ],
    which: Annotated[Literal["update", "ratio"], Query()] = "update",
    step_from: From = None,
    to: To = None,
    limit: Annotated[int, Query(ge=1, le=MAX_HISTOGRAMS, description="Maximum number of histograms.")] = 60,
) -> list[answers.Histogram]:
    """The histograms come in the order of their steps. If there are more than `limit`, they are spread evenly over
    those that there are."""
    _check_range(step_from, to)
    await visible_run(services, principal, run_id)
    rank, name = await _row_of(services, run_id, layer)
    steps = (step_from or 0, MAX_STEP if to is None else to)
    found = await services.histograms.over(run_id, rank, name, which, steps=steps, at_most=limit)
    return [
        answers.Histogram(
            layer=layer,
            which=which,
            step=item.step,
            attempt=item.attempt,
            edges=numbers(item.edges),
            counts=numbers(item.counts),
            dip=item.dip,
        )
        for item in found
    ]


async def _row_of(services: Services, run_id: str, layer: str) -> tuple[int, str]:
    """Return the rank that has a layer and its name there. Raises `ApiError` if the run has no such layer."""
    rows = layer_rows(await services.layouts.of_run(run_id))
    row = next(((rank, name) for rank, name, shown in rows if shown == layer), None)
    if row is None:
        message = f"the run has no layer {layer!r}; GET /runs/{run_id} lists the layers"
        raise ApiError(404, "unknown_layer", message, field="layer")
    return row


@router.get("/runs/{run_id}/events", summary="Events of a run")
async def get_events(
    services: ServicesOf, principal: Reader, run_id: RunId, step_from: From = None, to: To = None
) -> list[answers.Event]:
    """Stage changes, spikes, bad batches, learning-rate jumps, non-finite values, rollbacks, and stretches whose layer
    statistics the client thinned for want of disk space, in the order in which they happened."""
    _check_range(step_from, to)
    await visible_run(services, principal, run_id)
    return await services.events.of_run(run_id, step_from=step_from, step_to=to)


async def _check_attempt(services: Services, run_id: str, attempt: int | None) -> None:
    if attempt is not None and not await services.runs.has_attempt(run_id, attempt):
        message = f"the run has no attempt {attempt}; GET /runs/{run_id} lists its attempts"
        raise ApiError(404, "unknown_attempt", message, field="attempt")


def _check_range(step_from: int | None, step_to: int | None) -> None:
    if step_from is not None and step_to is not None and step_from > step_to:
        raise ApiError(400, "invalid_range", f"from ({step_from}) is after to ({step_to})", field="from")
