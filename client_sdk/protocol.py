"""The wire format between a training process and the server: messages, encoding, limits, version.

Owns the format of frames; does no I/O and keeps no state. `docs/protocol.md` specifies the same format for clients in
other languages.

A frame is one msgpack map with the key ``type``. A `Record` is one call of `log` and is encoded as a msgpack array, so
that the spool can store its encoded bytes and a batch can carry them unchanged (`msgspec.Raw`).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from client_sdk.vocabulary import AlertLevel

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
"""Name of the scalar that marks a record whose layer statistics the client dropped to save disk space."""


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """Hyperparameters of the watched optimizer, from which the server judges stability."""

    name: str
    """Class name, for example "AdamW"."""
    family: Literal["adam", "sgd", "rmsprop", "other"]
    lr: float
    """Largest learning rate of the parameter groups when `watch` was called. The scalar `lr` has it for each step."""
    beta1: float | None = None
    """Adam's β1; for SGD its momentum."""
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float = 0.0


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the rows and columns of a record's block. Never changes once sent; another `watch` creates a new one."""

    id: int
    """Layout number, unique within the writer, counted from 0."""
    layers: tuple[str, ...]
    """Names of the rows of a block."""
    statistics: tuple[str, ...]
    """Names of the columns of a block."""
    sizes: tuple[int, ...] = ()
    """Number of parameters of each layer; empty when unknown."""
    optimizer: Optimizer | None = None


class Histograms(msgspec.Struct, frozen=True, array_like=True):
    """Histograms of one quantity for every layer of the layout at one step, 64 equal bins each."""

    which: str
    """Name of the quantity: "update" (u) or "ratio" (r)."""
    low: bytes
    """Left edge of the first bin of each layer, little-endian float32."""
    high: bytes
    """Right edge of the last bin of each layer, little-endian float32. Outliers are counted in the outermost bins."""
    counts: bytes
    """Counts, little-endian uint32, layers × 64, row-major."""


class AuditFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Finding of a check of the audit (`client_sdk.audit_checks`), which a writer reports once."""

    check: str
    """Name of the check, for example "update-formula"."""
    message: str
    """Finding as a sentence with numbers."""
    layers: tuple[str, ...] = ()
    """Layers or parameters that it was found at, at most eight."""
    evidence: dict[str, float | int | str | None] = {}
    step: int | None = None
    """Step of the run at which it was found; None for that of the record."""


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """Report of the audit: the checks that ran since the writer's last report, and what they found."""

    runs: dict[str, int] = {}
    """Number of times that each check has run so far in this writer, keyed by its name."""
    findings: tuple[AuditFinding, ...] = ()
    """Findings since the last report."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One call of `log`: everything that is logged at one step."""

    step: int
    """Step number, 0 ≤ step < 2**63."""
    time: float
    """Unix time in seconds, by the clock of the training process."""
    scalars: dict[str, float]
    """Values by name, as float64; NaN and infinities are kept."""
    layout: int | None = None
    """Number of the layout of `block` and `histograms`; None if the record has neither."""
    block: bytes | None = None
    """Layer statistics, little-endian float32, layers × statistics, row-major. NaN means "not measured at this step";
    the statistic `nonfinite` counts the non-finite numbers of a tensor."""
    histograms: tuple[Histograms, ...] = ()
    """Histograms of the layers, one for each quantity."""
    audit: Audit | None = None
    """Report of the audit; None in most records. Older servers ignore it."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """First message of a connection, sent again whenever `layouts` has grown. Creates or rejoins the run."""

    version: int
    run_id: str | None
    """Run id that the client chose, so that an offline run has an id before it reaches a server; None lets the server
    choose."""
    writer: str
    """Unique id of the spool, that is of one sequence of records (a UUID)."""
    project: str
    name: str | None = None
    rank: int = 0
    config: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    """All layouts of this writer so far."""
    started_at: float = 0.0
    """Unix time of `init`."""
    sdk: str = ""
    """Name and version of the client, for example "python/0.1.0"."""
    loss: str | msgspec.UnsetType = msgspec.UNSET
    """Name of the scalar that is the training loss; absent where its usual names decide. Older servers ignore it."""
    environment: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Description of the machine and software of this writer, JSON-like; older servers ignore it."""


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="batch"):
    """Consecutive records: the i-th has the sequence `first_seq` + i. The sequences of a writer start at 1."""

    first_seq: int
    records: tuple[Record, ...]


class RawBatch(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="batch"):
    """A `Batch` whose records are already encoded. It has the same bytes on the wire."""

    first_seq: int
    records: list[msgspec.Raw]


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="finish"):
    """End of a writer, which sends nothing after `last_seq`."""

    last_seq: int
    state: Literal["finished", "crashed"] = "finished"


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="welcome"):
    """Answer of the server to a `Hello`."""

    run_id: str
    last_seq: int
    """Last committed sequence of this writer, or 0; the client sends from `last_seq` + 1."""
    version: int = PROTOCOL_VERSION
    server: str = ""


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """Acknowledgement: every record up to and including `seq` is committed, so that the client may delete it."""

    seq: int


class PredictedStep(msgspec.Struct, frozen=True, kw_only=True):
    """Forecast of a spike: the earliest, the most likely and the latest step."""

    low: int
    best: int
    high: int


class Forecast(PredictedStep, frozen=True, kw_only=True):
    """Forecast as it was reported at one step. It is never changed afterwards."""

    step: int
    """Step at which the forecast was reported."""
    level: str
    """Level of the alert at that step: "watch", "warning" or "critical"."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a forecast, once it is settled."""

    result: Literal["hit", "early", "late", "false"]
    """Verdict on the forecast that was reported first at level warning or above, or on the first one of a mere watch:
    "hit" if the spike began within low…high, "early" or "late" if before or after it, "false" if never.
    """
    step: int | None
    """Step at which the spike began; None if there was none."""
    lead: int | None
    """Steps from the first warning to the beginning of the spike, at most 0 if the warning came too late; None if there
    was no spike or no warning.
    """
    first_seen_lead: int | None = None
    """Steps from the opening of the alert, at whatever level, to the beginning of the spike; None if there was none."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. It has the same form on the wire, in HTTP answers and in callbacks of `on_alert`."""

    id: str
    run_id: str
    kind: str
    level: str
    """Severity: "watch", "warning" or "critical"."""
    state: str
    """State: "open", "acknowledged", "resolved", or "ended" if the run ended while the alert lasted."""
    step: int
    """Step at which the alert opened."""
    title: str
    """Headline, for example "Spike predicted at step 718"."""
    message: str
    """Reason, as one sentence with numbers."""
    predicted_step: PredictedStep | None = None
    """Forecast as of `updated_step`."""
    first_predicted_step: PredictedStep | None = None
    """Forecast as of the opening of the alert."""
    forecasts: tuple[Forecast, ...] = ()
    """Forecasts as they were reported, oldest first; empty for alerts stored by versions that did not keep them."""
    layers: tuple[str, ...] = ()
    """Layers that contribute most, largest contributor first."""
    layer_shares: tuple[float, ...] = ()
    """Share of each of `layers` in the growth, 0…1; empty if not measured."""
    cause: str = "unknown"
    evidence: dict[str, float | int | str | None] = {}
    advice: tuple[str, ...] = ()
    """Recommended actions, the most suitable first."""
    outcome: Outcome | None = None
    opened_at: float = 0.0
    """Unix time of the opening."""
    closed_at: float | None = None
    updated_step: int = 0
    attempt: int = 0

    @property
    def incident(self) -> str:
        """Id of the alert's incident.

        A predicted spike belongs to the incident of its prediction, and alerts about one step to that of the first of
        them.
        """
        for key in ("prediction_id", "incident_id"):
            shared = self.evidence.get(key)
            if isinstance(shared, str):
                return shared
        return self.id

    @property
    def first_warned(self) -> Forecast | None:
        """Forecast that was reported first at level warning or above; None if there was none or it was not kept."""
        return next((forecast for forecast in self.forecasts if forecast.level != AlertLevel.WATCH), None)

    @property
    def judged_forecast(self) -> PredictedStep | None:
        """Forecast that `outcome` is a verdict on: the first warning's, or the first one where none is known."""
        return self.first_warned or self.first_predicted_step

    @property
    def turns(self) -> tuple[Forecast, ...]:
        """The forecasts that tell the story in short: the first one, the first one of each level, and the latest."""
        last = len(self.forecasts) - 1
        return tuple(
            forecast
            for i, forecast in enumerate(self.forecasts)
            if i in (0, last) or forecast.level != self.forecasts[i - 1].level
        )


class AlertNotice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="alert"):
    """Message to the writers of a run when one of its alerts opens, changes or closes."""

    alert: Alert


class Error(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """Error that the server reports: `code` is stable, `message` says what is wrong and what to do."""

    code: str
    message: str
    retryable: bool
    """Whether the same frame may succeed later. If False, it must not be sent again."""


ClientMessage = Hello | Batch | Finish
ServerMessage = Welcome | Ack | AlertNotice | Error

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_server_decoder: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)
_record_decoder = msgspec.msgpack.Decoder(Record)


def encode(message: ClientMessage | ServerMessage | RawBatch | Record) -> bytes:
    """Return one encoded message, or one encoded record for the spool.

    >>> encode(Ack(seq=7)).hex(" ")
    '82 a4 74 79 70 65 a3 61 63 6b a3 73 65 71 07'
    """
    return _encoder.encode(message)


def encode_into(record: Record, buffer: bytearray) -> None:
    """Encode one record into ``buffer``, whose length is then that of the encoded record.

    Reusing a buffer for records of similar size saves the allocation that `encode` has to grow several times.
    """
    _encoder.encode_into(record, buffer)


def decode_client_message(frame: bytes) -> ClientMessage:
    """Return the message in a frame of a client. Raises `msgspec.DecodeError`, or its subclass `ValidationError`."""
    return _client_decoder.decode(frame)


def decode_server_message(frame: bytes) -> ServerMessage:
    """Return the message in a frame of a server. Raises `msgspec.DecodeError`, or its subclass `ValidationError`.

    >>> decode_server_message(encode(Ack(seq=7)))
    Ack(seq=7)
    """
    return _server_decoder.decode(frame)


def decode_record(data: bytes) -> Record:
    """Return a decoded record. Raises `msgspec.DecodeError`, or its subclass `ValidationError`."""
    return _record_decoder.decode(data)
