from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeBackend, FakeProcessor, hashed, letter_head, scripted

from moss_audio.errors import PromptError
from moss_audio.inference.engine import MossAudio, split_reasoning
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
    transcript = model(scripted(said), "so it goes").transcribe(NOISE, params=SamplingParams())
    assert transcript.text == "So it goes. and on"
    assert transcript.finish_reason == "length"
    assert transcript.usage.completion_tokens < 60


def test_an_answer_that_outgrows_the_recording_is_ended():
    transcript = model(hashed).transcribe(NOISE)
    assert transcript.finish_reason == "length" and transcript.usage.completion_tokens <= 32 + 12 * 3


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
    assert [start for start, _ in parts] == [0.0, pytest.approx(21.2, abs=0.15), pytest.approx(45.2, abs=0.15)]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), samples)
    assert all(part.base is samples for _, part in parts)  # views, not copies
    assert all(len(part) <= 30 * 16_000 for _, part in windows(speech_with_pauses(300, [])))
    assert len(list(windows(speech_with_pauses(30, [])))) == 1


def test_long_transcripts_have_absolute_times_and_summed_usage():
    engine = model(scripted("One.", "", "Three."), "one")
    transcript = engine.transcribe(speech_with_pauses(70, [21.0, 45.0]), params=SamplingParams())
    assert transcript.text == "One. Three."
    assert [s.start > expected for s, expected in zip(transcript.segments, (0, 45), strict=True)] == [True, True]
    assert transcript.usage.audio_seconds == pytest.approx(70, abs=0.1) and transcript.usage.completion_tokens == 13
    assert engine.backend.encoded == 3


def test_stream_of_a_long_recording_is_its_transcript():
    samples = speech_with_pauses(70, [21.0, 45.0])
    events = list(model(scripted(" One. ", "", " Three."), "one").stream(samples, params=SamplingParams()))
    assert "".join(event.text for event in events) == "One.  Three."
    assert [event.finish_reason for event in events if event.finish_reason] == ["stop"]
    assert events[-1].usage.audio_seconds == pytest.approx(70, abs=0.1)


def test_cancelling_ends_a_long_transcript_with_what_was_said():
    engine = model(scripted("One.", "Two.", "Three."), "one")
    samples = speech_with_pauses(70, [21.0, 45.0])
    transcript = engine.transcribe(samples, params=SamplingParams(), cancelled=lambda: engine.backend.encoded >= 2)
    assert (transcript.text, transcript.finish_reason) == ("One.", "cancelled")
    assert engine.backend.encoded == 2


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
