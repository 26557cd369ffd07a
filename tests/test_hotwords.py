"""Names that the user expects win where the letters allow it, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import VOCAB, ByteTokenizer, FakeBackend, FakeProcessor, letter_head

from moss_audio.config import LETTERS
from moss_audio.errors import PromptError
from moss_audio.inference import passages
from moss_audio.inference.engine import MossAudio
from moss_audio.inference.hotwords import BEGIN, MAX_HOTWORDS, PER_LETTER, HotwordBias, check
from moss_audio.inference.letters import evidence

NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000 * 3).astype(np.float32)
KNOWN = b"call martin now."


def plain_words(emitted: list[int]) -> np.ndarray:
    """A language model that knows one sentence, byte by byte, and finds everything else improbable."""
    logits = np.full(VOCAB, -9.0, np.float32)
    place = len(emitted)
    for shift in (0, -1, 1):  # a name may be a letter longer than the word that it is taken for
        if 0 <= place + shift < len(KNOWN):
            logits[KNOWN[place + shift]] = 2.0 - abs(shift)
    logits[256] = 3.0 if place >= len(KNOWN) else -9.0
    return logits


def said(letters: str, *hotwords: str) -> str:
    backend = FakeBackend(plain_words, letter_logprobs=lambda mels: letter_head(letters))
    return MossAudio(backend, FakeProcessor()).transcribe(NOISE, hotwords=hotwords).text  # type: ignore[arg-type]


def test_a_hotword_wins_where_it_was_said():
    assert "Maarten" in said("call maarten now", "Maarten")
    assert "Xavier" not in said("call maarten now", "Xavier")
    assert "Maarten" not in said("call martin now", "Xavier", "Zoe")


def test_a_hotword_that_was_not_said_stays_away():
    text = said("call martin now", "Maarten Tromp", "Eleonora")
    assert text.lower() == said("call martin now")


def test_the_letters_bear_out_what_was_said():
    head = letter_head("call maarten now and xavier")
    text = "Call Maarten now, and Leonor."
    (said_it,), (not_said,) = (evidence(head, text, name, LETTERS) for name in ("Maarten", "Leonor"))
    assert said_it > -0.1 and not_said < -3
    assert not_said < evidence(head, text, "and  leonor", LETTERS)[0] < said_it
    assert evidence(head, text, "Xavier", LETTERS) == evidence(head, text, "1984", LETTERS) == []
    assert len(evidence(letter_head("no no no"), "No, no, no!", "no", LETTERS)) == 3
    assert evidence(head[:5], text, "Maarten", LETTERS) == []


def test_a_hotword_that_the_letters_do_not_bear_out_is_none(monkeypatch):
    assert "Maarten" in said("call maarten now", "Maarten", "Xavier")
    monkeypatch.setattr(passages, "MIN_EVIDENCE", 1.0)  # nothing is ever borne out
    assert said("call maarten now", "Maarten", "Xavier") == said("call maarten now")
    monkeypatch.setattr(passages, "MAX_DOUBTS", 0)
    assert "Maarten" in said("call maarten now", "Maarten", "Xavier")


def test_tokens_of_hotwords_begin_at_words_and_go_on():
    encode = ByteTokenizer().encode
    bias = HotwordBias(["Zoe", "Zack"], ByteTokenizer())
    assert bias([]) == {ord("Z"): BEGIN}
    assert bias(encode("said")) == {ord(" "): BEGIN}
    assert bias(encode("said Z")) == {ord(" "): BEGIN, ord("o"): PER_LETTER, ord("a"): PER_LETTER}
    assert bias(encode("said Zo")) == {ord(" "): BEGIN, ord("e"): PER_LETTER}
    assert bias(encode("Z"))[ord("o")] == 2 * PER_LETTER  # with the letter that began the text
    assert HotwordBias(["X"], ByteTokenizer())([]) == {ord("X"): PER_LETTER}
    assert HotwordBias([], ByteTokenizer())(encode("said")) == {}


def test_confidence_is_the_models_own():
    backend = FakeBackend(plain_words, letter_logprobs=lambda mels: letter_head("call maarten now"))
    engine = MossAudio(backend, FakeProcessor())  # type: ignore[arg-type]
    plain, favoured = (engine.transcribe(NOISE, hotwords=words).segments[0] for words in ((), ("Maarten",)))
    assert 0 < favoured.confidence < plain.confidence < 1


def test_bad_lists_are_refused():
    assert check([" Zoë  Li ", "Zoë Li"]) == ("Zoë Li",)
    with pytest.raises(PromptError, match="an empty one"):
        check(["", "x"])
    with pytest.raises(PromptError, match=f"over {MAX_HOTWORDS}"):
        check([str(i) for i in range(MAX_HOTWORDS + 1)])
