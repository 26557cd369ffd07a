from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from fakes import FakeBackend, FakeProcessor, hashed, letter_head, scripted

from moss_audio.errors import PromptError
from moss_audio.inference.engine import MossAudio, Progress, split_reasoning
from moss_audio.inference.longform import windows
from moss_audio.inference.sampling import SamplingParams
from moss_audio.inference.transcription import loop_length

NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000 * 3).astype(np.float32)


def model(score, letters=None, **options) -> MossAudio:
    backend = FakeBackend(score, letter_logprobs=letters and (lambda mels: letter_head(letters)), **options)
    return MossAudio(backend, FakeProcessor())  # type: ignore[arg-type]


def test_transcript_has_sentences_with_times_from_the_letter_head():
    transcript = model(scripted("Hello there. How are you?"), "helo ther how ar yu").transcribe(NOISE)
    assert transcript.text == "Hello there. How are you?"
    assert [s.text for s in transcript.segments] == ["Hello there.", "How are you?"]
    first, second = transcript.segments
    assert 0.1 < first.start < first.end <= second.start < second.end < 3
    assert [word.text for word in second.words] == ["How", "are", "you?"]
    assert (transcript.duration, transcript.finish_reason, transcript.usage.audio_seconds) == (3.0, "stop", 3.0)


def test_without_letters_one_segment_covers_the_clip():
    transcript = model(scripted("Hello there. How are you?")).transcribe(NOISE)
    assert [(s.start, s.end, s.text) for s in transcript.segments] == [(0.0, 3.0, "Hello there. How are you?")]


@pytest.mark.parametrize(("samples", "letters"), [(np.zeros_like(NOISE), "hello"), (NOISE, "")])
def test_nothing_is_written_where_nobody_speaks(samples, letters):
    def never(emitted):
        raise AssertionError("the decoder was asked")

    head = letter_head(letters)
    silent = MossAudio(FakeBackend(never, letter_logprobs=lambda mels: head), FakeProcessor())  # type: ignore[arg-type]
    transcript = silent.transcribe(samples)
    assert (transcript.text, transcript.segments, transcript.finish_reason) == ("", (), "stop")
    assert transcript.usage.audio_seconds == 3.0 and transcript.usage.completion_tokens == 0
    assert [event.text for event in silent.stream(samples)] == ["", ""]


def test_a_loop_is_cut_and_reported():
    said = "So it goes. " + "and on " * 100
    transcript = model(scripted(*[said] * 4), "so it goes").transcribe(NOISE, params=SamplingParams())
    assert transcript.text == "So it goes. and on"
    assert transcript.finish_reason == "length"
    assert transcript.usage.completion_tokens < 60 + 3 * 68  # and three more tries
    assert transcript.usage.audio_seconds == 3.0
    assert transcript.notes == ("0:00.0–0:03.0: the text repeated itself; the repetitions are cut",)


@pytest.mark.parametrize(("letters", "way"), [("so it goes", "4 beams"), (None, "temperature 0.4")])
def test_a_loop_is_written_again(letters, way):
    answers = scripted("So it goes. " + "and on " * 100, "So it goes.")
    transcript = model(answers, letters).transcribe(NOISE, params=SamplingParams())
    assert (transcript.text, transcript.finish_reason) == ("So it goes.", "stop")
    assert transcript.notes == (f"0:00.0–0:03.0: the text repeated itself and was written again with {way}",)


def test_an_invention_does_not_replace_a_loop():
    looped, invented = "So it goes. " + "and on " * 100, "The weather will be fine tomorrow in the north."
    transcript = model(scripted(looped, invented, invented, invented), "so it goes").transcribe(
        NOISE, params=SamplingParams()
    )
    assert (transcript.text, transcript.finish_reason) == ("So it goes. and on", "length")


def test_a_loop_of_sentences_with_times_is_a_loop():
    said = "".join(f"[{0.3 * i:.2f}]Thank you.[{0.3 * i + 0.2:.2f}]" for i in range(8))
    noise = np.tile(NOISE, 4)
    transcript = model(scripted(said, "[0.50]Thank you.[1.00]")).transcribe(noise)
    assert [(s.start, s.end, s.text) for s in transcript.segments] == [(0.5, 1.0, "Thank you.")]
    assert transcript.finish_reason == "stop" and "written again" in transcript.notes[0]
    transcript = model(scripted(said, said, said)).transcribe(noise)
    assert (transcript.text, transcript.finish_reason) == ("Thank you.", "length")


def test_text_cut_by_the_limit_is_marked():
    transcript = model(scripted("One two three four")).transcribe(NOISE, params=SamplingParams(max_new_tokens=7))
    assert (transcript.text, transcript.finish_reason) == ("One two", "length")
    assert transcript.notes == ("0:00.0–0:03.0: the text is cut off after 7 tokens",)


def test_a_model_without_letters_tells_times_itself():
    engine = model(scripted("[0.20]Hello there.[1.30][1.50]How are you?[9.00]"))
    transcript = engine.transcribe(NOISE)
    assert [(s.start, s.end, s.text) for s in transcript.segments] == [
        (0.2, 1.3, "Hello there."), (1.5, 3.0, "How are you?")
    ]  # fmt: skip
    assert transcript.text == "Hello there. How are you?"
    assert all(0.9 < s.confidence < 1 for s in transcript.segments)


def test_a_model_without_letters_tells_the_times_of_words_if_asked():
    said = "[0.20]Hello[0.60][0.50]there.[1.30][1.50]How[1.50][1.60]are[1.80][1.80]you?[9.00]"
    engine = model(scripted(said))
    transcript = engine.transcribe(NOISE, words=True, params=SamplingParams(max_new_tokens=40))  # for the plain text
    assert transcript.text == "Hello there. How are you?" and transcript.finish_reason == "stop"
    assert [segment.text for segment in transcript.segments] == ["Hello there.", "How are you?"]
    words = [word for segment in transcript.segments for word in segment.words]
    assert [word.text for word in words] == ["Hello", "there.", "How", "are", "you?"]
    assert_in_order(transcript.segments)


@pytest.mark.parametrize(
    "said", ["7 1984 so 3 4 5 it 6 goes 77 88", "1 2 3 4 5 6 7 8 9 so it goes", "so it goes so it goes"]
)
def test_every_word_has_a_length_and_none_lies_over_the_next(said):
    transcript = model(scripted(said), "so it goes").transcribe(NOISE, params=SamplingParams())
    assert transcript.text.split() == said.split() == [w.text for s in transcript.segments for w in s.words]
    assert_in_order(transcript.segments)


def assert_in_order(segments):
    """Words have lengths, follow one another, and lie in their segments, those in the recording."""
    words = [word for segment in segments for word in segment.words]
    assert all(word.start < word.end for word in words)
    assert all(one.end <= other.start for one, other in pairwise(words))
    for segment in segments:
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
    assert segments[0].start >= 0 and segments[-1].end <= len(NOISE) / 16_000


def test_a_segment_is_as_sure_as_its_tokens():
    unsure = {ord("b"): 0.5}

    def score(emitted):
        logits = np.full(260, -np.inf, np.float32)
        text = b"aa. bb."
        wanted = text[len(emitted)] if len(emitted) < len(text) else 256
        p = unsure.get(wanted, 1.0)
        logits[wanted], logits[ord("?")] = np.log(p), np.log(1 - p + 1e-9) - 1e-3
        return logits

    transcript = model(score, "aa bb").transcribe(NOISE, params=SamplingParams())
    sure, less = transcript.segments
    assert (sure.text, less.text) == ("aa.", "bb.")
    assert sure.confidence == 1.0 and less.confidence == pytest.approx(0.5 ** (2 / 3), abs=0.001)


def test_reasoning_is_no_transcript():
    assert model(scripted("<think>A voice.</think>[0.0]Hello.[1.0]")).transcribe(NOISE).text == "Hello."


@pytest.mark.parametrize("quiet", [True, False])
def test_where_the_detector_hears_no_voice_nothing_is_encoded(quiet):
    voice = {True: lambda samples: iter([0.7] * 90), False: lambda samples: iter([0.0] * 50 + [0.9] * 4)}[quiet]
    backend = FakeBackend(scripted("Hello."))
    engine = MossAudio(backend, FakeProcessor(), voice)  # type: ignore[arg-type]
    assert engine.transcribe(NOISE).text == ("" if quiet else "Hello.")
    assert backend.encoded == (0 if quiet else 1)


def test_an_answer_that_outgrows_the_recording_is_ended():
    transcript = model(hashed).transcribe(NOISE)
    assert transcript.finish_reason == "length" and transcript.usage.completion_tokens <= 32 + 2 * 12 * 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], 0), ([1] * 12, 0), ([7] + [1] * 13, 12), ([1, 2] * 6, 0), ([9] + [1, 2] * 7, 12), ([1, 2, 3, 4, 5] * 5, 20),
     (list(range(100)), 0), ([*([1, 2] * 20), 3], 0)],
)  # fmt: skip
def test_loops_are_many_repeats(ids, expected):
    assert loop_length(ids) == expected


def speech_with_pauses(seconds: float, pauses: list[float]) -> np.ndarray:
    samples = np.random.default_rng(1).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
    for pause in pauses:
        samples[int(pause * 16_000) : int((pause + 0.4) * 16_000)] *= 0.01
    return samples


def test_long_recordings_are_cut_at_pauses_and_lose_nothing():
    samples = speech_with_pauses(70, [10.0, 21.0, 45.0])
    parts = list(windows(samples))
    assert [part.start for part in parts] == [0.0, pytest.approx(21.2, abs=0.15), pytest.approx(45.2, abs=0.15)]
    np.testing.assert_array_equal(np.concatenate([part.samples for part in parts]), samples)
    assert all(len(part.samples) <= 30 * 16_000 for part in windows(speech_with_pauses(300, [])))
    assert len(list(windows(speech_with_pauses(30, [])))) == 1


def test_long_transcripts_have_absolute_times_and_summed_usage():
    engine = model(scripted("One.", "", "Three."), "one")
    transcript = engine.transcribe(speech_with_pauses(37, [11.0, 24.0]), params=SamplingParams())
    assert transcript.text == "One. Three."
    assert [s.start > expected for s, expected in zip(transcript.segments, (0, 24), strict=True)] == [True, True]
    assert transcript.usage.audio_seconds == pytest.approx(37, abs=0.1) and transcript.usage.completion_tokens == 13
    assert engine.backend.encoded == 3


def test_a_transcript_goes_on_behind_what_is_done():
    samples = speech_with_pauses(70, [21.0, 45.0])
    answers = ["[0.5]One.[1.0]", "[0.5]Two.[1.0]", "[0.5]Three.[1.0]"]
    reports: list[Progress] = []
    whole = model(scripted(*answers)).transcribe(samples, progress=reports.append)
    assert [report.windows for report in reports] == [1, 2, 3]
    assert [report.total for report in reports] == [70.0] * 3 and reports[-1].seconds == 70.0
    assert reports[0].seconds_left > 0 and reports[-1].seconds_left == 0
    engine = model(scripted(*answers[2:]))
    rest = engine.transcribe(samples, done=[report.passage for report in reports[:2]])
    assert rest == whole and engine.backend.encoded == 1
    assert whole.segments[2].start == pytest.approx(45.7, abs=0.2)


WORDS = [word for _ in range(20) for word in "abc def ghi jkl mno pqr stu vwx yz'".split()]
"""No letter twice in neighbours, so that half a word at the edge of a window is never taken for another."""


def spoken_on_and_on(samples: np.ndarray, after: int = 0, letters: bool = True) -> MossAudio:
    """A model that hears WORDS without a pause and of each window writes those that are whole in it.

    Without `letters` it puts time stamps around each of them.
    """
    head = letter_head(" ".join(WORDS), lead=0)
    owner = np.repeat([i for i, word in enumerate(WORDS) for _ in f"{word} "][:-1], 4)  # of each frame
    parts = list(windows(samples, everybody, seconds=16.0 if letters else 30.0, overlap=0.5))
    spans = [(round(50 * (w.start - w.lead)), round(50 * (w.end + w.tail))) for w in parts][after:]
    answers = []
    for begin, end in spans:
        inside = owner[begin:end]
        whole = [i for i in np.unique(inside) if np.count_nonzero(inside == i) >= 4 * len(WORDS[i])]
        stamps = [[(begin + n) / 50 - begin / 50 for n in (i, j + 1)] for i, j in
                  (np.flatnonzero(inside == i)[[0, -1]] for i in whole)]  # fmt: skip
        stamped = "".join(f"[{a:.2f}]{WORDS[i]}[{b:.2f}]" for i, (a, b) in zip(whole, stamps, strict=True))
        answers.append(" ".join(WORDS[i] for i in whole) if letters else stamped)
    heads = iter([head[begin:end] for begin, end in spans])
    backend = FakeBackend(scripted(*answers), letter_logprobs=(lambda mels: next(heads)) if letters else None)
    return MossAudio(backend, FakeProcessor(), everybody)  # type: ignore[arg-type]


def everybody(samples):
    """A detector to which somebody speaks all the time."""
    return iter([1.0] * (-(-len(samples) // 512)))


@pytest.mark.parametrize("letters", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_no_word_is_lost_or_doubled_where_nobody_pauses(seed, letters):
    n_samples = len(letter_head(" ".join(WORDS), lead=0)) * 320
    samples = np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)
    passages = []
    whole = spoken_on_and_on(samples, letters=letters).transcribe(
        samples, params=SamplingParams(), progress=lambda p: passages.append(p.passage)
    )
    assert len(passages) >= (4 if letters else 2)
    assert [p.overlap for p in passages] == [0.5] * (len(passages) - 1) + [0.0]
    assert whole.text.split() == WORDS == [word.text for s in whole.segments for word in s.words]
    times = [time for s in whole.segments for word in s.words for time in (word.start, word.end)]
    assert times == sorted(times)
    for passage in passages:
        assert all(passage.start - 1e-3 < s.start < s.end < passage.end + 1e-3 for s in passage.segments)
    assert whole.usage.audio_seconds == pytest.approx(n_samples / 16_000, abs=0.05)  # a frame a window
    rest = spoken_on_and_on(samples, 1, letters).transcribe(samples, params=SamplingParams(), done=passages[:1])
    assert rest.text == whole.text and rest.segments == whole.segments


def test_hotwords_are_checked_and_told():
    engine = model(scripted("Maarten."))
    heard: list[str] = []
    encode = engine.processor.encode
    engine.processor.encode = lambda messages: (heard.append(str(messages)), encode(messages))[1]
    assert engine.transcribe(NOISE, hotwords=["Maarten", "Zoë  Li", "Maarten"]).text == "Maarten."
    assert "These names and terms may occur: Maarten, Zoë Li." in heard[0]
    with pytest.raises(PromptError, match="hotwords need the search; leave temperature 0"):
        model(scripted("x"), "x").transcribe(NOISE, hotwords=["x"], params=SamplingParams(temperature=0.5))
    with pytest.raises(PromptError, match="valid: a list of strings"):
        engine.transcribe(NOISE, hotwords="Maarten")


def test_stream_of_a_long_recording_is_its_transcript():
    samples = speech_with_pauses(37, [11.0, 24.0])
    events = list(model(scripted(" One. ", "", " Three."), "one").stream(samples, params=SamplingParams()))
    assert "".join(event.text for event in events) == "One.  Three."
    assert [event.finish_reason for event in events if event.finish_reason] == ["stop"]
    assert events[-1].usage.audio_seconds == pytest.approx(37, abs=0.1)


def test_cancelling_ends_a_long_transcript_with_what_was_said():
    engine = model(scripted("One.", "Two.", "Three."), "one")
    samples = speech_with_pauses(70, [21.0, 45.0])
    transcript = engine.transcribe(samples, params=SamplingParams(), cancelled=lambda: engine.backend.encoded >= 2)
    assert (transcript.text, transcript.finish_reason) == ("One.", "cancelled")
    assert engine.backend.encoded == 2


def test_cancelling_between_windows_is_told_too_and_can_be_gone_on_with():
    samples, answers = speech_with_pauses(70, [21.0, 45.0]), ["One.", "Two.", "Three."]
    whole = model(scripted(*answers)).transcribe(samples)
    engine, passages = model(scripted(*answers)), []

    def enough():
        return len(passages) == 1

    part = engine.transcribe(samples, cancelled=enough, progress=lambda p: passages.append(p.passage))
    assert (part.text, part.finish_reason, engine.backend.encoded) == ("One.", "cancelled", 1)
    assert model(scripted(*answers[1:])).transcribe(samples, done=passages) == whole
    assert model(scripted("One.")).transcribe(NOISE, cancelled=lambda: len(passages) > 9).finish_reason == "stop"


def test_ask_hears_several_clips_in_one_prompt():
    engine = model(scripted("The second."))
    answer = engine.ask([NOISE, NOISE[:16_000]], "Which is shorter?")
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("The second.", None, "stop")
    assert answer.usage.audio_seconds == 4.0 and answer.usage.audio_tokens == 38 + 13
    assert engine.backend.encoded == 1


def test_ask_passes_parameters_on():
    answer = model(scripted("A cat.")).ask(NOISE, "What?", params=SamplingParams(max_new_tokens=3))
    assert (answer.text, answer.finish_reason) == ("A c", "length")


def test_a_transcript_is_of_one_recording():
    with pytest.raises(PromptError, match="not of 2"):
        model(scripted("x")).stream([NOISE, NOISE])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", (None, "plain")),
        ("<think>why</think>\n\nB", ("why", "B")),
        ("\n<think>\nwhy\n</think>B", ("why", "B")),
        ("<think>never ends", ("never ends", "")),
        ("say <think>", (None, "say <think>")),
    ],
)
def test_reasoning_is_parted_from_the_reply(text, expected):
    assert split_reasoning(text) == expected
