"""The list of all pages. A new page is added here and nowhere else."""

from __future__ import annotations

from typing import Final

from dashboard.pages import alert, alerts, compare, fleet, rules, run, settings_page
from dashboard.shell.page import Page

PAGES: Final[tuple[Page, ...]] = (
    fleet.PAGE,
    run.PAGE,
    compare.PAGE,
    alerts.PAGE,
    alert.PAGE,
    rules.PAGE,
    settings_page.PAGE,
)
