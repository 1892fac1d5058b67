"""The wire format between a training process and the server: messages, encoding, limits, version.

Owns what a frame looks like; does no I/O and keeps no state. Written out for other languages in `docs/protocol.md`.
The server and the SDK share it.

A frame is one msgpack map with the key ``type``. A `Record` is one call of `log` and travels as a msgpack array, so
that the spool can store it encoded once and a batch can carry the stored bytes unchanged (`msgspec.Raw`).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

PROTOCOL_VERSION: Final = 1
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
MAX_LAYOUTS: Final = 1_000
MAX_LAYERS: Final = 20_000
MAX_SCALARS: Final = 1_000
MAX_STATISTICS: Final = 64
MAX_NAME_CHARS: Final = 256
MAX_STEP: Final = 2**63 - 1
HISTOGRAM_BINS: Final = 64
STATISTICS_THINNED: Final = "statistics_thinned"
"""The scalar that marks a record whose layer statistics the client gave up for want of disk."""


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """What the server needs to know of the watched optimizer to judge stability."""

    name: str
    """Class name, for example "AdamW"."""
    family: Literal["adam", "sgd", "rmsprop", "other"]
    lr: float
    """Largest learning rate of the parameter groups when `watch` was called; the scalar `lr` follows it per step."""
    beta1: float | None = None
    """Adam's β1; for SGD its momentum."""
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float = 0.0


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows and columns of a record's block mean. Never changes once sent; a new `watch` makes a new one."""

    id: int
    """Unique within the writer, counted from 0."""
    layers: tuple[str, ...]
    """Row names."""
    statistics: tuple[str, ...]
    """Column names."""
    sizes: tuple[int, ...] = ()
    """Number of parameters of each layer; empty when unknown."""
    optimizer: Optimizer | None = None


class Histograms(msgspec.Struct, frozen=True, array_like=True):
    """Histograms of one quantity for every layer of the layout at one step, 64 equal bins each."""

    which: str
    """"update" (u) or "ratio" (r)."""
    low: bytes
    """Little-endian float32 × layers: left edge of the first bin."""
    high: bytes
    """Little-endian float32 × layers: right edge of the last bin. Values outside are counted in the outermost bins."""
    counts: bytes
    """Little-endian uint32 × layers × 64."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One call of `log`."""

    step: int
    """0 ≤ step < 2**63."""
    time: float
    """Seconds since the Unix epoch by the clock of the training process."""
    scalars: dict[str, float]
    """Name to float64; NaN and infinities are kept."""
    layout: int | None = None
    """Id of the layout of `block` and `histograms`, None where there is neither."""
    block: bytes | None = None
    """Little-endian float32, layers × statistics, row-major. NaN means "not measured at this step"; the count of
    non-finite numbers in a tensor is the statistic `nonfinite`."""
    histograms: tuple[Histograms, ...] = ()


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """First frame of a connection, and again whenever `layouts` grew. Creates or rejoins the run."""

    version: int
    run_id: str | None
    """Chosen by the client, so that an offline run has an id before any server knows it; None: the server chooses."""
    writer: str
    """Unique for each spool, that is for each sequence of records (a UUID)."""
    project: str
    name: str | None = None
    rank: int = 0
    config: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    """Every layout of this writer so far."""
    started_at: float = 0.0
    """Unix time of `init`."""
    sdk: str = ""
    """Name and version of the client, for example "python/0.1.0"."""


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="batch"):
    """Consecutive records; the i-th has the sequence `first_seq` + i. Sequences of a writer start at 1."""

    first_seq: int
    records: tuple[Record, ...]


class RawBatch(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="batch"):
    """A `Batch` whose records are already encoded; the same bytes on the wire."""

    first_seq: int
    records: list[msgspec.Raw]


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="finish"):
    """The writer will send nothing after `last_seq`."""

    last_seq: int
    state: Literal["finished", "crashed"] = "finished"


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="welcome"):
    """Answer to `Hello`."""

    run_id: str
    last_seq: int
    """Last sequence of this writer that is committed; 0 for none. Send from `last_seq` + 1."""
    version: int = PROTOCOL_VERSION
    server: str = ""


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """Every record up to and with `seq` is committed and may be forgotten by the client."""

    seq: int


class PredictedStep(msgspec.Struct, frozen=True, kw_only=True):
    """When a spike is expected: earliest, most likely, latest step."""

    low: int
    best: int
    high: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a prediction was settled."""

    result: Literal["hit", "early", "late", "false"]
    """hit: the spike began within low…high; early or late: it came before or after the band; false: it never came."""
    step: int | None
    """Onset of the spike that came."""
    lead: int | None
    """Steps from the opening of the alert to that onset."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert, the same shape on the wire, in HTTP answers and in the callback of `on_alert`."""

    id: str
    run_id: str
    kind: str
    level: str
    """watch, warning or critical."""
    state: str
    """open, acknowledged or resolved."""
    step: int
    """Step at which it was opened."""
    title: str
    """Headline, for example "Spike predicted at step 718"."""
    message: str
    """Why, in one sentence with numbers."""
    predicted_step: PredictedStep | None = None
    """The forecast as of `updated_step`."""
    first_predicted_step: PredictedStep | None = None
    """The forecast as it was when the alert opened."""
    layers: tuple[str, ...] = ()
    """Leading layers, most guilty first."""
    layer_shares: tuple[float, ...] = ()
    """Share of the growth that each of `layers` carries, 0…1; empty when not measured."""
    cause: str = "unknown"
    evidence: dict[str, float | int | str | None] = {}
    advice: tuple[str, ...] = ()
    """What to try, best fit first."""
    outcome: Outcome | None = None
    opened_at: float = 0.0
    """Unix time."""
    closed_at: float | None = None
    updated_step: int = 0
    attempt: int = 0


class AlertNotice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="alert"):
    """Pushed to the writers of a run when one of its alerts opens, changes or closes."""

    alert: Alert


class Error(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """Something is wrong; `code` is stable, `message` says what to do."""

    code: str
    message: str
    retryable: bool
    """True: the same frame may succeed later. False: do not send it again."""


ClientMessage = Hello | Batch | Finish
ServerMessage = Welcome | Ack | AlertNotice | Error

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_server_decoder: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
_record_decoder = msgspec.msgpack.Decoder(Record)


def encode(message: ClientMessage | ServerMessage | RawBatch | Record) -> bytes:
    """Encode one message, or one record for the spool."""
    return _encoder.encode(message)


def encode_into(record: Record, buffer: bytearray) -> None:
    """Encode one record over what ``buffer`` holds; its length is then the record's. Saves `encode` an allocation that
    grows four times, for who encodes records of one size in a row."""
    _encoder.encode_into(record, buffer)


def decode_client_message(frame: bytes) -> ClientMessage:
    """Decode a frame that a client sent. Raises `msgspec.DecodeError` (or its `ValidationError`) on anything else."""
    return _client_decoder.decode(frame)


def decode_server_message(frame: bytes) -> ServerMessage:
    """Decode a frame that a server sent. Raises `msgspec.DecodeError` (or its `ValidationError`) on anything else."""
    return _server_decoder.decode(frame)


def decode_record(data: bytes) -> Record:
    """Decode one encoded record. Raises `msgspec.DecodeError` (or its `ValidationError`) on anything else."""
    return _record_decoder.decode(data)
