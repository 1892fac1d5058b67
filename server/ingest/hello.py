"""Validates the first frame of a connection. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from client_sdk.protocol import (
    MAX_LAYERS,
    MAX_NAME_CHARS,
    MAX_STATISTICS,
    PROTOCOL_VERSION,
    Hello,
    Layout,
)
from server.errors import IngestError
from server.models import Principal
from server.pipeline.packing import is_name

RUN_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")  # "." and ".." have a meaning of their own in URLs
MAX_WRITER_CHARS = 128
MAX_RANK = 2**31 - 1
MAX_CONFIG_BYTES = 1024 * 1024
MAX_ENVIRONMENT_BYTES = 64 * 1024
MAX_TAGS = 64
MAX_LAYOUTS = 1_000
MAX_SIZE = 2**62


def checked(hello: Hello, principal: Principal) -> Hello:
    """Return the hello with harmless oddities corrected. Raises `IngestError` for everything else."""
    if hello.version != PROTOCOL_VERSION:
        raise IngestError(
            "unsupported_version",
            f"the server uses version {PROTOCOL_VERSION} of the protocol and the client version {hello.version}; "
            "upgrade the older of the two",
        )
    if hello.run_id is not None and not RUN_ID.fullmatch(hello.run_id):
        raise IngestError("malformed", "run_id: use 1 … 128 of A–Z, a–z, 0–9, dot, hyphen and underscore")
    if not 0 < len(hello.writer) <= MAX_WRITER_CHARS or "\0" in hello.writer:
        raise IngestError("malformed", f"writer: use 1 … {MAX_WRITER_CHARS} characters, none of them NUL")
    for field in ("project", "name"):
        value = getattr(hello, field)
        if value is not None and not is_name(value):
            raise IngestError("malformed", f"{field}: use 1 … {MAX_NAME_CHARS} characters, none of them NUL")
    if hello.loss is not msgspec.UNSET and not is_name(hello.loss):
        raise IngestError("malformed", f"loss: use 1 … {MAX_NAME_CHARS} characters, none of them NUL")
    if not 0 <= hello.rank <= MAX_RANK:
        raise IngestError("malformed", f"rank: use a number within 0 … {MAX_RANK}")
    if len(hello.tags) > MAX_TAGS or not all(is_name(tag) for tag in hello.tags):
        raise IngestError("malformed", f"tags: use at most {MAX_TAGS}, each of 1 … {MAX_NAME_CHARS} characters")
    _check_json("config", hello.config, MAX_CONFIG_BYTES)
    if hello.environment is not msgspec.UNSET:
        _check_json("environment", hello.environment, MAX_ENVIRONMENT_BYTES)
    if len({layout.id for layout in hello.layouts}) != len(hello.layouts) or len(hello.layouts) > MAX_LAYOUTS:
        raise IngestError("bad_layout", f"layouts: send at most {MAX_LAYOUTS}, each with a different id")
    for layout in hello.layouts:
        _check_layout(layout)
    if not principal.may_see(hello.project):
        raise IngestError(
            "forbidden",
            f"this token does not give access to the project {hello.project!r}; use another one",
            close_code=4401,
        )
    started_at = hello.started_at if math.isfinite(hello.started_at) else 0.0
    return msgspec.structs.replace(hello, started_at=started_at, sdk=hello.sdk.replace("\0", "")[:MAX_NAME_CHARS])


def _check_json(field: str, document: dict[str, Any], max_bytes: int) -> None:
    try:
        size = len(msgspec.json.encode(document))
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise IngestError("malformed", f"{field}: it cannot be represented as JSON ({error})") from error
    if size > max_bytes:
        raise IngestError("too_large", f"{field}: it has {size} bytes as JSON; at most {max_bytes} are allowed")


def _check_layout(layout: Layout) -> None:
    where = f"layout {layout.id}"
    if not 0 <= layout.id < 2**31:
        raise IngestError("bad_layout", f"{where}: the id is not within 0 … 2**31 − 1")
    if not 0 < len(layout.layers) <= MAX_LAYERS:
        raise IngestError("bad_layout", f"{where}: {len(layout.layers)} layers; 1 … {MAX_LAYERS} are allowed")
    if not 0 < len(layout.statistics) <= MAX_STATISTICS:
        raise IngestError(
            "bad_layout", f"{where}: {len(layout.statistics)} statistics; 1 … {MAX_STATISTICS} are allowed"
        )
    for names in (layout.layers, layout.statistics):
        if not all(is_name(name) for name in names):
            raise IngestError("bad_layout", f"{where}: names must have 1 … {MAX_NAME_CHARS} characters, no NUL")
        if len(set(names)) != len(names):
            raise IngestError("bad_layout", f"{where}: a name occurs twice")
    if layout.sizes and len(layout.sizes) != len(layout.layers):
        raise IngestError("bad_layout", f"{where}: {len(layout.sizes)} sizes for {len(layout.layers)} layers")
    if not all(0 <= size <= MAX_SIZE for size in layout.sizes):
        raise IngestError("bad_layout", f"{where}: a size is not within 0 … 2**62")
