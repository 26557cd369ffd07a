"""What a segment holds, by branch: speech, music, sounds. Each is heard by several annotators and kept as they agree.

An annotator is a plain function of `samples [n]`; `Annotators.of` makes ours: the model itself, a second recogniser
where one is given, and measurements of the signal. Knows no files. What is dropped, and why, is part of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from moss_audio import signal, tasks
from moss_audio.audio import SAMPLE_RATE
from moss_audio.data.spoken import stamped
from moss_audio.data.wording import article, capital, joined
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english
from moss_audio.inference.engine import MossAudio
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.spans import STEPS, Span, activity, spoken
from moss_audio.inference.spans import spans as measured_spans
from moss_audio.inference.voice import CHUNK, SURE, SURE_CHUNKS, Voice, silero
from moss_audio.prompts import EVENTS, PRESENT, TRANSCRIBE, TRANSCRIBE_TIMED
from moss_audio.tasks.songs import MusicResult
from moss_audio.tasks.sounds import Event
from moss_audio.transcript import Segment

Recogniser = Callable[[np.ndarray], Sequence[Segment]]
Musician = Callable[[np.ndarray], MusicResult]
Observer = Callable[[np.ndarray], Sequence[Event]]
Asker = Callable[[np.ndarray, str], str]

MAX_DISAGREEMENT = 0.25
"""Word error rate of one recogniser by the other's transcript, above which neither is believed."""

WORDS_PER_SECOND = (0.7, 6.0)
"""Words in a second of voice that one recogniser alone may write: people speak two to four."""

TEMPO_TOLERANCE = 0.08
"""Share by which a tempo that is said may differ from the one measured, or from its half or double."""

ENDS = (".", '"')

EDGE = 0.7
"""Seconds between the start or end of an event as it is said and where the signal has one."""


@dataclass(frozen=True)
class Annotators:
    """Who annotates. The first recogniser's text is kept, so it should be the better one."""

    voice: Voice
    recognisers: Sequence[Recogniser]
    music: Musician
    events: Observer
    ask: Asker

    @classmethod
    def of(cls, model: MossAudio, recogniser: Recogniser | None = None) -> Annotators:
        """The model's own answers, and a second `recogniser` before it."""
        params = SamplingParams(max_new_tokens=96)

        def transcribe(samples: np.ndarray) -> Sequence[Segment]:
            return model.transcribe(samples).segments

        return cls(
            silero,
            (recogniser, transcribe) if recogniser else (transcribe,),
            lambda samples: tasks.music(model, samples),
            lambda samples: tasks.events(model, samples).events,
            lambda samples, question: model.ask(samples, question, params=params).text,
        )


@dataclass(frozen=True)
class Branch:
    """What one branch knows of a segment: a phrase for the caption, questions with answers, typed truth.

    `dropped` says what annotators did not agree on, as `reason: particulars`.
    """

    name: str
    phrase: str = ""
    asked: tuple[tuple[str, str], ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def speech(samples: np.ndarray, by: Annotators) -> Branch:
    """Sentences with times, where somebody speaks and the recognisers agree on what."""
    chunks = np.fromiter(by.voice(samples), np.float64)
    voiced = float(np.count_nonzero(chunks >= 0.5)) * CHUNK / SAMPLE_RATE
    found = [list(recogniser(samples)) for recogniser in by.recognisers]
    texts = [" ".join(segment.text for segment in segments) for segments in found]
    if np.count_nonzero(chunks >= SURE) < SURE_CHUNKS:
        written = any(english(text) for text in texts)
        return Branch("speech", dropped=("words where nobody speaks",) if written else ())
    if reason := _disagreement(texts, voiced):
        return Branch("speech", dropped=(reason,), truth={"voice": True})
    timed = "".join(stamped(segment.start, segment.end, segment.text) for segment in found[0])
    truth = {"voice": True, "text": texts[0], "segments": [segment.to_dict() for segment in found[0]]}
    phrase = f'somebody says: "{texts[0]}"' if len(texts[0].split()) <= 30 else "somebody speaks"
    return Branch("speech", phrase, ((TRANSCRIBE, texts[0]), (TRANSCRIBE_TIMED, timed)), truth)


def _disagreement(texts: Sequence[str], voiced: float) -> str | None:
    """Why transcripts are not believed: they differ, or one alone does not fit the seconds of voice."""
    words = [english(text) for text in texts]
    if not words[0]:
        return "nothing written where somebody speaks"
    if len(words) > 1:
        rate = max(ErrorRate.of(words[0], other).value for other in words[1:])
        return f"recognisers differ: {rate:.2f} of the words" if rate > MAX_DISAGREEMENT else None
    pace = len(words[0]) / max(0.1, voiced)
    low, high = WORDS_PER_SECOND
    return None if low <= pace <= high else f"words do not fit the voice: {pace:.1f} a second"


def music(samples: np.ndarray, by: Annotators) -> Branch:
    """Tempo and key, where there are a beat and a tone, and as far as the model says what is measured."""
    tempo, key = signal.tempo(samples), signal.key(samples)
    if tempo is None or key is None or not is_music(tempo, key):
        return Branch("music")
    heard, dropped, truth = by.music(samples).heard, list[str](), dict[str, Any]()
    if heard is None:
        return Branch("music", dropped=("the model hears nothing",))
    if any(abs(heard.bpm / tempo.bpm / factor - 1) <= TEMPO_TOLERANCE for factor in (0.5, 1, 2)):
        truth |= {"bpm": round(tempo.bpm), "tempo": signal.tempo_class(tempo.bpm)}
    else:
        dropped.append(f"tempo: {heard.bpm} heard, {tempo.bpm:.0f} measured")
    if heard.key == key.name:
        truth["key"] = key.name
    else:
        dropped.append(f"key: {heard.key} heard, {key.name} measured")
    pace = f" at about {truth['bpm']} beats per minute" if "bpm" in truth else ""
    tone = f" in {truth['key']}" if "key" in truth else ""
    asked = [("What is the tempo in beats per minute?", f"About {truth['bpm']} beats per minute.")] if pace else []
    asked += [("In which key is the music?", f"{truth['key']}.")] if tone else []
    return Branch("music", f"music{pace}{tone}" if truth else "", tuple(asked), truth, tuple(dropped))


def is_music(tempo: signal.Tempo, key: signal.Key) -> bool:
    """Whether beat and tones are as sure as those of music: 1 of 50 environmental sounds passes, 0 of 50 of speech."""
    steady = tempo.jitter_percent is not None and tempo.jitter_percent < 8
    return steady and tempo.strength >= 0.3 and key.correlation > 0.65


def sounds(samples: np.ndarray, by: Annotators) -> Branch:
    """Names of what sounds that the model confirms when asked, with times where the signal has an edge as well."""
    active, voiced = activity(samples, by.voice), spoken(samples, by.voice)
    spans, kept, timed, dropped = measured_spans(samples, by.voice), list[str](), list[Event](), list[str]()

    def confirmed(label: str) -> bool:
        return label in kept or by.ask(samples, PRESENT.format(what=article(label))).lower().startswith("yes")

    for event in by.events(samples):
        steps = slice(int(event.start * STEPS), max(int(event.start * STEPS) + 1, int(event.end * STEPS)))
        if not len(active[steps]) or active[steps].mean() < 0.5:
            dropped.append(f"nothing sounds there: {event.label}")
        elif is_speech(event.label) and voiced[steps].mean() < 0.3:
            dropped.append(f"nobody speaks there: {event.label}")
        elif confirmed(event.label):
            kept += [event.label] * (event.label not in kept)
            if edges := _edges(event, spans):
                timed.append(Event(event.label, edges.start, edges.end))
            else:
                dropped.append(f"the signal has other times: {event.label}")
        else:
            dropped.append(f"denied when asked: {event.label}")
    if not kept:
        return Branch("sounds", dropped=tuple(dropped))
    asked = [("What do you hear?", capital(joined(kept)))]
    if {event.label for event in timed} == set(kept):
        line = "".join(f"[{event.start:.1f}]{event.label}[{event.end:.1f}]" for event in timed)
        asked.append((EVENTS, line))
    truth = {"labels": kept, "events": [asdict(event) for event in timed]}
    return Branch("sounds", ", then ".join(kept), tuple(asked), truth, tuple(dropped))


def is_speech(label: str) -> bool:
    """Whether a sound is somebody speaking."""
    return any(word in label for word in ("speak", "speech", "talk", "conversation"))


def _edges(event: Event, spans: Sequence[Span]) -> Span | None:
    """Where the signal has an event's start and end, if it has both nearby."""
    start = min((span.start for span in spans), key=lambda time: abs(time - event.start), default=-EDGE)
    end = min((span.end for span in spans), key=lambda time: abs(time - event.end), default=-EDGE)
    near = abs(start - event.start) <= EDGE and abs(end - event.end) <= EDGE and start < end
    return Span(round(start, 2), round(end, 2)) if near else None


BRANCHES: tuple[Callable[[np.ndarray, Annotators], Branch], ...] = (sounds, music, speech)


def caption(branches: Sequence[Branch]) -> str | None:
    """One sentence of all that the branches know; speech is said once. None where they know nothing."""
    spoken_for = any(branch.name == "speech" and branch.phrase for branch in branches)
    phrases = []
    for branch in branches:
        phrase = branch.phrase
        if branch.name == "sounds" and spoken_for:
            phrase = ", then ".join(label for label in branch.truth.get("labels", ()) if not is_speech(label))
        phrases += [phrase] if phrase else []
    text = "; ".join(phrases)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(ENDS) else '.'}" if text else None
