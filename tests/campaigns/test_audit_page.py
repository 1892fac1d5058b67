"""The page of the checks is the one that the catalogue makes."""

from __future__ import annotations

from pathlib import Path

from campaigns.audit.page import page
from client_sdk.audit_checks import AUDIT_CHECKS

PAGE = Path(__file__).parents[2] / "docs/reference/audit.md"


def test_the_page_is_made_from_the_catalogue() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make audit-table`, which writes the page"


def test_every_check_has_words_for_people() -> None:
    for check in AUDIT_CHECKS.values():
        assert all([check.claim, check.fault, check.how, check.source, check.advice]), check.name
        assert check.within >= 0
