"""The dashboard's client of the HTTP API: typed answers, no caching, no retries (the pages pace themselves)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from dashboard.config import API_PREFIX, DashboardConfig
from dashboard.models import (
    Alert,
    Channel,
    ChannelKind,
    ChannelTest,
    Event,
    Heatmap,
    Histogram,
    Identity,
    Login,
    Notifications,
    Precision,
    Rule,
    RunDetail,
    RunPage,
    RunSummary,
    Series,
    Token,
    Tried,
)

T = TypeVar("T")

ALERTS_SHOWN = 200
RUN_PAGE_SIZE = 200
MAX_RUNS = 2_000
CONNECT_TIMEOUT = 5.0  # seconds
TIMEOUT = 30.0  # seconds; a rule is tried on history for up to 20


class ApiError(Exception):
    """The API could not answer.

    ApiError
    ├── ApiUnavailableError   no answer: the server is down, or the network is
    └── ApiRefusedError       the server answered with an error
    """


class ApiUnavailableError(ApiError):
    """No answer from the server."""


class ApiRefusedError(ApiError):
    """The server answered with an error; `code` is stable, `status` is HTTP's."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: str | None = None) -> None:
        """``retry_after``: the header Retry-After, seconds."""
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} ({self.code}, HTTP {self.status})"


class _HeatmapHead(msgspec.Struct, frozen=True, kw_only=True):
    """The msgpack answer of the heatmap: `z` is row-major little-endian float32."""

    layers: tuple[str, ...] = ()
    step: tuple[int, ...] = ()
    bucket_steps: int = 1
    z: bytes = b""
    nonfinite: tuple[tuple[int, int, int], ...] = ()


class _Rules(msgspec.Struct, frozen=True):
    rules: list[Rule]


class _ChannelKinds(msgspec.Struct, frozen=True):
    kinds: list[ChannelKind]


class _Channels(msgspec.Struct, frozen=True):
    channels: list[Channel]


class ApiClient:
    """Asynchronous client; made once per process and closed with `aclose`."""

    def __init__(self, config: DashboardConfig, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=config.api_url.rstrip("/") + API_PREFIX,
            timeout=httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=32),
            trust_env=False,  # a proxy of the environment is for the outside world, not for one's own server
            transport=transport,
        )
        self._authorization = _authorization(config.token)

    def acting_for(self, credential: str) -> Self:
        """The same client, over the same connections, with the rights of another credential. Not to be closed."""
        other = copy.copy(self)
        other._authorization = _authorization(credential)
        return other

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self._http.aclose()

    async def runs(self) -> list[RunSummary]:
        """Every run, newest first, up to `MAX_RUNS`."""
        runs: list[RunSummary] = []
        cursor: str | None = None
        while len(runs) < MAX_RUNS:
            page = await self._get("/runs", RunPage, limit=RUN_PAGE_SIZE, cursor=cursor)
            runs.extend(page.runs)
            cursor = page.next_cursor
            if not cursor:
                break
        return runs

    async def run(self, run_id: str) -> RunDetail:
        """One run with its layers and the names of its series."""
        return await self._get(f"/runs/{_segment(run_id)}", RunDetail)

    async def series(
        self, run_id: str, keys: tuple[str, ...], *, step_from: int | None, step_to: int | None, points: int
    ) -> Series:
        """The named series between two steps, in at most `points` buckets."""
        query: dict[str, Any] = {"keys": ",".join(keys), "from": step_from, "to": step_to, "points": points}
        return await self._get(f"/runs/{_segment(run_id)}/series", Series, **query)

    async def heatmap(
        self, run_id: str, stat: str, *, step_from: int | None, step_to: int | None, columns: int, reduce: str
    ) -> Heatmap:
        """One statistic of all layers between two steps, in at most `columns` columns."""
        query: dict[str, Any] = {
            "stat": stat, "from": step_from, "to": step_to, "columns": columns, "reduce": reduce,
        }  # fmt: skip
        response = await self._request(
            "GET", f"/runs/{_segment(run_id)}/heatmap", query, {"Accept": "application/msgpack"}
        )
        head = _decode(response.content, _HeatmapHead, binary=True)
        z = np.frombuffer(head.z, dtype="<f4")
        if z.size != len(head.layers) * len(head.step):
            raise ApiRefusedError(200, "malformed", "the heatmap's values do not match its layers and steps")
        return Heatmap(
            layers=head.layers,
            step=head.step,
            bucket_steps=head.bucket_steps,
            z=z.reshape(len(head.layers), len(head.step)),
            nonfinite=head.nonfinite,
        )

    async def histogram(self, run_id: str, layer: str, which: str, step: int) -> Histogram:
        """The recorded distribution of u ("update") or r ("ratio") nearest to a step."""
        return await self._get(f"/runs/{_segment(run_id)}/histogram", Histogram, layer=layer, which=which, step=step)

    async def events(self, run_id: str) -> list[Event]:
        """Everything that happened to a run."""
        return await self._get(f"/runs/{_segment(run_id)}/events", list[Event])

    async def alerts(self, run_id: str | None = None) -> list[Alert]:
        """The newest alerts of one run or of all."""
        return await self._get("/alerts", list[Alert], run=run_id, limit=ALERTS_SHOWN)

    async def alert(self, alert_id: str) -> Alert:
        """One alert."""
        return await self._get(f"/alerts/{_segment(alert_id)}", Alert)

    async def precision(self) -> Precision:
        """How the predictions turned out."""
        return await self._get("/alerts/precision", Precision)

    async def acknowledge(self, alert_id: str) -> Alert:
        """Somebody has seen the alert."""
        response = await self._request("POST", f"/alerts/{_segment(alert_id)}/acknowledge", {}, {})
        return _decode(response.content, Alert)

    async def silence(self, alert_id: str, minutes: int) -> Alert:
        """No notification about the alert for a while."""
        path = f"/alerts/{_segment(alert_id)}/silence"
        response = await self._request("POST", path, {}, {}, json={"minutes": minutes})
        return _decode(response.content, Alert)

    async def log_in(self, secret: str, address: str) -> tuple[str, Identity]:
        """The credential of a new login, and whose it is. ``address``: of the browser, for the count of wrong tries."""
        headers = {"X-Forwarded-For": address} if address else {}
        response = await self._request("POST", "/sessions", {}, headers, json={"secret": secret})
        login = _decode(response.content, Login)
        return login.session, login

    async def identity(self) -> Identity:
        """Whose the credential is."""
        return await self._get("/sessions/current", Identity)

    async def log_out(self) -> None:
        """The credential is valid no longer."""
        await self._request("DELETE", "/sessions/current", {}, {})

    async def rules(self) -> list[Rule]:
        """Every rule, in its order."""
        return (await self._get("/rules", _Rules)).rules

    async def put_rule(self, rule: Mapping[str, Any]) -> Rule:
        """Make a rule, or change the one with its id."""
        return await self._send("PUT", f"/rules/{_segment(rule['id'])}", Rule, rule)

    async def delete_rule(self, rule_id: str) -> None:
        """Its open alerts are resolved."""
        await self._request("DELETE", f"/rules/{_segment(rule_id)}", {}, {})

    async def try_rule(self, rule: Mapping[str, Any], *, run: str | None, project: str | None) -> Tried:
        """When the rule would have told somebody, in one run or in the newest of a project."""
        return await self._send("POST", "/rules/test", Tried, {"rule": rule, "run": run, "project": project})

    async def channels(self) -> list[Channel]:
        """Where alerts go."""
        return (await self._get("/channels", _Channels)).channels

    async def channel_kinds(self) -> list[ChannelKind]:
        """Return the kinds of channels with the fields of their forms."""
        return (await self._get("/channels/kinds", _ChannelKinds)).kinds

    async def put_channels(self, channels: Sequence[Mapping[str, Any]]) -> list[Channel]:
        """Replace them all. One with an id and no secret keeps its own."""
        return (await self._send("PUT", "/channels", _Channels, {"channels": channels})).channels

    async def put_channel(self, channel_id: str, channel: Mapping[str, Any]) -> Channel:
        """Change one."""
        return await self._send("PUT", f"/channels/{_segment(channel_id)}", Channel, channel)

    async def delete_channel(self, channel_id: str) -> None:
        """Nothing goes there any more."""
        await self._request("DELETE", f"/channels/{_segment(channel_id)}", {}, {})

    async def test_channel(self, channel_id: str) -> ChannelTest:
        """Send a test message there."""
        return await self._send("POST", f"/channels/{_segment(channel_id)}/test", ChannelTest, None)

    async def notifications(self) -> Notifications:
        """What holds for all channels."""
        return await self._get("/notifications", Notifications)

    async def put_notifications(self, wanted: Notifications) -> Notifications:
        """Replace it."""
        return await self._send("PUT", "/notifications", Notifications, msgspec.to_builtins(wanted))

    async def tokens(self) -> list[Token]:
        """All that were made, without their secrets."""
        return await self._get("/tokens", list[Token])

    async def make_token(self, *, scope: str, project: str | None, label: str) -> Token:
        """A new one, with its secret this once."""
        return await self._send("POST", "/tokens", Token, {"scope": scope, "project": project, "label": label})

    async def revoke_token(self, token_id: int) -> None:
        """It opens nothing any more."""
        await self._request("DELETE", f"/tokens/{token_id}", {}, {})

    async def _send(self, method: str, path: str, kind: type[T], body: Any) -> T:
        response = await self._request(method, path, {}, {"Accept": "application/json"}, json=body)
        return _decode(response.content, kind)

    async def _get(self, path: str, kind: type[T], **query: Any) -> T:
        response = await self._request("GET", path, query, {"Accept": "application/json"})
        return _decode(response.content, kind)

    async def _request(
        self, method: str, path: str, query: dict[str, Any], headers: dict[str, str], json: Any = None
    ) -> httpx.Response:
        params = {key: value for key, value in query.items() if value is not None}
        try:
            response = await self._http.request(
                method, path, params=params, headers={**self._authorization, **headers}, json=json
            )
        except httpx.HTTPError as error:
            raise ApiUnavailableError(f"no answer from the server: {_reason(error)}") from error
        if response.is_success:
            return response
        raise _refusal(response)


def _reason(error: httpx.HTTPError) -> str:
    """Of a timeout the library says nothing."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"it took no connection for {CONNECT_TIMEOUT:g} s"
    if isinstance(error, httpx.TimeoutException):
        return f"it took longer than {TIMEOUT:g} s"
    return str(error) or type(error).__name__


def _authorization(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"} if credential else {}


def _refusal(response: httpx.Response) -> ApiRefusedError:
    """The error of an answer, in the contract's shape or, failing that, in HTTP's words."""
    try:
        body = response.json()
        retry_after = response.headers.get("Retry-After")
        return ApiRefusedError(response.status_code, str(body["error"]), str(body["message"]), retry_after=retry_after)
    except (ValueError, KeyError, TypeError):
        return ApiRefusedError(response.status_code, "http", response.reason_phrase or "refused")


def _decode(content: bytes, kind: type[T], *, binary: bool = False) -> T:
    try:
        if binary:
            return msgspec.msgpack.decode(content, type=kind)
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ApiRefusedError(200, "malformed", f"unexpected answer: {error}") from error


def _segment(text: str) -> str:
    """One segment of a path, whatever characters an id has."""
    return quote(text, safe="")
