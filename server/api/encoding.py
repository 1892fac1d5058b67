"""Numbers as JSON or msgpack, compressed, with a tag that changes when they may.

NaN and infinities become null in JSON.
"""

from __future__ import annotations

import gzip
import hashlib
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

MSGPACK = "application/msgpack"
VARY = "Accept, Accept-Encoding"
MIN_COMPRESSED = 1_024  # bytes; below, a packet is a packet
ZSTD_LEVEL = 1
GZIP_LEVEL = 1


def json_response(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def compressed(response: Response, accept_encoding: str) -> Response:
    """The response with its body as the client can read it. Takes a while for large ones; for a thread."""
    accepted = _named(accept_encoding)
    response.headers["vary"] = VARY
    body = bytes(response.body)
    if len(body) < MIN_COMPRESSED:
        return response
    if "zstd" in accepted:
        response.headers["content-encoding"] = "zstd"
        response.body = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)
    elif "gzip" in accepted:
        response.headers["content-encoding"] = "gzip"
        response.body = gzip.compress(body, GZIP_LEVEL, mtime=0)
    response.headers["content-length"] = str(len(response.body))
    return response


def _named(accept_encoding: str) -> set[str]:
    """What a header names, without what it refuses by a weight of 0."""
    found = set()
    for part in accept_encoding.lower().split(","):
        name, _, weight = (piece.strip() for piece in part.partition(";"))
        if weight.replace(" ", "").rstrip("0") not in {"q=", "q=0."}:
            found.add(name)
    return found


class Tag:
    """The ETag of an answer: what was asked, and the version of the data that it is made of.

    Read the version before the data: what is committed in between then makes the next answer a new one.
    """

    def __init__(self, request: Request, version: str) -> None:
        asked = f"{version} {request.url.path}?{request.url.query} {request.headers.get('accept', '')}"
        self.value = f'W/"{hashlib.blake2b(asked.encode(), digest_size=12).hexdigest()}"'
        known = {part.strip() for part in request.headers.get("if-none-match", "").split(",")}
        self.is_known = not known.isdisjoint({self.value, "*"})

    def unchanged(self) -> Response:
        """304: the client has it."""
        return self.on(Response(status_code=304))

    def on(self, response: Response) -> Response:
        response.headers["etag"] = self.value
        response.headers["cache-control"] = "private, no-cache"  # keep it, and ask each time
        response.headers["vary"] = VARY
        return response


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
