"""Entries of Redis streams, their ids, and the cursors that contain these ids. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.broker.memory import MAX_DIGITS

EntryId = tuple[int, int]
"""Id of an entry: (milliseconds, number), ordered like the stream."""
Fields = dict[bytes, bytes]


def parse_cursor(cursor: str | None) -> tuple[str, EntryId | None]:
    """Split a cursor into its generation and id; the id is None if the cursor is missing or malformed.

    >>> parse_cursor("0123abcd-1700000000000-4")
    ('0123abcd', (1700000000000, 4))
    >>> parse_cursor("nonsense")
    ('', None)
    """
    generation, *numbers = (cursor or "").split("-")
    if len(numbers) != 2 or not all(text.isdecimal() and len(text) <= MAX_DIGITS for text in numbers):
        return "", None
    return generation, (int(numbers[0]), int(numbers[1]))


def parse_id(text: bytes) -> EntryId:
    """Parse an id as Redis formats it."""
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def format_id(number: EntryId) -> str:
    """Format an id as Redis expects it."""
    return f"{number[0]}-{number[1]}"


def parse_entry(item: Sequence[Any]) -> tuple[EntryId, Fields]:
    """Parse an entry that a script or a command returned."""
    number, fields = item
    return parse_id(number), fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
