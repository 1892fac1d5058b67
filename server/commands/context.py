"""Options, settings and error handling that the commands share."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from server import logs
from server.config import Config
from server.errors import ConfigurationError, ServerError
from server.storage.database import Database, parse_url

Result = TypeVar("Result")

EXIT_UNUSABLE = 2
"""Exit code if the settings, the port or the database cannot be used."""

Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. [default: 8787]")]
Data = Annotated[Path | None, typer.Option(help="Directory of the data. [default: ~/.spikewatch/data]")]
RunId = Annotated[str, typer.Argument(help="Id of the run, from `spikewatch runs`.")]


def load_config(**given: Any) -> Config:
    """Return the settings of the environment, overridden by the options that are not None, and set up logging.

    Raises `ConfigurationError` if a setting is invalid.
    """
    try:
        config = Config(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError(f"SPIKEWATCH_{name}: {first['msg']}") from error
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    logs.configure(config.log_format, config.log_level)
    return config


def require_database(config: Config) -> Config:
    """Return the settings if their database exists. Raises `ConfigurationError` if a database file is missing.

    Commands that only read call this, so that a mistyped path does not create an empty database.
    """
    url = parse_url(config.resolved_database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise ConfigurationError(f"there is no database {url.database}; set --data or SPIKEWATCH_DATA to its directory")
    return config


def with_database(config: Config, use: Callable[[Database], Awaitable[Result]]) -> Result:
    """Open the database, run a coroutine with it in a new event loop, close it and return the result."""

    async def run() -> Result:
        database = Database(config.resolved_database_url)
        try:
            return await use(database)
        finally:
            await database.close()

    return asyncio.run(run())


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can correct into one line on stderr and exit code 2, without a traceback."""
    try:
        yield
    except ServerError as error:
        print(f"spikewatch: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_UNUSABLE) from error
