"""The example recordings are small, readable, and as long as their truth says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moss_audio.audio import SAMPLE_RATE, load_audio

FOLDER = Path(__file__).resolve().parent.parent / "examples"
TRUTH = [json.loads(line) for line in (FOLDER / "truth.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: str(row["audio"]))
def test_an_example_is_what_its_truth_says(row: dict[str, str | float]) -> None:
    path = FOLDER / str(row["audio"])
    samples = load_audio(path)
    assert path.stat().st_size < 60_000
    assert len(samples) / SAMPLE_RATE == pytest.approx(row["seconds"], abs=0.03)
    assert (np.abs(samples).max() == 0) == (row["kind"] == "silence")


def test_every_recording_has_its_truth() -> None:
    assert {row["audio"] for row in TRUTH} == {p.name for p in FOLDER.iterdir() if p.suffix in (".ogg", ".flac")}
