"""Tables on standard output: laid out by rich in a terminal, plain columns for pipes."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 100_000  # characters; a line that goes into a pipe is never wrapped


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under a header.

    Characters that a terminal would interpret are replaced, because names in a table come from users.
    """
    is_terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if is_terminal:
        Console().print(table)
        return
    lines = io.StringIO()
    Console(file=lines, width=PIPE_WIDTH, color_system=None).print(table)
    for line in lines.getvalue().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def printable(text: str) -> str:
    """Return the text with every non-printable character replaced.

    >>> printable("a\\x1b[2Jb")
    'a�[2Jb'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
