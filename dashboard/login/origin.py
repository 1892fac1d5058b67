"""Whether a request comes from a page of this dashboard. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers


def is_own_origin(headers: Headers, public_url: str | None = None) -> bool:
    """Browsers say where a request that changes something, or a websocket, comes from: it must be this very host, or
    that of ``public_url``, where a proxy in front names another host to us."""
    origin = headers.get("origin")
    if origin is None:
        return False
    host = urlsplit(origin).netloc.lower()
    own = {headers.get("host", "").lower(), urlsplit(public_url or "").netloc.lower()} - {""}
    return host in own
