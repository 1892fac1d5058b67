"""The check of the origin of a request. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers


def is_own_origin(headers: Headers, public_url: str | None = None) -> bool:
    """Return whether the header Origin names this host, or the host of ``public_url`` behind a proxy.

    Browsers send the header with every websocket and every request that changes something.
    """
    origin = headers.get("origin")
    if origin is None:
        return False
    host = urlsplit(origin).netloc.lower()
    own = {headers.get("host", "").lower(), urlsplit(public_url or "").netloc.lower()} - {""}
    return host in own
