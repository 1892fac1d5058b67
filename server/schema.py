"""Tables of SQLite and Postgres. Owns names, types and constraints; `storage` owns every statement.

Times are Unix seconds (float). Steps and sequences are 64-bit. Documents are JSON, in which null stands for NaN.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite assigns row ids only in a column of the type INTEGER, which holds 64 bits there.
RowId = BigInteger().with_variant(Integer(), "sqlite")


def _run_reference() -> Column[str]:
    return Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


runs = Table(
    "runs",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("project", String(256), nullable=False),
    Column("name", String(256), nullable=False),
    Column("state", String(16), nullable=False),
    Column("config", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("optimizer", JSON),
    Column("created_at", Float(53), nullable=False),
    Column("last_seen_at", Float(53), nullable=False),
    Column("layer_count", Integer, nullable=False, default=0),
    Column("parameter_count", BigInteger, nullable=False, default=0),
    Column("rank_count", Integer, nullable=False, default=0),
    # Values that the follower of the run derives, saved together with the detector state.
    Column("last_step", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),
    # Number of repairs of the run. It is part of the run's version, because a repair may lose measurements.
    Column("repairs", Integer, nullable=False, default=0, server_default="0"),
    Column("step_rate", Float(53)),
    Column("loss", Float(53)),
    Column("lr", Float(53)),
    Column("stage", String(16)),
    Column("stage_reason", String(32)),
    Column("loss_name", String(256)),
    # First step that the detectors judged with this loss, null where they have read no other one.
    Column("loss_since", BigInteger),
    # Name of the scalar that the training's code chose as the loss, null where its usual names decide.
    Column("chosen_loss", String(256)),
    # Name of the scalar that a person chose as the loss of this run. It precedes the choice of the code.
    Column("loss_choice", String(256)),
    Column("stability_ratio", Float(53)),
    Column("sparkline", JSON),
    # What people wrote about the run, as plain text.
    Column("notes", Text),
    # Time at which somebody put the run away; null for a run that lists show.
    Column("archived_at", Float(53)),
    Index(None, "created_at", "id"),
    Index(None, "project", "created_at", "id"),
    Index(None, "state", "last_seen_at"),
)

# The scalar that is the loss of the runs of a project, where a run logs it and nothing else was chosen for the run.
project_losses = Table(
    "project_losses",
    metadata,
    Column("project", String(256), primary_key=True),
    Column("loss", String(256), nullable=False),
)

writers = Table(
    "writers",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("writer", String(128), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("last_seq", BigInteger, nullable=False, default=0),
    # Number of hellos. A connection with a lower epoch has lost the writer to a later connection.
    Column("epoch", BigInteger, nullable=False, default=0, server_default="0"),
    Column("state", String(16), nullable=False),
    Column("sdk", String(256), nullable=False, default=""),
    # Machine and software, as the client describes them; null where it does not.
    Column("environment", JSON(none_as_null=True)),
    Column("started_at", Float(53), nullable=False),
    Column("last_seen_at", Float(53), nullable=False),
    UniqueConstraint("run_id", "writer"),
    Index(None, "writer"),
)

# One row for each attempt of a rank, and one for each series of late records, which are merged into an attempt.
# Series of late records have negative numbers, so that the numbers of attempts stay consecutive.
attempts = Table(
    "attempts",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("started_at", Float(53), nullable=False),
    # The attempt that a series of late records belongs to; null for an attempt.
    Column("merged_into", Integer),
)

layouts = Table(
    "layouts",
    metadata,
    Column("writer_id", RowId, ForeignKey("writers.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("layers", JSON, nullable=False),
    Column("statistics", JSON, nullable=False),
    Column("sizes", JSON, nullable=False),
    Column("optimizer", JSON),
)

# Names that each rank has logged, so that a series is read from the ranks that have it.
scalars = Table(
    "scalars",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("name", String(256), primary_key=True),
)

# Append-only. Steps never decrease within a segment, and a segment belongs to one attempt.
segments = Table(
    "segments",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("writer_id", RowId, ForeignKey("writers.id", ondelete="CASCADE"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("committed_at", Float(53), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("checksum", BigInteger),  # CRC-32 of the payload
    UniqueConstraint("run_id", "writer_id", "first_seq"),
    Index(None, "writer_id", "first_seq"),
    Index(None, "run_id", "rank", "id"),
    # Everything that the compaction and the queries need before they read a payload.
    Index(
        "ix_segments_places",
        *("run_id", "rank", "writer_id", "attempt", "first_seq", "last_seq", "first_step", "last_step", "id"),
    ),
    sqlite_autoincrement=True,  # ids are never reused: caches and detectors rely on it
)

# The pyramid (`pyramid.tiles`). Spans of level 0 replace segments. Spans of a level above contain the same steps in
# wider buckets and are the parents of the spans that they were built from.
spans = Table(
    "spans",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("writer_id", RowId, ForeignKey("writers.id", ondelete="CASCADE"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("level", Integer, nullable=False),
    Column("width", BigInteger, nullable=False),
    Column("parent_id", RowId),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("steps", LargeBinary, nullable=False),
    Column("times", LargeBinary),
    UniqueConstraint("writer_id", "level", "first_seq"),
    Index(None, "run_id", "parent_id"),
    sqlite_autoincrement=True,  # ids are never reused: caches rely on it
)
# A partial index of the spans with a parent. With a full index, the search for spans of one run without a parent would
# read those of all runs.
Index(
    "ix_spans_parent_id",
    spans.c.parent_id,
    sqlite_where=spans.c.parent_id.is_not(None),
    postgresql_where=spans.c.parent_id.is_not(None),
)

tiles = Table(
    "tiles",
    metadata,
    Column("span_id", RowId, ForeignKey("spans.id", ondelete="CASCADE"), primary_key=True),
    Column("layout", Integer, primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("present", LargeBinary),
    Column("least", LargeBinary),
    Column("greatest", LargeBinary),
    Column("last", LargeBinary),  # null: found damaged, and lost
    Column("nonfinite", LargeBinary),
    Column("names", JSON(none_as_null=True)),  # names of the scalars in the tile; null for a statistic
)

histograms = Table(
    "histograms",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("writer_id", RowId, ForeignKey("writers.id", ondelete="CASCADE"), nullable=False),
    Column("layout", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("which", String(16), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index(None, "run_id", "which", "step"),
    Index(None, "writer_id", "attempt", "step", "id"),  # for exports, and for the deletion of a writer
)

events = Table(
    "events",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("rank", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Index(None, "run_id", "id"),
)

# `state` is that of the detectors. Decisions of users have their own columns, which detectors never overwrite.
alerts = Table(
    "alerts",
    metadata,
    Column("id", String(64), primary_key=True),
    _run_reference(),
    Column("kind", String(32), nullable=False),
    Column("level", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("opened_at", Float(53), nullable=False),
    Column("closed_at", Float(53)),
    Column("acknowledged_at", Float(53)),
    Column("silenced_until", Float(53)),
    Column("body", JSON, nullable=False),
    # Step of the outlier that the alert is about, and what other runs say about it (`outliers.coincidence`).
    Column("outlier_step", BigInteger),
    Column("coincidence", JSON(none_as_null=True)),
    Index(None, "run_id", "opened_at"),
    Index(None, "opened_at", "id"),
    Index(None, "state", "opened_at"),
)

# Detector states: how far the detectors of a run have read, replaced together with the alerts that they found.
monitors = Table(
    "monitors",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, nullable=False),
    Column("position", RowId, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("saved_at", Float(53), nullable=False),
    # Number of saves: of two followers of one run on two servers, only one succeeds, and the other one stops.
    Column("revision", BigInteger, nullable=False, default=0),
    # Time at which an alert rule about missing data may fire if nothing arrives; null for never.
    Column("due_at", Float(53)),
    # The part of the steps that the detectors have read (`models.Passage`); null before their first record.
    Column("first_step", BigInteger),
    Column("last_step", BigInteger),
    Column("interval", BigInteger),
    Column("axis", String(16)),
    Column("first_position", Float(53)),
    Column("last_position", Float(53)),
    Index(None, "due_at"),
)

# Outliers of the losses and marks (`models.Outlier`), by which the runs of a project are compared.
outliers = Table(
    "outliers",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("project", String(256), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("interval", BigInteger, nullable=False),
    Column("deviations", Float(53), nullable=False),  # 0: a mark
    Column("loss", Float(53), nullable=False),
    Column("baseline", Float(53), nullable=False),
    Column("is_quiet", Boolean, nullable=False),
    Column("is_large", Boolean, nullable=False),
    Column("axis", String(16)),
    Column("position", Float(53)),
    Column("spacing", Float(53), nullable=False),
    Column("pattern", LargeBinary, nullable=False),
    # What other runs say about the outlier (`answers.Coincidence`); null if none has passed its step.
    Column("coincidence", JSON(none_as_null=True)),
    # Whether runs that pass the step still change what is said about the outlier.
    Column("is_watched", Boolean, nullable=False),
    UniqueConstraint("run_id", "attempt", "step"),
    Index(None, "project", "step"),
)
Index(
    "ix_outliers_position",
    *(outliers.c.project, outliers.c.axis, outliers.c.position),
    sqlite_where=outliers.c.axis.is_not(None),
    postgresql_where=outliers.c.axis.is_not(None),
)
Index(
    "ix_outliers_sparse",
    *(outliers.c.project, outliers.c.step),
    sqlite_where=outliers.c.interval > 1,
    postgresql_where=outliers.c.interval > 1,
)
# Partial indexes of the few outliers that every save of a run searches, and of the few very large ones.
Index(
    "ix_outliers_watched",
    *(outliers.c.project, outliers.c.step),
    sqlite_where=outliers.c.is_watched,
    postgresql_where=outliers.c.is_watched,
)
Index(
    "ix_outliers_large",
    *(outliers.c.project, outliers.c.step),
    sqlite_where=outliers.c.is_large,
    postgresql_where=outliers.c.is_large,
)

# What the checks of the audit found, once for each run and check.
audit_findings = Table(
    "audit_findings",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("rank", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("message", Text, nullable=False),
    Column("layers", JSON, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("found_at", Float(53), nullable=False),
)

# How often each check of the audit has run in each writer, and the step of the writer's last report.
audit_runs = Table(
    "audit_runs",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("writer_id", RowId, ForeignKey("writers.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("runs", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Index(None, "writer_id"),  # for the deletion of a writer
)

# Checks of the audit whose findings the people of a project have dismissed.
audit_dismissals = Table(
    "audit_dismissals",
    metadata,
    Column("project", String(256), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("dismissed_at", Float(53), nullable=False),
)

rules = Table(
    "rules",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("project", String(256)),
    Column("body", JSON, nullable=False),
    Column("updated_at", Float(53), nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("digest", String(64), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("project", String(256)),
    Column("label", Text, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("last_used_at", Float(53)),
    Column("revoked_at", Float(53)),
    UniqueConstraint("digest"),
)

# Channels of notifications (`notification.Channel`). `sealed` is encrypted; `target` is a hint without secrets.
channels = Table(
    "channels",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("name", String(256), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("target", String(256), nullable=False),
    Column("project", String(256)),
    Column("min_level", String(16), nullable=False),
    Column("kinds", JSON),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text),
    Column("settings", JSON, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("last_sent_at", Float(53)),
    Column("last_error", Text),
    Column("failures", Integer, nullable=False, default=0),
    # The dispatcher that currently sends to the channel, and the time before which no attempt is made.
    Column("leased_by", String(64)),
    Column("leased_until", Float(53), nullable=False, default=0.0),
    Column("retry_at", Float(53), nullable=False, default=0.0),
)

# Notifications: one change of one alert for one channel, stored together with the change itself.
outbox = Table(
    "outbox",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("message_id", String(36), nullable=False),
    Column("channel_id", String(36), ForeignKey("channels.id", ondelete="CASCADE"), nullable=False),
    _run_reference(),
    Column("alert_id", String(64), nullable=False),
    Column("incident_id", String(64), nullable=False),
    Column("change", String(16), nullable=False),
    Column("body", JSON, nullable=False),
    Column("state", String(16), nullable=False),  # pending, sent, skipped or failed
    Column("note", Text),
    Column("attempts", Integer, nullable=False, default=0),
    Column("not_before", Float(53), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("done_at", Float(53)),
    UniqueConstraint("message_id"),
    Index(None, "run_id"),
    Index(None, "alert_id"),
    Index(None, "done_at"),
)
# A partial index of the waiting notifications, which are few and queried all the time.
Index(
    "ix_outbox_waiting",
    outbox.c.channel_id,
    outbox.c.not_before,
    sqlite_where=outbox.c.state == "pending",
    postgresql_where=outbox.c.state == "pending",
)

# The incidents that a channel was notified of (`notification.NotifiedIncident`), with their threads. The rules of
# cooldown and digest read them.
told = Table(
    "told",
    metadata,
    Column("channel_id", String(36), ForeignKey("channels.id", ondelete="CASCADE"), primary_key=True),
    Column("incident_id", String(64), primary_key=True),
    _run_reference(),
    Column("family", String(32), nullable=False),
    Column("level", String(16), nullable=False),
    Column("told_at", Float(53), nullable=False),
    Column("thread", String(64)),
    Column("in_digest", Boolean, nullable=False),
    Column("closed", Boolean, nullable=False),
    Index(None, "run_id"),
    Index(None, "channel_id", "told_at"),
)

# Settings that users change while the server runs, keyed by name.
settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)

silences = Table(
    "silences",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE")),
    Column("project", String(256)),
    Column("kind", String(32)),
    Column("until", Float(53), nullable=False),
    Column("reason", Text, nullable=False),
    Index(None, "run_id"),
)

# Logins of the dashboard. A login opened with a token ends with the token; the others prove which secret of the
# settings opened them.
sessions = Table(
    "sessions",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("digest", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("token_id", RowId, ForeignKey("tokens.id", ondelete="CASCADE")),
    Column("proof", String(64)),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53), nullable=False),
    UniqueConstraint("digest"),
    Index(None, "token_id"),
    Index(None, "expires_at"),
)
