"""Questions and answers about a scene, in many wordings, from its truth: no answer says more than the truth holds.

A task is a function `(scene, rng) → (question, answer)`, or None where the scene does not fit it. The prompts of
`moss_audio.prompts` are always among the wordings. Knows no samples and no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moss_audio.data.punctuate import sentence
from moss_audio.data.scene import Event, Scene
from moss_audio.prompts import (
    CAPTION_FIELDS,
    CAPTION_SPEECH,
    CHOOSE,
    CONVERSE,
    CONVERSE_FIELDS,
    DESCRIBE,
    DESCRIBE_MUSIC,
    EMOTION,
    EVENTS,
    NARRATE,
    NOTHING,
    TRANSCRIBE,
    TRANSCRIBE_TIMED,
    TRANSCRIBE_WORDS,
)

Task = Callable[[Scene, np.random.Generator], tuple[str, str] | None]

WORDINGS: Mapping[str, Sequence[str]] = {
    "transcribe": (TRANSCRIBE,) * 6 + (
        "What is said?", "What does the speaker say?", "Write down what you hear.", "Please transcribe this recording.",
    ),
    "name": (
        "What sound is this?", "What do you hear?", "Which sound is in the recording?", "Name the sound.",
        "What is making this sound?", "Identify the sound.",
    ),
    "describe": (DESCRIBE,) * 3 + (
        "Describe what you hear.", "What is going on in this recording?", "Caption this audio.",
    ),
    "events": (EVENTS,) * 3 + ("Give a timeline of the sound events.", "Which sounds are there, and when?"),
    "present": ("Is there {a} in the recording?", "Do you hear {a}?", "Can {a} be heard?"),
    "count": ("How many sound events are there?", "How many different sounds do you hear?"),
    "first": ("Which sound comes first?", "What is heard first?"),
    "last": ("Which sound comes last?", "What is heard last?"),
    "after": ("What is heard after {a}?", "Which sound follows {a}?"),
    "when": ("When does {a} start?", "At what second does {a} begin?"),
    "louder": ("Which is louder, {a} or {b}?",),
    "longer": ("Which lasts longer, {a} or {b}?",),
    "gender": ("Is the speaker a man or a woman?", "Who speaks, a man or a woman?", "What is the speaker's gender?"),
    "emotion": (EMOTION,) * 3 + ("What emotion does the speaker show?", "How does the speaker feel?"),
    "speakers": ("How many people speak?", "How many speakers are there?", "How many different voices do you hear?"),
    "anybody": ("Is anybody speaking?", "Does anyone speak in the recording?", "Is there speech in the recording?"),
    "who": ("Who speaks when?", "List the speakers with their times.", "Give a timeline of the speakers."),
    "dialogue": ("Transcribe the conversation with speakers and times.", "Who says what, and when?"),
    "said": ("What does {who} say?", "What is said by {who}?"),
    "timed": (TRANSCRIBE_TIMED,) * 3 + ("Transcribe the audio with timestamps.", "Which sentence is said when?"),
    "words": (TRANSCRIBE_WORDS,) * 3 + ("Transcribe the audio with the times of the words.",),
    "background": ("What is in the background?", "Which sound goes on in the background?"),
    "instrument": ("Which instrument is playing?", "What instrument plays the melody?", "Name the main instrument."),
    "tempo": ("Is the music slow, moderate or fast?", "How fast is the music?"),
    "bpm": ("What is the tempo in beats per minute?", "How many beats per minute is the music?"),
    "mode": ("Is the music in a major or a minor key?", "Is this in major or minor?"),
}  # fmt: skip

EMOTION_WORDS = {
    "neutral": "neutral", "happiness": "happy", "sadness": "sad", "anger": "angry", "fear": "afraid",
    "boredom": "bored", "disgust": "disgusted",
}  # fmt: skip
"""Labels of emotional recordings in the words of `prompts.EMOTIONS`."""

VOICES = {"male": "a man speaking", "female": "a woman speaking"}
"""Genders of manifests as events are named."""

DRINK_SLOTS = ("coffeeDrink", "size", "roast", "numberOfShots", "milkAmount", "sugarAmount")
MASS = ("rain", "wind", "water", "traffic", "noise", "waves", "music", "thunder", "fire")
PLURAL = ("footsteps", "birds", "crickets", "fireworks", "bells", "chimes", "coins", "keys", "dishes", "drops")


def ask(key: str, rng: np.random.Generator, **names: str) -> str:
    """One of a task's wordings."""
    return str(rng.choice(WORDINGS[key])).format(**names)


def capital(text: str) -> str:
    """A phrase as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def named(event: Event) -> str:
    """An event in words: its label, or who speaks, or what plays."""
    if event.kind == "speech":
        return VOICES.get(event.truth.get("gender", ""), "speech")
    if event.kind == "music":
        return f"{event.label} music"
    return event.label


def article(label: str) -> str:
    """A label after "is there": `dog barking` and `rain` stay bare, `siren` becomes `a siren`."""
    if label.startswith(("a ", "an ")) or label.endswith("ing") or any(word in label for word in (*MASS, *PLURAL)):
        return label
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def order(scene: Scene) -> list[str]:
    """The events' names in order of start, neighbours of one name said once."""
    names = [named(event) for event in scene.events]
    return [name for i, name in enumerate(names) if not i or name != names[i - 1]]


def transcribe(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """All that is said, in order; nothing where nobody speaks. Not for speech without a transcript, nor for voices."""
    said = sentences(scene)
    return None if said is None else (ask("transcribe", rng), " ".join(text for _, text in said))


def sentences(scene: Scene) -> list[tuple[Event, str]] | None:
    """What each spoken event says; None where not all of it is known, or where other voices sound."""
    spoken = [event for event in scene.events if event.kind == "speech"]
    texts = [event.truth.get("text") or event.truth.get("pseudo_text") for event in spoken]
    if not all(texts) or any(event.truth.get("language", "en") != "en" for event in spoken) or other_voices(scene):
        return None
    return [(event, sentence(cased(text))) for event, text in zip(spoken, texts, strict=True) if text]


def other_voices(scene: Scene) -> bool:
    """Whether a sound is made by people, who may say something that no truth tells."""
    voices = ("speech", "voice", "crowd", "laugh", "baby", "choir", "sing", "talk", "scream", "children", "grunt")
    heard = " ".join([scene.background or "", *(event.label for event in scene.events if event.kind != "speech")])
    return any(voice in heard for voice in voices)


def cased(text: str) -> list[str]:
    """Words of a transcript, lower case where it was all capitals."""
    return text.lower().split() if text.isupper() else text.split()


def name(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """What is heard, as a short answer."""
    if not scene.events:
        return ask("name", rng), NOTHING
    return ask("name", rng), capital(joined(order(scene)))


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """A caption with order and background."""
    if not scene.events:
        return ask("describe", rng), NOTHING if scene.background is None else capital(f"only {scene.background}")
    names = order(scene)
    text = names[0] + "".join(f", then {name}" for name in names[1:])
    spoken = [event.truth["text"] for event in scene.events if event.kind == "speech" and event.truth.get("text")]
    if len(spoken) == 1 and len(spoken[0].split()) < 14 and rng.random() < 0.3:
        text += f' who says: "{sentence(cased(spoken[0]))[:-1]}"' if names[-1].endswith("speaking") else ""
    behind = f", with {scene.background} in the background" if scene.background else ""
    return ask("describe", rng), capital(text + behind)


def events(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The timeline, to a tenth of a second."""
    spans = "".join(f"[{event.start:.1f}]{named(event)}[{event.end:.1f}]" for event in scene.events)
    return ask("events", rng), spans or NOTHING


def narrate(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """What is around, most urgent first."""
    urgent = ("siren", "alarm", "horn", "fire", "glass", "explosion", "scream", "gun")
    names = sorted(dict.fromkeys(order(scene)), key=lambda n: (not any(u in n for u in urgent), "speaking" not in n))
    return (NARRATE, capital(joined(names[:3]))) if names else (NARRATE, NOTHING)


def yes_no(labels: Sequence[str]) -> Task:
    """Whether a sound is there: half of the questions are about one of `labels` that is not."""

    def task(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
        heard = [event.label for event in scene.events if event.kind == "sound"]
        if heard and rng.random() < 0.5:
            return ask("present", rng, a=article(str(rng.choice(heard)))), "Yes."
        words = {word for label in [*heard, scene.background or ""] for word in label.split()}
        absent = [label for label in labels if not words & set(label.split())]
        return ask("present", rng, a=article(str(rng.choice(absent)))), "No."

    return task


def choose(labels: Sequence[str]) -> Task:
    """Four options, one of them heard."""

    def task(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
        heard = list(dict.fromkeys(event.label for event in scene.events if event.kind == "sound"))
        if len(heard) != 1:
            return None
        wrong = [label for label in labels if label != heard[0]]
        options = [heard[0], *rng.choice(wrong, 3, replace=False).tolist()]
        rng.shuffle(options)
        lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
        return CHOOSE.format(question=ask("name", rng), options=lines), "ABCD"[options.index(heard[0])]

    return task


def relate(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """How many, which first, last, after, when, louder, longer."""
    found, names = scene.events, [named(event) for event in scene.events]
    if len(found) < 2 or len(set(names)) < len(names):
        return ("How many sound events are there?", str(len(found))) if len(found) < 2 else None
    key = str(rng.choice(["count", "first", "last", "after", "when", "louder", "longer"]))
    i = int(rng.integers(len(found) - 1))
    one, two = found[i], found[i + 1]
    if key == "count":
        return ask(key, rng), str(len(found))
    if key in ("first", "last"):
        return ask(key, rng), capital(names[0 if key == "first" else -1])
    if key == "after":
        return ask(key, rng, a=article(names[i])), capital(names[i + 1])
    if key == "when":
        return ask(key, rng, a=article(names[i + 1])), f"At {two.start:.1f} seconds."
    size: Callable[[Event], float] = (lambda e: e.level_db) if key == "louder" else (lambda e: e.end - e.start)
    if abs(size(one) - size(two)) < (4 if key == "louder" else 0.5):
        return None
    return ask(key, rng, a=article(names[i]), b=article(names[i + 1])), capital(named(max(one, two, key=size)))


def reason(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """A question in two steps with the steps written out."""
    names = [named(event) for event in scene.events]
    if len(names) < 2 or len(set(names)) < len(names):
        return None
    i, j = (int(k) for k in rng.choice(len(names), 2, replace=False))
    one, two = scene.events[i], scene.events[j]
    steps = " ".join(f"{capital(named(e))[:-1]} starts at {e.start:.1f}." for e in (one, two))
    answer = f"<think>{steps} {min(one.start, two.start):.1f} is earlier.</think>{capital(names[min(i, j)])}"
    return f"Think step by step: which starts earlier, {article(names[i])} or {article(names[j])}?", answer


def gender(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """A man or a woman."""
    spoken = {event.truth.get("gender") for event in scene.events if event.kind == "speech"}
    answer = {"male": "A man.", "female": "A woman."}.get(str(spoken.pop())) if len(spoken) == 1 else None
    return (ask("gender", rng), answer) if answer else None


def emotion(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The speaker's emotion in one word."""
    felt = {event.truth["emotion"] for event in scene.events if "emotion" in event.truth}
    return (ask("emotion", rng), capital(EMOTION_WORDS[felt.pop()])) if len(felt) == 1 else None


def speaker(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The thirteen fields of a speech caption: those that the truth knows, the others unknown."""
    (event,) = scene.events or (None,)
    if event is None or event.truth.get("gender") not in VOICES:
        return None
    pace = len((event.truth.get("text") or "").split()) / max(0.5, event.end - event.start)
    known = {
        "gender": event.truth["gender"],
        "age": "adult" if "age" in event.truth else None,
        "speed": None if not event.truth.get("text") else "slow" if pace < 2 else "fast" if pace > 3.3 else "moderate",
        "accent": "German" if event.truth.get("language") == "de" else None,
        "emotion": EMOTION_WORDS.get(event.truth.get("emotion", "")),
        "summary": capital(f"{EMOTION_WORDS.get(event.truth.get('emotion', ''), '')} {named(event)}".strip()),
    }
    return CAPTION_SPEECH, json.dumps({field: known.get(field) or "unknown" for field in CAPTION_FIELDS})


def background(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """What goes on behind the events."""
    return (ask("background", rng), capital(scene.background)) if scene.background and scene.events else None


def order_drink(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """The caller's request as JSON: intent and slots."""
    (event,) = scene.events or (None,)
    if event is None or "intent" not in event.truth:
        return None
    slots = {k: str(event.truth["slots"][k]).strip() for k in DRINK_SLOTS if event.truth["slots"].get(k)}
    if rng.random() < 0.4:
        values = ("order drink", ", ".join(slots.values()), "neutral", scene.background or "none", "low")
        return CONVERSE, json.dumps(dict(zip(CONVERSE_FIELDS, values, strict=True)))
    return "What is ordered? Answer as a JSON object with the keys intent and slots.", json.dumps(
        {"intent": event.truth["intent"], "slots": slots}
    )


def music(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """What plays, how fast, in which key."""
    truth: Mapping[str, Any] | None = next((e.truth["music"] for e in scene.events if "music" in e.truth), None)
    if truth is None:
        return None
    key = str(rng.choice(["instrument", "instrument", "tempo", "bpm", "mode", "json", "json"]))
    if key == "json":
        return DESCRIBE_MUSIC, json.dumps(dict(truth))
    mode = f"In {'a minor' if truth['key'].endswith('minor') else 'a major'} key."
    answers = {"instrument": capital(truth["instruments"][0]), "tempo": capital(truth["tempo"]),
               "bpm": f"About {truth['bpm']} beats per minute.", "mode": mode}  # fmt: skip
    return ask(key, rng), answers[key]
