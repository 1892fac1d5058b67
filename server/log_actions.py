"""The actions of log records: stable names of what happened, each with one sentence.

A record carries its action in the field ``action``; filters and alerts should use it instead of the message.
docs/reference/server-metrics.md has the same list.
"""

from __future__ import annotations

from enum import StrEnum


class LogAction(StrEnum):
    """A name of something that happened, with its ``description``."""

    description: str

    def __new__(cls, value: str, description: str) -> LogAction:
        """Create a member whose value is its name in the log."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    LOGIN = "login", "A user logged in to the dashboard."
    LOGIN_REFUSED = "login_refused", "A login failed because the token or password was wrong."
    LOGIN_THROTTLED = "login_throttled", "A login was refused because its address has failed too often."
    TOKEN_RECHECK_FAILED = "token_recheck_failed", "The tokens of open connections could not be checked again."
    TOKEN_TOUCH_FAILED = "token_touch_failed", "The time at which a token was used could not be stored."
    CONNECTIONS_TURNED_AWAY = "connections_turned_away", "Connections were closed to keep the limits of the process."
    NOT_READY = "not_ready", "A readiness check failed."

    INGEST_STORAGE_UNAVAILABLE = "ingest_storage_unavailable", "A training process was refused as the database failed."
    INGEST_SEND_TIMEOUT = "ingest_send_timeout", "A training process did not read its answers and was disconnected."
    INGEST_FAILED = "ingest_failed", "An ingest connection ended with an unexpected error."
    API_STORAGE_UNAVAILABLE = "api_storage_unavailable", "An API request was refused because the database failed."
    REQUEST_FAILED = "request_failed", "An API request ended with an unexpected error."
    DATA_CORRUPT = "data_corrupt", "An API request met stored measurements that cannot be read."
    EXPORT_BROKE_OFF = "export_broke_off", "A streamed export ended before its last record."

    ANNOUNCE_FAILED = "announce_failed", "Run summaries could not be read for publication."
    PUBLICATION_DELAYED = "publication_delayed", "Live messages of a run wait because its project could not be read."
    PUBLICATION_FAILED = "publication_failed", "The broker refused a live message; viewers read the run again."
    PUBLICATIONS_DROPPED = "publications_dropped", "Live messages did not fit the queue; viewers read the runs again."
    REDIS_UP = "redis_up", "Redis answers, so viewers of all servers receive everything."
    REDIS_LOST = "redis_lost", "Redis stopped answering, so viewers receive only what their own server publishes."
    REDIS_AWAY = "redis_away", "Redis still does not answer."
    REDIS_FAILED = "redis_failed", "A request to Redis failed unexpectedly."
    TAIL_SKIPPED = "tail_skipped", "This server read the live stream too slowly; its viewers read the runs again."
    LEASE_FAILED = "lease_failed", "A lease in Redis could not be taken, kept or released."
    LEASES_FAILED = "leases_failed", "The leases of the followed runs could not be renewed."

    FOLLOWER_FAILED = "follower_failed", "The detectors of a run stopped and are started again."
    DETECTORS_NOT_SAVED = "detectors_not_saved", "The detectors of a run could not be saved at shutdown."
    SNAPSHOT_REFUSED = "snapshot_refused", "Saved detectors have another version and begin fresh."
    SEGMENT_CORRUPT = "segment_corrupt", "The detectors skipped a damaged segment."
    RULE_UNREADABLE = "rule_unreadable", "A stored alert rule cannot be read and is not applied."
    HEARTBEAT_FAILED = "heartbeat_failed", "The states of the runs could not be updated."

    RUN_EXPIRED = "run_expired", "A run exceeds the retention period and is being deleted."
    RUN_DELETED = "run_deleted", "The data of a deleted run has been removed."
    DELETION_WAITS = "deletion_waits", "Deletions are delayed because the database failed."
    DELETION_FAILED = "deletion_failed", "Deletions ended with an unexpected error and are repeated."
    COMPACTION_WAITS = "compaction_waits", "Compaction is delayed because the database failed."
    COMPACTION_FAILED = "compaction_failed", "Compaction ended with an unexpected error and is repeated."
    COMPACTION_CORRUPT = "compaction_corrupt", "Compaction of a run stopped at damaged data."
    TILE_CORRUPT = "tile_corrupt", "A damaged tile was replaced by the level below it."
    RECORDS_MISSING = "records_missing", "Stored records of a writer are missing."

    SENDER_FAILED = "sender_failed", "The dispatcher of notifications failed and is started again."
    NOTIFICATION_SENT = "notification_sent", "A channel accepted a notification."
    NOTIFICATION_RETRY = "notification_retry", "A channel did not accept a notification; it is sent again."
    NOTIFICATION_REFUSED = "notification_refused", "A channel refused a notification for good."
    NOTIFICATION_DEAD = "notification_dead", "A channel cannot accept any notification until it is changed."
    BLOCKS_REFUSED = "blocks_refused", "Slack refused the layout of a notification, which was sent as plain text."
    PICTURE_FAILED = "picture_failed", "Slack did not accept the picture of an alert."
