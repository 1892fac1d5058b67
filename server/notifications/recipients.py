"""Decision about which channels are notified of the changes of a run's alerts. Pure.

`storage.detector_states` calls it in the transaction that stores the alerts, so that alerts and outbox never disagree.
`policy` decides later when a queued notification is sent, and whether it still has to be.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.notification import AlertChange, AlertedRun, Channel, NewNotification, change_of, incident_of


def recipients(run: AlertedRun, changes: Sequence[AlertChange], channels: Sequence[Channel]) -> list[NewNotification]:
    """Return one notification for each change and each channel that wants it, in the order of the changes.

    Nobody is notified of imported runs, because their alerts are about the past.
    """
    if run.is_imported:
        return []
    return [
        NewNotification(channel_id=channel.id, change=change, alert=item.alert, incident_id=incident_of(item.alert))
        for item in changes
        if (change := change_of(item.alert, item.level_before, item.state_before)) is not None
        for channel in channels
        if channel.wants(run.project, item.alert.kind, item.alert.level)
    ]
