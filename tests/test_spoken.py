"""Who says what, and when: the answers are what was put in, and nothing is answered that the truth leaves open."""

import json
import re
import wave

import numpy as np
import pytest

from moss_audio.audio import SAMPLE_RATE
from moss_audio.data import spoken
from moss_audio.data.scene import Event, Pool, SampleStore, Scene, converse, speaking, spoken_event, voices_of
from moss_audio.training.scenes import World
from moss_audio.transcript import Word, parse_timestamped

RNG = np.random.default_rng(0)


def tone(seconds, hertz=300, before=0.25, after=0.25):
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pads = [np.zeros(int(pad * SAMPLE_RATE)) for pad in (before, after)]
    return np.concatenate([pads[0], 0.5 * np.sin(2 * np.pi * hertz * time), pads[1]]).astype(np.float32)


def says(start, end, speaker, text, gender="female", words=(), **truth):
    truth = {"speaker": speaker, "text": text, "gender": gender, **truth}
    return Event("speech", start, end, "speech", -20.0, truth, words)


def scene_of(*events, background=None):
    return Scene(np.zeros(10 * SAMPLE_RATE, np.float32), events, background)


TALK = scene_of(
    says(0.5, 1.5, "x_ann", "GOOD MORNING"),
    says(2.0, 3.0, "x_bob", "hello there", "male"),
    says(3.5, 4.5, "x_ann", "how are you?"),
)


@pytest.fixture
def voices(tmp_path):
    """Three speakers, two of them in one synthetic voice's neighbourhood, with three clips each."""
    rows = []
    for name in ("x_ann", "x_ann+cleo", "x_bob"):
        for i in range(3):
            file = f"{name}{i}.wav"
            with wave.open(str(tmp_path / file), "wb") as wav:
                wav.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                wav.writeframes((tone(0.6 + 0.2 * i) * 32767).astype("<i2").tobytes())
            rows.append({"audio": file, "speaker": name, "text": f"sentence {name[2]} {i}", "seconds": 1.0})
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = SampleStore(tmp_path / "clips.jsonl", tmp_path / "cache")
    return Pool(store, "speech", range(len(rows)), [row["speaker"] for row in rows])


def test_people_take_turns_and_sound_when_the_truth_says(voices):
    one, two = (converse([(voices, 1.0)], np.random.default_rng(4), 2, 4, 12.0) for _ in range(2))
    np.testing.assert_array_equal(one.samples, two.samples)
    for seed in range(30):
        scene = converse([(voices, 1.0)], np.random.default_rng(seed), 3, 6, 9.0)
        assert scene.seconds <= 9.0 and scene.events
        names = [event.truth["speaker"] for event in scene.events]
        assert not {"x_ann", "x_ann+cleo"} <= set(names), "one voice would count twice"
        assert len({event.truth["text"] for event in scene.events}) == len(names)
        for event in scene.events:
            inner = scene.samples[int((event.start + 0.05) * SAMPLE_RATE) : int((event.end - 0.05) * SAMPLE_RATE)]
            assert 0 <= event.start < event.end <= scene.seconds and np.square(inner).mean() > 1e-5


def test_a_voice_between_two_others_is_like_both():
    assert voices_of({"speaker": "kokoro_af_sky+am_adam"}) == {"kokoro_af_sky", "kokoro_am_adam"}
    assert voices_of({"speaker": "libri_103"}) == {"libri_103"} and voices_of({"speaker": "ann"}) == {"ann"}
    assert not voices_of({})


def test_a_spoken_clip_is_timed_by_its_words_or_by_its_sound():
    clip = tone(1.0, before=0.5)
    assert speaking(clip) == pytest.approx((0.5, 1.5), abs=0.03)
    noisy = clip + np.random.default_rng(0).normal(size=len(clip)).astype(np.float32) * 0.01
    assert speaking(noisy) == pytest.approx((0.5, 1.5), abs=0.05)
    word = spoken_event({"text": "alexa"}, clip, 2.0, -20.0)
    assert word.words == (Word("alexa", word.start, word.end),) and word.start == pytest.approx(2.5, abs=0.03)
    assert spoken_event({"text": "alexa"}, tone(2.0), 0.0, -20.0).words == (), "no word lasts two seconds"
    aligned = {"text": "a cat", "words": [["a", 0.6, 0.7], ["cat", 0.75, 1.2]]}
    event = spoken_event(aligned, clip, 1.0, -20.0)
    assert (event.start, event.end) == (1.6, 2.2) and event.words[1] == Word("cat", 1.75, 2.2)


def test_sentences_and_words_are_timed():
    _, answer = spoken.timed(TALK, RNG)
    assert answer == "[0.50]Good morning.[1.50][2.00]Hello there.[3.00][3.50]How are you?[4.50]"
    assert [segment.start for segment in parse_timestamped(answer, 10.0)] == [0.5, 2.0, 3.5]
    assert spoken.words(TALK, RNG) is None, "the words of these have no times"
    words = tuple(Word(text, i, i + 0.5) for i, text in enumerate(["yes.", "i", "do"]))
    scene = scene_of(says(0.0, 2.5, "x_ann", "yes. i do", words=words))
    assert spoken.words(scene, RNG)[1] == "[0.00]Yes.[0.50][1.00]I[1.50][2.00]do.[2.50]"
    assert spoken.timed(scene, RNG)[1] == "[0.00]Yes.[0.50][1.00]I do.[2.50]"


def test_who_speaks_and_what_they_say():
    assert spoken.speakers(TALK, RNG)[1] == "Two people."
    assert spoken.who(TALK, RNG)[1] == (
        "[0.5]speaker 1 (woman)[1.5][2.0]speaker 2 (man)[3.0][3.5]speaker 1 (woman)[4.5]"
    )
    assert spoken.dialogue(TALK, RNG)[1].startswith("[0.50]Speaker 1: Good morning.[1.50][2.00]Speaker 2: Hello there.")
    answers = {}
    for _ in range(60):
        question, answer = spoken.said(TALK, RNG)
        answers[re.search("first|second|woman|man", question)[0]] = answer
    assert answers["first"] == answers["woman"] == "Good morning. How are you?"
    assert answers["second"] == answers["man"] == "Hello there."
    two_women = scene_of(says(0, 1, "x_ann", "one"), says(2, 3, "x_eve", "two"))
    assert all("woman" not in spoken.said(two_women, RNG)[0] for _ in range(30))


def test_what_the_truth_leaves_open_is_not_asked():
    overlapping = scene_of(says(0, 2, "x_ann", "one"), says(1, 3, "x_bob", "two"))
    assert spoken.timed(overlapping, RNG) is None and spoken.dialogue(overlapping, RNG) is None
    assert spoken.speakers(overlapping, RNG)[1] == "Two people."
    unknown = scene_of(says(0, 1, "", "one"), says(2, 3, "x_bob", "two"))
    assert spoken.speakers(unknown, RNG) is None and spoken.said(unknown, RNG) is None
    assert spoken.speakers(scene_of(says(0, 1, "", "one")), RNG)[1] == "One person."
    laughing = Event("laughing", 0, 1, "sound", -20.0, {})
    assert spoken.anybody(scene_of(laughing), RNG) is None and spoken.speakers(scene_of(laughing), RNG) is None
    assert spoken.timed(scene_of(says(0, 1, "x_ann", "Hallo", language="de")), RNG) is None


def test_a_clip_that_is_cut_has_no_transcript(voices):
    for longest, known in ((0.4, False), (9.0, True)):
        world = World.__new__(World)
        world.ambient = voices
        (event,) = world._alone(voices, np.random.default_rng(1), longest).events
        assert ("text" in event.truth) is known


def test_silence_has_no_speaker():
    assert spoken.anybody(TALK, RNG)[1] == "Yes." and spoken.anybody(scene_of(), RNG)[1] == "No."
    assert spoken.timed(scene_of(), RNG)[1] == "" and spoken.speakers(scene_of(), RNG)[1] == "Nobody."
    assert spoken.who(scene_of(), RNG) is None and spoken.said(scene_of(), RNG) is None
