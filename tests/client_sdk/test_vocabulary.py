"""The vocabulary is complete: every name in it has one meaning, and the code that fills names in uses no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from client_sdk.stats.layer_statistics import MEASURED
from client_sdk.vocabulary import EVIDENCE, LEVEL_RANK, SCALARS, STATISTICS, AlertLevel

ROOT = Path(__file__).parents[2]


def test_levels_are_ordered_from_mild_to_severe() -> None:
    assert sorted(AlertLevel, key=LEVEL_RANK.__getitem__) == ["watch", "warning", "critical"]


@pytest.mark.parametrize("table", [SCALARS, STATISTICS], ids=["scalars", "statistics"])
def test_every_name_has_a_label_and_a_meaning(table: dict[str, object]) -> None:
    for name, item in table.items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert getattr(item, "label", "")
        assert getattr(item, "meaning", "")


def test_every_statistic_that_the_sdk_measures_is_described() -> None:
    assert set(MEASURED) <= set(STATISTICS)


def test_every_evidence_key_of_the_detectors_has_a_label() -> None:
    keys = set()
    for path in (ROOT / "server/detectors").glob("*.py"):
        for block in re.findall(r"evidence=\{(.*?)\}", path.read_text(encoding="utf-8"), re.DOTALL):
            keys |= set(re.findall(r'"([a-z_]+)":', block))
    assert keys
    assert keys - set(EVIDENCE) <= {"rule", "sign"}


def test_the_science_page_explains_every_statistic_by_its_formula() -> None:
    text = (ROOT / "docs/explanation/science.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in STATISTICS)
