"""Errors of the server, and the codes that clients see.

ServerError
├── ConfigurationError            settings that cannot work; one line, exit code 2
├── DatabaseError                 the database cannot be used
│   ├── DatabaseCorruptError      the file is not a usable database; one line, exit code 2
│   ├── DatabaseAheadError        its schema is newer than this program; one line, exit code 2
│   └── DatabaseUnavailableError  it does not answer now; retry
│       └── DatabaseBusyError     other transactions are in the way
├── SequenceMovedError            another connection of the same writer committed first
├── WriterTakenError              a later connection says that it is this writer
├── ProjectMismatchError          the run belongs to another project
├── RunDeletedError               the run is being deleted
├── LayoutChangedError            a layout was sent again with other layers or statistics
├── CorruptDataError              stored measurements cannot be read; other queries are not touched
│   ├── SegmentCorruptError       a stored payload cannot be decoded
│   ├── TileCorruptError          a tile cannot be decoded
│   └── HistogramCorruptError     stored histograms cannot be decoded
├── SecretLostError               the secret of a channel was encrypted with a key that is not known here
├── ForbiddenAddressError         a channel leads to where the server must not be sent
├── RuleFieldError                a rule says what it cannot; names the field
├── LimitError                    a token has or does more than it may; retry
├── ImportFileError               a file cannot be imported: which, where and why
├── IngestError                   an ingest frame is refused: a stable code of docs/protocol.md
└── ApiError                      an HTTP or live request is refused: a stable code and a status
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of every error that the server raises on purpose."""


class ConfigurationError(ServerError):
    """Settings that cannot work. The text says what to change."""


class DatabaseError(ServerError):
    """The database cannot be used."""


class DatabaseCorruptError(DatabaseError):
    """The database file is not one, or is damaged."""


class DatabaseAheadError(DatabaseError):
    """The schema of the database is newer than this program."""


class DatabaseUnavailableError(DatabaseError):
    """The database does not answer at the moment."""


class DatabaseBusyError(DatabaseUnavailableError):
    """Another transaction holds what this one needs, or needs what this one holds."""


UNAVAILABLE = "the database does not answer at the moment; nothing is lost, try again"
"""What clients are told of a `DatabaseError`. Its own text names hosts and files: that is for the log."""


class SequenceMovedError(ServerError):
    """The writer's last committed sequence is not the one that the caller built on."""

    def __init__(self, last_seq: int) -> None:
        super().__init__(f"the last committed sequence is {last_seq}")
        self.last_seq = last_seq


class WriterTakenError(ServerError):
    """A later connection has said hello as the same writer; this one may add nothing any more."""

    def __init__(self) -> None:
        super().__init__(
            "another connection has said hello as this writer, and only the last one may send; "
            "if two processes use one spool or one writer, end one of them"
        )


class ProjectMismatchError(ServerError):
    """The run exists, in another project."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the run {run_id!r} belongs to another project")


class RunDeletedError(ServerError):
    """Nothing can be added to the run, or read of it, because it is being deleted."""

    def __init__(self, run_id: str, advice: str = "start a new one") -> None:
        super().__init__(f"the run {run_id!r} was deleted; {advice}")


class LayoutChangedError(ServerError):
    """A layout never changes once it is sent; this one did."""

    def __init__(self, number: int) -> None:
        super().__init__(f"layout {number} was sent before with other layers or statistics; give the new one a new id")


class CorruptDataError(ServerError):
    """Stored measurements cannot be read. `spikewatch doctor` finds them all, and repairs what can be."""


class SegmentCorruptError(CorruptDataError):
    """A stored payload cannot be decoded."""

    def __init__(self, segment_id: int, reason: str) -> None:
        super().__init__(f"segment {segment_id} cannot be read: {reason}")
        self.segment_id = segment_id
        self.reason = reason


class TileCorruptError(CorruptDataError):
    """A tile cannot be decoded."""

    def __init__(self, span_id: int, name: str, reason: str) -> None:
        super().__init__(f"the tile {name!r} of span {span_id} cannot be read: {reason}")
        self.span_id = span_id
        self.name = name
        self.reason = reason


class HistogramCorruptError(CorruptDataError):
    """Stored histograms cannot be decoded."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"histogram {number} cannot be read: {reason}")
        self.number = number
        self.reason = reason


class SecretLostError(ServerError):
    """A secret cannot be decrypted."""

    def __init__(self) -> None:
        super().__init__(
            "the secret was encrypted with another key than this server's: enter it again, or bring the key back "
            "(SPIKEWATCH_SECRET_KEY)"
        )


class ForbiddenAddressError(ServerError):
    """A channel leads to where the server must not be sent."""


class RuleFieldError(ServerError, ValueError):
    """A field of a rule says what it cannot."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class LimitError(ServerError):
    """A token has or does more than it may. The text says which limit, and what to do."""


class ImportFileError(ServerError):
    """A file cannot be imported."""

    def __init__(self, path: object, place: str | None, reason: str) -> None:
        """``place``: where in the file, for example "line 7"."""
        super().__init__(f"{path}, {place}: {reason}" if place is not None else f"{path}: {reason}")
        self.path = path
        self.place = place
        self.reason = reason


class IngestError(ServerError):
    """A frame on the ingest socket is refused."""

    def __init__(self, code: str, message: str, *, retryable: bool = False, close_code: int = 4400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.close_code = close_code

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ApiError(ServerError):
    """A refused request: a status and the contents of `client_sdk.answers.Error`."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        """``field``: path of the field or parameter at fault. ``retry_after``: seconds, for the header Retry-After."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"
