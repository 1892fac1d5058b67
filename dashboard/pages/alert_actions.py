"""Form actions of alerts, which every page with alerts offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties
from dashboard.pages.alert_cards import SILENCE_MINUTES


async def acknowledge(action: FormAction, context: ActionContext) -> Properties:
    """Acknowledge an alert. The page receives the change as news, like any other change of an alert."""
    await context.client.acknowledge(action.subject)
    return {}


async def silence(action: FormAction, context: ActionContext) -> Properties:
    """Silence the notifications of an alert for `SILENCE_MINUTES`. The page receives the change as news."""
    await context.client.silence(action.subject, SILENCE_MINUTES)
    return {}


ALERT_ACTIONS: Final[Mapping[str, Handler]] = {"acknowledge": acknowledge, "silence": silence}
"""Handlers keyed by verb."""
