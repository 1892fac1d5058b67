"""The inbox returns segments without gaps, and reports where one is missing."""

from __future__ import annotations

import numpy as np

from server.pipeline.inbox import FreshSegment, Inbox, InboxBudget
from server.pyramid.columns import Columns

NOTHING = Columns(steps=np.zeros(0, np.int64), times=np.zeros(0), scalars={})


def segment(number: int, previous: int, *, rank: int = 0, size: int = 10) -> FreshSegment:
    return FreshSegment(
        id=number,
        previous_id=previous,
        rank=rank,
        attempt=0,
        committed_at=1.0,
        columns=NOTHING,
        layouts={},
        size=size,
    )


def taken(inbox: Inbox, position: int, rank: int = 0) -> list[int] | None:
    found = inbox.take(rank, position)
    return None if found is None else [one.id for one in found]


def test_segments_that_follow_each_other_come_together() -> None:
    inbox = Inbox(InboxBudget())
    for number, previous in ((4, 2), (5, 4), (9, 5)):
        assert inbox.offer(segment(number, previous))
    assert taken(inbox, 2) == [4, 5, 9]
    assert taken(inbox, 9) == []


def test_what_was_read_already_is_left_out() -> None:
    inbox = Inbox(InboxBudget())
    for number in (3, 4, 5):
        inbox.offer(segment(number, number - 1))
    assert taken(inbox, 4) == [5]


def test_a_gap_is_for_the_database() -> None:
    """Another server has committed the segment 4 of this rank."""
    inbox = Inbox(InboxBudget())
    inbox.offer(segment(3, 2))
    inbox.offer(segment(5, 4))
    assert taken(inbox, 2) == [3]
    assert taken(inbox, 3) is None
    assert taken(inbox, 4) == [5], "after the database was read"


def test_another_rank_does_not_follow() -> None:
    inbox = Inbox(InboxBudget())
    inbox.offer(segment(3, 0, rank=0))
    assert taken(inbox, 1, rank=2) is None
    inbox.drop()
    assert taken(inbox, 1, rank=2) == []


def test_compacted_segments_are_no_gap() -> None:
    inbox = Inbox(InboxBudget())
    inbox.offer(segment(8, 0))
    assert taken(inbox, 7) == [8]


def test_inboxes_share_their_room() -> None:
    room = InboxBudget(25)
    one, other = Inbox(room), Inbox(room)
    assert one.offer(segment(1, 0))
    assert other.offer(segment(2, 0))
    assert not one.offer(segment(3, 1)), "it is in the database"
    assert taken(one, 0) == [1]
    assert one.offer(segment(4, 3))
    assert taken(one, 1) is None
    one.clear()
    other.clear()
    assert room.free == 25
