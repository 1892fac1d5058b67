"""Channels that are notified of the changes of a run's alerts."""

from __future__ import annotations

import dataclasses

import pytest

from server.notification import AlertChange, AlertedRun, Change
from server.notifications.recipients import recipients
from tests.support.alerting import bot, spike

RUN = AlertedRun(project="demo")
OPENED = AlertChange(alert=spike("run"))


def test_each_change_is_sent_to_each_channel_that_wants_it() -> None:
    ours = dataclasses.replace(bot(), id="ours", project="demo")
    others = dataclasses.replace(bot(), id="others", project="other")
    every = dataclasses.replace(bot(), id="every")
    found = recipients(RUN, [OPENED], [ours, others, every])
    assert [(item.channel_id, item.change, item.alert) for item in found] == [
        ("ours", Change.OPENED, OPENED.alert),
        ("every", Change.OPENED, OPENED.alert),
    ]


def test_new_evidence_alone_notifies_nobody() -> None:
    known = AlertChange(alert=OPENED.alert, level_before=OPENED.alert.level, state_before=OPENED.alert.state)
    assert recipients(RUN, [known], [bot()]) == []


@pytest.mark.parametrize("is_imported", [False, True])
def test_nobody_is_notified_of_an_imported_run(is_imported: bool) -> None:
    run = dataclasses.replace(RUN, is_imported=is_imported)
    assert bool(recipients(run, [OPENED], [bot()])) is not is_imported
