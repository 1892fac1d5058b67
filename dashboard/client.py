"""The dashboard's client of the HTTP API: typed answers, without a cache.

A request that only reads is repeated if its connection breaks before the answer is complete. A server closes a
connection that was idle for some seconds, and a request that is sent at this very moment is lost. No other error is
repeated here; the pages do that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from client_sdk.answers import (
    Alert,
    Backtest,
    Channel,
    ChannelKind,
    ChannelKinds,
    Channels,
    ChannelTest,
    Dismissals,
    Error,
    Event,
    Histogram,
    Identity,
    Notifications,
    PackedHeatmap,
    Precision,
    ProjectLoss,
    Replay,
    Rule,
    Rules,
    RunAudit,
    RunDetail,
    RunPage,
    RunSummary,
    Series,
    Token,
)
from client_sdk.names_parameter import names_parameter
from dashboard.config import API_PREFIX, DashboardConfig
from dashboard.models import Heatmap

T = TypeVar("T")

ALERTS_SHOWN = 200
RUN_PAGE_SIZE = 200
MAX_RUNS = 2_000
CONNECT_TIMEOUT = 5.0  # seconds
TIMEOUT = 30.0  # seconds; a backtest or a replay takes up to 20
KEEP_ALIVE = 2.5
"""Seconds after which an idle connection is closed; a server closes it later, ours after 15 s, uvicorn's by default
after 5 s."""
ATTEMPTS = 3
"""Number of times that a request which only reads is sent, before its broken connection is reported."""


BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""Errors of a connection that ended before its answer."""


class ApiError(Exception):
    """Base of the errors of the API client.

    ApiError
    ├── ApiUnavailableError   the server or the network is down
    └── ApiRefusedError       the server answered with an error
    """


class ApiUnavailableError(ApiError):
    """The server did not answer."""


class ApiRefusedError(ApiError):
    """The server answered with an error: the HTTP status and the contents of `client_sdk.answers.Error`."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after: str | None = None
    ) -> None:
        """``field``: path of the field at fault. ``retry_after``: the header Retry-After, in seconds."""
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} ({self.code}, HTTP {self.status})"


class ApiClient:
    """Asynchronous client of the HTTP API. A process creates one and closes it with `aclose`."""

    def __init__(self, config: DashboardConfig, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=config.api_url.rstrip("/") + API_PREFIX,
            timeout=httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=32, keepalive_expiry=KEEP_ALIVE),
            trust_env=False,  # a proxy of the environment is meant for other hosts than the own server
            transport=transport,
        )
        self._authorization = _authorization(config.token)

    def acting_for(self, credential: str) -> Self:
        """Return a client with the rights of another credential. It shares the connections; do not close it."""
        other = copy.copy(self)
        other._authorization = _authorization(credential)
        return other

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self._http.aclose()

    async def runs(self) -> list[RunSummary]:
        """Return all runs, newest first, at most `MAX_RUNS`."""
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
        """Return one run with its layers and the names of its series."""
        return await self._get(f"/runs/{_segment(run_id)}", RunDetail)

    async def series(
        self,
        run_id: str,
        keys: tuple[str, ...],
        *,
        step_from: int | None,
        step_to: int | None,
        points: int,
        attempt: int | None = None,
    ) -> Series:
        """Return scalars between two steps, in at most ``points`` buckets each.

        ``attempt``: only this attempt; None for the steps that no later attempt replaced.
        """
        query: dict[str, Any] = {
            "keys": names_parameter(keys), "from": step_from, "to": step_to, "points": points, "attempt": attempt,
        }  # fmt: skip
        return await self._get(f"/runs/{_segment(run_id)}/series", Series, **query)

    async def heatmap(
        self,
        run_id: str,
        stat: str,
        *,
        step_from: int | None,
        step_to: int | None,
        columns: int,
        reduce: str,
        attempt: int | None = None,
    ) -> Heatmap:
        """Return a statistic of all layers between two steps, in at most ``columns`` columns.

        ``attempt``: only this attempt; None for the steps that no later attempt replaced.
        """
        query: dict[str, Any] = {
            "stat": stat, "from": step_from, "to": step_to, "columns": columns, "reduce": reduce, "attempt": attempt,
        }  # fmt: skip
        response = await self._request(
            "GET", f"/runs/{_segment(run_id)}/heatmap", query, {"Accept": "application/msgpack"}
        )
        packed = _decode(response.content, PackedHeatmap, binary=True)
        z = np.frombuffer(packed.z, dtype="<f4")
        if z.size != len(packed.layers) * len(packed.step):
            raise ApiRefusedError(200, "malformed", "the heatmap's values do not match its layers and steps")
        return Heatmap(
            layers=packed.layers,
            step=packed.step,
            bucket_steps=packed.bucket_steps,
            z=z.reshape(len(packed.layers), len(packed.step)),
            nonfinite=packed.nonfinite,
        )

    async def histogram(self, run_id: str, layer: str, which: str, step: int) -> Histogram:
        """Return the recorded distribution of u ("update") or r ("ratio") nearest to a step."""
        return await self._get(f"/runs/{_segment(run_id)}/histogram", Histogram, layer=layer, which=which, step=step)

    async def histograms(
        self, run_id: str, layer: str, which: str, *, step_from: int | None, step_to: int | None
    ) -> list[Histogram]:
        """Return recorded distributions between two steps, in their order, at most sixty of them."""
        query: dict[str, Any] = {"layer": layer, "which": which, "from": step_from, "to": step_to}
        return await self._get(f"/runs/{_segment(run_id)}/histograms", list[Histogram], **query)

    async def events(self, run_id: str) -> list[Event]:
        """Everything that happened to a run."""
        return await self._get(f"/runs/{_segment(run_id)}/events", list[Event])

    async def alerts(self, run_id: str | None = None, *, limit: int = ALERTS_SHOWN) -> list[Alert]:
        """Return the newest ``limit`` alerts of one run or of all runs."""
        return await self._get("/alerts", list[Alert], run=run_id, limit=limit)

    async def alert(self, alert_id: str) -> Alert:
        """Return one alert."""
        return await self._get(f"/alerts/{_segment(alert_id)}", Alert)

    async def precision(self) -> Precision:
        """Return how the predictions turned out."""
        return await self._get("/alerts/precision", Precision)

    async def audit(self, run_id: str) -> RunAudit:
        """Return what was checked in a run, and what was found."""
        return await self._get(f"/runs/{_segment(run_id)}/audit", RunAudit)

    async def dismiss_finding(self, project: str, check: str, *, dismissed: bool) -> Dismissals:
        """Dismiss the findings of a check in a project, or show them again."""
        body = {"check": check, "dismissed": dismissed}
        return await self._send("PUT", f"/projects/{_segment(project)}/audit", Dismissals, body)

    async def choose_loss(self, run_id: str, scalar: str | None) -> RunDetail:
        """Choose the loss of a run, None for the automatic choice, and return the run."""
        return await self._send("PUT", f"/runs/{_segment(run_id)}/loss", RunDetail, {"scalar": scalar})

    async def choose_project_loss(self, project: str, scalar: str | None) -> ProjectLoss:
        """Choose the default loss of a project, None for none, and return it."""
        return await self._send("PUT", f"/projects/{_segment(project)}/loss", ProjectLoss, {"scalar": scalar})

    async def change_run(self, run_id: str, changes: Mapping[str, Any]) -> RunDetail:
        """Change name, tags, notes or ``archived`` of a run, and return the run."""
        return await self._send("PATCH", f"/runs/{_segment(run_id)}", RunDetail, changes)

    async def delete_run(self, run_id: str) -> None:
        """Delete a run for good."""
        await self._request("DELETE", f"/runs/{_segment(run_id)}", {}, {})

    async def open_export(self, run_id: str, query: Mapping[str, str]) -> httpx.Response:
        """Return the streamed answer of an export, which the caller reads and closes. Raises `ApiError`."""
        request = self._http.build_request(
            "GET", f"/runs/{_segment(run_id)}/export", params=dict(query), headers=self._authorization
        )
        try:
            answer = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise ApiUnavailableError(f"no answer from the server: {_reason(error)}") from error
        if answer.is_success:
            return answer
        try:
            await answer.aread()
        except httpx.HTTPError as error:
            raise ApiUnavailableError(f"no answer from the server: {_reason(error)}") from error
        finally:
            await answer.aclose()
        raise _refusal(answer)

    async def acknowledge(self, alert_id: str) -> Alert:
        """Acknowledge an alert and return it."""
        response = await self._request("POST", f"/alerts/{_segment(alert_id)}/acknowledge", {}, {})
        return _decode(response.content, Alert)

    async def silence(self, alert_id: str, minutes: int) -> Alert:
        """Silence the notifications about an alert for some minutes, and return the alert."""
        path = f"/alerts/{_segment(alert_id)}/silence"
        response = await self._request("POST", path, {}, {}, json={"minutes": minutes})
        return _decode(response.content, Alert)

    async def log_in(self, secret: str, address: str) -> tuple[str, Identity]:
        """Log in and return the credential and its rights. ``address``: that of the browser, which is throttled."""
        headers = {"X-Forwarded-For": address} if address else {}
        response = await self._request("POST", "/sessions", {}, headers, json={"secret": secret})
        identity = _decode(response.content, Identity)
        if not identity.session:
            raise ApiRefusedError(response.status_code, "malformed", "the answer to the login has no session")
        return identity.session, identity

    async def identity(self) -> Identity:
        """Return the rights of the credential."""
        return await self._get("/sessions/current", Identity)

    async def log_out(self) -> None:
        """End the login of the credential."""
        await self._request("DELETE", "/sessions/current", {}, {})

    async def rules(self) -> list[Rule]:
        """Return all rules, in their order."""
        return list((await self._get("/rules", Rules)).rules)

    async def put_rule(self, rule: Mapping[str, Any]) -> Rule:
        """Create a rule, or change the rule with its id."""
        return await self._send("PUT", f"/rules/{_segment(rule['id'])}", Rule, rule)

    async def delete_rule(self, rule_id: str) -> None:
        """Delete a rule. Its open alerts are resolved."""
        await self._request("DELETE", f"/rules/{_segment(rule_id)}", {}, {})

    async def backtest_rule(self, rule: Mapping[str, Any], *, run: str | None, project: str | None) -> Backtest:
        """Backtest a rule on one run or on the newest runs of a project."""
        return await self._send("POST", "/rules/test", Backtest, {"rule": rule, "run": run, "project": project})

    async def replay(self, run_id: str, sensitivity: str) -> Replay:
        """Replay a run through the present detectors."""
        return await self._get(f"/runs/{_segment(run_id)}/replay", Replay, sensitivity=sensitivity)

    async def channels(self) -> list[Channel]:
        """Return all channels."""
        return list((await self._get("/channels", Channels)).channels)

    async def channel_kinds(self) -> list[ChannelKind]:
        """Return the kinds of channels with the fields of their forms."""
        return list((await self._get("/channels/kinds", ChannelKinds)).kinds)

    async def put_channels(self, channels: Sequence[Mapping[str, Any]]) -> list[Channel]:
        """Replace all channels. A channel with an id and without a secret keeps its secret."""
        return list((await self._send("PUT", "/channels", Channels, {"channels": channels})).channels)

    async def put_channel(self, channel_id: str, channel: Mapping[str, Any]) -> Channel:
        """Change a channel."""
        return await self._send("PUT", f"/channels/{_segment(channel_id)}", Channel, channel)

    async def delete_channel(self, channel_id: str) -> None:
        """Delete a channel."""
        await self._request("DELETE", f"/channels/{_segment(channel_id)}", {}, {})

    async def test_channel(self, channel_id: str) -> ChannelTest:
        """Send a test message to a channel and return the result."""
        return await self._send("POST", f"/channels/{_segment(channel_id)}/test", ChannelTest, None)

    async def notifications(self) -> Notifications:
        """Return the notification settings of all channels."""
        return await self._get("/notifications", Notifications)

    async def put_notifications(self, wanted: Notifications) -> Notifications:
        """Replace the notification settings of all channels."""
        return await self._send("PUT", "/notifications", Notifications, msgspec.to_builtins(wanted))

    async def tokens(self) -> list[Token]:
        """Return all tokens, without their secrets."""
        return await self._get("/tokens", list[Token])

    async def create_token(self, *, scope: str, project: str | None, label: str) -> Token:
        """Create a token. Only this answer has its secret."""
        return await self._send("POST", "/tokens", Token, {"scope": scope, "project": project, "label": label})

    async def revoke_token(self, token_id: int) -> None:
        """Revoke a token."""
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
        left = ATTEMPTS if method == "GET" else 1
        while True:
            left -= 1
            try:
                response = await self._http.request(
                    method, path, params=params, headers={**self._authorization, **headers}, json=json
                )
            except BROKEN as error:
                if left == 0:
                    raise ApiUnavailableError(f"no answer from the server: {_reason(error)}") from error
                continue
            except httpx.HTTPError as error:
                raise ApiUnavailableError(f"no answer from the server: {_reason(error)}") from error
            if response.is_success:
                return response
            raise _refusal(response)


def _reason(error: httpx.HTTPError) -> str:
    """Return the reason of an error; for a timeout, whose text is empty, which limit was exceeded."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT:g} s"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {TIMEOUT:g} s"
    return str(error) or type(error).__name__


def _authorization(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"} if credential else {}


def _refusal(response: httpx.Response) -> ApiRefusedError:
    """Return the error of an answer; an answer of a proxy, in another shape, gets the reason phrase of its status."""
    try:
        error = msgspec.json.decode(response.content, type=Error)
    except msgspec.DecodeError:
        return ApiRefusedError(response.status_code, "http", response.reason_phrase or "refused")
    return ApiRefusedError(
        response.status_code,
        error.error,
        error.message,
        field=error.field or None,
        retry_after=response.headers.get("Retry-After"),
    )


def _decode(content: bytes, kind: type[T], *, binary: bool = False) -> T:
    try:
        if binary:
            return msgspec.msgpack.decode(content, type=kind)
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise ApiRefusedError(200, "malformed", f"unexpected answer: {error}") from error


def _segment(text: str) -> str:
    """Return the text quoted as one segment of a path."""
    return quote(text, safe="")
