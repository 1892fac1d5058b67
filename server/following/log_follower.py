"""Follows all logs below some paths: looks for new ones, and wakes the feeds of those that have changed.

Files are looked at in intervals, because network disks report no changes. Each path has threads of its own, so that a
disk that does not answer stops the logs on it alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec

from client_sdk.protocol import Alert
from server.errors import ConfigurationError, ImportFileError, ServerError
from server.following.address import Address
from server.following.feed import Feed, FeedOptions
from server.following.feed_state import StateFile
from server.following.log_source import LogSource
from server.following.search import LogSearch
from server.following.server_link import ServerLink
from server.imports.logged_run import Note
from server.imports.options import ReadOptions

LOOK_EVERY = 2.0  # seconds between two searches for new logs
SEARCH_SHARE = 0.05
"""Share of the time that searches may take: a folder with very many files is searched less often."""
POLL_EVERY = 0.1  # seconds between two looks at the files
THREADS = 4  # of each path
RECENT = 3_600.0  # seconds; logs in folders that have not changed for longer wait until they grow


@dataclass(frozen=True, kw_only=True)
class FollowOptions:
    """Choices of the user."""

    reading: ReadOptions = field(default_factory=ReadOptions)
    project: str | None = None
    renames: dict[str, str] = field(default_factory=dict)
    includes_old: bool = False
    """Whether logs in folders are also read if nobody has written to them for an hour."""
    poll_every: float = POLL_EVERY
    """Seconds between two looks at the files."""


class LogFollower:
    """Follows logs until it is cancelled. Used from one event loop."""

    def __init__(
        self,
        paths: Sequence[Path],
        address: Address,
        options: FollowOptions,
        *,
        directory: Path,
        note: Note,
        on_alert: Callable[[str, Alert], None] = lambda name, alert: None,
        server: str | None = None,
    ) -> None:
        """``directory`` keeps how far each log has been read, for each ``server``, by default its URL.

        ``note`` receives what is worth saying, and ``on_alert`` the name of a run and an alert about it.
        """
        self._paths = [path.expanduser() for path in paths]
        self._options = options
        self._directory = directory
        self._said: set[str] = set()
        self._followed: set[Path] = set()
        self._tell = note
        self._link = ServerLink(address, self._say_again, on_alert)
        self._key = _key(server or address.url, options)

    async def run(self) -> None:
        """Follow until cancelled.

        Raises `ImportFileError` if one of the paths is a file that cannot be followed, and `ConfigurationError` if the
        server refuses the follower.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for path in self._paths:
                    tasks.create_task(self._watch(path, tasks))
        except BaseExceptionGroup as group:
            known = group.subgroup(ServerError)
            raise _first(known if known is not None else group) from None

    async def _watch(self, path: Path, tasks: asyncio.TaskGroup) -> None:
        """Look for logs below one path, and at those that were found."""
        since = None if self._options.includes_old else time.time() - RECENT
        search = LogSearch(path, self._options.reading, self._note, since=since, is_known=self._is_known)
        feeds: list[Feed] = []
        loop, look_at = asyncio.get_running_loop(), 0.0
        with ThreadPoolExecutor(THREADS, thread_name_prefix="follow") as executor:
            while True:
                now = time.monotonic()
                if now >= look_at:
                    found = await loop.run_in_executor(executor, search.look)
                    look_at = time.monotonic() + max(LOOK_EVERY, (time.monotonic() - now) / SEARCH_SHARE)
                    for source in found:
                        feed = self._feed(source, executor, is_asked_for=source.path == path)
                        if feed is not None:
                            feeds.append(feed)
                            tasks.create_task(self._follow(feed, feeds, is_asked_for=source.path == path))
                changed = await loop.run_in_executor(executor, _changed, [feed for feed in feeds if feed.waits])
                for feed in changed:
                    feed.wake()
                await asyncio.sleep(self._options.poll_every)

    def _feed(self, source: LogSource, executor: ThreadPoolExecutor, *, is_asked_for: bool) -> Feed | None:
        if source.path.absolute() in self._followed:  # two of the paths contain it
            return None
        self._followed.add(source.path.absolute())
        try:
            state = StateFile(self._directory, source.path, self._key)
        except ConfigurationError as error:
            if is_asked_for:
                raise
            self._note(str(error))
            return None
        sdk = f"follow/{version('spikewatch')}"
        options = FeedOptions(project=self._options.project, renames=self._options.renames, sdk=sdk)
        return Feed(source, state, self._link, options=options, note=self._note, executor=executor)

    async def _follow(self, feed: Feed, feeds: list[Feed], *, is_asked_for: bool) -> None:
        try:
            await feed.run()
        except ImportFileError as error:
            if is_asked_for:
                raise
            self._note(f"{error}; it is not followed")
            feeds.remove(feed)

    def _is_known(self, path: Path) -> bool:
        return StateFile.is_known(self._directory, path, self._key)

    def _note(self, text: str) -> None:
        """Say something once."""
        if text not in self._said:
            self._said.add(text)
            self._tell(text)

    def _say_again(self, text: str) -> None:
        self._tell(text)


def _changed(feeds: Sequence[Feed]) -> list[Feed]:
    return [feed for feed in feeds if feed.source.has_news()]


def _key(server: str, options: FollowOptions) -> str:
    """Return what tells apart two ways to follow the same log."""
    return msgspec.json.encode([server, options.project, sorted(options.renames.items()), options.reading.key]).decode()


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
