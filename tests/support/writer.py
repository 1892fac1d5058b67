"""A training process reduced to its socket: sends a hello and records, and reads the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from websockets.sync.client import ClientConnection

from client_sdk.protocol import (
    PROTOCOL_VERSION,
    Ack,
    AlertNotice,
    Batch,
    Error,
    Finish,
    Hello,
    Histograms,
    Layout,
    Optimizer,
    Record,
    ServerMessage,
    Welcome,
    decode_server_message,
    encode,
)

Message = TypeVar("Message", Welcome, Ack, AlertNotice, Error)
ANSWER_TIMEOUT = 20.0  # seconds

LAYOUT = Layout(
    id=0,
    layers=("first", "second"),
    statistics=("grad_norm", "update_norm"),
    sizes=(30, 40),
    optimizer=Optimizer(name="Adam", family="adam", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8),
)


def record(
    step: int,
    loss: float = 1.0,
    *,
    time: float | None = None,
    block: Sequence[Sequence[float]] | None = None,
    layout: int | None = None,
    histograms: tuple[Histograms, ...] = (),
    **scalars: float,
) -> Record:
    """Return one record; ``block`` has the shape layers × statistics."""
    data = None if block is None else np.array(block, dtype="<f4").tobytes()
    number = 0 if layout is None and (data is not None or histograms) else layout
    return Record(
        step=step,
        time=1_000_000.0 + step if time is None else time,
        scalars={"loss": loss, **scalars},
        layout=number,
        block=data,
        histograms=histograms,
    )


def histogram(which: str, rows: Sequence[Sequence[int]], low: float = -1.0, high: float = 1.0) -> Histograms:
    """Return histograms with 64 counts for each layer, given by ``rows``."""
    layers = len(rows)
    return Histograms(
        which=which,
        low=np.full(layers, low, "<f4").tobytes(),
        high=np.full(layers, high, "<f4").tobytes(),
        counts=np.array(rows, "<u4").tobytes(),
    )


class Writer:
    """One writer over an open websocket, which belongs to the caller."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seq = 0
        self.alerts: list[AlertNotice] = []
        """Alerts that arrived while another message was expected."""

    def hello(self, run_id: str | None = "run", writer: str = "writer", **fields: Any) -> Welcome:
        self.send_hello(run_id, writer, **fields)
        welcome = self.expect(Welcome)
        self.seq = welcome.last_seq
        return welcome

    def send_hello(self, run_id: str | None = "run", writer: str = "writer", **fields: Any) -> None:
        values = {"version": PROTOCOL_VERSION, "project": "project", "layouts": (LAYOUT,), **fields}
        self.socket.send(encode(Hello(run_id=run_id, writer=writer, **values)))

    def send(self, *records: Record, first_seq: int | None = None) -> None:
        """Send a batch, by default the next one."""
        first = self.seq + 1 if first_seq is None else first_seq
        self.seq = max(self.seq, first + len(records) - 1)
        self.socket.send(encode(Batch(first_seq=first, records=records)))

    def commit(self, *records: Record) -> None:
        """Send a batch and wait until it is acknowledged."""
        self.send(*records)
        self.wait_for(self.seq)

    def wait_for(self, seq: int) -> None:
        while self.expect(Ack).seq < seq:
            pass

    def finish(self, state: str = "finished") -> None:
        self.socket.send(encode(Finish(last_seq=self.seq, state=state)))  # type: ignore[arg-type]
        self.expect(Ack)

    def expect(self, kind: type[Message]) -> Message:
        """Return the next message, which must be of this kind; alerts in between go to `alerts`."""
        while True:
            message = self.receive()
            if isinstance(message, kind):
                return message
            if isinstance(message, AlertNotice):
                self.alerts.append(message)
                continue
            raise AssertionError(f"expected {kind.__name__}, got {message}")

    def receive(self) -> ServerMessage:
        frame = self.socket.recv(timeout=ANSWER_TIMEOUT)
        assert isinstance(frame, bytes)
        return decode_server_message(frame)
