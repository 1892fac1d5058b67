"""Encoding of answers as JSON or msgpack, compression, and entity tags that change whenever the answer may.

NaN and infinities become null in JSON.
"""

from __future__ import annotations

import gzip
import hashlib
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

JSON = "application/json"
MSGPACK = "application/msgpack"
VARY = "Accept, Accept-Encoding"
MIN_COMPRESSED = 1_024  # bytes; a smaller body fits into one packet anyway
ZSTD_LEVEL = 1
GZIP_LEVEL = 1

Answer = TypeVar("Answer")
AnyResponse = TypeVar("AnyResponse", bound=Response)


class Rendered(Response, Generic[Answer]):
    """An encoded answer of a type, for handlers that encode in a thread or set headers."""


def json_response(answer: Any, status: int = 200) -> Response:
    """Return the answer as a JSON response."""
    return Response(msgspec.json.encode(answer), status, media_type=JSON)


def compressed(response: AnyResponse, accept_encoding: str) -> AnyResponse:
    """Compress the body of a response by an encoding that the client accepts, and return the response.

    Large bodies take milliseconds: call it in a thread.
    """
    accepted = _accepted_encodings(accept_encoding)
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


def _accepted_encodings(accept_encoding: str) -> set[str]:
    """Return the encodings that the header names, without those that it refuses by a weight of 0."""
    found = set()
    for part in accept_encoding.lower().split(","):
        name, _, weight = (piece.strip() for piece in part.partition(";"))
        if weight.replace(" ", "").rstrip("0") not in {"q=", "q=0."}:
            found.add(name)
    return found


class Tag:
    """The entity tag (ETag) of an answer, made of the request and of the version of the data.

    Read the version before the data, so that a commit in between changes the tag of the next answer.
    """

    def __init__(self, request: Request, version: str) -> None:
        asked = f"{version} {request.url.path}?{request.url.query} {request.headers.get('accept', '')}"
        self.value = f'W/"{hashlib.blake2b(asked.encode(), digest_size=12).hexdigest()}"'
        known = {part.strip() for part in request.headers.get("if-none-match", "").split(",")}
        self.is_known = not known.isdisjoint({self.value, "*"})
        """Whether the client already has the answer."""

    def unchanged(self) -> Rendered[Any]:
        """Return the response for a client that already has the answer: 304, without a body."""
        return self.on(Rendered(status_code=304))

    def on(self, response: AnyResponse) -> AnyResponse:
        """Set the tag and the cache headers of a response, and return the response."""
        response.headers["etag"] = self.value
        response.headers["cache-control"] = "private, no-cache"  # the client may keep it and has to ask each time
        response.headers["vary"] = VARY
        return response


def numbers(values: NDArray[Any]) -> tuple[Any, ...]:
    """Return the numbers of an array with one axis; msgspec encodes those that are not finite as null."""
    return tuple(values.tolist())


def accepts_msgpack(accept: str) -> bool:
    """Return whether the Accept header names msgpack."""
    return any(part.split(";")[0].strip() in {MSGPACK, "application/x-msgpack"} for part in accept.split(","))


def accepts_html(accept: str) -> bool:
    """Return whether the Accept header names HTML, as that of a browser does when it opens an address.

    >>> accepts_html("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), accepts_html("*/*")
    (True, False)
    """
    return any(part.split(";")[0].strip().lower() == "text/html" for part in accept.split(","))


def float32_bytes(values: NDArray[np.float32]) -> bytes:
    """Return an array as row-major little-endian bytes."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()
