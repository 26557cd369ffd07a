"""Remote recordings, where the operator allows it: https, listed hosts, public addresses, and never more than asked.

One parser reads the URL for the check and for the fetch; the name is resolved once and the connection goes to the
address that was checked; every redirect starts over.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

from moss_audio.server.refusals import Refusal
from moss_audio.server.settings import Settings

MAX_REDIRECTS = 3

Resolve = Callable[[str], Awaitable[Sequence[str]]]


async def resolve(host: str) -> Sequence[str]:
    """The addresses of a name."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Fetcher:
    """Downloads a recording into memory. `resolve` and `transport` are replaced in tests."""

    def __init__(
        self, settings: Settings, resolve: Resolve = resolve, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.settings, self._resolve, self._transport = settings, resolve, transport

    async def fetch(self, url: str) -> bytes:
        """The bytes at `url`. Raises `Refusal`."""
        try:
            async with asyncio.timeout(self.settings.fetch_seconds):
                return await self._follow(url)
        except TimeoutError:
            raise _refused(f"was not fetched within {self.settings.fetch_seconds:g} s", 408) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, ValueError):
            raise _refused("could not be fetched") from None  # why would tell about the server's network

    async def _follow(self, url: str) -> bytes:
        target = httpx.URL(url)
        async with httpx.AsyncClient(transport=self._transport, trust_env=False, timeout=None) as client:
            for _ in range(MAX_REDIRECTS + 1):
                self._check(target)
                address = await self._public_address(target.host)
                pinned = target.copy_with(host=address)
                headers = {"Host": target.host, "Accept-Encoding": "identity", "Accept": "audio/*, video/*"}
                request = client.build_request(
                    "GET", pinned, headers=headers, extensions={"sni_hostname": target.raw_host.decode("ascii")}
                )
                response = await client.send(request, stream=True)
                try:
                    if response.is_redirect:
                        target = target.join(response.headers["location"])
                        continue
                    return await self._read(response)
                finally:
                    await response.aclose()
        raise _refused(f"redirects more than {MAX_REDIRECTS} times")

    def _check(self, url: httpx.URL) -> None:
        if url.scheme != "https" or url.port not in (None, 443) or url.userinfo:
            raise _refused("is not plain https on port 443")
        host = url.host.lower().rstrip(".")
        for allowed in self.settings.remote_hosts:
            if host == allowed.lower() or (allowed.startswith("*.") and host.endswith(allowed[1:].lower())):
                return
        raise Refusal(403, "host_not_allowed", f"recordings of {host[:80]!r} are not fetched here; send the bytes")

    async def _public_address(self, host: str) -> str:
        addresses = await self._resolve(host)
        if not addresses or not all(map(is_public, addresses)):
            raise Refusal(403, "address_not_allowed", "the host of the recording has an address that is not public")
        return addresses[0]

    async def _read(self, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise _refused(f"answers {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _refused("comes compressed, which was not asked for")
        data = bytearray()
        async for block in response.aiter_raw():
            data += block
            if len(data) > self.settings.fetch_bytes:
                raise Refusal(413, "remote_too_large", f"the recording has over {self.settings.fetch_bytes} bytes")
        return bytes(data)


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, looking through IPv6 that wraps IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
    return ip.is_global and not ip.is_multicast


def _refused(why: str, status: int = 422) -> Refusal:
    return Refusal(status, "remote_audio", f"the recording at audio_url {why}; send its bytes instead")
