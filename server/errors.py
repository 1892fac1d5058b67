"""Errors of the server, and the codes that clients see.

ServerError
├── ConfigurationError            settings that cannot work; one line, exit code 2
├── DatabaseError                 the database cannot be used
│   ├── DatabaseCorruptError      the file is not a usable database; one line, exit code 2
│   ├── DatabaseAheadError        its schema is newer than this program; one line, exit code 2
│   └── DatabaseUnavailableError  it does not answer at the moment; retry
│       └── DatabaseBusyError     other transactions hold locks that this one needs
├── SequenceMovedError            another connection of the same writer committed first
├── WriterTakenError              a later connection of the same writer has replaced this one
├── ProjectMismatchError          the run belongs to another project
├── RunDeletedError               the run is being deleted
├── LayoutChangedError            a layout was sent again with other layers or statistics
├── CorruptDataError              stored measurements cannot be read; other queries still work
│   ├── SegmentCorruptError       a stored payload cannot be decoded
│   ├── TileCorruptError          a tile cannot be decoded
│   └── HistogramCorruptError     stored histograms cannot be decoded
├── SecretLostError               the secret of a channel was encrypted with another key
├── ForbiddenAddressError         the address of a channel is one that the server must not connect to
├── RuleFieldError                a field of an alert rule is invalid; names the field
├── LimitError                    a token exceeds a limit; retry later
├── ImportFileError               a file cannot be imported: which, where and why
├── LinkError                     a follower of logs cannot reach its server, or is refused by it
├── IngestError                   an ingest frame is refused: a stable code of docs/protocol.md
└── ApiError                      an HTTP or live request is refused: a stable code and a status
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of all errors that the server raises deliberately."""


class ConfigurationError(ServerError):
    """Settings are invalid. The text says what to change."""


class DatabaseError(ServerError):
    """The database cannot be used."""


class DatabaseCorruptError(DatabaseError):
    """The file is damaged, or is not a database."""


class DatabaseAheadError(DatabaseError):
    """The schema of the database is newer than this program."""


class DatabaseUnavailableError(DatabaseError):
    """The database does not answer at the moment."""


class DatabaseBusyError(DatabaseUnavailableError):
    """Another transaction holds a lock that this one needs, or both wait for each other."""


UNAVAILABLE = "the database does not answer at the moment; nothing is lost, try again"
"""Message about a `DatabaseError` for clients. The text of the error names hosts and files, so only the log has it."""


class SequenceMovedError(ServerError):
    """The writer's last committed sequence differs from the one that the caller expected."""

    def __init__(self, last_seq: int) -> None:
        super().__init__(f"the last committed sequence is {last_seq}")
        self.last_seq = last_seq


class TrainingMovedError(ServerError):
    """Another writer of the rank has moved its training since the caller divided the records into late and others.

    ``attempt`` and ``last_step`` describe the training of the rank as it is stored.
    """

    def __init__(self, attempt: int, last_step: int) -> None:
        super().__init__(f"the training of the rank is at step {last_step} of attempt {attempt}")
        self.attempt = attempt
        self.last_step = last_step


class WriterTakenError(ServerError):
    """A later connection of the same writer has replaced this one, which may not add records any more."""

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
    """The run is being deleted, so that records can be neither added nor read."""

    def __init__(self, run_id: str, advice: str = "start a new one") -> None:
        super().__init__(f"the run {run_id!r} was deleted; {advice}")


class LayoutChangedError(ServerError):
    """A layout was sent again with other contents, although layouts never change."""

    def __init__(self, number: int) -> None:
        super().__init__(f"layout {number} was sent before with other layers or statistics; give the new one a new id")


class CorruptDataError(ServerError):
    """Stored measurements cannot be read. `spikewatch doctor` finds all damage and repairs what can be repaired."""


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
            "the secret was encrypted with another key than this server's: enter it again, or restore the key "
            "(SPIKEWATCH_SECRET_KEY)"
        )


class ForbiddenAddressError(ServerError):
    """The address of a channel is one that the server must not connect to."""


class RuleFieldError(ServerError, ValueError):
    """A field of an alert rule is invalid."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class LimitError(ServerError):
    """A token exceeds a limit. The text names the limit and says what to do."""


class ImportFileError(ServerError):
    """A file cannot be imported."""

    def __init__(self, path: object, place: str | None, reason: str) -> None:
        """``place``: position in the file, for example "line 7"."""
        super().__init__(f"{path}, {place}: {reason}" if place is not None else f"{path}: {reason}")
        self.path = path
        self.place = place
        self.reason = reason


class LinkError(ServerError):
    """The connection of a follower of logs failed, or the server refused what it sent.

    ``code`` is that of the server (docs/protocol.md), "unreachable" or "closed".
    """

    def __init__(self, code: str, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


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
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
        authenticate: str = "Bearer",
    ) -> None:
        """``field``: path of the field or parameter at fault. ``retry_after``: seconds, for the header Retry-After.

        ``authenticate``: the header WWW-Authenticate of a refusal with status 401.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.authenticate = authenticate

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"
