"""The client of the HTTP API: typed answers and errors that say what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import msgspec
import numpy as np
import pytest

from dashboard.client import ApiClient, ApiRefusedError, ApiUnavailableError
from dashboard.config import DashboardConfig
from tests.dashboard.fixture_api import TOKEN, FixtureApi


@pytest.fixture
async def client(url: str) -> AsyncIterator[ApiClient]:
    client = ApiClient(DashboardConfig(api_url=url, token=TOKEN))
    yield client
    await client.aclose()


async def test_answers_are_typed(client: ApiClient, api: FixtureApi) -> None:
    runs = await client.runs()
    assert {run.id for run in runs} == set(api.runs)
    detail = await client.run("tanh-net")
    assert detail.layers == api.runs["tanh-net"].layers
    series = await client.series("tanh-net", ("loss", "lambda_max"), step_from=10, step_to=19, points=100)
    assert series.series["loss"].step == tuple(range(10, 20))
    assert [event.stage for event in await client.events("tanh-net")] == ["stable", "decoupled"]
    assert [alert.kind for alert in await client.alerts("tanh-net")] == ["spike-predicted"]
    histogram = await client.histogram("tanh-net", "0.weight", "update", 120)
    assert (histogram.step, len(histogram.edges)) == (100, 65)


async def test_the_heatmap_arrives_as_float32(client: ApiClient, api: FixtureApi) -> None:
    found = await client.heatmap("tanh-net", "v_rms", step_from=0, step_to=9, columns=50, reduce="max")
    assert found.z.dtype == np.float32
    assert np.array_equal(found.z, api.runs["tanh-net"].cells["v_rms"][:, :10])


async def test_refusals_carry_the_stable_code(client: ApiClient) -> None:
    with pytest.raises(ApiRefusedError) as caught:
        await client.run("no such run")
    assert (caught.value.status, caught.value.code) == (404, "unknown_run")
    assert "no such run" in str(caught.value)


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> ApiClient:
    return ApiClient(DashboardConfig(token="t"), transport=httpx.MockTransport(answer))


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(ApiUnavailableError, match="connection refused"):
        await answering(refuse).runs()


async def test_a_server_that_takes_its_time_is_said_to() -> None:
    def wait(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    with pytest.raises(ApiUnavailableError, match="no answer within 30 s"):
        await answering(wait).runs()


async def test_pages_of_runs_are_followed_to_the_end() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        cursor = request.url.params.get("cursor")
        assert request.headers["authorization"] == "Bearer t"
        return httpx.Response(
            200, json={"runs": [{"id": cursor or "first"}], "next_cursor": None if cursor else "second"}
        )

    assert [run.id for run in await answering(page).runs()] == ["first", "second"]


@pytest.mark.parametrize("content", [b"<html>", b"{}", b'{"runs": 3}'])
async def test_an_answer_of_another_shape_is_refused_with_words(content: bytes) -> None:
    with pytest.raises(ApiRefusedError, match="unexpected answer"):
        await answering(lambda _: httpx.Response(200, content=content)).runs()


async def test_a_heatmap_whose_values_do_not_fit_is_refused() -> None:
    body = msgspec.msgpack.encode({"layers": ["a"], "step": [0, 1], "bucket_steps": 1, "z": b"1234"})
    with pytest.raises(ApiRefusedError, match="do not match"):
        await answering(lambda _: httpx.Response(200, content=body)).heatmap(
            "r", "v_rms", step_from=None, step_to=None, columns=9, reduce="max"
        )


async def test_errors_without_the_contract_s_shape_still_say_something() -> None:
    with pytest.raises(ApiRefusedError, match="Bad Gateway"):
        await answering(lambda _: httpx.Response(502, text="<html>proxy</html>")).runs()


@pytest.mark.parametrize("url", ["127.0.0.1:8787", "ftp://host", "http://"])
def test_a_malformed_address_is_an_error_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        DashboardConfig(api_url=url)


def test_the_live_address_follows_the_scheme() -> None:
    assert DashboardConfig(api_url="https://h:1/").live_url == "wss://h:1/api/v1/live"
    assert DashboardConfig.from_environment({}).live_url == "ws://127.0.0.1:8787/api/v1/live"
