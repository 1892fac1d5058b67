"""The sender delivers every record exactly once, whatever happens to the connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_sdk.config import Endpoint
from client_sdk.errors import TransportError
from client_sdk.protocol import Error, Finish, Hello, Layout, Record, encode
from client_sdk.sender import Sender
from client_sdk.spool.spool import Spool
from client_sdk.warner import Warner
from tests.support.freezing_proxy import FreezingProxy
from tests.support.ingest_server import IngestServer

HELLO = Hello(version=1, run_id="run", writer="writer", project="p")


def record(step: int, size: int = 0) -> bytes:
    return encode(Record(step=step, time=float(step), scalars={"loss": 1 / (step + 1)}, layout=0, block=bytes(size)))


class Delivery:
    """A spool with its sender, which reconnects without delays."""

    def __init__(self, directory: Path, server: IngestServer, *, url: str | None = None, **options: Any) -> None:
        self.spool = Spool.create(directory, HELLO, file_bytes=50_000)
        self.warner = Warner()
        self.alerts: list[str] = []
        self.sender = Sender(
            self.spool,
            Endpoint(url=url or server.url),
            self.warner,
            on_alert=lambda alert: self.alerts.append(alert.id),
            **{"delays": lambda: repeat(0.0), **options},
        )

    def append(self, *steps: int, size: int = 0) -> None:
        for step in steps:
            assert self.spool.append(record(step, size))

    def finish(self) -> None:
        self.spool.finish(Finish(last_seq=self.spool.last_seq))

    def close(self) -> None:
        assert self.sender.stop(10)
        self.spool.delete()


@pytest.fixture
def delivery(tmp_path: Path, server: IngestServer) -> Iterator[Delivery]:
    made = Delivery(tmp_path, server)
    yield made
    made.close()


def test_everything_arrives_once_and_is_removed_from_the_spool(delivery: Delivery, server: IngestServer) -> None:
    delivery.append(*range(100))
    delivery.sender.start()
    delivery.append(*range(100, 200))
    assert delivery.sender.wait_acknowledged(200, 20)
    delivery.finish()
    assert delivery.sender.wait_delivered(20)
    assert server.steps() == list(range(200))
    assert server.finishes == [("writer", Finish(last_seq=200))]
    assert delivery.spool.queued_bytes == 0


def test_connection_cut_before_or_after_the_commit_duplicates_and_loses_nothing(
    delivery: Delivery, server: IngestServer
) -> None:
    server.cut_batches = {1, 4}
    server.ignore_batches = {2, 3, 6}
    delivery.append(*range(300), size=40_000)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(300, 60)
    assert server.steps() == list(range(300))
    assert server.batches > 6
    assert len(server.hellos) > 5


def test_batches_stay_within_size_and_window(delivery: Delivery, server: IngestServer) -> None:
    server.may_acknowledge.clear()
    delivery.append(*range(200), size=100_000)
    delivery.sender.start()
    server.wait_for(lambda: len(server.all_records()) >= 1)
    assert len(server.all_records()) <= 11, "the server withholds its first acknowledgement"
    server.may_acknowledge.set()
    assert delivery.sender.wait_acknowledged(200, 60)
    assert server.batches >= 20


def test_record_larger_than_a_batch_is_sent_alone(delivery: Delivery, server: IngestServer) -> None:
    delivery.append(1, size=10)
    delivery.append(2, size=7_000_000)
    delivery.append(3, size=10)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(3, 60)
    assert server.steps() == [1, 2, 3]


def test_restarted_server_gets_the_rest(delivery: Delivery, server: IngestServer) -> None:
    delivery.append(1)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(1, 20)
    server.stop()
    delivery.append(2, 3)
    server.start()
    assert delivery.sender.wait_acknowledged(3, 30)
    assert server.steps() == [1, 2, 3]


def test_server_that_lost_its_data_gets_the_rest_from_a_new_writer(delivery: Delivery, server: IngestServer) -> None:
    delivery.append(*range(50), size=40_000)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(50, 20)
    server.stop()
    server.forget()
    delivery.append(50, 51)
    server.start()
    assert delivery.sender.wait_acknowledged(52, 30)
    delivery.finish()
    assert delivery.sender.wait_delivered(20)
    assert server.steps()[-2:] == [50, 51]
    assert server.steps() == list(range(52 - len(server.steps()), 52))
    assert delivery.warner.counts["server_lost_data"] == 1
    assert delivery.spool.hello.writer != "writer"


def test_new_layouts_are_announced_before_their_records(delivery: Delivery, server: IngestServer) -> None:
    delivery.append(1)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(1, 20)
    layout = Layout(id=0, layers=("a",), statistics=("x",))
    delivery.spool.update_hello(Hello(version=1, run_id="run", writer="writer", project="p", layouts=(layout,)))
    delivery.append(2)
    assert delivery.sender.wait_acknowledged(2, 20)
    assert [hello.layouts for hello in server.hellos] == [(), (layout,)]


def test_refused_record_does_not_block_the_others(delivery: Delivery, server: IngestServer) -> None:
    server.refuses = lambda record: record.step in (7, 11) and bool(record.scalars)
    delivery.append(*range(20))
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(20, 30)
    assert server.steps() == list(range(20))
    assert [record.step for record in server.all_records() if not record.scalars] == [7, 11]
    assert delivery.sender.refused == 2
    assert delivery.warner.counts["refused_record"] == 2


def test_wrong_token_is_reported_once_with_advice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with IngestServer(token="right") as server:
        delivery = Delivery(tmp_path, server, gives_up=lambda error: not error.retryable)
        delivery.append(1)
        delivery.sender.run()
        assert not delivery.sender.delivered
        assert delivery.sender.error is not None
        assert delivery.sender.error.code == "unauthenticated"
        assert caplog.text.count("spikewatch token create") == 1
        assert "kept in" in caplog.text
        assert delivery.spool.last_seq == 1
        delivery.close()


def test_token_that_appears_later_is_used(tmp_path: Path) -> None:
    with IngestServer(token="right") as server:
        spool = Spool.create(tmp_path / "spool", HELLO)
        spool.append(record(1))
        refused = threading.Event()

        def on_refusal(error: TransportError) -> bool:
            refused.set()
            return False

        sender = Sender(spool, Endpoint(url=server.url, home=tmp_path), Warner(), gives_up=on_refusal)
        sender.start()
        assert refused.wait(20)
        (tmp_path / f"server-{server.port}.token").write_text("right")
        sender.wake()
        assert sender.wait_acknowledged(1, 20)
        assert sender.stop(10)
        spool.delete()


def test_retryable_error_is_retried_quietly(
    delivery: Delivery, server: IngestServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.error = Error(code="storage_unavailable", message="wait", retryable=True)
    delivery.append(1)
    delivery.sender.start()
    server.wait_for(lambda: len(server.hellos) >= 3)
    server.error = None
    assert delivery.sender.wait_acknowledged(1, 20)
    assert delivery.warner.counts["storage_unavailable"] >= 2
    assert not caplog.records


GOING_AWAY = Error(code="going_away", message="another replica takes over", retryable=True)


@pytest.mark.parametrize("close_code", [1001, 1012, 4400])
def test_server_that_goes_away_is_left_without_a_delay(
    tmp_path: Path, server: IngestServer, caplog: pytest.LogCaptureFixture, close_code: int
) -> None:
    delivery = Delivery(tmp_path, server, delays=lambda: repeat(3600.0))
    delivery.append(1)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(1, 20)
    server.dismiss(GOING_AWAY, close_code)
    delivery.append(2)
    assert delivery.sender.wait_acknowledged(2, 20), "the delay of an hour does not apply"
    assert len(server.hellos) == 2
    assert not caplog.records
    delivery.close()


def test_server_that_keeps_going_away_is_asked_with_delays(tmp_path: Path, server: IngestServer) -> None:
    taken: list[float] = []

    def delays() -> Iterator[float]:
        while True:
            taken.append(0.0)
            yield 0.0

    server.error = GOING_AWAY
    delivery = Delivery(tmp_path, server, delays=delays)
    delivery.append(1)
    delivery.sender.start()
    server.wait_for(lambda: len(server.hellos) >= 5)
    server.error = None
    assert delivery.sender.wait_acknowledged(1, 20)
    assert len(taken) >= 3
    delivery.close()


def test_revoked_token_is_reported_once_and_its_successor_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with IngestServer(token="first") as server:
        (tmp_path / f"server-{server.port}.token").write_text("first")
        spool = Spool.create(tmp_path / "spool", HELLO)
        refused = threading.Event()

        def on_refusal(error: TransportError) -> bool:
            refused.set()
            return False

        sender = Sender(spool, Endpoint(url=server.url, home=tmp_path), Warner(), gives_up=on_refusal)
        spool.append(record(1))
        sender.start()
        assert sender.wait_acknowledged(1, 20)
        server.token = "second"
        server.dismiss(Error(code="unauthenticated", message="revoked", retryable=False), 4401)
        assert refused.wait(20)
        for step in range(2, 100):
            assert spool.append(record(step)), "training continues, and so does the spool"
        assert caplog.text.count("spikewatch token create") == 1
        (tmp_path / f"server-{server.port}.token").write_text("second")
        sender.wake()
        assert sender.wait_acknowledged(99, 20)
        assert server.steps() == list(range(1, 100))
        assert sender.stop(10)
        spool.delete()


def test_unsupported_version_is_reported_and_the_records_are_kept(
    tmp_path: Path, server: IngestServer, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = threading.Semaphore(0)
    count = 0

    def on_refusal(error: TransportError) -> bool:
        nonlocal count
        count += 1
        if count == 2:
            server.error = None
        refusals.release()
        return False

    server.error = Error(code="unsupported_version", message="I speak version 7; upgrade", retryable=False)
    delivery = Delivery(tmp_path, server, gives_up=on_refusal)
    delivery.append(1, 2)
    delivery.sender.start()
    for _ in range(2):
        assert refusals.acquire(timeout=20)
        delivery.sender.wake()
    assert delivery.sender.wait_acknowledged(2, 20)
    assert server.steps() == [1, 2]
    assert caplog.text.count("I speak version 7") == 1
    delivery.close()


def test_unknown_messages_of_a_newer_server_are_ignored(delivery: Delivery, server: IngestServer) -> None:
    delivery.append(1)
    delivery.sender.start()
    assert delivery.sender.wait_acknowledged(1, 20)
    for frame in (
        msgspec.msgpack.encode({"type": "welcome", "run_id": "run", "last_seq": 1, "version": 99, "mood": "good"}),
        msgspec.msgpack.encode({"type": "weather", "rain": True}),
        b"\xc1 is not msgpack",
    ):
        server.send(frame)
    delivery.append(2)
    assert delivery.sender.wait_acknowledged(2, 20)
    assert len(server.hellos) == 1, "the connection stays open"


def test_unreachable_server_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = IngestServer()
    server.start()
    server.stop()
    attempts: list[str] = []

    def at_the_third(error: TransportError) -> bool:
        attempts.append(error.code)
        return len(attempts) == 3

    delivery = Delivery(tmp_path, server, gives_up=at_the_third)
    delivery.append(1)
    delivery.sender.run()
    assert attempts == ["unreachable"] * 3
    assert caplog.text.count("spikewatch up") == 1
    delivery.close()


class _Other(BaseHTTPRequestHandler):
    """Another program that listens on the port."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log no request."""


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_another_program_on_the_port_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(_Other, "protocol_version", version)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server = IngestServer()
        server.port = other.server_address[1]
        delivery = Delivery(tmp_path, server, gives_up=lambda error: True)
        delivery.sender.run()
        assert delivery.sender.error is not None
        assert "does not answer like a Spikewatch server" in delivery.sender.error.message
        delivery.close()
        other.shutdown()


@pytest.mark.parametrize("size", [10, 7_000_000], ids=["idle", "during a send"])
def test_half_dead_connection_is_given_up(
    tmp_path: Path, server: IngestServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    monkeypatch.setattr("client_sdk.transport.PING_INTERVAL", 0.2)
    monkeypatch.setattr("client_sdk.transport.PING_TIMEOUT", 0.3)
    monkeypatch.setattr("client_sdk.transport.SEND_TIMEOUT", 1.0)
    with FreezingProxy(server.port) as proxy:
        delivery = Delivery(tmp_path, server, url=proxy.url)
        delivery.append(0)
        delivery.sender.start()
        assert delivery.sender.wait_acknowledged(1, 20)
        proxy.freeze()
        delivery.append(1, 2, 3, 4, size=size)
        proxy.thaw()
        assert delivery.sender.wait_acknowledged(5, 40)
        assert server.steps() == list(range(5))
        assert len(server.hellos) >= 2
        delivery.close()
    assert not caplog.records, "a lost connection leaves no traceback in the log of the training"
