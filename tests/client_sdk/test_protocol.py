"""The wire format: messages survive encoding and decoding, and other bytes are refused."""

from __future__ import annotations

import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.protocol import (
    MAX_STEP,
    Ack,
    AlertNotice,
    Batch,
    Error,
    Finish,
    Hello,
    Histograms,
    Layout,
    RawBatch,
    Record,
    Welcome,
    decode_client_message,
    decode_record,
    decode_server_message,
    encode,
)

names = st.text(min_size=1, max_size=40)
histograms = st.builds(Histograms, which=names, low=st.binary(), high=st.binary(), counts=st.binary())
records = st.builds(
    Record,
    step=st.integers(0, MAX_STEP),
    time=st.floats(allow_nan=False),
    scalars=st.dictionaries(names, st.floats(allow_nan=False), max_size=5),
    layout=st.none() | st.integers(0, 100),
    block=st.none() | st.binary(max_size=64),
    histograms=st.lists(histograms, max_size=2).map(tuple),
)
layouts = st.builds(
    Layout,
    id=st.integers(0, 100),
    layers=st.lists(names, max_size=4).map(tuple),
    statistics=st.lists(names, max_size=4).map(tuple),
    sizes=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
)
client_messages = st.one_of(
    st.builds(
        Hello,
        version=st.integers(0, 5),
        run_id=st.none() | names,
        writer=names,
        project=names,
        name=st.none() | names,
        rank=st.integers(0, 10_000),
        config=st.dictionaries(names, st.integers(-(2**63), 2**63 - 1) | names | st.booleans() | st.none(), max_size=4),
        tags=st.lists(names, max_size=3).map(tuple),
        layouts=st.lists(layouts, max_size=2).map(tuple),
        started_at=st.floats(0, 1e12),
        sdk=names,
    ),
    st.builds(Batch, first_seq=st.integers(1, 2**62), records=st.lists(records, max_size=4).map(tuple)),
    st.builds(Finish, last_seq=st.integers(0, 2**62), state=st.sampled_from(["finished", "crashed"])),
)


@given(client_messages)
def test_client_message_survives_encoding(message: Hello | Batch | Finish) -> None:
    assert decode_client_message(encode(message)) == message


@given(records)
def test_record_survives_encoding(record: Record) -> None:
    assert decode_record(encode(record)) == record


@given(st.lists(records, max_size=4))
def test_batch_of_encoded_records_is_the_same_frame(several: list[Record]) -> None:
    raw = RawBatch(first_seq=3, records=[msgspec.Raw(encode(record)) for record in several])
    assert encode(raw) == encode(Batch(first_seq=3, records=tuple(several)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, struct.unpack("<d", b"\1" * 8)[0]])
def test_float_keeps_every_bit(value: float) -> None:
    back = decode_record(encode(Record(step=0, time=0.0, scalars={"x": value}))).scalars["x"]
    assert struct.pack("<d", back) == struct.pack("<d", value)


@given(st.binary(max_size=200))
def test_other_bytes_raise_decode_error(frame: bytes) -> None:
    for decode in (decode_client_message, decode_server_message):
        try:
            decode(frame)
        except msgspec.DecodeError:
            continue
        assert frame[0] & 0xF0 == 0x80 or frame[0] in (0xDE, 0xDF), "only a map is a message"


@pytest.mark.parametrize(
    "message",
    [
        Welcome(run_id="r", last_seq=7),
        Ack(seq=1),
        Error(code="internal", message="m", retryable=True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_server_message_survives_encoding(message: Welcome | Ack | Error) -> None:
    assert decode_server_message(encode(message)) == message


def test_client_message_is_not_a_server_message() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_server_message(encode(Finish(last_seq=1)))


def test_unknown_keys_are_ignored() -> None:
    frame = msgspec.msgpack.encode({"type": "ack", "seq": 4, "more": [1, 2]})
    assert decode_server_message(frame) == Ack(seq=4)


def test_optional_keys_of_an_alert_may_be_left_out() -> None:
    alert = {"id": "a", "run_id": "r", "kind": "spike", "level": "watch", "state": "open", "step": 1}
    frame = msgspec.msgpack.encode({"type": "alert", "alert": {**alert, "title": "t", "message": "m"}})
    notice = decode_server_message(frame)
    assert isinstance(notice, AlertNotice)
    assert notice.alert.predicted_step is None
