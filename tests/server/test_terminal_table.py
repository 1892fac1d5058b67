"""Tables of the command line, in a terminal and in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from server.terminal_table import print_table

HEADER = ("RUN", "NAME", "STEP")
ROWS = (("r1", "a\x1b[2Jb", "10"), ("run-with-a-long-id" * 10, "[bold]c[/bold]", ""))


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_columns_that_are_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADER, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == list(HEADER)
    assert lines[1].split() == ["r1", "a\N{REPLACEMENT CHARACTER}[2Jb", "10"]
    assert lines[2].split() == [ROWS[1][0], "[bold]c[/bold]"], "text of users is not markup"
    assert all(line == line.rstrip() for line in lines)


def test_a_terminal_gets_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(HEADER, ROWS)
    text = terminal.getvalue()
    assert all(title in text for title in HEADER)
    assert "[bold]c[/bold]" in text
    assert "\x1b[2J" not in text, "text of users is not interpreted by the terminal"
