"""Progress that `finish` prints while it waits."""

from __future__ import annotations

import io

from client_sdk.progress import KIBIBYTE, MEBIBYTE, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def draw(stream: io.StringIO, *moments: tuple[float, int]) -> str:
    clock = Clock()
    progress = Progress(stream, 100 * MEBIBYTE, clock=clock)
    for moment, left in moments:
        clock.now = moment
        progress.show(left * MEBIBYTE, connected=True)
    progress.close()
    return stream.getvalue()


def test_quick_finish_prints_nothing() -> None:
    assert draw(Terminal(), (0.2, 90), (0.9, 10)) == ""


def test_terminal_gets_a_bar_that_is_redrawn() -> None:
    text = draw(Terminal(), (1.0, 75), (1.1, 60), (1.3, 50))
    assert text.count("\r") == 2
    assert "25.0 of 100.0 MiB,  25% [██████··················]" in text
    assert text.endswith(" 50% [████████████············]\n")


def test_file_gets_a_few_plain_lines() -> None:
    text = draw(io.StringIO(), *((1.0 + step, 99 - step) for step in range(25)))
    assert "\r" not in text
    assert [line.split(", ")[1] for line in text.splitlines()] == [
        "1.0 of 100.0 MiB",
        "11.0 of 100.0 MiB",
        "21.0 of 100.0 MiB",
    ]


def test_closed_stream_is_ignored() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, 10, clock=clock)
    nowhere = Progress(None, 10, clock=clock)
    stream.close()
    clock.now = 5.0
    for one in (progress, nowhere):
        one.show(5, connected=True)
        one.close()
    assert stream.closed


def test_few_bytes_are_printed_in_kibibytes_and_a_missing_server_is_named() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, 2 * KIBIBYTE, clock=clock)
    clock.now = 1.0
    progress.show(2 * KIBIBYTE, connected=False)
    assert stream.getvalue() == "spikewatch: waiting for a server, 0.0 of 2.0 KiB,   0%\n"
