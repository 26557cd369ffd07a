"""Measures are measured too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english, number_words
from moss_audio.evaluation.speech import interval
from moss_audio.evaluation.times import errors
from moss_audio.training import curves
from moss_audio.transcript import Word

words = st.lists(st.sampled_from("abcd"), max_size=8)


@pytest.mark.parametrize(
    "reference, hypothesis, errors",
    [
        ("a b c", "a b c", 0),
        ("a b c", "a c", 1),
        ("a b c", "a x b c", 1),
        ("a b c", "x y z", 3),
        ("a b", "", 2),
        ("", "a", 1),
    ],
)
def test_edits(reference, hypothesis, errors):
    assert ErrorRate.of(reference.split(), hypothesis.split()) == ErrorRate(errors, len(reference.split()))


@given(words, words)
def test_edits_are_symmetric_and_bounded(a, b):
    errors = ErrorRate.of(a, b).errors
    assert errors == ErrorRate.of(b, a).errors
    assert abs(len(a) - len(b)) <= errors <= max(len(a), len(b))


def test_pooling_weighs_by_words():
    assert (ErrorRate(1, 1) + ErrorRate(0, 9)).value == pytest.approx(0.1)
    assert ErrorRate().value == 0


def test_interval_holds_the_rate_and_shrinks_with_clips():
    rates = [ErrorRate(1, 10), ErrorRate(3, 10)]
    few, many = interval(rates * 5), interval(rates * 200)
    assert few[0] < 0.2 < few[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_normalised_text():
    assert english("Mr. O'Neil paid 1,250 dollars — 'quickly'.") == (
        ["mister", "o'neil", "paid", "one", "thousand", "two", "hundred", "fifty", "dollars", "quickly"]
    )
    assert english("Café 7!") == ["cafe", "seven"]
    assert number_words(999_999) == "nine hundred ninety nine thousand nine hundred ninety nine"


def test_sentence_times_count_what_answers_to_the_first_and_last_words():
    said = [(["before", "the", "storm"], 1.0, 2.0), (["all", "is", "calm"], 3.0, 4.0)]
    times = zip("befor the storm all calm".split(), (1.1, 1.4, 1.6, 3.2, 3.6), (1.3, 1.5, 2.0, 3.4, 3.9), strict=True)
    heard = [Word(*word) for word in times]
    assert errors(said, heard) == pytest.approx([0.1, 0.0, 0.2, 0.1])
    assert errors(said, heard[:3]) == pytest.approx([0.1, 0.0]) and errors(said, []) == []


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5, "dev_wer": 0.4, "dev_words": 12, "sample": ["a"]}]
    curves.draw({"letters": lines, "mix": lines[:1]}, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    assert curves.points(lines, "dev_wer") == ([20], [0.4])
