from __future__ import annotations

import json
import re

import pytest

from moss_audio.transcript import WRITERS, Segment, Word, group_words, parse_timestamped


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
        ("[1:02.50]Hello[1:03:00.5]", [(62.5, 3780.5, "Hello")]),
        ("Hello[1.00]", [(0.0, 1.0, "Hello")]),
        ("[1.00]Hello", [(1.0, 9.0, "Hello")]),
        ("[2.00]Hello[1.00][3.00]there[2.50]", [(2.0, 2.0, "Hello"), (3.0, 3.0, "there")]),
        ("just text", [(0.0, 9.0, "just text")]),
        ("[0.00]see [note] and [x.y][2.00]", [(0.0, 2.0, "see [note] and [x.y]")]),
        ("[0.00][1.00]", []),
        ("", []),
    ],
)
def test_timestamped_text(text, expected):
    assert [(s.start, s.end, s.text) for s in parse_timestamped(text, duration=9.0)] == expected


def test_unknown_duration_gives_no_length():
    assert parse_timestamped("[1.00]Hello") == (Segment(1.0, 1.0, "Hello"),)


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
