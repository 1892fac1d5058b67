"""How much is under way, by how fast it is acknowledged."""

from __future__ import annotations

from client_sdk.send_window import BATCHES, FIRST, LARGEST, LEAST, PROMPT, SHRINKS, Window


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_prompt_acknowledgements_widen_it_to_its_limit() -> None:
    window = Window(Clock())
    for seq in range(1, 12):
        window.sent(seq, FIRST)
        window.acknowledged(seq)
    assert window.size == LARGEST


def test_late_acknowledgements_leave_it_as_it_is() -> None:
    clock = Clock()
    window = Window(clock)
    window.sent(1, FIRST)
    clock.now = PROMPT
    window.acknowledged(1)
    assert window.size == FIRST


def test_connection_that_ended_unanswered_narrows_it_down_to_a_least() -> None:
    clock = Clock()
    window = Window(clock)
    sizes = []
    for seq in range(1, 5):
        window.sent(seq, 1)
        clock.now += PROMPT + 1
        window.lost()
        sizes.append(window.size)
    assert sizes == [FIRST // SHRINKS, LEAST, LEAST, LEAST]


def test_connection_that_was_cut_at_once_or_idle_does_not_narrow_it() -> None:
    clock = Clock()
    window = Window(clock)
    window.sent(1, 1)
    window.lost()
    clock.now += 100
    window.lost()
    assert window.size == FIRST


def test_it_is_full_of_bytes_or_of_batches() -> None:
    window = Window(Clock())
    assert (window.has_room, window.last, len(window)) == (True, 0, 0)
    window.sent(3, FIRST)
    assert (window.has_room, window.last, len(window)) == (False, 3, 1)
    window.acknowledged(3)
    for seq in range(4, 4 + BATCHES):
        assert window.has_room
        window.sent(seq, 1)
    assert not window.has_room
