"""Command line of the SDK: `python -m client_sdk sync DIRECTORY` sends the records of offline and killed runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from client_sdk.config import DEFAULT_DIRECTORY, ENV_DIR, Endpoint
from client_sdk.errors import ConfigurationError, SpoolError, TransportError
from client_sdk.recovery import deliver
from client_sdk.spool.directory import find_spools
from client_sdk.warner import Warner, logger


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 if everything was sent, 1 if not, 2 if an argument is invalid."""
    parser = argparse.ArgumentParser(prog="python -m client_sdk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="send the runs that are stored in a directory, then delete them")
    sync.add_argument("directory", nargs="?", type=Path, default=Path(os.environ.get(ENV_DIR) or DEFAULT_DIRECTORY))
    sync.add_argument("--url", help="address of the server (default: SPIKEWATCH_URL)")
    sync.add_argument("--token", help="write token (default: SPIKEWATCH_TOKEN)")
    sync.add_argument("--timeout", type=float, default=600.0, help="seconds for one run (default: %(default)g)")
    options = parser.parse_args(arguments)
    logger.setLevel(logging.ERROR)  # errors are printed once, below
    try:
        endpoint = Endpoint.resolve(url=options.url, token=options.token, environ=os.environ)
    except ConfigurationError as error:
        return _fail(2, str(error))
    if not options.directory.is_dir():
        return _fail(2, f"{options.directory} is not a directory")
    return _sync(options.directory.absolute(), endpoint, options.timeout)


def _sync(directory: Path, endpoint: Endpoint, timeout: float) -> int:
    spools = [entry for entry in find_spools(directory.parent) if entry[0] == directory] or find_spools(directory)
    if not spools:
        print(f"nothing to send in {directory}")
    unsent: set[tuple[str | None, int]] = set()
    for spool, meta in spools:
        trainer = (meta.hello.run_id, meta.hello.rank)
        if trainer in unsent:
            _fail(1, f"{spool.name} was not sent: an earlier part of the same run must be sent first")
            continue
        try:
            count = deliver(spool, endpoint, Warner(), gives_up=_is_final, timeout=timeout)
        except SpoolError as error:
            unsent.add(trainer)
            _fail(1, str(error))
        except TransportError as error:
            return _fail(1, f"{spool.name} was not sent: {error}")
        else:
            print(f"{spool.name}: {count} records sent")
    return 1 if unsent else 0


def _is_final(error: TransportError) -> bool:
    """Return whether to give up: a user is waiting, so an unreachable or refusing server is reported at once."""
    return not error.retryable or error.code == "unreachable"


def _fail(code: int, message: str) -> int:
    print(f"client_sdk: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
