"""Tables, for SQLite and Postgres alike. Owns names, types and constraints; `storage` owns every statement.

Times are Unix seconds (float). Steps and sequences are 64-bit. Documents are JSON, in which NaN is null.
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

# SQLite counts rows by itself only in a column of the type INTEGER, which holds 64 bits there.
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
    # What the follower of the run derives, saved with the snapshot of the detectors:
    Column("last_step", BigInteger),
    Column("attempt", Integer, nullable=False, default=0),
    # How often damage of the run was repaired: part of its version, as measurements may be lost by it.
    Column("repairs", Integer, nullable=False, default=0, server_default="0"),
    Column("step_rate", Float(53)),
    Column("loss", Float(53)),
    Column("lr", Float(53)),
    Column("stage", String(16)),
    Column("stability_ratio", Float(53)),
    Column("sparkline", JSON),
    Index(None, "created_at", "id"),
    Index(None, "project", "created_at", "id"),
    Index(None, "state", "last_seen_at"),
)

writers = Table(
    "writers",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    _run_reference(),
    Column("writer", String(128), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("last_seq", BigInteger, nullable=False, default=0),
    # Counts the hellos. Whoever was told another number has lost the writer to a later connection.
    Column("epoch", BigInteger, nullable=False, default=0, server_default="0"),
    Column("state", String(16), nullable=False),
    Column("sdk", String(256), nullable=False, default=""),
    Column("started_at", Float(53), nullable=False),
    Column("last_seen_at", Float(53), nullable=False),
    UniqueConstraint("run_id", "writer"),
    Index(None, "writer"),
)

# One row for each time that a rank stepped back.
attempts = Table(
    "attempts",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("started_at", Float(53), nullable=False),
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

# Which names a rank has logged, so that a series is looked for where it is.
scalars = Table(
    "scalars",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("name", String(256), primary_key=True),
)

# Append-only. Steps never decrease within a segment, and all of it belongs to one attempt.
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
    # All that the compaction and the queries ask before they read a payload.
    Index(
        "ix_segments_places",
        *("run_id", "rank", "writer_id", "attempt", "first_seq", "last_seq", "first_step", "last_step", "id"),
    ),
    sqlite_autoincrement=True,  # an id is never used again: caches and the detectors count on it
)

# The pyramid (storage.tiles). Spans of level 0 take the place of segments; those of a level above hold the same steps
# in wider buckets and are the parents of those that they were made of.
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
    sqlite_autoincrement=True,  # an id is never used again: caches count on it
)
# Only of those that have a parent, lest the search for those that have none in one run goes through all runs.
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
    Column("names", JSON(none_as_null=True)),  # of the scalars that the tile holds; null for a statistic
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
    Index(None, "writer_id", "attempt", "step", "id"),  # of exports; and what a deletion of the writer looks for
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

# `state` is what the detectors hold; what people decided stands beside it, and detectors never overwrite it.
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
    Index(None, "run_id", "opened_at"),
    Index(None, "opened_at", "id"),
    Index(None, "state", "opened_at"),
)

# How far the detectors of a run have read, and their state there; replaced as one with the alerts that came of it.
monitors = Table(
    "monitors",
    metadata,
    Column("run_id", String(128), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("rank", Integer, nullable=False),
    Column("position", RowId, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("saved_at", Float(53), nullable=False),
    # Counts the saves: of two followers of one run, on two servers, one saves and the other hears that it was late.
    Column("revision", BigInteger, nullable=False, default=0),
    # When a rule about no data has something to say if nothing comes; null: never.
    Column("due_at", Float(53)),
    Index(None, "due_at"),
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

# Where alerts go (notices.Channel). The secret is encrypted; `target` is a hint at it that opens nothing.
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
    # Who sends for it at the moment, and before when nobody shall try again:
    Column("leased_by", String(64)),
    Column("leased_until", Float(53), nullable=False, default=0.0),
    Column("retry_at", Float(53), nullable=False, default=0.0),
)

# One change of one alert for one channel, written as one with the change itself.
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
# Only of those that wait: they are few, and asked for all the time.
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

# Settings that people change while the server runs, by name.
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

# Logins of the dashboard. One that a token opened ends with it; the others prove which secret of the settings did.
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
