"""Media fetched by URL: only from hosts that the server's owner names, and never from inside its network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence

from aiohttp import ClientError, ClientResponse, ClientSession, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from polymodal.errors import DataError
from polymodal.server.settings import Settings

Allowed = Callable[[str], bool]
CHUNK = 1 << 16
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "polymodal"}  # nothing packed, so nothing to blow up
TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10", "192.88.99.0/24")))
"""NAT64, which a router turns into the IPv4 address in the last bits; site-local; relays of 6to4."""


class _Pinned(AbstractResolver):
    """Answers with addresses that were looked up and checked before, whatever a name server says now."""

    def __init__(self, addresses: Sequence[ResolveResult]) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses."""
        return list(self.addresses)

    async def close(self) -> None:
        """Nothing is open."""


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, and does not stand for another address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False  # with a zone ("fe80::1%eth0")
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo):
        return False
    special = ip.is_multicast or ip.is_reserved or ip.is_private or any(ip in net for net in TRANSLATED)
    return ip.is_global and not special


async def fetch(url: str, settings: Settings, allowed: Allowed = is_public) -> bytes:
    """Fetch a media file.

    The name is looked up once, every address it has is checked, and the connection goes to one of those. Redirects,
    proxies of the environment, cookies and packed answers are not followed, used, kept or unpacked.

    Args:
        url: http or https.
        settings: `allow_hosts` names the hosts (with ``:port`` where it is not the scheme's own), `max_body` limits
            the bytes, `deadline` the seconds.
        allowed: whether a connection to an IP address may be made.

    Raises:
        DataError: the URL is not allowed, or there is no file of that size behind it in that time.
    """
    place = _parse(url)
    name = place.raw_host or ""
    _check_host(place, settings.allow_hosts)
    try:
        async with asyncio.timeout(settings.deadline):
            addresses = await _look_up(name, place.port or 0, allowed)
            connector = TCPConnector(resolver=_Pinned(addresses), use_dns_cache=False, force_close=True)
            async with (
                ClientSession(
                    connector=connector, cookie_jar=DummyCookieJar(), auto_decompress=False, headers=HEADERS
                ) as session,
                session.get(place, allow_redirects=False) as response,
            ):
                return await _body(response, name, settings.max_body)
    except TimeoutError:
        raise DataError(f"{name} must answer within {settings.deadline:g} s, and did not. Send the file.") from None
    except (ClientError, OSError, UnicodeError) as error:
        raise DataError(f"{name} must be reachable, got {type(error).__name__}. Send the file.") from None


def _parse(url: str) -> URL:
    """Take a URL apart as the client will."""
    try:
        place = URL(url)
        if place.scheme in ("http", "https") and place.host and place.port:
            return place
        got = f"{place.scheme!r}" if place.scheme else "none"
    except ValueError:
        got = "something else"
    raise DataError(f"a URL of a media cell must start with http:// or https:// and a host, got {got}.")


def _check_host(place: URL, hosts: Sequence[str]) -> None:
    """Refuse hosts that are not named."""
    if place.user is not None or place.password is not None:
        raise DataError(f"a URL of a media cell must have no user or password, got one for {place.host}.")
    names = {f"[{name}]" if ":" in name else name for name in (place.host or "", place.raw_host or "")}
    names = {f"{name}:{place.port}" for name in names} | (names if place.is_default_port() else set())
    if not names & {host.lower() for host in hosts}:
        raise DataError(f"media must be sent, or be on a host that this server fetches from, got {place.host}.")


async def _look_up(name: str, port: int, allowed: Allowed) -> list[ResolveResult]:
    """Addresses of a host, all of which are allowed."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    if not found or not all(allowed(str(address[0])) for *_, address in found):
        raise DataError(f"{name} must have public addresses only, got another one. Send the file.")
    return [
        ResolveResult(
            hostname=name, host=str(address[0]), port=port, family=family, proto=proto, flags=socket.AI_NUMERICHOST
        )
        for family, _, proto, _, address in found
    ]


async def _body(response: ClientResponse, name: str, limit: int) -> bytes:
    """Read an answer's body, not beyond the limit."""
    if response.status != 200:
        why = "a redirect, which is not followed" if 300 <= response.status < 400 else f"status {response.status}"
        raise DataError(f"{name} must answer with the file, got {why}. Send the file.")
    packed = response.headers.get("Content-Encoding", "identity")
    if packed.strip().lower() != "identity":
        raise DataError(f"{name} must send the file as it is, got it packed by {packed[:20]!r}. Send the file.")
    whole = bytearray()
    if (response.content_length or 0) <= limit:
        async for chunk in response.content.iter_chunked(CHUNK):
            whole += chunk
            if len(whole) > limit:
                break
        else:
            return bytes(whole)
    raise DataError(f"a file from {name} must have at most {limit} bytes, got more. Send a smaller one.")
