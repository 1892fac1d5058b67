"""Connection to SQLite or Postgres: engines, pragmas, transactions and the translation of driver errors.

Owns how a transaction begins and which errors it raises; contains no statements about data.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Table, event, exc, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, ExceptionContext, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.errors import (
    ConfigurationError,
    DatabaseBusyError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseUnavailableError,
)
from server.storage.fair_write_lock import FairWriteLock

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}

# Classes of SQLSTATE that pass: lost connections, deadlocks, a full disk or too many connections, a starting or
# stopping server, system failures (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_PASSING_CLASSES = frozenset({"08", "40", "53", "57", "58"})

_IDLE_TOO_LONG = "25P03"

_BUSY = frozenset({"40001", "40P01", "55P03"})
"""SQLSTATEs of a conflict with another transaction, a deadlock and a lock timeout. The same transaction may succeed
alone, or a moment later.
"""

_CORRUPT = ("file is not a database", "malformed", "unsupported file format")

_FULL = ("disk is full", "No space left on device")

IDLE_TIMEOUT = 5_000
"""Milliseconds that an open transaction may wait for its own server. A server that hangs would otherwise keep rows
locked that a writer needs after it has moved to another server. Postgres ends such a transaction and refuses its
commit.
"""
BUSY_TIMEOUT = 30_000  # milliseconds to wait for a writer in another process
LOCK_TIMEOUT = 1.0  # seconds that a transaction for several runs waits for a locked row
LOCKED_RETRY = 0.005  # seconds
SQLITE_READERS = 4
"""Number of reading connections to SQLite. A connection stays open once a busy moment has opened it; more connections
answered no sooner on two cores and kept more memory.
"""
READER_CACHE = 512  # KiB
TRANSACTION = 4096  # minimum cost of a transaction in bytes; a transaction without cost would always come first


class Database:
    """Database of the process: one pool of connections for reading and one for writing.

    Whoever opens a database has to `close` it.
    """

    def __init__(self, url: str) -> None:
        """Prepare the connections without opening any. Raises `ConfigurationError` if the URL is not supported."""
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # Separate pools: a commit must not wait behind many readers for a connection.
        self.reading = make_engine(self.url, self.is_sqlite, SQLITE_READERS if self.is_sqlite else 5)
        if self.is_sqlite:
            event.listen(self.reading.sync_engine, "connect", _configure_reader)
        self.writing = make_engine(self.url, self.is_sqlite, 1 if self.is_sqlite else 5)
        for engine in (self.reading, self.writing):
            event.listen(engine.sync_engine, "handle_error", self._translate_network_error)
        # SQLite has one writer at a time. Waiting here is fair and cheap; waiting inside SQLite is neither.
        self._write_lock = FairWriteLock(1) if self.is_sqlite else None

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reading statements. Raises `DatabaseError`.

        On Postgres each statement sees its own snapshot.
        """
        with self._translated_errors():
            async with self._connected(self.reading) as plain:
                # Equivalent to READ COMMITTED, without the round trips that begin and end a transaction.
                level = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
                yield await plain.execution_options(**level)

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a reading transaction whose statements all see the same snapshot. Raises `DatabaseError`.

        On SQLite every reading transaction has one.
        """
        with self._translated_errors():
            async with self._connected(self.reading) as plain:
                level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
                yield await plain.execution_options(**level)

    @contextlib.asynccontextmanager
    async def write(
        self, name: str = "", cost: float = 0.0, *, patience: float | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that commits at the end of the block and rolls back if the block raises.

        Where writers compete, those of the same ``name`` share the lock in proportion to their ``cost`` in
        bytes, and small transactions come before backlogs. ``patience`` is the number of seconds to wait for a row that
        another transaction has locked, after which `DatabaseBusyError` is raised; None waits without limit. SQLite
        locks no rows. Raises `DatabaseError`.
        """
        async with (
            self._write_lock.hold(name, max(cost, TRANSACTION))
            if self._write_lock is not None
            else contextlib.nullcontext()
        ):
            with self._translated_errors():
                async with self._connected(self.writing) as plain:
                    connection = await plain.execution_options(spikewatch_write=True)
                    async with connection.begin():
                        if patience is not None and not self.is_sqlite:
                            await connection.execute(text(f"SET LOCAL lock_timeout = {round(1_000 * patience)}"))
                        yield connection

    @contextlib.asynccontextmanager
    async def bare(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection to Postgres for statements that cannot run in a transaction, such as VACUUM.

        Raises `DatabaseError`.
        """
        with self._translated_errors():
            async with self._connected(self.writing) as plain:
                yield await plain.execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Open a connection of the pool. Only errors of opening it count as network errors: the block may
        raise others.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(engine.connect())
            except OSError as error:
                raise self._unreachable(error) from error
            yield connection

    def _unreachable(self, error: BaseException) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(f"the database {self._name} cannot be reached ({error})")

    def _translate_network_error(self, context: ExceptionContext) -> None:
        """Translate network errors, TimeoutError among them, which the driver does not wrap."""
        if isinstance(context.original_exception, OSError):
            raise self._unreachable(context.original_exception) from context.original_exception

    @property
    def _name(self) -> str | None:
        return self.url.database if self.is_sqlite else self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turn driver errors into `DatabaseError`. Programming errors in a statement pass unchanged."""
        name = self._name
        try:
            yield
        except (exc.DBAPIError, sqlite3.Error) as error:
            cause = str(error.orig if isinstance(error, exc.DBAPIError) else error)
            if any(word in cause for word in _CORRUPT):
                raise DatabaseCorruptError(
                    f"the database {name} is damaged or not a database ({cause}); move it away or restore a backup"
                ) from error
            if any(word in cause for word in _FULL) or _sqlstate(error) == "53100":
                raise DatabaseUnavailableError(
                    f"there is no space left for the database {name} ({cause}); free some space: until then nothing is "
                    "acknowledged, and clients keep their records"
                ) from error
            if _sqlstate(error) in _BUSY:
                raise DatabaseBusyError(
                    f"other transactions of the database {name} block this one ({cause})"
                ) from error
            if _is_passing(error) or isinstance(
                error, exc.OperationalError | exc.InterfaceError | sqlite3.OperationalError
            ):
                raise DatabaseUnavailableError(f"the database {name} does not answer ({cause})") from error
            raise
        except exc.TimeoutError as error:
            raise DatabaseUnavailableError("no connection to the database became free in time") from error

    async def ping(self) -> None:
        """Raise `DatabaseError` if the database does not answer."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close all connections."""
        await self.reading.dispose()
        await self.writing.dispose()


def _sqlstate(error: Exception) -> str | None:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state if isinstance(state, str) else None


def _is_passing(error: Exception) -> bool:
    """Return whether the same may succeed later. asyncpg distinguishes most of these errors by their SQLSTATE alone."""
    if not isinstance(error, exc.DBAPIError):
        return False
    state = _sqlstate(error)
    if state == _IDLE_TOO_LONG:
        return True
    return error.connection_invalidated or (state is not None and state[:2] in _PASSING_CLASSES)


def parse_url(url: str) -> URL:
    """Parse a URL, and select the async driver that this package depends on. Raises `ConfigurationError`.

    >>> parse_url("postgresql://user@host/name").drivername
    'postgresql+asyncpg'
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ConfigurationError(
            "the database URL cannot be read; use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    driver = _DRIVERS.get(parsed.get_backend_name())
    if driver is None:
        raise ConfigurationError(
            f"the database {parsed.get_backend_name()!r} is not supported; use sqlite or postgresql"
        )
    return parsed.set(drivername=driver)


def _encode_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def make_engine(url: URL, is_sqlite: bool, connections: int) -> AsyncEngine:
    """Create an engine with ``connections`` connections; on Postgres up to as many more under load."""
    options: dict[str, Any] = {"json_serializer": _encode_json, "json_deserializer": msgspec.json.decode}
    if not is_sqlite:
        settings = {"idle_in_transaction_session_timeout": str(IDLE_TIMEOUT), "application_name": "spikewatch"}
        options["connect_args"] = {"server_settings": settings}
        return create_async_engine(
            url, pool_size=connections, max_overflow=connections, pool_timeout=10, pool_pre_ping=True, **options
        )
    if url.database in (None, "", ":memory:"):
        raise ConfigurationError("a database in memory would lose acknowledged data; specify a file")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DatabaseError(f"the directory of the database {url.database} cannot be created ({error})") from error
    # The connection used last is used next: its pages are warm, and those that a busy moment opened stay small.
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, pool_use_lifo=True, **options)
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # The driver would begin transactions by itself, too late for a consistent snapshot. `_begin_sqlite` begins them.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in (
        "auto_vacuum = INCREMENTAL",  # for a new file: allows the space of deleted runs to be returned
        f"busy_timeout = {BUSY_TIMEOUT}",
        "journal_mode = WAL",
        "synchronous = FULL",  # an acknowledged record survives a power failure, not only a crash
        "foreign_keys = ON",
        "cache_size = -2048",  # KiB; the operating system caches the file anyway
        "temp_store = MEMORY",
        "journal_size_limit = 67108864",
    ):
        _execute_patiently(cursor, f"PRAGMA {pragma}")
    cursor.close()


def _configure_reader(dbapi_connection: Any, _record: Any) -> None:
    # Enough for the inner pages of the indices. Queries read each page of a tile once: 2 MiB made none of them faster.
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA cache_size = -{READER_CACHE}")
    cursor.close()


def _execute_patiently(cursor: Any, statement: str) -> None:
    """Execute a statement, and retry while SQLite reports a lock without having waited for it.

    Processes that open a new file at the same time may lock each other out of switching it to WAL mode
    (https://www.sqlite.org/wal.html#sometimes_queries_return_sqlite_busy_in_wal_mode).
    """
    deadline = time.monotonic() + BUSY_TIMEOUT / 1000
    while True:
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(LOCKED_RETRY)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first and writes later can fail without waiting; an immediate one waits.
    immediate = connection.get_execution_options().get("spikewatch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def insert_ignore(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that skips rows that exist already."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()
