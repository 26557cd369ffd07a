"""`music`: what plays, how fast, in which key. What the signal can tell is measured, the rest the model hears."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from moss_audio import signal
from moss_audio.inference.grammar import array, integer, json_object, one_of, string
from moss_audio.prompts import DESCRIBE_MUSIC
from moss_audio.tasks.listener import Listener, loudest, sounds
from moss_audio.tasks.options import NoOptions
from moss_audio.tasks.result import Result, Rows, plain

MEASURED_SECONDS = 30.0
"""What tempo and key are measured on: the loudest part of this length."""

_MUSIC = json_object({
    "instruments": array(string(40), max_items=6),
    "tempo": one_of(signal.TEMPI),
    "bpm": integer(20, 400),
    "key": one_of(signal.KEYS),
    "metre": string(12),
    "style": string(60),
    "mood": string(60),
})  # fmt: skip


@dataclass(frozen=True)
class Music:
    """Music in the model's words; the fields are those of `prompts.MUSIC_FIELDS`."""

    instruments: tuple[str, ...]
    tempo: str
    bpm: int
    key: str
    metre: str
    style: str
    mood: str


@dataclass(frozen=True)
class MusicResult(Result):
    """`heard` is the model's answer about the loudest part, None where nothing sounds.

    `measured_tempo` and `measured_key` come from the signal of that part, and are None where there is no beat or no
    tone. `music` is what to believe: the measures where there are any, since the Mini hears tempo and key by guess.
    """

    heard: Music | None
    measured_tempo: signal.Tempo | None
    measured_key: signal.Key | None

    @property
    def music(self) -> Music | None:
        """What is heard, with the tempo and the key that were measured."""
        return replace(self.heard, **self._measured()) if self.heard else None

    def to_dict(self) -> dict[str, Any]:
        return {"music": plain(self.music)} | super().to_dict()

    def _measured(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.measured_tempo:
            bpm = round(self.measured_tempo.bpm)
            found |= {"tempo": signal.tempo_class(bpm), "bpm": bpm}
        return found | ({"key": self.measured_key.name} if self.measured_key else {})

    def to_text(self) -> str:
        return "\n".join(f"{name}: {value} ({source})" for name, value, source in self.rows()[1]) or "No music."

    def rows(self) -> Rows:
        measured = self._measured()
        rows: list[tuple[str, object, str]] = []
        for name, value in (asdict(self.music) if self.music else measured).items():
            said = ", ".join(value) if name == "instruments" else value
            rows.append((name, said, "signal" if name in measured else "model"))
        return ("field", "value", "source"), rows


def music(listener: Listener, samples: np.ndarray, options: NoOptions) -> MusicResult:
    """The model's account of the music and the signal's."""
    _, part = loudest(samples, MEASURED_SECONDS)
    if not sounds(part):
        return MusicResult(listener.cost(samples), None, None, None)
    fields = listener.fill(listener.excerpt(part), DESCRIBE_MUSIC, _MUSIC)
    heard = Music(**{**fields, "instruments": tuple(dict.fromkeys(fields["instruments"]))}) if fields else None
    return MusicResult(listener.cost(samples), heard, signal.tempo(part), signal.key(part))
