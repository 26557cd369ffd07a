"""Which recordings the arguments name, and where the results of each belong. Opens nothing."""

from __future__ import annotations

import argparse
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SUFFIXES = frozenset(
    ".wav .w64 .flac .mp3 .ogg .oga .opus .m4a .m4b .aac .aif .aiff .caf .au .amr "
    ".mp4 .m4v .mov .mkv .mka .webm".split()
)
"""What is taken from a folder; a file that is named itself may be called anything."""


@dataclass(frozen=True)
class Named:
    """A recording: the `name` it is opened and reported by, and its `place` beneath an output folder, no suffix."""

    name: str
    place: Path


def find(names: Sequence[str]) -> tuple[list[Named], list[tuple[str, str]]]:
    """The recordings that `names` stand for, in order and each once, and the names that stand for none, with reasons.

    A folder stands for the recordings beneath it, sorted; a pattern (`*`, `?`, `[]`, `**`) for what it matches, where
    no file is called so. Results of a folder keep its structure; others take the recording's name, with its suffix
    only where two would be the same.
    """
    found: dict[str, Named] = {}
    failures: list[tuple[str, str]] = []
    for name in names:
        here = {named.name: named for named in _expand(name)}
        if not here:
            failures.append((name, "no recordings in this folder" if os.path.isdir(name) else "matches no file"))
        for key, named in here.items():
            found.setdefault(key, named)
    count = Counter(named.place for named in found.values())
    return [_told_apart(named) if count[named.place] > 1 else named for named in found.values()], failures


def check_places(recordings: Sequence[Named], parser: argparse.ArgumentParser) -> None:
    """Refuse two recordings whose results would be the same file."""
    seen: dict[Path, Named] = {}
    for named in recordings:
        other = seen.setdefault(named.place, named)
        if other is not named:
            parser.error(
                f"{other.name} and {named.name} would be written to the same file; give the folder above them"
            )


def _expand(name: str) -> Iterator[Named]:
    if name == "-":
        yield Named(name, Path("stdin"))
    elif os.path.isdir(name):
        for path in sorted(Path(name).rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield Named(str(path), path.relative_to(name).with_suffix(""))
    elif glob.has_magic(name) and not os.path.exists(name):
        for match in sorted(glob.glob(name, recursive=True)):
            if os.path.isfile(match):
                yield Named(match, Path(Path(match).stem))
    else:
        yield Named(name, Path(Path(name).stem))


def _told_apart(named: Named) -> Named:
    return replace(named, place=named.place.with_name(named.place.name + Path(named.name).suffix))
