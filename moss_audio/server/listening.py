"""Live sound to utterances: raw PCM in, and where somebody begins and ends to speak.

Knows voices and pauses; what is said is for the model. State is one object a listener.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.errors import PromptError
from moss_audio.inference.voice import CHUNK, SPEECH_LEVEL

RATES = (16_000, 24_000, 48_000)
"""Sample rates of live sound; OpenAI's is 24 kHz."""

VOICED, UNVOICED = 0.6, 0.35
"""Probabilities at which speech begins and ends: between them, what was goes on."""

START_CHUNKS = 3
"""Speech begins with so many voiced chunks of 32 ms in a row: no click lasts as long."""

LEAD_SECONDS = 0.3
"""Kept from before the first voiced chunk, which is often in the middle of a consonant."""

PAUSE_SECONDS = 0.7
LONGEST_SECONDS = 15.0
"""An utterance is cut here at the latest: the Mini reads up to 16 s at once."""

MAX_GAIN = 30.0


@dataclass(frozen=True, eq=False)
class Utterance:
    """Somebody spoke: `samples [n]` from `start` on, in seconds since the session began. Not `ended`: goes on yet."""

    start: float
    samples: np.ndarray
    ended: bool

    @property
    def end(self) -> float:
        return self.start + len(self.samples) / SAMPLE_RATE


class Pcm:
    """Signed 16-bit little-endian mono at any of `RATES` to float32 at 16 kHz."""

    def __init__(self, rate: int) -> None:
        if rate not in RATES:
            raise PromptError(f"the sample rate is {rate}; valid: {', '.join(map(str, RATES))}")
        self.rate, self._odd = rate, b""
        self._resampler = None if rate == SAMPLE_RATE else av.AudioResampler("flt", "mono", SAMPLE_RATE)

    def push(self, data: bytes) -> np.ndarray:
        """The samples in `data`; half a sample at its end waits for the rest."""
        data = self._odd + data
        even = len(data) - len(data) % 2
        self._odd = data[even:]
        values = np.frombuffer(data[:even], dtype="<i2")
        if self._resampler is None or not len(values):
            return values.astype(np.float32) / 32768
        frame = av.AudioFrame.from_ndarray(values[None], format="s16", layout="mono")
        frame.sample_rate = self.rate
        blocks = [out.to_ndarray()[0] for out in self._resampler.resample(frame)]
        return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


class Listener:
    """Cuts a stream of samples into utterances. `voice` tells the probability of speech of a chunk `[512]`."""

    def __init__(self, voice: Callable[[np.ndarray], float]) -> None:
        self._voice = voice
        self._rest: np.ndarray = np.empty(0, np.float32)
        self._lead: deque[np.ndarray] = deque(maxlen=round(LEAD_SECONDS * SAMPLE_RATE / CHUNK) + START_CHUNKS)
        self._spoken: list[np.ndarray] = []
        self._voiced, self._quiet, self._level = 0, 0, 0.0
        self._start, self.seconds = 0.0, 0.0

    def push(self, samples: np.ndarray) -> list[Utterance]:
        """What began (not `ended`) or ended with these samples, in order."""
        self._rest = np.concatenate([self._rest, samples])
        found: list[Utterance] = []
        while len(self._rest) >= CHUNK:
            chunk, self._rest = self._rest[:CHUNK], self._rest[CHUNK:]
            self.seconds += CHUNK / SAMPLE_RATE
            found += self._hear(chunk)
        return found

    @property
    def current(self) -> Utterance | None:
        """What is being said right now."""
        return Utterance(self._start, np.concatenate(self._spoken), False) if self._spoken else None

    def finish(self) -> Utterance | None:
        """End the utterance here, as when the client says so."""
        current = self.current
        self._spoken, self._voiced, self._quiet = [], 0, 0
        self._lead.clear()
        return Utterance(current.start, current.samples, True) if current is not None else None

    def _hear(self, chunk: np.ndarray) -> list[Utterance]:
        probability = self._voice(self._raised(chunk))
        if not self._spoken:
            self._lead.append(chunk)
            self._voiced = self._voiced + 1 if probability >= VOICED else 0
            if self._voiced < START_CHUNKS:
                return []
            self._spoken, self._quiet = list(self._lead), 0
            self._start = self.seconds - len(self._spoken) * CHUNK / SAMPLE_RATE
            return [Utterance(self._start, np.concatenate(self._spoken), False)]
        self._spoken.append(chunk)
        self._quiet = self._quiet + 1 if probability < UNVOICED else 0
        paused = self._quiet * CHUNK >= PAUSE_SECONDS * SAMPLE_RATE
        if paused or len(self._spoken) * CHUNK >= LONGEST_SECONDS * SAMPLE_RATE:
            ended = self.finish()
            return [ended] if ended is not None else []
        return []

    def _raised(self, chunk: np.ndarray) -> np.ndarray:
        """Raised to speech level by the loudest of late, as the detector misses what is quiet."""
        self._level = max(float(np.abs(chunk).max()), 0.995 * self._level)
        gain = min(MAX_GAIN, max(1.0, SPEECH_LEVEL / self._level)) if self._level > 0 else 1.0
        return np.clip(gain * chunk, -1.0, 1.0).astype(np.float32)
