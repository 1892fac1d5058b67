"""A small real server with the contract's API over synthetic runs, with the dashboard mounted on it.

`python -m tests.dashboard.fixture_api PORT` serves it with a live run, for looking at pages while working on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse

from dashboard.app import mount_dashboard
from dashboard.config import DashboardConfig
from tests.dashboard.synthetic import SyntheticRun

TOKEN = "fixture-token"


class FixtureApi:
    """The runs, and the pages that listen to them. Tests change runs only through `advance` and `call`."""

    def __init__(self, runs: list[SyntheticRun]) -> None:
        self.runs = {run.id: run for run in runs}
        self.listeners: list[asyncio.Queue[dict[str, Any]]] = []
        self.requests: list[str] = []
        self.silenced: dict[str, int] = {}
        self.gone = threading.Event()
        """Set whenever the last listener left."""
        self.loop: asyncio.AbstractEventLoop | None = None

    def call(self, change: Callable[[], None]) -> None:
        """Run on the server's loop, from any other thread, and wait until it has."""
        assert self.loop is not None
        done = threading.Event()

        def work() -> None:
            change()
            done.set()

        self.loop.call_soon_threadsafe(work)
        assert done.wait(10)

    def reset(self, runs: list[SyntheticRun]) -> None:
        """Other runs, as if nothing had happened before. Call on the server's loop."""
        self.runs = {run.id: run for run in runs}
        self.requests.clear()
        self.silenced.clear()
        self.gone.clear()

    def advance(self, run_id: str, steps: int) -> None:
        """More steps of a run happen. Call on the server's loop."""
        run = self.runs[run_id]
        before, alerts = run.length, run.alerts()
        stage = run.stage()
        run.length = min(run.length + steps, run.total)
        self.publish({"type": "advance", "run_id": run_id, "attempt": 0, "step_from": before, "step_to": run.length - 1,
                      "committed_at": time.time()})  # fmt: skip
        self.publish({"type": "run", "run": run.summary()})
        if run.stage() != stage:
            self.publish({"type": "event", "run_id": run_id, "event": run.events()[-1]})
        if run.alerts() != alerts:
            for alert in run.alerts():
                self.publish({"type": "alert", "alert": alert})

    def publish(self, message: dict[str, Any]) -> None:
        for queue in self.listeners:
            queue.put_nowait(message)

    def find(self, run_id: str) -> SyntheticRun:
        if run_id not in self.runs:
            raise HTTPException(404, {"error": "unknown_run", "message": f"there is no run {run_id}"})
        return self.runs[run_id]


def build(api: FixtureApi, api_url: str) -> FastAPI:
    """The contract's endpoints, then the dashboard."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        path = request.url.path
        if path.startswith("/api/"):
            api.requests.append(path)
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return JSONResponse({"error": "unauthenticated", "message": "send the token"}, 401)
        response: Response = await call_next(request)
        return response

    @app.exception_handler(HTTPException)
    async def refuse(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error.detail, error.status_code)

    @app.get("/api/v1/runs")
    async def runs() -> Any:
        return {"runs": [run.summary() for run in api.runs.values()], "next_cursor": None}

    @app.get("/api/v1/runs/{run_id}")
    async def detail(run_id: str) -> Any:
        return api.find(run_id).detail()

    @app.get("/api/v1/runs/{run_id}/series")
    async def series(run_id: str, request: Request) -> Any:
        query = request.query_params
        keys = query["keys"].split(",")
        return api.find(run_id).series(keys, _whole(query.get("from")), _whole(query.get("to")), int(query["points"]))

    @app.get("/api/v1/runs/{run_id}/heatmap")
    async def heatmap(run_id: str, request: Request) -> Response:
        query = request.query_params
        found = api.find(run_id).heatmap(
            query["stat"], _whole(query.get("from")), _whole(query.get("to")), int(query["columns"]), query["reduce"]
        )
        return Response(msgspec.msgpack.encode(found), media_type="application/msgpack")

    @app.get("/api/v1/runs/{run_id}/histogram")
    async def histogram(run_id: str, layer: str, which: str, step: int) -> Any:
        run = api.find(run_id)
        if layer not in run.layers:
            raise HTTPException(404, {"error": "unknown_layer", "message": f"there is no layer {layer}"})
        counts = [round(400 * 2.718 ** -(((i - 32) / 9) ** 2)) for i in range(64)]
        edges = [-1.6 + i * 0.05 for i in range(65)]
        return {"layer": layer, "step": step // 50 * 50, "edges": edges, "counts": counts, "dip": 0.012}

    @app.get("/api/v1/runs/{run_id}/events")
    async def events(run_id: str) -> Any:
        return api.find(run_id).events()

    @app.get("/api/v1/alerts")
    async def alerts(run: str | None = None) -> Any:
        chosen = [api.find(run)] if run else list(api.runs.values())
        return [alert for one in chosen for alert in one.alerts()]

    @app.get("/api/v1/alerts/precision")
    async def precision() -> Any:
        return {"settled": 3, "hit": 2, "early": 0, "late": 0, "false": 1, "lead_steps": {"median": 80.0}}

    @app.get("/api/v1/alerts/{alert_id}")
    async def alert(alert_id: str) -> Any:
        return api.find(alert_id.removesuffix("-prediction")).alerts()[0]

    @app.post("/api/v1/alerts/{alert_id}/acknowledge")
    async def acknowledge(alert_id: str) -> Any:
        run = api.find(alert_id.removesuffix("-prediction"))
        run.acknowledged = True
        api.publish({"type": "alert", "alert": run.alerts()[0]})
        return run.alerts()[0]

    @app.post("/api/v1/alerts/{alert_id}/silence")
    async def silence(alert_id: str, request: Request) -> Any:
        api.silenced[alert_id] = (await request.json())["minutes"]
        run = api.find(alert_id.removesuffix("-prediction"))
        run.silenced_until = time.time() + 60 * api.silenced[alert_id]
        api.publish({"type": "alert", "alert": run.alerts()[0]})
        return run.alerts()[0]

    @app.websocket("/api/v1/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        api.loop = asyncio.get_running_loop()
        if websocket.headers.get("authorization") != f"Bearer {TOKEN}":
            await websocket.close(4401)
            return
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        api.listeners.append(queue)
        leaving = asyncio.create_task(websocket.receive())
        try:
            await websocket.send_json({"type": "subscribed", "runs": None})
            while True:
                message = asyncio.create_task(queue.get())
                await asyncio.wait({message, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    message.cancel()
                    return
                await websocket.send_json(await message)
        except WebSocketDisconnect:
            return
        finally:
            leaving.cancel()
            api.listeners.remove(queue)
            if not api.listeners:
                api.gone.set()

    mount_dashboard(app, DashboardConfig(api_url=api_url, token=TOKEN), cookies=None)
    return app


@contextlib.contextmanager
def serve(api: FixtureApi, port: int = 0) -> Iterator[str]:
    """Serve on a loopback port in a thread; yields the address."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(build(api, url), log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    started = threading.Event()
    original = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await original(sockets)
        api.loop = asyncio.get_running_loop()
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(15)
        listener.close()


def _whole(text: str | None) -> int | None:
    return None if text is None else int(float(text))


def example_runs() -> list[SyntheticRun]:
    """A fleet with every state in it."""
    transformer = tuple(
        f"blocks.{block}.{part}" for block in range(6)
        for part in ("ln1.weight", "qkv.weight", "qkv.bias", "out.weight", "up.weight", "up.bias", "down.weight")
    )  # fmt: skip
    return [
        SyntheticRun(id="tanh-net", name="tanh-net", length=600, seed=1),
        SyntheticRun(id="llama", name="llama-1b-lr6e-4", project="pretrain", healthy=True, length=900, seed=2,
                     layers=("embed.weight", *transformer, "head.weight")),
        SyntheticRun(id="spiked", name="vit-h-clip-b2-999", project="clip", length=760, seed=3),
        SyntheticRun(id="calm", name="gpt-124m-seed1", project="ablations", healthy=True, length=1100, seed=4),
        SyntheticRun(id="shard", name="gpt-124m-bad-shard", project="ablations", healthy=True, length=800, seed=5,
                     loss_at={400: 11.0}),
        SyntheticRun(id="stale", name="diffusion-sd-small", project="vision", healthy=True, length=500, seed=6,
                     state="stale"),
        SyntheticRun(id="crashed", name="llama-1b-lr1e-3", project="pretrain", length=715, seed=7, state="crashed"),
        SyntheticRun(id="finished", name="wm-dreamer-xl", project="rl", healthy=True, length=1200, seed=8,
                     state="finished"),
        SyntheticRun(id="sgd", name="resnet-sgd", project="vision", healthy=True, length=300, seed=9, optimizer=None),
        SyntheticRun(id="new", name="just-started", project="demo", seed=10),
    ]  # fmt: skip


def main() -> None:
    """Serve the example fleet; two of its runs go on for ever."""
    api = FixtureApi(example_runs())
    with serve(api, int(sys.argv[1])) as url:
        print(url, flush=True)  # noqa: T201, a tool for people
        while True:
            time.sleep(0.5)
            for run_id in ("tanh-net", "llama"):
                run = api.runs[run_id]
                if run.length >= run.total:
                    run.length = 560
                api.call(partial(api.advance, run_id, 2))


if __name__ == "__main__":
    main()
