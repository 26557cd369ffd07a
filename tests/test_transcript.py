from __future__ import annotations

import io
import json
import re
from itertools import pairwise

import pysubs2
import pytest
import webvtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moss_audio.errors import PromptError
from moss_audio.transcript import WRITERS, Segment, SubtitleShape, Word, group_words, parse_timestamped, shape, write
from moss_audio.transcript.parse import _STAMP

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
"""A busy machine is no error."""


def spoken(text: str, gaps: dict[int, float] | None = None) -> list[Word]:
    """Words of 0.3 s with 0.1 s between them; `gaps[i]` before word i instead."""
    words, now = [], 0.0
    for i, word in enumerate(text.split()):
        now += (gaps or {}).get(i, 0.1)
        words.append(Word(word, round(now, 3), round(now + 0.3, 3)))
        now += 0.3
    return words


def test_sentences_end_at_their_marks_and_at_pauses():
    segments = group_words(spoken('He said "no." Why? I do not know yet', gaps={6: 0.7}))
    assert [segment.text for segment in segments] == ['He said "no."', "Why?", "I do", "not know yet"]
    assert segments[0].start == 0.1 and segments[0].end == segments[0].words[-1].end
    assert len(group_words(spoken("one two", gaps={1: 0.5}))) == 1
    assert group_words([]) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.00]Hello there.[1.52][1.90]How are you?[2.80]", [(0.0, 1.52, "Hello there."), (1.9, 2.8, "How are you?")]),
        ("[0.00]Hello[1.52]there[2.00]", [(0.0, 1.52, "Hello"), (1.52, 2.0, "there")]),
        ("[ 0 ] Hello \n [1.5s]", [(0.0, 1.5, "Hello")]),
        ("[1,50]Hello[0:02]there[0:00:03.5]", [(1.5, 2.0, "Hello"), (2.0, 3.5, "there")]),
        ("[0]Hello[0.05 min]", [(0.0, 3.0, "Hello")]),
        ("[0.5-1.5] Hello [2.0 --> 3.0] there", [(0.5, 1.5, "Hello"), (2.0, 3.0, "there")]),
        ("0.50]Hello[1.52 there 2.00] you[2.5]", [(0.5, 1.52, "Hello"), (1.52, 2.0, "there"), (2.0, 2.5, "you")]),
        ("Hello[1.00]", [(0.0, 1.0, "Hello")]),
        ("[1.00]Hello", [(1.0, 9.0, "Hello")]),
        ("[2.00]back[1.00][3.00]there[4.00]", [(0.0, 1.0, "back"), (3.0, 4.0, "there")]),
        ("[0.0]a[1.0][99.0]b[2.0][2.5]c[3.0]", [(0.0, 1.0, "a"), (1.0, 2.0, "b"), (2.5, 3.0, "c")]),
        ("[0.0]a[900.0][1.0]b[2.0]", [(0.0, 1.0, "a"), (1.0, 2.0, "b")]),
        ("[1.0]over[3.0][2.0]lap[4.0]", [(1.0, 2.0, "over"), (2.0, 4.0, "lap")]),
        ("[1.00]one[1.00][1.00]two[2.00]", [(1.0, 1.1, "one"), (1.1, 2.0, "two")]),
        ("[8.99]late[9.00]", [(8.9, 9.0, "late")]),
        ("just text", [(0.0, 9.0, "just text")]),
        ("[0.00]see [note] and [x.y] and [12 men][2.00]", [(0.0, 2.0, "see [note] and [x.y] and [12 men]")]),
        ("[0.00][1.00]", []),
        ("", []),
    ],
)
def test_timestamped_text(text, expected):
    assert [(s.start, s.end, s.text) for s in parse_timestamped(text, duration=9.0)] == expected


def test_without_a_duration_text_lasts_as_long_as_it_takes_to_say():
    (segment,) = parse_timestamped("[1.00]fifteen letters")
    assert (segment.start, segment.end) == (1.0, 2.0)
    assert parse_timestamped("[1:02.50]Hello[1:03:00.5]") == (Segment(62.5, 3780.5, "Hello"),)


def test_sounds_may_overlap():
    (dog, siren) = parse_timestamped("[0.4]dog barking[3.2][1.0]siren[5.5]", 9.0, overlaps=True)
    assert (dog, siren) == (Segment(0.4, 3.2, "dog barking"), Segment(1.0, 5.5, "siren"))


STAMPS = st.one_of(
    st.floats(-5, 500).map(lambda t: f"[{abs(t):.2f}]"), st.integers(0, 40).map(lambda t: f"[{t}"),
    st.floats(0, 30).map(lambda t: f"{t:.1f}]"),
    st.tuples(st.integers(0, 3), st.integers(0, 59)).map("[%d:%02d]".__mod__),
)  # fmt: skip
SAID = st.sampled_from("hello there,|How are you?|[note]|a|und dann|3 men|it [is".split("|"))


@patient
@given(st.lists(st.one_of(STAMPS, SAID)), st.one_of(st.none(), st.floats(1, 600)), st.booleans())
def test_no_text_is_lost_and_every_segment_lies_in_the_recording_with_a_length(pieces, duration, overlaps):
    text = " ".join(pieces)
    segments = parse_timestamped(text, duration, overlaps=overlaps)
    assert " ".join(s.text for s in segments).split() == _STAMP.sub(" ", text).split()
    for before, after in pairwise(segments):
        assert overlaps or before.end <= after.start
    for segment in segments:
        assert 0 <= segment.start < segment.end and (duration is None or segment.end <= duration + 1e-6)


@patient
@given(st.text(max_size=60), st.one_of(st.none(), st.floats(0.1, 1e4)))
def test_anything_can_be_parsed(text, duration):
    assert all(s.start < s.end for s in parse_timestamped(text, duration))


@patient
@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 3)), min_size=1, max_size=9))
def test_what_is_right_passes_unchanged(steps):
    now, said = 0.0, []
    for length, pause in steps:
        said.append(Segment(round(now + pause, 2), round(now + pause, 2) + round(length, 1), "word"))
        now = said[-1].end
    text = "".join(f"[{s.start:.2f}]{s.text}[{s.end:.2f}]" for s in said)
    for read, true in zip(parse_timestamped(text, now + 1), said, strict=True):
        assert (read.start, read.end) == (pytest.approx(true.start), pytest.approx(true.end))


SEGMENTS = (
    Segment(0.0, 1.5, "One & <two>"),
    Segment(3661.0004, 3662.9996, "three\tfour", (Word("three", 3661.0, 3662.0), Word("four", 3662.0, 3662.9996))),
)


def test_txt():
    assert WRITERS["txt"](SEGMENTS) == "One & <two>\nthree\tfour\n"


def test_srt():
    assert WRITERS["srt"](SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nOne & <two>\n\n2\n01:01:01,000 --> 01:01:03,000\nthree\tfour\n"
    )
    broken = WRITERS["srt"]([Segment(0, 1, "a\n\nb")])
    assert broken.count("\n\n") == 0


def test_vtt():
    assert WRITERS["vtt"](SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne &amp; &lt;two&gt;\n"
        "\n01:01:01.000 --> 01:01:03.000\nthree\tfour\n"
    )
    assert re.search(r"-->", WRITERS["vtt"]([Segment(0, 1, "a --> b")]).splitlines()[3]) is None


def test_tsv():
    assert WRITERS["tsv"](SEGMENTS) == "start\tend\ttext\n0\t1500\tOne & <two>\n3661000\t3663000\tthree four\n"


def test_json():
    document = json.loads(WRITERS["json"](SEGMENTS))
    assert document["text"] == "One & <two> three\tfour"
    assert document["segments"][0] == {"start": 0.0, "end": 1.5, "text": "One & <two>"}
    assert document["segments"][1]["words"][0] == {"text": "three", "start": 3661.0, "end": 3662.0}


@pytest.mark.parametrize("name", WRITERS)
def test_no_segments_is_a_valid_file(name):
    assert "None" not in WRITERS[name](())


def test_lrc():
    segments = (*SEGMENTS[:1], Segment(1.5, 62.345, "two", (Word("two", 1.5, 62.345),)))
    assert WRITERS["lrc"](segments) == "[00:00.00]One & <two>\n[00:01.50]two\n[01:02.34]\n"
    assert write(segments, "lrc", word_cues=True).splitlines()[1] == "[00:01.50]<00:01.50>two"


def test_vtt_with_words():
    words = (Word("One", 0.5, 0.7), Word("&", 0.7, 0.9), Word("zero", 0.7, 0.7), Word("late", 2.0, 2.1))
    text = write([Segment(0.5, 2.0, "One & zero late", words)], "vtt", word_cues=True)
    assert text.splitlines()[3] == "One <00:00:00.700>&amp; zero late"  # stamps rise and stay inside the cue


def test_a_format_that_is_none():
    with pytest.raises(PromptError, match="no format 'doc'; valid: txt, srt, vtt, tsv, json, lrc"):
        write(SEGMENTS, "doc")


PRINTABLE = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"], exclude_characters="{}<>&\\"),
    min_size=1, max_size=12,
)  # fmt: skip


@st.composite
def transcripts(draw):
    now, segments = 0.0, []
    for _ in range(draw(st.integers(0, 6))):
        words = []
        now += draw(st.floats(0, 5))
        for text in draw(st.lists(PRINTABLE.filter(str.strip), min_size=1, max_size=12)):
            for part in text.split():
                end = now + draw(st.floats(0.05, 1))
                words.append(Word(part, round(now, 3), round(end, 3)))
                now = end
        segments.append(Segment(words[0].start, words[-1].end, " ".join(w.text for w in words), tuple(words)))
    return tuple(segments)


def at_ms(segment: Segment) -> tuple[int, int]:
    return round(1000 * segment.start), round(1000 * segment.end)


@patient
@given(transcripts())
def test_independent_readers_agree_with_srt(segments):
    read = pysubs2.SSAFile.from_string(WRITERS["srt"](segments), format_="srt")
    assert [(cue.start, cue.end) for cue in read] == [at_ms(s) for s in segments]
    assert [" ".join(cue.plaintext.split()) for cue in read] == [s.text for s in segments]


@patient
@given(transcripts(), st.booleans())
def test_independent_readers_agree_with_vtt(segments, word_cues):
    text = write(segments, "vtt", word_cues=word_cues)
    captions = list(webvtt.from_buffer(io.StringIO(text)))
    assert [c.text.split() for c in captions] == [s.text.split() for s in segments]
    assert [pysubs2.time.timestamp_to_ms(re.split(r"[:.]", c.start)) for c in captions] == [
        round(1000 * s.start) for s in segments
    ]
    if not word_cues:  # pysubs2 takes two stamps within a line of text for a cue
        read = pysubs2.SSAFile.from_string(text, format_="vtt")
        assert [(cue.start, cue.end) for cue in read] == [at_ms(s) for s in segments]


@patient
@given(transcripts(), st.integers(8, 50), st.integers(1, 3), st.floats(5, 30), st.booleans())
def test_subtitles_keep_the_words_and_the_rules(segments, line_length, lines, pace, timed):
    if not timed:
        segments = tuple(Segment(s.start, s.end, s.text) for s in segments)
    cues = shape(segments, SubtitleShape(line_length, lines, pace, 1.0))
    said = "".join(word for cue in cues for word in cue.text.split())
    assert said == "".join(s.text.replace(" ", "") for s in segments)
    for cue in cues:
        assert len(cue.text.splitlines()) <= lines
        assert all(len(line) <= line_length for line in cue.text.splitlines())
        assert bool(cue.words) == timed
    for cue, after in pairwise(cues):
        assert cue.start <= after.start and cue.end <= after.start + 0.0011  # rounding to ms
        assert cue.end - cue.start >= min(len(cue.text) / pace, after.start - cue.start) - 0.0021


def test_subtitles_are_balanced_and_last():
    text = "He walked along the river and watched the boats come home before it was dark."
    (cue,) = shape([Segment(1.0, 2.5, text)])
    assert cue.text == "He walked along the river and watched\nthe boats come home before it was dark."
    assert cue.end == pytest.approx(1.0 + len(text) / 17, abs=0.001)
    first, second = shape([Segment(1.0, 1.2, "No."), Segment(1.5, 1.7, "Yes.")])
    assert (first.end, second.end) == (1.5, 2.5)
    assert "\n" in write([cue], "srt").split("-->")[1].strip()
    with pytest.raises(PromptError, match="subtitle line_length is 3; valid: 8 to 200"):
        SubtitleShape(line_length=3)
