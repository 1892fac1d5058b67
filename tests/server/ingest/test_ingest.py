"""The ingest socket, end to end: every record is stored exactly once, and every error is reported."""

from __future__ import annotations

import contextlib
import math
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from client_sdk.protocol import (
    MAX_LAYERS,
    MAX_SCALARS,
    Ack,
    Batch,
    Error,
    Finish,
    Histograms,
    Layout,
    Record,
    Welcome,
    encode,
)
from tests.support.server import RunningServer, running_server
from tests.support.writer import LAYOUT, Writer, histogram, record

FRAME_LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server for all tests of refusals, each of which uses a run of its own."""
    with running_server(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def run_id() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def refused(shared: RunningServer) -> Iterator[Writer]:
    with shared.connect("/ingest") as socket:
        yield Writer(socket)


@pytest.fixture
def writer(server: RunningServer) -> Iterator[Writer]:
    with server.connect("/ingest") as socket:
        yield Writer(socket)


def losses(server: RunningServer, run_id: str = "run") -> list[float | None]:
    with server.api() as api:
        answer = api.get(f"/runs/{run_id}/series", params={"keys": "loss", "points": 10_000}).json()
    assert answer["bucket_steps"] == 1
    found: list[float | None] = answer["series"]["loss"]["last"]
    return found


def closing(writer: Writer) -> tuple[Error, int]:
    """Return the error and the code of the close that follows it."""
    error = writer.expect(Error)
    with pytest.raises(ConnectionClosed):
        writer.socket.recv(timeout=20)
    assert writer.socket.close_code is not None
    return error, writer.socket.close_code


def test_acknowledged_records_can_be_queried(server: RunningServer, writer: Writer) -> None:
    assert writer.hello() == Welcome(run_id="run", last_seq=0, server="spikewatch/0.1.0")
    writer.commit(*(record(step, float(step)) for step in range(10)))
    assert losses(server) == [float(step) for step in range(10)]


def test_a_resend_changes_nothing(server: RunningServer, writer: Writer) -> None:
    writer.hello()
    records = [record(step, float(step)) for step in range(6)]
    writer.commit(*records[:4])
    writer.send(*records[:4], first_seq=1)
    assert writer.expect(Ack).seq == 4
    writer.send(*records[2:], first_seq=3)  # two known, two new
    assert writer.expect(Ack).seq == 6
    assert losses(server) == [float(step) for step in range(6)]


def test_the_last_connection_of_a_writer_continues_and_earlier_ones_receive_an_error(
    server: RunningServer, writer: Writer
) -> None:
    writer.hello()
    writer.commit(record(0, 0.0), record(1, 1.0))
    with server.connect("/ingest") as socket:
        later = Writer(socket)
        assert later.hello().last_seq == 2
        error, code = closing(writer)
        assert (error.code, error.retryable, code) == ("writer_taken", True, 4400)
        assert "two processes" in error.message
        later.commit(record(2, 2.0))
        later.hello(layouts=(LAYOUT, msgspec.structs.replace(LAYOUT, id=1)))  # it does not replace itself
        later.commit(record(3, 3.0, block=[[1.0, 2.0], [3.0, 4.0]], layout=1))
    assert losses(server) == [0.0, 1.0, 2.0, 3.0]


def test_a_gap_is_refused_as_retryable(writer: Writer) -> None:
    writer.hello()
    writer.send(record(0), first_seq=5)
    error, code = closing(writer)
    assert (error.code, error.retryable, code) == ("sequence_gap", True, 4400)


def test_nan_is_distinguished_from_a_missing_value(server: RunningServer, writer: Writer) -> None:
    writer.hello()
    writer.commit(record(0, math.nan, accuracy=1.0), record(1, 2.0), record(2, -math.inf))
    with server.api() as api:
        series = api.get("/runs/run/series", params={"keys": "loss,accuracy"}).json()["series"]
    assert series["loss"] == {
        "step": [0, 1, 2],
        "min": [None, 2.0, None],
        "max": [None, 2.0, None],
        "last": [None, 2.0, None],
        "nonfinite": [1, 0, 1],
    }
    assert series["accuracy"]["step"] == [0]


def test_a_second_hello_may_add_layouts(server: RunningServer, writer: Writer) -> None:
    writer.hello(layouts=())
    writer.commit(record(0))
    more = Layout(id=1, layers=("third",), statistics=("grad_norm",))
    writer.hello(layouts=(LAYOUT, more))
    writer.commit(record(1, block=[[1, 1], [2, 2]]), record(1, block=[[3]], layout=1))
    with server.api() as api:
        heatmap = api.get("/runs/run/heatmap", params={"stat": "grad_norm"}).json()
        run = api.get("/runs/run").json()
    assert heatmap["layers"] == ["first", "second", "third"]
    assert [row[-1] for row in heatmap["z"]] == [1, 2, 3]
    assert (run["layer_count"], run["parameter_count"]) == (3, 70)


def test_a_ratio_histogram_becomes_bimodality(server: RunningServer, writer: Writer) -> None:
    bell = np.exp(-(np.linspace(-3, 3, 64) ** 2)) * 1_000
    modes = np.exp(-8 * (np.abs(np.linspace(-2, 2, 64)) - 1) ** 2) * 1_000
    ratio = histogram("ratio", [bell.astype(int).tolist(), modes.astype(int).tolist()], -2.0, 2.0)
    update = histogram("update", [[1] * 64, [2] * 64])
    writer.hello()
    writer.commit(record(0, block=[[1, 1], [2, 2]]), record(1, histograms=(update, ratio)), record(2))
    with server.api() as api:
        heatmap = api.get("/runs/run/heatmap", params={"stat": "bimodality"}).json()
        found = api.get("/runs/run/histogram", params={"layer": "second", "which": "ratio", "step": 900}).json()
        flat = api.get("/runs/run/histogram", params={"layer": "second", "which": "update"}).json()
        assert "bimodality" in api.get("/runs/run").json()["statistics"]
    one, two = (row[1] for row in heatmap["z"])
    assert one < 0.03
    assert two > 0.1
    assert found["dip"] == pytest.approx(two)
    assert (found["step"], len(found["edges"]), sum(found["counts"])) == (1, 65, int(modes.astype(int).sum()))
    assert (flat["counts"], flat["edges"][0], flat["edges"][-1], flat["dip"]) == ([2] * 64, -1.0, 1.0, None)


def test_finish_is_answered_and_ends_the_run(server: RunningServer, writer: Writer) -> None:
    writer.hello()
    writer.commit(record(0))
    writer.finish("crashed")
    with server.api() as api:
        assert api.get("/runs/run").json()["state"] == "crashed"
    with server.connect("/ingest") as socket:
        Writer(socket).hello(writer="again")
        with server.api() as api:
            assert api.get("/runs/run").json()["state"] == "running"


def test_finish_before_the_last_record_is_a_gap(writer: Writer) -> None:
    writer.hello()
    writer.socket.send(encode(Finish(last_seq=3)))
    assert closing(writer)[0].code == "sequence_gap"


def test_frames_sent_before_a_close_are_committed(server: RunningServer, writer: Writer) -> None:
    writer.hello()
    writer.send(record(0, 1.5))
    writer.socket.send(encode(Finish(last_seq=1)))
    writer.socket.close()
    with server.connect("/live") as live, server.api() as api:
        live.recv(timeout=20)  # subscribed
        while api.get("/runs/run").json()["state"] != "finished":
            live.recv(timeout=20)
    assert losses(server) == [1.5]


def _batch(*records: Record) -> bytes:
    return encode(Batch(first_seq=1, records=records))


def _shape(which: str, layers: int) -> Histograms:
    return histogram(which, [[0] * 64] * layers)


BAD_FRAMES: dict[str, tuple[bytes | str, str]] = {
    "not msgpack": (b"\xc1\xc1", "malformed"),
    "text": ("hello", "malformed"),
    "empty": (b"", "malformed"),
    "a list": (msgspec.msgpack.encode([1, 2, 3]), "malformed"),
    "an unknown message": (msgspec.msgpack.encode({"type": "greetings"}), "malformed"),
    "a missing key": (msgspec.msgpack.encode({"type": "batch", "first_seq": 1}), "malformed"),
    "a step that is text": (
        msgspec.msgpack.encode({"type": "batch", "first_seq": 1, "records": [["0", 0.0, {}]]}),
        "malformed",
    ),
    "nested too deeply": (b"\x91" * 50_000, "malformed"),
    "a sequence of zero": (encode(Batch(first_seq=0, records=(record(0),))), "bad_record"),
    "a negative step": (_batch(record(-1)), "bad_record"),
    "a step of 2**63": (_batch(record(2**63)), "bad_record"),
    "too many scalars": (
        _batch(Record(step=0, time=0.0, scalars={f"s{n}": 0.0 for n in range(MAX_SCALARS + 1)})),
        "bad_record",
    ),
    "a name of 257 characters": (_batch(Record(step=0, time=0.0, scalars={"x" * 257: 0.0})), "bad_record"),
    "an empty name": (_batch(Record(step=0, time=0.0, scalars={"": 0.0})), "bad_record"),
    "a name with NUL": (_batch(Record(step=0, time=0.0, scalars={"a\0b": 0.0})), "bad_record"),
    "a block without a layout": (_batch(Record(step=0, time=0.0, scalars={}, block=b"1234")), "bad_record"),
    "an unknown layout": (_batch(Record(step=0, time=0.0, scalars={}, layout=9, block=b"1234")), "unknown_layout"),
    "a block of another size": (_batch(record(0, block=[[1.0, 2.0, 3.0]])), "bad_record"),
    "a histogram of another size": (_batch(record(0, histograms=(_shape("update", 3),))), "bad_record"),
    "a histogram of an unknown quantity": (_batch(record(0, histograms=(_shape("weights", 2),))), "bad_record"),
    "a histogram twice": (_batch(record(0, histograms=(_shape("ratio", 2), _shape("ratio", 2)))), "bad_record"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_is_named_and_leaves_nothing(
    shared: RunningServer, refused: Writer, run_id: str, name: str
) -> None:
    frame, code = BAD_FRAMES[name]
    writer = refused
    writer.hello(run_id)
    writer.commit(record(0, 1.0))
    bad = msgspec.msgpack.decode(frame) if isinstance(frame, bytes) and code != "malformed" else None
    if isinstance(bad, dict) and bad["first_seq"] == 1:
        frame = msgspec.msgpack.encode({**bad, "first_seq": 2})
    writer.socket.send(frame)
    error, close_code = closing(writer)
    assert (error.code, error.retryable, close_code) == (code, False, 4400)
    assert error.message
    assert losses(shared, run_id) == [1.0]


BAD_HELLOS: dict[str, tuple[dict[str, Any], str]] = {
    "a future version": ({"version": 99}, "unsupported_version"),
    "a run id with a slash": ({"run_id": "a/b"}, "malformed"),
    "a run id of dots": ({"run_id": ".."}, "malformed"),
    "no project": ({"project": ""}, "malformed"),
    "a name of 10,000 characters": ({"name": "x" * 10_000}, "malformed"),
    "no writer": ({"writer": ""}, "malformed"),
    "a negative rank": ({"rank": -1}, "malformed"),
    "too many tags": ({"tags": tuple(f"t{n}" for n in range(65))}, "malformed"),
    "a config without a JSON form": ({"config": {"x": msgspec.msgpack.Ext(5, b"")}}, "malformed"),
    "no layers": ({"layouts": (Layout(id=0, layers=(), statistics=("a",)),)}, "bad_layout"),
    "a layer twice": ({"layouts": (Layout(id=0, layers=("a", "a"), statistics=("a",)),)}, "bad_layout"),
    "too many statistics": (
        {"layouts": (Layout(id=0, layers=("a",), statistics=tuple(f"s{n}" for n in range(65))),)},
        "bad_layout",
    ),
    "sizes of other layers": (
        {"layouts": (Layout(id=0, layers=("a",), statistics=("a",), sizes=(1, 2)),)},
        "bad_layout",
    ),
    "an id twice": ({"layouts": (LAYOUT, LAYOUT)}, "bad_layout"),
    "another layout under an old id": (
        {"layouts": (Layout(id=0, layers=("x",), statistics=("a",)),), "writer": "known"},
        "bad_layout",
    ),
    "too many layers": (
        {"layouts": (Layout(id=0, layers=tuple(f"l{n}" for n in range(MAX_LAYERS + 1)), statistics=("a",)),)},
        "bad_layout",
    ),
}


@pytest.mark.parametrize("name", BAD_HELLOS)
def test_a_bad_hello_is_named(shared: RunningServer, refused: Writer, run_id: str, name: str) -> None:
    fields, code = BAD_HELLOS[name]
    with shared.connect("/ingest") as socket:
        Writer(socket).hello(run_id, writer="known")
    refused.send_hello(**{"run_id": run_id, "writer": "writer", **fields})
    error, _ = closing(refused)
    assert (error.code, error.retryable) == (code, False)


def test_an_undecodable_hello_of_another_version_is_answered_with_the_version(refused: Writer) -> None:
    refused.socket.send(msgspec.msgpack.encode({"type": "hello", "version": 2, "run": {"id": 5}}))
    assert closing(refused)[0].code == "unsupported_version"


def test_the_first_frame_is_a_hello(refused: Writer) -> None:
    refused.send(record(0))
    assert closing(refused)[0].code == "hello_first"


def test_a_client_that_sends_nothing_is_disconnected(tmp_path: Path) -> None:
    with running_server(tmp_path, hello_timeout=0.05) as server, server.connect("/ingest") as socket:
        assert closing(Writer(socket))[0].code == "hello_first"


@pytest.mark.parametrize("token", ["", "sw_wrong", "x" * 5_000])
def test_an_invalid_token_is_reported(shared: RunningServer, token: str) -> None:
    with shared.connect("/ingest", token=token) as socket:
        error, code = closing(Writer(socket))
    assert (error.code, error.retryable, code) == ("unauthenticated", False, 4401)


def test_an_oversized_frame_is_reported(tmp_path: Path) -> None:
    with running_server(tmp_path, max_frame_bytes=FRAME_LIMIT) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            writer.socket.send(bytes(FRAME_LIMIT + 1))
            error, code = closing(writer)
            assert (error.code, error.retryable, code) == ("too_large", False, 1009)
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello()
            with contextlib.suppress(ConnectionClosed):
                writer.socket.send(bytes(100 * FRAME_LIMIT))
            with pytest.raises(ConnectionClosed):
                writer.socket.recv(timeout=20)
            # The server stops reading at once; if the rest of the frame arrives at the closed socket, TCP resets it.
            assert writer.socket.close_code in {1009, 1006}
        with server.connect("/ingest") as socket:
            Writer(socket).hello()


def test_an_invalid_batch_does_not_prevent_the_commit_of_valid_ones(server: RunningServer, writer: Writer) -> None:
    writer.hello()
    for step in range(5):
        writer.send(record(step, float(step)))
    writer.send(record(-7))
    seq = 0
    while seq < 5:
        seq = writer.expect(Ack).seq
    assert closing(writer)[0].code == "bad_record"
    assert losses(server) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_many_writers_at_once_lose_nothing(server: RunningServer) -> None:
    def train(number: int) -> None:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello(f"run{number}", f"writer{number}")
            for step in range(0, 200, 5):
                writer.send(*(record(step + at, float(number)) for at in range(5)))
            writer.wait_for(200)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(6):
        assert losses(server, f"run{number}") == [float(number)] * 200


def test_a_shutdown_commits_what_was_sent_and_notifies_clients(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello()
        writer.commit(record(0))
        server.service.stop()
        error, code = closing(writer)
        assert (error.code, error.retryable, code) == ("going_away", True, 1012)
    with running_server(tmp_path) as server, server.connect("/ingest") as socket:
        assert Writer(socket).hello().last_seq == 1


def test_a_group_of_frames_on_postgres(tmp_path: Path, database_url: str) -> None:
    with running_server(tmp_path, database_url=database_url) as server, server.connect("/ingest") as socket:
        writer = Writer(socket)
        writer.hello(config={"lr": math.nan, "text": "a\0b", "deep": {"list": [1, None, True]}}, tags=("ü",))
        for step in range(50):
            writer.send(record(step, float(step), block=[[step, step], [math.nan, math.inf]]))
        writer.wait_for(50)
        writer.finish()
        assert losses(server) == [float(step) for step in range(50)]
        with server.api() as api:
            run = api.get("/runs/run").json()
            heatmap = api.get("/runs/run/heatmap", params={"stat": "grad_norm", "columns": 1}).json()
    assert run["config"] == {"lr": None, "text": "a\0b", "deep": {"list": [1, None, True]}}
    assert run["state"] == "finished"
    assert heatmap["z"] == [[49.0], [None]]
