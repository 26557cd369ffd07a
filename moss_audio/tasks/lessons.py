"""`feedback`: for learners of a language, what was said against a text; for learners of an instrument, tempo and key.

Music is measured from the signal. Speech is as good as the transcript: a word that the model misheard counts as wrong,
so a learner should be shown what was heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

import numpy as np

from moss_audio import signal
from moss_audio.errors import PromptError
from moss_audio.tasks.listener import Listener
from moss_audio.tasks.options import FeedbackOptions
from moss_audio.tasks.result import Result, Rows
from moss_audio.tasks.reviewing import plain_words
from moss_audio.transcript import Segment, Word

MAX_PAIRS = 4_000_000
"""Words of the target times words heard: a lesson of a quarter of an hour, compared in some seconds."""

Status = Literal["correct", "substituted", "missing", "extra"]


@dataclass(frozen=True)
class WordFeedback:
    """A word of the target against what was heard. A missing word has the time at which it was due."""

    status: Status
    target: str | None
    heard: str | None
    start: float | None
    end: float | None


@dataclass(frozen=True)
class Pause:
    """Silence between two words."""

    start: float
    end: float


@dataclass(frozen=True)
class SpeechFeedback:
    """`accuracy` is the share of the target's words said right, None without a target.

    `words_per_minute` counts from the first word to the last, pauses included; it and `pauses` need word times.
    """

    heard: str
    words: tuple[WordFeedback, ...]
    accuracy: float | None
    words_per_minute: float | None
    pauses: tuple[Pause, ...]


@dataclass(frozen=True)
class MusicFeedback:
    """Measures against targets. `tempo_off_percent` is above 0 where it was played faster than asked.

    Half and double the tempo count as the tempo: which of them is the beat is a matter of notation.
    """

    tempo: signal.Tempo | None
    target_bpm: float | None
    tempo_off_percent: float | None
    key: signal.Key | None
    target_key: str | None
    key_matches: bool | None


@dataclass(frozen=True)
class FeedbackResult(Result):
    """Feedback on speech or on music; the other is None."""

    speech: SpeechFeedback | None
    music: MusicFeedback | None

    def to_text(self) -> str:
        return "\n".join(_speech_lines(self.speech) if self.speech else _music_lines(self.music))

    def rows(self) -> Rows:
        if self.speech:
            head = ("status", "target", "heard", "start", "end")
            return head, [(w.status, w.target, w.heard, w.start, w.end) for w in self.speech.words]
        return ("measure", "value"), [tuple(line.split(": ", 1)) for line in _music_lines(self.music)]


def feedback(listener: Listener, samples: np.ndarray, options: FeedbackOptions) -> FeedbackResult:
    """Compare a recording with what was to be said or played."""
    if options.key is not None and options.key not in signal.KEYS:
        raise PromptError(f"key is {options.key!r}; valid: {', '.join(signal.KEYS)}")
    subject = options.subject
    if subject == "auto" and (options.text or options.bpm or options.key):
        subject = "speech" if options.text else "music"
    if subject == "auto":
        subject = "speech" if listener.speaks(samples) else "music"
    if subject == "music":
        played = compare_music(signal.tempo(samples), options.bpm, signal.key(samples), options.key)
        return FeedbackResult(listener.cost(samples), None, played)
    transcript = listener.transcribe(samples, words=True)
    spoken = compare_speech(transcript.segments, options.text, options.pause)
    return FeedbackResult(listener.cost(samples), spoken, None)


def compare_speech(segments: Sequence[Segment], target: str | None, pause: float) -> SpeechFeedback:
    """Word by word, with pace and pauses."""
    words = [word for segment in segments for word in segment.words]
    timed = bool(words)
    words = words or [Word(text, 0.0, 0.0) for segment in segments for text in segment.text.split()]
    compared = align(target.split(), words) if target else ()
    if not timed:
        compared = tuple(WordFeedback(word.status, word.target, word.heard, None, None) for word in compared)
    right = sum(word.status == "correct" for word in compared)
    seconds = words[-1].end - words[0].start if timed else 0.0
    return SpeechFeedback(
        " ".join(word.text for word in words),
        compared,
        round(right / len(target.split()), 3) if target and target.split() else None,
        round(60 * len(words) / seconds, 1) if seconds > 0 and len(words) > 2 else None,
        tuple(Pause(a.end, b.start) for a, b in pairwise(words) if timed and b.start - a.end >= pause),
    )


def align(target: Sequence[str], heard: Sequence[Word]) -> tuple[WordFeedback, ...]:
    """The fewest changes from `target` to `heard`; among equals, words that look alike stand for each other.

    Raises `PromptError` where that would take too long.
    """
    if len(target) * len(heard) > MAX_PAIRS:
        raise PromptError(f"{len(target)} words of text and {len(heard)} heard are too many; cut the recording")
    wanted, said = [_bare(word) for word in target], [_bare(word.text) for word in heard]
    cost = np.zeros((len(wanted) + 1, len(said) + 1))
    cost[:, 0], cost[0] = np.arange(len(wanted) + 1), np.arange(len(said) + 1)
    swap = np.array([[_unlike(a, b) for b in said] for a in wanted]).reshape(len(wanted), len(said))
    for i in range(1, len(wanted) + 1):
        for j in range(1, len(said) + 1):
            cost[i, j] = min(cost[i - 1, j - 1] + swap[i - 1, j - 1], cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    found: list[WordFeedback] = []
    i, j = len(wanted), len(said)
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + swap[i - 1, j - 1]:
            i, j = i - 1, j - 1
            status: Status = "correct" if wanted[i] == said[j] else "substituted"
            found.append(WordFeedback(status, target[i], heard[j].text, heard[j].start, heard[j].end))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            due = heard[j - 1].end if j else heard[0].start if heard else None
            found.append(WordFeedback("missing", target[i], None, due, due))
        else:
            j -= 1
            found.append(WordFeedback("extra", None, heard[j].text, heard[j].start, heard[j].end))
    return tuple(reversed(found))


def compare_music(
    tempo: signal.Tempo | None, target_bpm: float | None, key: signal.Key | None, target_key: str | None
) -> MusicFeedback:
    """Measures against targets."""
    off = None
    if tempo is not None and target_bpm:
        ratio = min((tempo.bpm * factor / target_bpm for factor in (0.5, 1.0, 2.0)), key=lambda r: abs(np.log(r)))
        off = round(100 * (ratio - 1), 1)
    matches = key.name == target_key if key is not None and target_key is not None else None
    return MusicFeedback(tempo, target_bpm, off, key, target_key, matches)


def _bare(word: str) -> str:
    return "".join(plain_words(word))


def _unlike(a: str, b: str) -> float:
    """What it costs to take word `b` for `a`: 0 for the same, less than 2 for any other."""
    return 0.0 if a == b else 1.5 - 0.5 * SequenceMatcher(None, a, b).ratio()


def _speech_lines(speech: SpeechFeedback) -> list[str]:
    lines = [f"heard: {speech.heard}"]
    for word in speech.words:
        if word.status != "correct":
            at = f" at {word.start:.2f} s" if word.start is not None else ""
            said = f"{word.target} → {word.heard}" if word.status == "substituted" else word.target or word.heard
            lines.append(f"{word.status}: {said}{at}")
    if speech.accuracy is not None:
        lines.append(f"right: {100 * speech.accuracy:.0f} % of the words")
    if speech.words_per_minute is not None:
        lines.append(f"pace: {speech.words_per_minute:.0f} words a minute")
    return lines + [f"pause: {pause.start:.2f}-{pause.end:.2f} s" for pause in speech.pauses]


def _music_lines(music: MusicFeedback | None) -> list[str]:
    tempo, key = (music.tempo, music.key) if music else (None, None)
    lines = [f"tempo: {tempo.bpm:.0f} beats a minute" if tempo else "tempo: no steady beat"]
    if music and music.tempo_off_percent is not None:
        lines.append(f"against the target: {music.tempo_off_percent:+.1f} %")
    if tempo and tempo.jitter_percent is not None:
        lines.append(f"unevenness: {tempo.jitter_percent:.1f} % of a beat's length")
    if tempo and tempo.drift_percent is not None:
        lines.append(f"drift: {tempo.drift_percent:+.1f} % from beginning to end")
    lines.append(f"key: {key.name}" if key else "key: none found")
    if music and music.key_matches is not None:
        lines.append(f"key asked for: {music.target_key} ({'yes' if music.key_matches else 'no'})")
    return lines
