"""Every number and switch of the server, named once: read from the environment and from the command line.

A setting `max_body_bytes` is the variable MOSS_AUDIO_MAX_BODY_BYTES and the option --max-body-bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from moss_audio.errors import MossAudioError

PREFIX = "MOSS_AUDIO_"

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Where the server may listen while it has no API keys."""


class SettingsError(MossAudioError):
    """A setting has a value that the server cannot run with; the message names it, the valid values and the fix."""


def _setting(default: Any, help_text: str, least: float = 0) -> Any:
    return field(default=default, metadata={"help": help_text, "least": least})


@dataclass(frozen=True)
class Settings:
    """How the server runs. Each limit is checked before the work that it limits."""

    host: str = _setting("127.0.0.1", "address to listen on; other than loopback needs API keys")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    model_aliases: tuple[str, ...] = _setting((), "other names under which clients may ask for the model")
    keys_file: str = _setting("", "file of API keys as hashes: lines of NAME and SHA-256 (--new-key makes one)")
    cors_origins: tuple[str, ...] = _setting((), "origins of other sites whose pages may call the API")
    public_hosts: tuple[str, ...] = _setting((), "names under which a reverse proxy on this machine is reached")
    remote_hosts: tuple[str, ...] = _setting((), "hosts that audio_url may name, as in *.example.org; none: off")

    max_connections: int = _setting(512, "open connections", 1)
    max_requests: int = _setting(64, "requests that are being answered, live sessions included", 1)
    max_body_bytes: int = _setting(64 << 20, "bytes of one request", 1024)
    max_buffered_bytes: int = _setting(512 << 20, "bytes of all requests that are being answered", 1024)
    body_seconds: float = _setting(120.0, "time for sending a request's body", 0.1)
    body_idle_seconds: float = _setting(20.0, "longest pause while sending a body", 0.1)
    requests_per_minute: int = _setting(240, "requests of one key, or of one address without keys", 1)
    burst: int = _setting(60, "requests that may come at once before the rate counts", 1)

    max_clips: int = _setting(8, "recordings in one request", 1)
    max_audio_seconds: float = _setting(2 * 3600.0, "duration of one recording", 1)
    max_task_seconds: float = _setting(1800.0, "duration of a recording for tasks other than transcripts", 1)
    max_held_seconds: float = _setting(4 * 3600.0, "duration of all recordings that are being answered", 1)
    max_messages: int = _setting(64, "messages of one conversation", 1)
    max_text_chars: int = _setting(32_000, "characters of all text of one request", 1)
    max_tokens: int = _setting(2048, "tokens of one answer", 1)
    default_tokens: int = _setting(512, "tokens of an answer where the client names no number", 1)
    max_choices: int = _setting(4, "answers to one prompt (n)", 1)

    running: int = _setting(2, "answers that are decoded in turn", 1)
    max_waiting: int = _setting(64, "answers that wait for their turn", 1)
    max_waiting_per_key: int = _setting(16, "answers of one key that wait", 1)
    grace_seconds: float = _setting(20.0, "time for finishing answers when the server stops")

    decoders: int = _setting(2, "processes that decode recordings", 1)
    decode_seconds: float = _setting(60.0, "time for decoding one recording", 0.1)
    decode_memory_bytes: int = _setting(2 << 30, "memory of one decoding process", 512 << 20)
    decoded_cache_seconds: float = _setting(600.0, "duration of decoded recordings kept for follow-up questions")

    fetch_bytes: int = _setting(32 << 20, "bytes of a remote recording", 1024)
    fetch_seconds: float = _setting(20.0, "time for fetching a remote recording", 0.1)

    live_sessions: int = _setting(8, "live sessions", 1)
    live_sessions_per_key: int = _setting(4, "live sessions of one key", 1)
    live_seconds: float = _setting(3600.0, "longest live session", 1)
    live_idle_seconds: float = _setting(60.0, "longest silence of a live client", 0.1)

    store: str = _setting("", "SQLite file of batches; none: kept in memory until the server stops")
    max_batch_bytes: int = _setting(64 << 20, "bytes of one batch file", 1024)
    max_batch_lines: int = _setting(10_000, "requests of one batch", 1)
    max_batches_per_key: int = _setting(8, "batches of one key that have not ended", 1)
    max_store_bytes: int = _setting(1 << 30, "bytes of the store: files, requests and results", 32 << 10)
    batch_seconds: float = _setting(7 * 86_400.0, "time until batches expire, and what has ended is deleted", 0.1)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = each.metadata["least"]
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= least):
                raise SettingsError(f"{each.name} is {value!r}; valid: a number from {least:g}")
        if self.port > 65535:
            raise SettingsError(f"port is {self.port}; valid: 0 to 65535")
        if self.default_tokens > self.max_tokens:
            raise SettingsError(f"default_tokens is {self.default_tokens}, over max_tokens, {self.max_tokens}")

    @classmethod
    def read(cls, environ: Mapping[str, str], options: Mapping[str, str | None] | None = None) -> Settings:
        """Settings from the environment; `options`, from the command line, go before. Raises `SettingsError`."""
        values: dict[str, Any] = {}
        for each in fields(cls):
            text = (options or {}).get(each.name)
            if text is None:
                text = environ.get(PREFIX + each.name.upper())
            if text is not None:
                values[each.name] = _parse(each.name, each.default, text)
        return cls(**values)

    def check_exposed(self, has_keys: bool) -> None:
        """Raise `SettingsError` where anybody on the network could use the server without a key."""
        if not has_keys and self.host not in LOOPBACK:
            raise SettingsError(
                f"host is {self.host!r} and there are no API keys; listen on 127.0.0.1, or make a key with "
                "`moss-audio serve --new-key NAME` and name its file in --keys-file"
            )


def environment_name(setting: str) -> str:
    """The variable that sets `setting`."""
    return PREFIX + setting.upper()


def read_text(path: str, what: str) -> str:
    """The text of a file that a setting names; raises `SettingsError`."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what} is {path!r}, which cannot be read: {error}") from error


def _parse(name: str, default: object, text: str) -> Any:
    if isinstance(default, tuple):
        return tuple(filter(None, (part.strip() for part in text.split(","))))
    if isinstance(default, str):
        return text
    try:
        return type(default)(text)  # type: ignore[call-arg]
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise SettingsError(f"{name} is {text!r}; valid: {kind}, such as {default!r}") from None
