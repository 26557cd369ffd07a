"""Which period is the beat is learned from tunes with known tempi, the same way each time."""

import json
import sys
import wave

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moss_audio.signal import BEATS, beat_features  # noqa: E402
from moss_audio.training import beats  # noqa: E402


def test_clicks_are_read_at_their_rate(tmp_path, monkeypatch, capsys):
    rows = []
    for i, rate in enumerate(np.geomspace(60, 160, 24)):
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as wav:
            wav.setparams((1, 2, 16000, 0, "NONE", ""))
            wav.writeframes((beats.metronome(rate, 6.0) * 30000).astype("<i2").tobytes())
        rows.append({"audio": f"{i}.wav", "seconds": 6.0, "held_out": i % 3 == 0, "music": {"bpm": round(rate)}})
    manifest = tmp_path / "music.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["beats", str(manifest)])
    printed = []
    for _ in range(2):
        beats.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].endswith("learned from 16/16\nheld out 8/8\n")
    weights = np.array(json.loads(printed[0].splitlines()[0]))
    assert BEATS[int((beat_features(beats.metronome(130, 7.0)) @ weights).argmax())] == pytest.approx(130, rel=0.04)
