"""Check of the addresses that channels lead to: none in the server's own network, unless the settings allow it.

People who may add a channel must not reach services that are open to the server alone: the metadata service of a cloud,
a database on loopback, a router. Each connection resolves its host name once, checks every resulting address, and
connects to a checked address, so that the name cannot resolve differently in between (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from server.errors import ForbiddenAddressError

MAX_URL_CHARS = 2_048


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not loopback, private, link-local, multicast or reserved.

    >>> [is_public(ip) for ip in ("1.1.1.1", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.0.0.1")]
    [True, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo is not None else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64 carries an IPv4 address at its end
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Return the parts of a URL that may be posted to. Raises `ForbiddenAddressError` with what to enter instead.

    A host that is an IP address is checked here; a host name is checked when it is resolved (`GuardedResolver`).
    """
    if len(url) > MAX_URL_CHARS or any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise ForbiddenAddressError("the URL is too long or contains spaces")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ForbiddenAddressError(f"this is not a URL ({error})") from error
    if parts.scheme not in ("https", "http") or not host:
        raise ForbiddenAddressError("enter a URL that begins with https://")
    if parts.scheme == "http" and not allow_private:
        raise ForbiddenAddressError("plain http is refused; use https, or set SPIKEWATCH_NOTIFY_ALLOW_PRIVATE=1")
    if not allow_private:
        check_host(host)
    return parts


def check_host(host: str) -> None:
    """Raise `ForbiddenAddressError` if a host is an address of the server's own network in any notation."""
    try:
        address = str(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        try:
            address = socket.inet_ntoa(socket.inet_aton(host))  # 127.1, 0x7f000001 and 2130706433 are addresses too
        except (OSError, UnicodeError):
            return
    if not is_public(address):
        raise ForbiddenAddressError(refusal(host))


class GuardedResolver(AbstractResolver):
    """Resolver for `aiohttp` that returns public addresses only."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._names = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises `OSError` if there is no such name, and `ForbiddenAddressError` if one of its addresses is not public.
        """
        found = await self._names.resolve(host, port, family)
        if not self._allow_private:
            for one in found:
                if not is_public(one["host"]):
                    raise ForbiddenAddressError(refusal(host))
        return found

    async def close(self) -> None:
        """Close the resolver of names."""
        await self._names.close()


def refusal(host: str) -> str:
    """Return the message for people who entered a forbidden address."""
    return (
        f"{host} is an address of the server's own network, which channels may not reach; "
        "SPIKEWATCH_NOTIFY_ALLOW_PRIVATE=1 allows it"
    )
