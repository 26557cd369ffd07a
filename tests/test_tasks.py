from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBackend, FakeProcessor, hashed, letter_head, scripted
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_audio import prompts, tasks
from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.errors import PromptError
from moss_audio.inference.engine import MossAudio
from moss_audio.inference.sampling import SamplingParams
from moss_audio.tasks.lessons import align, compare_music, compare_speech
from moss_audio.tasks.listener import loudest
from moss_audio.tasks.narration import Narrator, urgency
from moss_audio.tasks.options import read_options
from moss_audio.tasks.reviewing import key_sentences, match_words, question_of, read_policy
from moss_audio.tasks.songs import Music
from moss_audio.tasks.sounds import Event, join, label_of, parse_events
from moss_audio.tasks.voices import Request, Speaker
from moss_audio.transcript import Segment, Word

NOISE = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE * 3).astype(np.float32)
SILENCE = np.zeros_like(NOISE)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def model(*answers, letters: str | None = None, score=None) -> MossAudio:
    heads = letters and (lambda mels: letter_head(letters))
    backend = FakeBackend(score or scripted(*answers), max_positions=8192, letter_logprobs=heads)
    return MossAudio(backend, FakeProcessor())  # type: ignore[arg-type]


def spans(events) -> list[tuple[str, float, float]]:
    return [(event.label, event.start, event.end) for event in events]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.4]dog barking[1.2][3.0]siren[5.5]", [("dog barking", 0.4, 1.2), ("siren", 3.0, 5.5)]),
        ("[1.0]rain[6.0][2.0]a dog[3.0]", [("rain", 1.0, 6.0), ("a dog", 2.0, 3.0)]),
        ("[0:01]Siren.[0:03]", [("siren", 1.0, 3.0)]),
        ("[1.0]siren", [("siren", 1.0, 10.0)]),
        ("[8.0]siren[99.0]", [("siren", 8.0, 10.0)]),
        ("0.4 - 1.2: dog barking\n3.0-5.5 s: siren", [("dog barking", 0.4, 1.2), ("siren", 3.0, 5.5)]),
        ("- Dog barking (0.4-1.2 s)\n- siren from 3 to 5.5 seconds", [("dog barking", 0.4, 1.2), ("siren", 3.0, 5.5)]),
        ("A dog, a siren and rain.", [("a dog", 0.0, 10.0), ("a siren", 0.0, 10.0), ("rain", 0.0, 10.0)]),
        ("Nothing is audible.", []),
        ("no sound events", []),
        ("  ", []),
        ("[1.0]...[2.0]", [("sound", 1.0, 2.0)]),
    ],
)  # fmt: skip
def test_timelines_are_read_and_repaired(text, expected):
    assert spans(parse_events(text, 10.0)) == expected


@settings(deadline=None)
@given(st.text(alphabet="[]0123456789.:-,s abcé\n", max_size=60), st.floats(0.2, 40))
def test_no_event_is_without_length_or_outside_whatever_a_model_says(text, duration):
    events = parse_events(text, duration)
    for event in events:
        assert 0 <= event.start < event.end <= duration + 1e-6
        assert event.label and event.label == event.label.strip()
    assert list(events) == sorted(events, key=lambda event: (event.start, event.end))


def test_events_of_one_name_are_joined_across_seams():
    rain = [Event("rain", 0, 20), Event("rain", 20.3, 40), Event("rain", 50, 60)]
    found = [Event("dog", 5, 6), *rain, Event("dog", 8, 9)]
    assert spans(join(found, 0.5)) == [("rain", 0, 40), ("dog", 5, 6), ("dog", 8, 9), ("rain", 50, 60)]
    assert spans(join(found, 10)) == [("rain", 0, 60), ("dog", 5, 9)]
    assert join([], 1) == ()
    assert label_of(" The 'Siren'. ") == "the 'siren" and len(label_of("a" * 200)) == 60


def test_events_of_a_long_recording_have_absolute_times():
    samples = np.tile(NOISE, 20)  # 60 s: three windows
    answers = "[0.0]rain[99.0]", "[0.0]rain[2.0]", "[0.5]a dog[1.0]"  # the first goes on to the window's end
    result = tasks.events(model(*answers), samples)
    (rain, dog) = result.events
    assert (rain.label, rain.start, dog.label) == ("rain", 0.0, "a dog")
    assert 20 < rain.end < 31 and 38 < dog.start < 57
    assert result.cost.duration == 60.0 and result.cost.usage.audio_seconds == pytest.approx(60, abs=0.1)
    assert result.to_text().splitlines()[0].split() == ["0.00", f"{rain.end:.2f}", "rain"]


def tones(*parts: tuple[float, float]) -> np.ndarray:
    """Tones of the given Hz and seconds, one behind the other; 0 Hz is silence."""
    waves = [np.sin(2 * np.pi * hertz / SAMPLE_RATE * np.arange(seconds * SAMPLE_RATE)) for hertz, seconds in parts]
    return (0.2 * np.concatenate(waves)).astype(np.float32)


def doubtful(which: int, *answers: str):
    """Scores of a model that says `answers`, one a prompt, and hardly believes one of them."""
    sure, asked = scripted(*answers), iter(range(1, 10))
    now = [0]

    def score(emitted):
        if not emitted:
            now[0] = next(asked)
        return sure(emitted) * (0.5 if now[0] == which else 1.0)

    return score


def test_models_that_spell_name_what_the_signal_parts():
    samples = tones((0, 1), (500, 1.5), (0, 1), (900, 2), (0, 0.5))
    found = tasks.events(model("A whistle.", "A beep.", letters="a"), samples).events
    assert [event.label for event in found] == ["a whistle", "a beep"]
    for event, (start, end) in zip(found, [(1, 2.5), (3.5, 5.5)], strict=True):
        assert (event.start, event.end) == (pytest.approx(start, abs=0.1), pytest.approx(end, abs=0.1))
    (both,) = tasks.events(model("A beep.", "A beep.", letters="a"), samples, gap=2.0).events
    assert (both.start, both.end) == (found[0].start, found[1].end)
    nothing = tasks.events(model(prompts.NOTHING, prompts.NOTHING, letters="a"), samples)
    assert nothing.events == () and nothing.timeline() == prompts.NOTHING
    assert spans(parse_events(tasks.events(model("A whistle.", "A beep.", letters="a"), samples).timeline(), 6)) == [
        ("a whistle", found[0].start, found[0].end), ("a beep", found[1].start, found[1].end),
    ]  # fmt: skip


def test_stretches_without_a_pause_are_one_sound_if_the_model_is_unsure_of_one():
    samples = tones((0, 0.5), (500, 2), (3000, 2), (0, 0.5))
    first, second, both = "A whistle.", "A beep.", "A whistle."
    assert len(tasks.events(model(first, second, both, letters="a"), samples).events) == 2  # sure of each
    (one,) = tasks.events(model(score=doubtful(2, first, second, both), letters="a"), samples).events
    assert (one.label, one.start) == ("a whistle", pytest.approx(0.5, abs=0.1)) and one.end > 4


def test_what_a_model_hardly_believes_is_not_told():
    samples = tones((0, 0.5), (500, 2), (0, 0.5))
    assert tasks.events(model(score=doubtful(1, "A whistle."), letters="a"), samples).events == ()


def test_silence_is_not_asked_about():
    def never(emitted):
        raise AssertionError("the decoder was asked")

    silent = model(score=never)
    assert tasks.events(silent, SILENCE).to_text() == prompts.NOTHING
    assert tasks.describe(silent, SILENCE).text == prompts.NOTHING
    assert tasks.music(silent, SILENCE).to_text() == "No music."
    assert tasks.narrate(silent, SILENCE).notes == ()
    for task in (tasks.speaker, tasks.converse, tasks.emotion):
        assert task(silent, SILENCE).to_text() == "Nobody speaks."
    assert tasks.summarize(silent, SILENCE).text == ""


def test_a_letter_head_that_hears_nobody_ends_questions_about_speech():
    def never(emitted):
        raise AssertionError("the decoder was asked")

    wordless = MossAudio(
        FakeBackend(never, letter_logprobs=lambda mels: letter_head("")), FakeProcessor()  # type: ignore[arg-type]
    )
    assert tasks.speaker(wordless, NOISE).speaker is None
    assert tasks.summarize(wordless, NOISE).text == "" and tasks.emotion(wordless, NOISE).emotion is None


OPTIONS = {
    "ask": {"question": "What?"},
    "choose": {"question": "What?", "choices": ["a dog", "a cat", "rain"]},
    "review": {"policy": {"violence": 'threats, such as "gun"'}},
    "feedback": {"text": "hello there"},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_reads_whatever_a_model_says(name, seed):
    def babble(emitted):
        return hashed([seed, *emitted])

    result = tasks.run(model(letters="hello", score=babble), name, NOISE, **OPTIONS.get(name, {}))
    assert isinstance(result.to_text(), str)
    document = result.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert {"duration", "finish_reason", "usage"} <= set(document)
    lines = result.to_table().splitlines()
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) == {"|", "-"}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_cancelled_task_ends_and_says_so(name):
    result = tasks.run(model("a", "b", "c"), name, NOISE, cancelled=lambda: True, **OPTIONS.get(name, {}))
    assert result.cost.finish_reason == "cancelled" or result.cost.usage.completion_tokens == 0


def test_fields_are_those_of_the_prompts():
    for record, names in (
        (Speaker, prompts.CAPTION_FIELDS), (Music, prompts.MUSIC_FIELDS), (Request, prompts.CONVERSE_FIELDS)
    ):  # fmt: skip
        assert tuple(field.name for field in fields(record)) == names


def test_converse_reads_the_answer_that_training_teaches():
    values = ("order drink", "latte, small", "neutral", "none", "low")
    said = dict(zip(prompts.CONVERSE_FIELDS, values, strict=True))
    result = tasks.converse(model(json.dumps(said)), NOISE)
    assert result.request == Request(**said)
    assert result.to_dict()["request"] == said and result.cost.finish_reason == "stop"
    assert result.to_text().startswith("intent: order drink\ndetails: latte, small")


def test_music_says_what_was_heard_and_what_was_measured():
    said = dict(zip(prompts.MUSIC_FIELDS, (["piano"], "fast", 140, "D minor", "4/4", "reel", "sad"), strict=True))
    result = tasks.music(model(json.dumps(said)), load_audio(EXAMPLES / "arpeggio.ogg"))
    assert result.heard is not None and result.heard.bpm == 140 and result.heard.instruments == ("piano",)
    assert result.measured_key is not None and result.measured_key.name == "C major"
    assert result.music == replace(result.heard, key="C major", bpm=100, tempo="moderate")
    assert ("key", "C major", "signal") in result.rows()[1] and ("style", "reel", "model") in result.rows()[1]
    assert result.to_text().count("bpm") == 1
    whole = result.to_dict()
    assert whole["music"] == whole["heard"] | {"key": "C major", "bpm": 100, "tempo": "moderate"}


def test_emotion_weighs_windows():
    result = tasks.emotion(model("Sad.", "Sad.", "Happy."), np.tile(NOISE, 20))
    assert result.emotion == "sad" and [part.emotion for part in result.parts] == ["sad", "sad", "happy"]
    assert all(part.probability > 0.9 for part in result.parts)


def test_choose_can_only_answer_with_a_letter():
    result = tasks.choose(model("B"), NOISE, question="What?", choices=["a dog", "a cat"])
    assert (result.letter, result.answer) == ("B", "a cat") and result.probability > 0.9
    babbled = tasks.choose(model(score=hashed), NOISE, question="What?", choices=["a dog", "a cat"])
    assert babbled.letter in ("A", "B")
    spelled = tasks.choose(model("A cat.", letters="hear hear"), NOISE, question="What?", choices=["a dog", "a cat"])
    assert (spelled.letter, spelled.answer) == ("B", "a cat")


def test_a_choice_is_as_likely_as_all_of_it():
    """The first letter of the cat is likelier, and then nothing is like a cat."""

    def said(emitted):
        logits = np.zeros(260, np.float32)
        logits[ord("A")] = 9.0 if emitted else 0.0
        logits[ord("C" if not emitted else "x")] = 2.0
        if emitted[:1] == list(b"D") and len(emitted) < 4:
            logits[b"Dog."[len(emitted)]] = 20.0
        return logits

    cats = tasks.choose(model(score=said, letters="hear hear"), NOISE, question="What?", choices=["cat", "dog"])
    assert cats.answer == "dog" and cats.probability > 0.99
    assert cats.usage.completion_tokens == 4 and cats.cost.finish_reason == "stop"


def test_a_loop_is_cut_and_marked():
    result = tasks.describe(model("A dog. " + "and on " * 60), NOISE)
    assert result.text == "A dog. and on" and result.cost.finish_reason == "length"


def test_reasoning_is_left_out_and_parameters_are_used():
    assert tasks.ask(model("<think>why</think>A dog."), NOISE, question="What?").text == "A dog."
    short = tasks.ask(model("A dog barks."), NOISE, question="What?", params=SamplingParams(max_new_tokens=5))
    assert (short.text, short.cost.finish_reason) == ("A dog", "length")


def test_a_narrator_tells_news_most_urgent_first():
    narrator = Narrator(again=60)
    first = narrator.tell("Rain, a man speaking and a siren.", 0, 10)
    assert [(note.text, note.urgency) for note in first] == [
        ("siren", "alarm"), ("man speaking", "voice"), ("rain", "other")
    ]  # fmt: skip
    assert narrator.tell("The siren and a car.", 10, 20)[0].text == "car"
    assert narrator.tell("Nothing is audible.", 20, 30) == ()
    assert narrator.tell("A siren.", 60, 70) == ()  # heard until 20: away for less than a minute
    assert [note.text for note in narrator.tell("A siren.", 140, 150)] == ["siren"]
    assert urgency("a dog barking") == "other" and urgency("car horn") == "alarm"


def test_narrate_goes_window_by_window():
    result = tasks.narrate(model("Rain.", "Rain and an alarm.", "Rain."), np.tile(NOISE, 10), window=10)
    assert [(note.start, note.text) for note in result.notes] == [(0.0, "rain"), (10.0, "an alarm"[3:])]
    assert result.to_text() == "0:00 rain\n0:10 alarm"


POLICY = """
# Policy of the channel
- violence: fighting, screams or threats, such as "kill you" or "gun"
- profanity = "damn"
"""


def test_policies_are_lines_or_toml():
    expected = {"violence": 'fighting, screams or threats, such as "kill you" or "gun"', "profanity": '"damn"'}
    assert read_policy(POLICY) == expected
    assert read_policy("[labels]\nviolence = 'x, such as \"gun\"'\n") == {"violence": 'x, such as "gun"'}
    assert read_policy('secret = "names of people"') == {"secret": "names of people"}
    assert question_of(expected["violence"]) == "fighting, screams or threats"
    assert question_of('"damn"') == "" and question_of("names of people") == "names of people"
    with pytest.raises(PromptError, match="line 2 of the policy"):
        read_policy("a: b\nno description\n")
    with pytest.raises(PromptError, match="must be texts"):
        read_policy("[labels]\na = 3")


def sentence(text: str, start: float) -> Segment:
    words = [Word(word, start + 0.5 * i, start + 0.5 * i + 0.4) for i, word in enumerate(text.split())]
    return Segment(start, words[-1].end, text, tuple(words))


def test_words_of_a_policy_are_flagged_where_they_are_said():
    said = [sentence("He has a Gun, run!", 2), sentence("I will kill you.", 10), Segment(20, 25, "A gun again.")]
    flags = list(match_words("violence", 'threats, such as "kill you" or "gun"', said))
    assert [(flag.start, flag.end, flag.source) for flag in flags] == [
        (11.0, 11.9, "words"), (3.5, 3.9, "words"), (20, 25, "words")
    ]  # fmt: skip
    assert "'gun' is said" in flags[1].reason


def test_key_sentences_stand_for_the_rest():
    said = [
        sentence("The river boats came home early.", 0), sentence("Yes.", 5), sentence("My uncle likes soup.", 10),
        sentence("River boats carry river people home.", 15),
    ]  # fmt: skip
    assert [one.start for one in key_sentences(said, 2)] == [0, 15]
    assert key_sentences(said, 0) == () and key_sentences([], 3) == ()
    again = sentence("The river boats came home early!", 30)
    assert [one.start for one in key_sentences([*said, again], 9)] == [0, 10, 15]


def test_review_flags_words_and_asks_about_the_rest():
    answers = "He has a gun today. The boats came home early.", "A man speaking.", "Yes."
    policy = {"violence": 'threats, such as "gun"'}
    result = tasks.review(model(*answers), NOISE, policy=policy)
    assert [part.text for part in result.description] == ["A man speaking."]
    assert {flag.source for flag in result.flags} == {"words", "model"}
    assert all(flag.label == "violence" and flag.end <= 3.0 for flag in result.flags)
    assert "flag" in result.to_table()


def test_words_are_compared_one_by_one():
    heard = sentence("Please leave the lampon because the stars very dark indeed.", 1).words
    target = "Please leave the lamp on, because the stairs are very dark.".split()
    result = [(word.status, word.target, word.heard) for word in align(target, heard)]
    assert result[3:5] == [("substituted", "lamp", "lampon"), ("missing", "on,", None)]
    assert ("substituted", "stairs", "stars") in result and ("missing", "are", None) in result
    assert result[-1] == ("extra", None, "indeed.")
    assert align([], []) == () and align(["a"], []) [0].status == "missing"


WORDS = st.lists(st.sampled_from(["a", "bee", "sea", "dee"]), max_size=8)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_an_alignment_holds_both_texts_in_order(target, heard):
    words = [Word(text, float(i), i + 0.5) for i, text in enumerate(heard)]
    result = align(target, words)
    assert [word.target for word in result if word.target is not None] == target
    assert [word.heard for word in result if word.heard is not None] == heard
    if target == heard:
        assert {word.status for word in result} <= {"correct"}


def test_pace_and_pauses_come_from_word_times():
    result = compare_speech([sentence("One two three four.", 0), sentence("Five six.", 5)], None, 0.5)
    assert [(pause.start, pause.end) for pause in result.pauses] == [(1.9, 5.0)]
    assert result.words_per_minute == pytest.approx(60 * 6 / 5.9, abs=0.1) and result.accuracy is None
    untimed = compare_speech([Segment(0, 5, "one two")], "one three", 0.5)
    assert untimed.accuracy == 0.5 and untimed.words[0].start is None and untimed.words_per_minute is None


def test_feedback_on_music_is_measured():
    arpeggio = load_audio(EXAMPLES / "arpeggio.ogg")

    def never(emitted):
        raise AssertionError("the decoder was asked")

    result = tasks.feedback(model(score=never), arpeggio, bpm=50, key="C minor")
    assert result.speech is None and result.music is not None
    assert result.music.key_matches is False and abs(result.music.tempo_off_percent) < 2  # twice 50 counts as 50
    assert compare_music(None, 100, None, "C major").key_matches is None
    with pytest.raises(PromptError, match="key is 'H dur'; valid: C major"):
        tasks.feedback(model(), arpeggio, key="H dur")


def test_the_loudest_part_is_heard():
    samples = np.concatenate([NOISE * 0.01] * 20 + [NOISE] * 10 + [NOISE * 0.01] * 5)
    start, part = loudest(samples, 30.0)
    assert abs(start - 60) <= 1 and len(part) == 30 * SAMPLE_RATE
    assert loudest(NOISE, 30.0)[0] == 0.0


def test_options_are_checked_by_name_and_value():
    assert read_options(tasks.TASKS["events"].options, {"gap": 2}).gap == 2
    for name, values, message in (
        ("events", {"gap": -1}, "gap is -1; valid: a number from 0"),
        ("events", {"gap": "wide"}, "gap is 'wide'; valid: number"),
        ("events", {"gap": float("nan")}, "gap is nan"),
        ("events", {"pause": 1}, "no option 'pause'; valid: gap"),
        ("music", {"x": 1}, "valid: none"),
        ("ask", {}, "question is missing: what to ask"),
        ("choose", {"question": "a", "choices": ["b"]}, "valid: 2 to 4 texts"),
        ("feedback", {"subject": "dance"}, "valid: auto, speech, music"),
        ("review", {"policy": {"a": 1}}, "valid: texts by name"),
        ("narrate", {"window": True}, "window is True"),
    ):
        with pytest.raises(PromptError) as caught:
            tasks.run(model(), name, NOISE, **values)
        assert message in str(caught.value)
    with pytest.raises(PromptError, match="no task 'dance'; valid: transcribe"):
        tasks.run(model(), "dance", NOISE)


def test_every_task_has_a_schema_that_a_server_can_publish():
    for name, task in tasks.TASKS.items():
        schema = task.schema()
        assert task.name == name and schema["type"] == "object" and json.dumps(schema)
        assert all(one["description"] for one in schema["properties"].values())
    assert tasks.TASKS["choose"].schema()["required"] == ["question", "choices"]


def test_a_picture_is_drawn_in_the_format_of_its_suffix(tmp_path):
    from moss_audio.errors import BackendError
    from moss_audio.tasks.plots import draw_events

    events = [Event(f"sound {i}", 0.1 * i, 0.1 * i + 0.5) for i in range(20)]
    draw_events(NOISE, events, tmp_path / "a.png")
    draw_events(SILENCE, [], tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "b.svg").read_text("utf-8")
    assert svg.startswith("<?xml")
    with pytest.raises(BackendError, match="xyz"):
        draw_events(NOISE, [], tmp_path / "c.xyz")
