"""API keys: made, kept as hashes, compared in constant time.

A key is 256 random bits, so one SHA-256 is as hard to invert as a slow hash and costs a request nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from moss_audio.server.settings import Settings, SettingsError, read_text

_LINE = re.compile(r"([\w.-]{1,64})\s+([0-9a-f]{64})")

MIN_KEY_CHARS = 24
"""A key given in plain text is no shorter: 24 random letters and digits are 140 bits."""


@dataclass(frozen=True)
class ApiKeys:
    """Who may ask: pairs of a name and the SHA-256 of that client's key. Empty: nobody is asked for one."""

    digests: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def read(cls, settings: Settings, plain: str | None = None) -> ApiKeys:
        """The keys of `keys_file`, and one in plain text, as a container's secret gives it. Raises `SettingsError`."""
        digests: list[tuple[str, bytes]] = []
        lines = read_text(settings.keys_file, "keys_file").splitlines() if settings.keys_file else []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise SettingsError(f"line {number} of {settings.keys_file} is not a name and a SHA-256 in hex")
            digests.append((match[1], bytes.fromhex(match[2])))
        if plain is not None:
            if len(plain) < MIN_KEY_CHARS:
                raise SettingsError(f"the API key has {len(plain)} characters; valid: {MIN_KEY_CHARS} or more")
            digests.append(("default", digest(plain)))
        return cls(tuple(digests))

    def owner(self, presented: str) -> str | None:
        """The name behind a key, or None. Every key is compared, so that time tells nothing."""
        offered, found = digest(presented), None
        for name, known in self.digests:
            if hmac.compare_digest(offered, known):
                found = name
        return found


def digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_key(name: str) -> tuple[str, str]:
    """A key and the line of the keys file that lets it in. Raises `SettingsError` for a name that does not fit."""
    key = "moss-" + secrets.token_urlsafe(32)
    line = f"{name} {digest(key).hex()}"
    if not _LINE.fullmatch(line):
        raise SettingsError(f"the key's name is {name!r}; valid: up to 64 letters, digits, dots, dashes")
    return key, line
