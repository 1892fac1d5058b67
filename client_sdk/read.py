"""Read runs back, every step of them, as NumPy arrays or a pandas DataFrame.

    from client_sdk.read import Server

    run = Server().run("4f1c20aa9d3b7e55")          # SPIKEWATCH_URL and SPIKEWATCH_TOKEN, as for training
    step, loss = run.series("loss")[:2]
    layers = run.layers("rms_ratio")                # layers.values: steps × layers

Over HTTP with the standard library; needs NumPy, and pandas for `Run.to_pandas` alone.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.config import Endpoint
from client_sdk.errors import ConfigurationError, TransportError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Histogram", "LayerSeries", "Run", "Series", "Server"]

TIMEOUT = 60.0  # seconds without a byte
PAGE = 500
CHUNK = 1024 * 1024
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Series(NamedTuple):
    """One scalar; NaN and infinities are as they were logged."""

    step: NDArray[np.int64]
    """(n,), ascending within an attempt."""
    value: NDArray[np.float64]
    """(n,)"""
    time: NDArray[np.float64]
    """(n,), Unix seconds by the clock of the training process."""


class LayerSeries(NamedTuple):
    """One statistic of every layer; NaN says "not measured"."""

    step: NDArray[np.int64]
    """(n,)"""
    layers: tuple[str, ...]
    """(l,)"""
    values: NDArray[np.float32]
    """(n, l)"""
    time: NDArray[np.float64]
    """(n,), Unix seconds."""


class Histogram(NamedTuple):
    """One layer at one step."""

    step: int
    edges: NDArray[np.float64]
    """(65,)"""
    counts: NDArray[np.int64]
    """(64,)"""
    dip: float | None
    """Hartigan's dip, of the ratio alone."""


class _Block(msgspec.Struct):
    rows: bytes
    layers: tuple[str, ...]
    statistics: dict[str, bytes]


class _Chunk(msgspec.Struct):
    """Consecutive records of one rank and attempt; the server's `FrameEncoder` writes them."""

    rank: int = 0
    attempt: int = 0
    step: bytes = b""
    time: bytes = b""
    scalars: dict[str, tuple[bytes, bytes]] = {}
    blocks: list[_Block] = []

    def steps(self) -> NDArray[np.int64]:
        return np.frombuffer(self.step, "<i8")

    def times(self) -> NDArray[np.float64]:
        return np.frombuffer(self.time, "<f8")


class Server:
    """A server to read from. Opens nothing until it is asked for something."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        """As `client_sdk.init` finds them. Raises `ConfigurationError`."""
        self._endpoint = Endpoint.resolve(url=url, token=token, environ=os.environ)
        # A redirect would carry the token elsewhere.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def runs(self, project: str | None = None, state: str | None = None) -> list[Run]:
        """All runs that the token opens, the newest first. Raises `TransportError`."""
        found: list[Run] = []
        cursor: str | None = None
        while True:
            asked = {"project": project, "state": state, "limit": PAGE, "cursor": cursor}
            page = self._json("/runs", {key: value for key, value in asked.items() if value is not None})
            found += [Run(self, info) for info in page["runs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    def run(self, run_id: str) -> Run:
        """One run. Raises `TransportError` with the code "unknown_run" where there is none."""
        return Run(self, self._json(f"/runs/{quote(run_id, safe='')}", {}))

    def _json(self, path: str, query: Mapping[str, Any]) -> Any:
        with self._open(path, query) as answer:
            return msgspec.json.decode(answer.read())

    def _open(self, path: str, query: Mapping[str, Any]) -> IO[bytes]:
        parts = urlsplit(self._endpoint.url)
        place = f"{parts.path.rstrip('/')}/api/v1{path}"
        url = urlunsplit((_SCHEMES[parts.scheme], parts.netloc, place, urlencode(query), ""))
        request = urllib.request.Request(url)  # noqa: S310 - one of _SCHEMES
        token = self._endpoint.find_token()
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            opened: IO[bytes] = self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read()) from error
        except (OSError, http.client.HTTPException) as error:
            raise TransportError("unreachable", f"no server answers at {self._endpoint.url} ({error})") from error
        return opened


class Run:
    """One run of a server."""

    def __init__(self, server: Server, info: Mapping[str, Any]) -> None:
        self._server = server
        self.info = info
        """What GET /api/v1/runs answers: project, name, state, config, tags, last_step, loss, …"""
        self.id: str = info["id"]
        self.name: str = info["name"]

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, name={self.name!r}, state={self.info['state']!r})"

    def series(self, name: str, *, attempt: int | None = None) -> Series:
        """Every value of a scalar, from the lowest rank that logs it.

        ``attempt``: one alone; by default of each what no later one replaced. Raises `TransportError`; its code is
        "unknown_scalar" for a name that was never logged.
        """
        found: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
        lowest: int | None = None
        for chunk, shown in self._chunks(attempt, keys=(name,), stats=()):
            column = chunk.scalars.get(name)
            if column is None or (lowest is not None and chunk.rank != lowest):
                continue
            lowest = chunk.rank
            rows = np.frombuffer(column[0], "<i4")
            kept = shown[rows]
            values = np.frombuffer(column[1], "<f8")
            found.append((chunk.steps()[rows[kept]], values[kept], chunk.times()[rows[kept]]))
        if not found:
            return Series(np.empty(0, np.int64), np.empty(0), np.empty(0))
        return Series(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def layers(self, statistic: str, *, rank: int | None = None, attempt: int | None = None) -> LayerSeries:
        """Every value of a layer statistic. ``rank``: by default the lowest that has layers.

        Steps at which it was not measured are left out. Raises `TransportError`; its code is "unknown_statistic" for a
        statistic that the run does not have.
        """
        names: dict[str, int] = {}
        found: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float32]]] = []
        for chunk, shown in self._chunks(attempt, keys=(), stats=(statistic,)):
            if rank is not None and chunk.rank != rank:
                continue
            for block in chunk.blocks:
                if statistic not in block.statistics:
                    continue
                rank = chunk.rank
                rows = np.frombuffer(block.rows, "<i4")
                values = np.frombuffer(block.statistics[statistic], "<f4").reshape(len(block.layers), len(rows)).T
                kept = shown[rows] & ~np.isnan(values).all(axis=1)
                places = np.array([names.setdefault(name, len(names)) for name in block.layers])
                found.append((chunk.steps()[rows[kept]], chunk.times()[rows[kept]], places, values[kept]))
        result = np.full((sum(len(steps) for steps, *_ in found), len(names)), np.nan, dtype=np.float32)
        row = 0
        for steps, _, places, values in found:
            result[row : row + len(steps), places] = values
            row += len(steps)
        empty = np.empty(0)
        return LayerSeries(
            step=np.concatenate([empty.astype(np.int64), *(steps for steps, *_ in found)]),
            layers=tuple(names),
            values=result,
            time=np.concatenate([empty, *(times for _, times, *_ in found)]),
        )

    def to_pandas(self, names: Sequence[str] | None = None, *, attempt: int | None = None) -> pd.DataFrame:
        """A row for each call of `log` with its rank, attempt, step, time and scalars, by default all of them.

        NaN also where a scalar was not logged. Raises `ImportError` without pandas, and `TransportError`.
        """
        import pandas as pd

        parts = []
        for chunk, shown in self._chunks(attempt, keys=names, stats=()):
            n = len(shown)
            columns: dict[str, Any] = {
                "rank": np.full(n, chunk.rank),
                "attempt": np.full(n, chunk.attempt),
                "step": chunk.steps(),
                "time": chunk.times(),
            }
            for name, (rows, values) in chunk.scalars.items():
                column = np.full(n, np.nan)
                column[np.frombuffer(rows, "<i4")] = np.frombuffer(values, "<f8")
                columns[name if name not in columns else f"{name}_"] = column
            parts.append(pd.DataFrame(columns)[shown])
        if not parts:
            return pd.DataFrame({"rank": [], "attempt": [], "step": [], "time": []})
        return pd.concat(parts, ignore_index=True)

    def histogram(self, layer: str, which: str = "update", *, step: int | None = None) -> Histogram | None:
        """The histogram of a layer nearest to ``step``, by default the last; None where the layer has none.

        ``which``: "update" (u) or "ratio" (r). Raises `TransportError`; its code is "unknown_layer" for a layer that
        the run does not have.
        """
        asked = {"layer": layer, "which": which, "step": step}
        found = self._json("/histogram", {key: value for key, value in asked.items() if value is not None})
        if found["step"] is None:
            return None
        return Histogram(
            step=found["step"],
            edges=np.array(found["edges"], np.float64),
            counts=np.array(found["counts"], np.int64),
            dip=found["dip"],
        )

    def events(self) -> list[dict[str, Any]]:
        """Stage changes, spikes, learning-rate jumps, non-finite values, rollbacks: the last 10,000 of them, in the
        order in which they happened. Raises `TransportError`."""
        found: list[dict[str, Any]] = self._json("/events", {})
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """As GET /api/v1/alerts answers, the newest first. Raises `TransportError`."""
        found: list[dict[str, Any]] = self._server._json("/alerts", {"run": self.id})
        return found

    def save(self, path: str | os.PathLike[str], *, layers: bool = False) -> Path:
        """Export the run into a file by its ending: .zip has everything, .parquet and .csv the steps. ``layers``: of a
        CSV, the layers.

        Raises `ConfigurationError` for another ending, `TransportError` and `OSError`.
        """
        place = Path(path)
        form = {".zip": "zip", ".parquet": "parquet", ".csv": "csv"}.get(place.suffix.lower())
        if form is None:
            raise ConfigurationError(f"{place}: expected a file that ends with .zip, .parquet or .csv")
        part = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            with self._export({"format": form, "layers": str(layers).lower()}) as answer, part.open("wb") as file:
                while data := _read(answer, CHUNK):
                    file.write(data)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        return place

    def _json(self, path: str, query: Mapping[str, Any]) -> Any:
        return self._server._json(f"/runs/{quote(self.id, safe='')}{path}", query)

    def _export(self, query: Mapping[str, Any]) -> IO[bytes]:
        return self._server._open(f"/runs/{quote(self.id, safe='')}/export", query)

    def _chunks(
        self, attempt: int | None, *, keys: Sequence[str] | None, stats: Sequence[str]
    ) -> Iterator[tuple[_Chunk, NDArray[np.bool_]]]:
        """Chunks with the records that are shown of them, none without any."""
        query = {"format": "msgpack", "stats": ",".join(stats)}
        if keys is not None:
            query["keys"] = ",".join(keys)
        with self._export(query) as answer:
            tries = self._json("", {})["attempts"]
            while True:
                size = int.from_bytes(_exactly(answer, 4), "little")
                body = _exactly(answer, size)
                try:
                    chunk = msgspec.msgpack.decode(body, type=_Chunk)
                except msgspec.DecodeError as error:
                    raise TransportError("malformed", f"the answer cannot be read ({error})") from error
                if not chunk.step:
                    return
                shown = _shown(chunk, tries, attempt)
                if shown.any():
                    yield chunk, shown


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the answer is then an `HTTPError`."""


def _shown(chunk: _Chunk, tries: Sequence[Mapping[str, Any]], attempt: int | None) -> NDArray[np.bool_]:
    """Which records of a chunk count: an attempt is visible up to the least first step of those after it."""
    steps = chunk.steps()
    if attempt is not None:
        return np.full(len(steps), chunk.attempt == attempt)
    later = [item["first_step"] for item in tries if item["rank"] == chunk.rank and item["attempt"] > chunk.attempt]
    return steps < min(later) if later else np.ones(len(steps), dtype=np.bool_)


def _read(answer: IO[bytes], size: int) -> bytes:
    try:
        return answer.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise TransportError("closed", f"the server broke the answer off ({error})") from error


def _exactly(answer: IO[bytes], size: int) -> bytes:
    data = _read(answer, size)
    if len(data) < size:
        raise TransportError("closed", "the server broke the answer off; its log says why")
    return data


def _refusal(status: int, body: bytes) -> TransportError:
    try:
        told = msgspec.json.decode(body, type=dict[str, str])
        return TransportError(told["error"], told["message"], retryable=status >= 500)
    except (msgspec.DecodeError, KeyError):
        return TransportError("refused", f"the server answered {status}", retryable=status >= 500)
