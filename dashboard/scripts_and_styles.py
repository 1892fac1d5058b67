"""Scripts, styles and fonts as they travel: compressed once, and kept by the browser as long as their address holds."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import zstandard
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIXES: Final = ("/_dash-component-suites/", "/assets/")
COMPRESSIBLE: Final = ("text/", "application/javascript", "application/json", "image/svg")
MIN_COMPRESSED: Final = 1_024
"""Number of bytes below which a body fits into one packet anyway."""
MAX_FILES: Final = 128
"""Number of files that are kept in memory; the dashboard has about forty."""
ZSTD_LEVEL: Final = 12
"""The partial bundle of Plotly takes 0.1 s of one core once and has 0.34 MB."""
FOREVER: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"
_VERSIONED: Final = re.compile(r"\.v[\w.]+m\d+\.|[?&]m=[\d.]+$|[?&]v=[0-9a-f]+$")
"""Addresses in which Dash writes the version or the time of the file, so that another content has another address, and
those of `with_hash`."""


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """One file in one encoding."""

    content_type: str
    encoding: str
    """Content encoding: "zstd", "gzip" or "" for none."""
    body: bytes
    tag: str
    """Entity tag (ETag) of the content."""


class ScriptsAndStyles:
    """ASGI middleware that compresses the files of Dash, Plotly and the dashboard, and lets browsers keep them.

    A file whose address names its version is never asked for again; every other one is asked for with its entity tag,
    which costs one small answer. A file is read when it is first asked for, and is taken not to change after that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files: OrderedDict[tuple[str, str], StaticFile] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or scope["method"] != "GET" or not path.startswith(PREFIXES):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        accepted = headers.get("accept-encoding", "").lower()
        encoding = next((name for name in ("zstd", "gzip") if name in accepted), "")
        found = self._files.get((path, encoding))
        if found is None:
            status, content_type, body, messages = await self._read(scope, receive)
            if status != 200:
                for message in messages:
                    await send(message)
                return
            found = await asyncio.to_thread(_encoded, content_type, body, encoding)
            self._files[path, encoding] = found
            while len(self._files) > MAX_FILES:
                self._files.popitem(last=False)
        query = scope.get("query_string", b"").decode("latin-1")
        await _answer(found, f"{path}?{query}", headers.get("if-none-match", ""), send)

    async def _read(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes, list[Message]]:
        """Return status, content type, body and messages of the answer of the application."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        start = next(message for message in messages if message["type"] == "http.response.start")
        body = b"".join(message.get("body", b"") for message in messages if message["type"] == "http.response.body")
        return start["status"], Headers(raw=start["headers"]).get("content-type", ""), body, messages


def with_hash(address: str, content: bytes) -> str:
    """Return the address under which browsers may keep a content for ever, because another one has another address.

    >>> with_hash("/assets/early.js", b"")
    '/assets/early.js?v=e4a6a0577479b2b4'
    """
    return f"{address}?v={hashlib.blake2b(content, digest_size=8).hexdigest()}"


@lru_cache(maxsize=MAX_FILES)
def _encoded(content_type: str, body: bytes, encoding: str) -> StaticFile:
    """Return a file in an encoding. Every application of the process has the same files, so each is compressed once."""
    tag = hashlib.blake2b(body, digest_size=12).hexdigest()
    if len(body) < MIN_COMPRESSED or not content_type.startswith(COMPRESSIBLE):
        encoding = ""
    if encoding == "zstd":
        body = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)
    elif encoding == "gzip":
        body = gzip.compress(body, 9, mtime=0)
    return StaticFile(content_type=content_type, encoding=encoding, body=body, tag=f'W/"{tag}"')


async def _answer(found: StaticFile, address: str, known: str, send: Send) -> None:
    headers = MutableHeaders()
    headers["cache-control"] = FOREVER if _VERSIONED.search(address) else REVALIDATE
    headers["etag"] = found.tag
    headers["vary"] = "Accept-Encoding"
    is_known = found.tag in {part.strip() for part in known.split(",")}
    if not is_known:
        headers["content-type"] = found.content_type
        headers["content-length"] = str(len(found.body))
        if found.encoding:
            headers["content-encoding"] = found.encoding
    await send({"type": "http.response.start", "status": 304 if is_known else 200, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b"" if is_known else found.body})
