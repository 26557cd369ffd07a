"""Transcripts that were interrupted, as a small JSON file beside the results: what is written, and of what.

The file is replaced as a whole after every passage, so it is never half written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moss_audio.inference.generate import Usage
from moss_audio.inference.passages import Passage
from moss_audio.transcript import Segment, Word


def fingerprint(recording: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an unfinished transcript must agree in to be gone on with: the file, the model and its settings."""
    stat = os.stat(recording)
    return {"recording": os.path.abspath(recording), "bytes": stat.st_size, "modified": stat.st_mtime_ns, **settings}


def save(path: Path, of: Mapping[str, Any], passages: Sequence[Passage]) -> None:
    """Replace the file at `path`."""
    part = path.with_name(f"{path.name}.part")
    document = {"of": of, "passages": [asdict(passage) for passage in passages]}
    part.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    os.replace(part, path)


def restore(path: Path, of: Mapping[str, Any]) -> list[Passage]:
    """The passages at `path`; none where there is no such file, or it is of another recording or other settings."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [_passage(**passage) for passage in document["passages"]] if document["of"] == of else []
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def _passage(*, segments: list[dict[str, Any]], usage: dict[str, Any], notes: list[str], **rest: Any) -> Passage:
    return Passage(segments=tuple(_segment(**s) for s in segments), usage=Usage(**usage), notes=tuple(notes), **rest)


def _segment(*, words: list[dict[str, Any]], **rest: Any) -> Segment:
    return Segment(words=tuple(Word(**word) for word in words), **rest)
