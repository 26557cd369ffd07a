"""Manifests and features: JSON Lines of clips → log-mels in one file, read back by row.

A manifest row has `audio` (path relative to the manifest's folder), `seconds`, and labels; which ones is the caller's
business.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.audio import load_audio, log_mel

Row = Mapping[str, Any]


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def held_out(row: Row) -> bool:
    """Whether a row of a manifest without a split of its own is kept for development: one clip in five, by its name."""
    return int(hashlib.sha1(Path(row["audio"]).name.encode()).hexdigest(), 16) % 5 == 0


def append_rows(
    rows: Sequence[Row], data: Path, index: Path, step_bytes: int, compute: Callable[[Row], np.ndarray]
) -> list[int]:
    """Bring the file `data` up to date with `rows`, a row's array behind the other's; the lengths of all, in steps.

    `index` records what is whole: an array half written by a run that was stopped is cut off, and rows added since are
    computed and appended.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    with data.open("ab") as out, index.open("a") as record:
        fcntl.flock(record, fcntl.LOCK_EX)  # processes of one run, or two runs, share the cache
        lengths = [int(line) for line in index.read_text().split()]
        out.truncate(step_bytes * sum(lengths))
        for row in rows[len(lengths) :]:
            array = compute(row)
            out.write(array.tobytes())
            out.flush()
            record.write(f"{len(array)}\n")
            record.flush()
            lengths.append(len(array))
    return lengths[: len(rows)]


class MelStore(Sequence[np.ndarray]):
    """The log-mels `[n_mels, F]` (float16 on disk) of a manifest, computed once beside `cache` and then mapped.

    Rows that were added to the manifest since are appended, so an interrupted run goes on where it stopped.
    """

    def __init__(self, manifest: Path, cache: Path, n_mels: int) -> None:
        self.rows = read_manifest(manifest)
        data, index = cache / f"{manifest.stem}.mel{n_mels}", cache / f"{manifest.stem}.index{n_mels}"

        def frames_of(row: Row) -> np.ndarray:
            mel = log_mel(load_audio(manifest.parent / row["audio"]), n_mels)
            return np.ascontiguousarray(mel.T, dtype=np.float16)

        self.frames = append_rows(self.rows, data, index, 2 * n_mels, frames_of)
        self._starts = np.concatenate([[0], np.cumsum(self.frames)])
        self._mel = np.memmap(data, np.float16, "r").reshape(-1, n_mels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        return self._mel[self._starts[i] : self._starts[i + 1]].T

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))
