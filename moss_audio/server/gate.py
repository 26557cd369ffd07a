"""Who may come in: keys, hosts, origins, the rate of requests and how many are answered at once.

Plain ASGI in front of everything, so that a stranger's body is not even read.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from moss_audio.server.keys import ApiKeys
from moss_audio.server.refusals import Refusal, busy
from moss_audio.server.settings import LOOPBACK, Settings

OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico")
"""Served without a key: health for orchestrators, and the page, which asks for the key itself."""

OPEN_FOLDER = "/static/"

WEBSOCKET_KEY = "openai-insecure-api-key."
"""The subprotocol that carries a browser's key, which cannot set headers on a WebSocket; OpenAI's own convention."""

MAX_OWNERS = 10_000
"""Buckets kept; the one used longest ago goes first, full again by then."""


class Gate:
    """Lets a request through with its owner's name in `scope["owner"]`, or raises `Refusal`."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: ApiKeys) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.n_active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers)
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            await self.app(scope, receive, send)
            return
        self._check_origin(scope, headers)
        scope["owner"] = self._owner(scope, headers)
        self._take(scope["owner"])
        if self.n_active >= self.settings.max_requests:
            raise busy("busy", f"{self.n_active} requests are being answered; try again soon")
        self.n_active += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.n_active -= 1

    def _owner(self, scope: Scope, headers: Mapping[str, str]) -> str:
        address = str((scope.get("client") or ("unknown", 0))[0])
        if not self.keys.digests:
            return address
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            offers = map(str.strip, headers.get("sec-websocket-protocol", "").split(","))
            key = next((offer.removeprefix(WEBSOCKET_KEY) for offer in offers if offer.startswith(WEBSOCKET_KEY)), "")
        owner = self.keys.owner(key.strip()) if key else None
        if owner is None:
            self._take(address)  # guessing counts too
            raise Refusal(401, "invalid_api_key", "no valid API key; send it as the header Authorization: Bearer KEY")
        return owner

    def _take(self, owner: str) -> None:
        """One token of the owner's bucket, which holds `burst` and fills at `requests_per_minute`."""
        now, rate = time.monotonic(), self.settings.requests_per_minute / 60
        tokens, before = self._buckets.pop(owner, (float(self.settings.burst), now))
        tokens = min(float(self.settings.burst), tokens + (now - before) * rate)
        self._buckets[owner] = max(tokens - 1, 0.0) if tokens >= 1 else tokens, now
        if len(self._buckets) > MAX_OWNERS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            message = f"over {self.settings.requests_per_minute} requests a minute; send fewer"
            raise Refusal(429, "rate_limited", message, retry_after=(1 - tokens) / rate)

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Without keys, loopback is the only lock, and a page on the web could pick it by pointing a name there."""
        if self.keys.digests:
            return
        host = headers.get("host", "")
        if _hostname(host) not in (*LOOPBACK, *self.settings.public_hosts, self.settings.host):
            message = f"no keys are set, so the host {host[:80]!r} is not served; use localhost, or set public_hosts"
            raise Refusal(403, "unknown_host", message)

    def _check_origin(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """A browser names the page that sends a request: this server's own, or one that may."""
        origin = headers.get("origin")
        if origin is None or origin in self.settings.cors_origins:
            return
        if _netloc(origin) != headers.get("host", "").lower():
            raise Refusal(403, "unknown_origin", f"pages of {origin[:80]!r} may not call this server (cors_origins)")


def _hostname(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return str(ipaddress.ip_address(name)) if ":" in name else name
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
