"""Fragments are found, sentences are left alone, and docstrings are found wherever they stand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from checks.prose import docstrings, fault, main


@pytest.mark.parametrize(
    "text",
    [
        "Of its writer, by their number.",
        "What is due.",
        "Those that wait.",
        "Bytes.",
        "bytes of one file",
        "A sentence without end",
    ],
)
def test_a_fragment_is_a_fault(text: str) -> None:
    assert fault(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Layouts of the segment's writer, keyed by layout number.",
        "Return the sum of squares, shape (layers,).",
        "λ_max over the limit 2/η, without a unit.",
        "If the queue is full, the oldest record is dropped.",
    ],
)
def test_a_sentence_is_none(text: str) -> None:
    assert fault(text) is None


def test_docstrings_of_attributes_and_constants_are_found() -> None:
    source = '''"""Module."""
LIMIT = 1
"""Constant."""


class Noun:
    """Class."""

    size: int
    """Attribute."""

    def __init__(self) -> None:
        """Constructor."""
        self.name = ""
        """Instance attribute."""

    def verb(self) -> None:
        """Method."""
        name = "x"
        "no docstring"
'''
    found = [item.text for item in docstrings(source, "noun.py")]
    assert sorted(found) == sorted(
        ["Module.", "Constant.", "Class.", "Attribute.", "Constructor.", "Instance attribute.", "Method."]
    )


def test_the_command_names_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    Path("good.py").write_text('"""Everything here is fine."""\n')
    assert main([]) == 0
    Path("bad.py").write_text('"""A module like others."""\n\n\ndef verb():\n    """Of its writer, by number."""\n')
    assert main([]) == 1
    assert 'bad.py:5: begins like a fragment: "Of"' in capsys.readouterr().out
