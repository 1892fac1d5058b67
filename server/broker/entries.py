"""Entries of streams, their ids, and the cursors made of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.broker.memory import MAX_DIGITS

EntryId = tuple[int, int]
"""Of an entry: (milliseconds, number), in the order of the stream."""
Fields = dict[bytes, bytes]


def parse_cursor(cursor: str | None) -> tuple[str, EntryId | None]:
    """(generation, id); the id is None where there is none."""
    generation, *numbers = (cursor or "").split("-")
    if len(numbers) != 2 or not all(text.isdecimal() and len(text) <= MAX_DIGITS for text in numbers):
        return "", None
    return generation, (int(numbers[0]), int(numbers[1]))


def parse_id(text: bytes) -> EntryId:
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def format_id(number: EntryId) -> str:
    return f"{number[0]}-{number[1]}"


def parse_entry(item: Sequence[Any]) -> tuple[EntryId, Fields]:
    """An entry as a script or a command gives it."""
    number, fields = item
    return parse_id(number), fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
