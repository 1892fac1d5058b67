"""The send window adapts to how fast the server acknowledges."""

from __future__ import annotations

from client_sdk.send_window import INITIAL_BYTES, MAX_BATCHES, MAX_BYTES, MIN_BYTES, PROMPT, SHRINK_FACTOR, SendWindow


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_prompt_acknowledgements_widen_the_window_to_its_maximum() -> None:
    window = SendWindow(Clock())
    for seq in range(1, 12):
        window.sent(seq, INITIAL_BYTES)
        window.acknowledged(seq)
    assert window.size == MAX_BYTES


def test_late_acknowledgements_do_not_widen_the_window() -> None:
    clock = Clock()
    window = SendWindow(clock)
    window.sent(1, INITIAL_BYTES)
    clock.now = PROMPT
    window.acknowledged(1)
    assert window.size == INITIAL_BYTES


def test_connections_that_end_without_an_acknowledgement_shrink_the_window_to_its_minimum() -> None:
    clock = Clock()
    window = SendWindow(clock)
    sizes = []
    for seq in range(1, 5):
        window.sent(seq, 1)
        clock.now += PROMPT + 1
        window.disconnected()
        sizes.append(window.size)
    assert sizes == [INITIAL_BYTES // SHRINK_FACTOR, MIN_BYTES, MIN_BYTES, MIN_BYTES]


def test_connection_that_ends_at_once_or_idle_does_not_shrink_the_window() -> None:
    clock = Clock()
    window = SendWindow(clock)
    window.sent(1, 1)
    window.disconnected()
    clock.now += 100
    window.disconnected()
    assert window.size == INITIAL_BYTES


def test_window_is_limited_in_bytes_and_in_batches() -> None:
    window = SendWindow(Clock())
    assert (window.has_room, window.last_seq, len(window)) == (True, 0, 0)
    window.sent(3, INITIAL_BYTES)
    assert (window.has_room, window.last_seq, len(window)) == (False, 3, 1)
    window.acknowledged(3)
    for seq in range(4, 4 + MAX_BATCHES):
        assert window.has_room
        window.sent(seq, 1)
    assert not window.has_room
