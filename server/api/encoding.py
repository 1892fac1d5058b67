"""Numbers as JSON or msgpack. NaN and infinities become null in JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

MSGPACK = "application/msgpack"


def json_response(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def numbers(values: NDArray[Any]) -> list[Any]:
    """As lists of floats; msgspec writes those that are not finite as null."""
    result: list[Any] = values.tolist()
    return result


def accepts_msgpack(accept: str) -> bool:
    """Whether the client names msgpack as what it wants."""
    return any(part.split(";")[0].strip() in {MSGPACK, "application/x-msgpack"} for part in accept.split(","))


def float32_bytes(values: NDArray[np.float32]) -> bytes:
    """Row-major, little-endian."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()
