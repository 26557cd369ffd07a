"""What the server answers when it does not do what was asked: every status in one place, one shape for all.

The shape is OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException

from moss_audio.errors import (
    AudioError,
    AudioLimitError,
    BackendError,
    MossAudioError,
    PromptError,
    UnsupportedAudioError,
)

STATUS: Mapping[type[MossAudioError], tuple[int, str]] = {
    AudioLimitError: (413, "audio_too_large"),
    UnsupportedAudioError: (415, "unsupported_audio"),
    AudioError: (422, "damaged_audio"),
    PromptError: (400, "invalid_prompt"),
    BackendError: (503, "model_unavailable"),
    MossAudioError: (400, "invalid_request"),
}
"""The package's errors to status and code; a class that is not here counts as its nearest base."""

CLIENT_GONE = 499
"""For the log alone: the client hung up, so nobody reads a status."""

RETRY_SECONDS = 5


class Refusal(HTTPException):
    """A request that is not answered. `code` is for programs, `message` for people."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        headers = {"Retry-After": str(max(1, round(retry_after)))} if retry_after is not None else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.message, self.param = code, message, param

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer. Lone surrogates, which JSON can spell and UTF-8 cannot, are replaced."""
        return error_body(self.status_code, self.code, self.message, self.param)


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The one error shape."""
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    if status in (401, 403):
        kind = "authentication_error" if status == 401 else "permission_error"
    readable = message.encode("utf-8", "replace").decode("utf-8")
    return {"error": {"message": readable, "type": kind, "param": param, "code": code}}


def refusal(error: Exception) -> Refusal:
    """What an exception means to the client. One that the package did not raise on purpose tells nothing of itself."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MossAudioError):
        known = next(kind for kind in type(error).__mro__ if kind in STATUS)
        status, code = STATUS[known]
        return Refusal(status, code, str(error), retry_after=RETRY_SECONDS if status == 503 else None)
    if is_full(error):
        return busy("disk_full", "the server has no room on its disk now; try again soon")
    return Refusal(500, "internal_error", "the server failed; its log has the details under this X-Request-ID")


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk is full: that of temporary files, or of the store."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def busy(code: str, message: str) -> Refusal:
    """The server has too much to do; the same request may pass later."""
    return Refusal(503, code, message, retry_after=RETRY_SECONDS)
