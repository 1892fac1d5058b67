"""Read runs back, every step of them, as NumPy arrays or a pandas DataFrame.

    from client_sdk.read import Server

    run = Server().run("4f1c20aa9d3b7e55")          # SPIKEWATCH_URL and SPIKEWATCH_TOKEN, as for training
    step, loss = run.series("loss")[:2]
    layers = run.layers("rms_ratio")                # layers.values: steps × layers

The module reads over HTTP with the standard library. It needs NumPy; only `Run.to_pandas` needs pandas.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk import answers
from client_sdk.config import Endpoint
from client_sdk.errors import ConfigurationError, TransportError
from client_sdk.names_parameter import names_parameter
from client_sdk.vocabulary import LOSS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Histogram", "LayerSeries", "Run", "Series", "Server"]

TIMEOUT = 60.0  # seconds without a byte
PAGE = 500
CHUNK = 1024 * 1024
Answer = TypeVar("Answer")
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Series(NamedTuple):
    """A scalar over the steps; NaN and infinities are kept as they were logged."""

    step: NDArray[np.int64]
    """Step numbers, shape (n,), ascending within an attempt."""
    value: NDArray[np.float64]
    """Logged values, shape (n,)."""
    time: NDArray[np.float64]
    """Unix times by the clock of the training process, shape (n,)."""


class LayerSeries(NamedTuple):
    """A statistic of every layer over the steps; NaN means "not measured"."""

    step: NDArray[np.int64]
    """Step numbers, shape (n,)."""
    layers: tuple[str, ...]
    """Names of the l layers."""
    values: NDArray[np.float32]
    """Values of the statistic, shape (n, l)."""
    time: NDArray[np.float64]
    """Unix times by the clock of the training process, shape (n,)."""


class Histogram(NamedTuple):
    """The histogram of a layer at a step."""

    step: int
    edges: NDArray[np.float64]
    """Edges of the bins, shape (65,)."""
    counts: NDArray[np.int64]
    """Counts of the bins, shape (64,)."""
    dip: float | None
    """Hartigan's dip; None for histograms of the update."""


class _Block(msgspec.Struct):
    rows: bytes
    layers: tuple[str, ...]
    statistics: dict[str, bytes]


class _Chunk(msgspec.Struct):
    """Consecutive records of one rank and attempt, as the server encodes them in a msgpack export."""

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
    """A server to read from. It opens a connection for each request, and none before the first."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        """Find the address and the token as `client_sdk.init` does. Raises `ConfigurationError` for a bad address."""
        self._endpoint = Endpoint.resolve(url=url, token=token, environ=os.environ)
        # A redirect would send the token to another server.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def runs(self, project: str | None = None, state: str | None = None) -> list[Run]:
        """Return all runs that the token opens, newest first. Raises `TransportError`."""
        found: list[Run] = []
        cursor: str | None = None
        while True:
            asked = {"project": project, "state": state, "limit": PAGE, "cursor": cursor}
            query = {key: value for key, value in asked.items() if value is not None}
            page = self._read("/runs", query, answers.RunPage)
            found += [Run(self, summary) for summary in page.runs]
            cursor = page.next_cursor
            if cursor is None:
                return found

    def run(self, run_id: str) -> Run:
        """Return one run. Raises `TransportError`; its code is "unknown_run" if the run does not exist."""
        return Run(self, self._read(f"/runs/{quote(run_id, safe='')}", {}, answers.RunDetail))

    def _read(self, path: str, query: Mapping[str, Any], kind: type[Answer]) -> Answer:
        with self._open(path, query) as opened:
            body = opened.read()
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise _malformed(error) from error

    def _open(self, path: str, query: Mapping[str, Any]) -> IO[bytes]:
        parts = urlsplit(self._endpoint.url)
        address = f"{parts.path.rstrip('/')}/api/v1{path}"
        url = urlunsplit((_SCHEMES[parts.scheme], parts.netloc, address, urlencode(query, doseq=True), ""))
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
    """A run of a server."""

    def __init__(self, server: Server, summary: answers.RunSummary) -> None:
        self._server = server
        self.summary = summary
        """The run at the time of the request: project, name, state, config, tags, last_step, loss and others."""
        self.id = summary.id
        self.name = summary.name

    @property
    def info(self) -> Mapping[str, Any]:
        """The fields of `summary` as a dict, with the keys of GET /api/v1/runs."""
        fields: dict[str, Any] = msgspec.to_builtins(self.summary)
        return fields

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, name={self.name!r}, state={self.summary.state!r})"

    def series(self, name: str, *, attempt: int | None = None) -> Series:
        """Return every value of a scalar, from the lowest rank that logs it.

        ``attempt``: only this attempt; by default, of each attempt the steps that no later one replaced. Raises
        `TransportError`; its code is "unknown_scalar" for a name that was never logged, and "unknown_attempt" for an
        attempt that the run does not have.
        """
        found: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
        numbers: list[NDArray[np.int64]] = []
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
            numbers.append(np.full(len(found[-1][0]), chunk.attempt, np.int64))
        if not found:
            return Series(np.empty(0, np.int64), np.empty(0), np.empty(0))
        steps, values, times = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((steps, np.concatenate(numbers)))  # late records belong to their steps
        return Series(steps[order], values[order], times[order])

    def loss(self, *, attempt: int | None = None) -> Series:
        """Return every value of the loss, under whatever name it was logged or chosen; see `series`."""
        return self.series(self.summary.loss_name or LOSS, attempt=attempt)

    def layers(self, statistic: str, *, rank: int | None = None, attempt: int | None = None) -> LayerSeries:
        """Return every value of a layer statistic. ``rank``: by default the lowest rank with layers.

        Steps at which the statistic was not measured are left out. Raises `TransportError`; its code is
        "unknown_statistic" for a statistic that the run does not have.
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
                columns = np.array([names.setdefault(name, len(names)) for name in block.layers])
                found.append((chunk.steps()[rows[kept]], chunk.times()[rows[kept]], columns, values[kept]))
        result = np.full((sum(len(steps) for steps, *_ in found), len(names)), np.nan, dtype=np.float32)
        row = 0
        for steps, _, columns, values in found:
            result[row : row + len(steps), columns] = values
            row += len(steps)
        empty = np.empty(0)
        return LayerSeries(
            step=np.concatenate([empty.astype(np.int64), *(steps for steps, *_ in found)]),
            layers=tuple(names),
            values=result,
            time=np.concatenate([empty, *(times for _, times, *_ in found)]),
        )

    def to_pandas(self, names: Sequence[str] | None = None, *, attempt: int | None = None) -> pd.DataFrame:
        """Return a row for each call of `log`, with its rank, attempt, step, time and scalars, by default all of them.

        A scalar that was not logged is NaN. Raises `ImportError` without pandas, and `TransportError`.
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
        """Return the histogram of a layer nearest to ``step``, by default the last; None if the layer has none.

        ``which``: "update" (u) or "ratio" (r). Raises `TransportError`; its code is "unknown_layer" for a layer that
        the run does not have.
        """
        asked = {"layer": layer, "which": which, "step": step}
        query = {key: value for key, value in asked.items() if value is not None}
        found = self._read("/histogram", query, answers.Histogram)
        if found.step is None:
            return None
        return Histogram(
            step=found.step,
            edges=np.array(found.edges, np.float64),
            counts=np.array(found.counts, np.int64),
            dip=found.dip,
        )

    def events(self) -> list[dict[str, Any]]:
        """Return the last 10,000 events (stage changes, spikes, learning-rate jumps, non-finite values, rollbacks and
        others), in the order in which they happened. Raises `TransportError`."""
        found: list[dict[str, Any]] = msgspec.to_builtins(self._read("/events", {}, list[answers.Event]))
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts, newest first, with the keys of GET /api/v1/alerts. Raises `TransportError`."""
        found: list[dict[str, Any]] = msgspec.to_builtins(
            self._server._read("/alerts", {"run": self.id}, list[answers.Alert])
        )
        return found

    def save(self, path: str | os.PathLike[str], *, layers: bool = False) -> Path:
        """Export the run to a file, in the format of its suffix: .zip has everything, .parquet and .csv the steps.

        ``layers``: write the layers into a CSV instead of the scalars. Returns the path of the file. Raises
        `ConfigurationError` for another suffix, `TransportError` and `OSError`.
        """
        target = Path(path)
        form = {".zip": "zip", ".parquet": "parquet", ".csv": "csv"}.get(target.suffix.lower())
        if form is None:
            raise ConfigurationError(f"{target}: expected a file name that ends with .zip, .parquet or .csv")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with self._export({"format": form, "layers": str(layers).lower()}) as answer, part.open("wb") as file:
                while data := _read(answer, CHUNK):
                    file.write(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _read(self, path: str, query: Mapping[str, Any], kind: type[Answer]) -> Answer:
        return self._server._read(f"/runs/{quote(self.id, safe='')}{path}", query, kind)

    def _export(self, query: Mapping[str, Any]) -> IO[bytes]:
        return self._server._open(f"/runs/{quote(self.id, safe='')}/export", query)

    def _chunks(
        self, attempt: int | None, *, keys: Sequence[str] | None, stats: Sequence[str]
    ) -> Iterator[tuple[_Chunk, NDArray[np.bool_]]]:
        """Yield each chunk that has visible records, with a mask of those records."""
        query = {"format": "msgpack", "stats": names_parameter(stats)}
        if keys is not None:
            query["keys"] = names_parameter(keys)
        with self._export(query) as answer:
            detail = self._read("", {}, answers.RunDetail)
            attempts = detail.attempts
            if attempt is not None and attempt not in {detail.attempt, *(item.attempt for item in attempts)}:
                known = ", ".join(str(number) for number in sorted({item.attempt for item in attempts}))
                raise TransportError(
                    "unknown_attempt", f"the run {self.id} has no attempt {attempt}; it has {known}", retryable=False
                )
            while True:
                size = int.from_bytes(_exactly(answer, 4), "little")
                body = _exactly(answer, size)
                try:
                    chunk = msgspec.msgpack.decode(body, type=_Chunk)
                except msgspec.DecodeError as error:
                    raise _malformed(error) from error
                if not chunk.step:
                    return
                shown = _shown(chunk, attempts, attempt)
                if shown.any():
                    yield chunk, shown


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect, so that the answer raises an `HTTPError`."""


def _shown(chunk: _Chunk, attempts: Sequence[answers.Attempt], attempt: int | None) -> NDArray[np.bool_]:
    """Return a mask of the visible records: those before the first step of every later attempt of the rank."""
    steps = chunk.steps()
    if attempt is not None:
        return np.full(len(steps), chunk.attempt == attempt)
    later = [item.first_step for item in attempts if item.rank == chunk.rank and item.attempt > chunk.attempt]
    return steps < min(later) if later else np.ones(len(steps), dtype=np.bool_)


def _read(answer: IO[bytes], size: int) -> bytes:
    try:
        return answer.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise TransportError("closed", f"the server ended the answer early ({error})") from error


def _exactly(answer: IO[bytes], size: int) -> bytes:
    data = _read(answer, size)
    if len(data) < size:
        raise TransportError("closed", "the server ended the answer early; its log has the reason")
    return data


def _malformed(error: msgspec.DecodeError) -> TransportError:
    return TransportError("malformed", f"the answer cannot be read ({error})")


def _refusal(status: int, body: bytes) -> TransportError:
    try:
        refusal = msgspec.json.decode(body, type=answers.Error)
    except msgspec.DecodeError:
        return TransportError("refused", f"the server answered {status}", retryable=status >= 500)
    return TransportError(refusal.error, refusal.message, retryable=status >= 500)
