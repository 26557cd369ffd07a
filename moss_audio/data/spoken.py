"""Questions about who says what, and when, with answers from a scene's truth: tasks as in `wording`, about speech.

Speakers are told apart by the `speaker` of their rows, and named by turn: `speaker 1` is the first to speak. Times are
those of a clip's words where its row has them, else of what sounds in it; nothing is timed where two speak at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from moss_audio.data.punctuate import sentence
from moss_audio.data.scene import Event, Scene, voices_of
from moss_audio.data.wording import ask, cased, other_voices, sentences
from moss_audio.transcript import SENTENCE_END, Word

NUMBERS = ("Nobody.", "One person.", "Two people.", "Three people.", "Four people.", "Five people.")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
PERSON = {"male": "man", "female": "woman"}


def timed(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Sentence by sentence with times; empty where nobody speaks."""
    said = in_turn(scene)
    if said is None:
        return None
    spans = [span for event, text in said for span in sentence_spans(event, text)]
    return ask("timed", rng), "".join(stamped(*span) for span in spans)


def words(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Word by word with times, where those of all words are known."""
    said = in_turn(scene)
    if not said or not all(is_timed(event) for event, _ in said):
        return None
    found = [(word.start, word.end, shown) for event, _ in said for word, shown in spelled(event.words)]
    return ask("words", rng), "".join(stamped(*word) for word in found)


def speakers(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """How many people speak."""
    numbers = turn_numbers(scene)
    return None if numbers is None else (ask("speakers", rng), NUMBERS[max(numbers, default=-1) + 1])


def who(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Which speaker speaks when, to a tenth of a second."""
    spoken, numbers = spoken_in(scene), turn_numbers(scene)
    if not spoken or numbers is None:
        return None
    spans = [
        f"[{event.start:.1f}]speaker {number + 1}{f' ({PERSON[gender]})' if gender in PERSON else ''}[{event.end:.1f}]"
        for event, number in zip(spoken, numbers, strict=True)
        for gender in [event.truth.get("gender")]
    ]
    return ask("who", rng), "".join(spans)


def dialogue(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """What each speaker says, with times."""
    said, numbers = in_turn(scene), turn_numbers(scene)
    if not said or numbers is None:
        return None
    lines = [
        stamped(event.start, event.end, f"Speaker {number + 1}: {text}")
        for (event, text), number in zip(said, numbers, strict=True)
    ]
    return ask("dialogue", rng), "".join(lines)


def said(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """All that one of several speakers says: the first, the second, or the only woman."""
    texts, numbers = sentences(scene), turn_numbers(scene)
    if not texts or numbers is None or max(numbers) < 1:
        return None
    one = int(rng.choice(numbers))
    own = [(event, text) for (event, text), number in zip(texts, numbers, strict=True) if number == one]
    gender = own[0][0].truth.get("gender")
    alike = {n for (event, _), n in zip(texts, numbers, strict=True) if event.truth.get("gender") in (gender, None)}
    only = gender in PERSON and len(alike) == 1 and rng.random() < 0.5
    person = PERSON[str(gender)] if only else f"{ORDINALS[one]} speaker"
    return ask("said", rng, who=f"the {person}"), " ".join(text for _, text in own)


def anybody(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """Whether there is speech at all."""
    if not spoken_in(scene) and other_voices(scene):
        return None
    return ask("anybody", rng), "Yes." if spoken_in(scene) else "No."


def spoken_in(scene: Scene) -> list[Event]:
    """The events in which somebody speaks."""
    return [event for event in scene.events if event.kind == "speech"]


def turn_numbers(scene: Scene) -> list[int] | None:
    """Who speaks each spoken event, numbered by first turn; None where it is not known or other voices sound."""
    spoken, known = spoken_in(scene), list[frozenset[str]]()
    voices = [voices_of(event.truth) for event in spoken]
    if other_voices(scene) or (len(spoken) > 1 and not all(voices)):
        return None
    for voice in voices:
        if voice not in known:
            known.append(voice)
    return [known.index(voice) for voice in voices]


def in_turn(scene: Scene) -> list[tuple[Event, str]] | None:
    """The spoken events with their texts, where all are known and no two overlap."""
    found = sentences(scene)
    if found is None or any(one.end > two.start for (one, _), (two, _) in pairwise(found)):
        return None
    return found


def is_timed(event: Event) -> bool:
    """Whether the times of all words that are said are known."""
    return [word.text for word in event.words] == str(event.truth.get("text")).split()


def sentence_spans(event: Event, text: str) -> Sequence[tuple[float, float, str]]:
    """A spoken event by sentences where its words have times, as a whole where not."""
    parts = text.split()
    if len(event.words) != len(parts):
        return [(event.start, event.end, text)]
    ends = [i + 1 for i, word in enumerate(parts) if SENTENCE_END.search(word) or i + 1 == len(parts)]
    return [
        (event.words[first].start, event.words[last - 1].end, " ".join(parts[first:last]))
        for first, last in pairwise([0, *ends])
    ]


def spelled(found: Sequence[Word]) -> Sequence[tuple[Word, str]]:
    """Words in the spelling of their sentence."""
    return list(zip(found, sentence(cased(" ".join(word.text for word in found))).split(), strict=True))


def stamped(start: float, end: float, text: str) -> str:
    """Text between its times, as `transcript.parse_timestamped` reads it."""
    return f"[{start:.2f}]{text}[{end:.2f}]"
