"""Docstrings that a reader understands without the line above: the part of that rule which a program can see.

``python -m checks.prose [PATH…]`` prints one line for each docstring that begins like a fragment ("What …", "Of …"),
does not begin with a capital letter or a symbol, does not end as a sentence ends, or has fewer than three words, and
exits with code 1. Without arguments it reads every Python file that git tracks. Docstrings are those of modules,
classes and functions, and the string below an attribute or a constant.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FRAGMENTS: Final = frozenset(
    {
        "also", "and", "as", "because", "but", "by", "else", "for", "from", "how", "if", "in", "it", "its", "none:",
        "of", "or", "so", "than", "that", "their", "them", "they", "this", "those", "until", "what", "where", "which",
        "who", "whose", "with", "without",
    }
)  # fmt: skip
"""First words of docstrings that continue a sentence from somewhere else instead of beginning their own."""
SENTENCE_STARTERS: Final = re.compile(
    r"(?:as|because|by|for|from|if|in|until|where|with|without|it|this|they)\b[^.]*?, ", re.IGNORECASE
)
"""A subordinate clause that a main clause follows: "If the queue is full, the oldest record is dropped."."""
ENDINGS: Final = (".", "!", "?", ":", "…", ".)", '."', ".'", ".`")
LEAST_WORDS: Final = 3

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """A docstring and where it stands."""

    path: str
    line: int
    text: str


def docstrings(source: str, path: str) -> Iterator[Docstring]:
    """Yield the docstrings of modules, classes, functions, attributes and constants in the order of the file."""
    for node in ast.walk(ast.parse(source, path)):
        if not isinstance(node, _Documented):
            continue
        expects = True
        for statement in node.body:
            text = _string(statement)
            if text is not None and expects:
                yield Docstring(path=path, line=statement.lineno, text=text)
            expects = isinstance(statement, ast.Assign | ast.AnnAssign) and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef
            )
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "__init__":
                expects = isinstance(statement, ast.Assign | ast.AnnAssign)


def fault(text: str) -> str | None:
    """Return why a docstring does not stand on its own, or None.

    >>> fault("Of its writer, by their number.")
    'begins like a fragment: "Of"'
    >>> fault("Layouts of the segment's writer, keyed by layout number.") is None
    True
    >>> fault("If the queue is full, the oldest record is dropped.") is None
    True
    >>> fault("Bytes.")
    'has fewer than 3 words'
    """
    paragraph = text.strip().split("\n\n")[0].strip()
    words = paragraph.split()
    if len(words) < LEAST_WORDS:
        return f"has fewer than {LEAST_WORDS} words"
    first = words[0]
    if first.lower().rstrip(",") in FRAGMENTS and not SENTENCE_STARTERS.match(" ".join(words)):
        return f'begins like a fragment: "{first}"'
    if first[0].islower() and first.isascii() and first.isalpha():
        return f'begins with a small letter: "{first}"'
    if not paragraph.endswith(ENDINGS):
        return f'does not end like a sentence: "{words[-1]}"'
    return None


def _string(statement: ast.stmt) -> str | None:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return None
    value = statement.value.value
    return value if isinstance(value, str) else None


def main(arguments: list[str]) -> int:
    """Print the faults of the named files and folders, or of all that git tracks, and return the exit code."""
    named = arguments or ["."]
    listed = subprocess.run(  # noqa: S603
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *named],  # noqa: S607
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count = 0
    for path in sorted(line for line in listed.stdout.splitlines() if line.endswith(".py") and Path(line).is_file()):
        for found in docstrings(Path(path).read_text(encoding="utf-8"), path):
            reason = fault(found.text)
            if reason is not None:
                count += 1
                print(f"{found.path}:{found.line}: {reason}")
    print(f"{count} docstrings do not stand on their own" if count else "every docstring stands on its own")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
