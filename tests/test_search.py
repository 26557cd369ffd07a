"""Beam search: rows of a cache go their own ways, letters keep the text to what was heard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fakes import SPECIAL, ByteTokenizer, FakeBackend, FakeCache, letter_head, scripted, uniform

from moss_audio.config import LETTERS
from moss_audio.errors import BackendError, PromptError
from moss_audio.inference.generate import collect, stop_ids
from moss_audio.inference.guide import INSERTION, LETTERS_WEIGHT, PIECES_WEIGHT, Guide
from moss_audio.inference.letters import LetterDraft
from moss_audio.inference.search import Hypothesis, _extend, beam_search, guided_search, small_letters
from moss_audio.processor import Inputs
from moss_audio.runtime.backend import AudioEmbeds
from moss_audio.runtime.select import load_backend

TOKENIZER = ByteTokenizer()
END = min(stop_ids(TOKENIZER))
OPENING = [SPECIAL["<|im_start|>"], *TOKENIZER.encode("assistant\n")]
PROMPT = Inputs(np.array([7, 7, *OPENING]), np.zeros(12, bool), np.zeros(12, bool), ())


PIECES = (" a", " bad", " bat", " cab", "cab", "s", "d")


def audio_of(heard: str, pieces: list[list[tuple[str, float]]] | None = None) -> AudioEmbeds:
    """What the heads hear: the letters of `heard`, and in every step of `pieces` these with these probabilities."""
    letters = letter_head(heard)
    if pieces is None:
        return AudioEmbeds(np.zeros((0, 1)), np.zeros((0, 0, 1)), letters)
    full = np.full((len(pieces), 1 + len(PIECES)), 1e-6)
    for row, step in zip(full, pieces, strict=True):
        for piece, probability in step:
            row[PIECES.index(piece) + 1 if piece else 0] = probability
    ids = np.argsort(-full, axis=1)[:, :4]
    logprobs = np.log(np.take_along_axis(full, ids, axis=1))
    return AudioEmbeds(np.zeros((0, 1)), np.zeros((0, 0, 1)), letters, ids, logprobs)


def guide_of(audio: AudioEmbeds) -> Guide:
    return Guide(audio, LETTERS, PIECES, TOKENIZER)


def cost(audio: AudioEmbeds | str, text: str, ended: bool = False) -> float:
    guide = guide_of(audio_of(audio) if isinstance(audio, str) else audio)
    place = guide.start()
    for token in TOKENIZER.encode(text):
        (place,) = guide.extend([(place, token)])
    assert place.written == len([c for c in text.strip() if c.lower() in LETTERS])
    return guide.cost(place, ended)


def test_what_was_heard_costs_least():
    heard = "a bad cab"
    assert cost(heard, "A bad cab.") == pytest.approx(cost(heard, "a bad cab"))
    worse = ["a mad cab", "a bad bad cab", "a cab", "bad cab cab", "something else"]
    assert all(cost(heard, text, ended=True) > cost(heard, heard, ended=True) + 1 for text in worse)
    assert cost(heard, "a bad", ended=True) > cost(heard, "a bad") + 1


def test_pieces_of_words_count_as_what_they_spell():
    """Letters heard nothing in particular, so that the difference between two texts is what the pieces say."""
    steps = [[("", 1.0)], [(" a", 0.9), ("", 0.1)], [(" bad", 0.6), (" bat", 0.3)], [(" bad", 0.55), ("", 0.45)],
             [("", 1.0)], [(" cab", 0.8), ("", 0.2)], [("", 1.0)]]  # fmt: skip
    audio = audio_of("", steps)

    def pieces(text: str) -> float:
        return (cost(audio, text, ended=True) - cost("", text, ended=True)) / PIECES_WEIGHT

    bad = 1 - 0.4 * 0.45  # heard in either of two steps
    said = -np.log([0.9, bad, 0.8])
    assert pieces("A bad cab.") == pytest.approx(said.sum(), abs=1e-3)
    assert pieces("a bat cab") == pytest.approx(said.sum() + np.log(bad) - np.log(0.3), abs=1e-3)
    assert pieces("a cab") == pytest.approx(said[0] + said[2] + 8.0, abs=1e-3)  # hardly blank in both steps: the floor
    assert pieces("a bad") == pytest.approx(said[0] + said[1] - np.log(0.2), abs=1e-3)
    assert pieces("a baf cab") == pytest.approx(said.sum() + INSERTION, abs=1e-3)
    assert pieces("a bads cab") == pytest.approx(said.sum() + INSERTION, abs=1e-3)
    assert pieces("a ba cab") == pytest.approx(said.sum() + INSERTION, abs=1e-3)
    unheard = LETTERS_WEIGHT * 4 * INSERTION
    assert cost(audio, "a ba") == pytest.approx(unheard + PIECES_WEIGHT * said[:2].sum(), abs=1e-3)
    nothing = audio_of("", [[("", 1.0)]] * 3)
    assert cost(nothing, "ab") - cost(nothing, "a") == pytest.approx((LETTERS_WEIGHT + PIECES_WEIGHT) * INSERTION)


def test_a_head_that_is_sure_of_nothing_is_asked_less(monkeypatch):
    steps = [[(" bad", 0.4), (" bat", 0.3), (" cab", 0.2)]] * 6
    for i, step in enumerate(steps):
        steps[i] = step[i % 2 :] + step[: i % 2]  # no two neighbours alike
    audio = audio_of("", [[(piece, 0.4 - 0.1 * i) for i, (piece, _) in enumerate(step)] for step in steps])
    whole = len(guide_of(audio).start().pieces)
    monkeypatch.setattr("moss_audio.inference.guide.MOST_PIECES", 6)
    assert len(guide_of(audio).start().pieces) == 1 + 6 * len(" bad") < whole


@pytest.mark.parametrize("pieces", [None, [[(" bad", 0.6), (" bat", 0.3)], [(" cab", 0.9)]]])
def test_several_tokens_cost_what_each_costs_alone(pieces):
    guide = guide_of(audio_of("hear me", pieces))
    tokens = TOKENIZER.encode("hxe ")
    together = guide.extend([(guide.start(), token) for token in tokens])
    for token, place in zip(tokens, together, strict=True):
        (alone,) = guide.extend([(guide.start(), token)])
        np.testing.assert_allclose(place.letters, alone.letters)
        np.testing.assert_allclose(place.pieces, alone.pieces)


class Biased:
    """A network that likes one text by half: each next byte has 4 nats more than any other, whatever came before.

    Where the prompt has no recording, it likes the text `deaf` in this way, by default the same one.
    """

    def __init__(self, text: str, end: float = -4.0, max_positions: int = 4096, deaf: str = "") -> None:
        self.likes, self.end = {False: text, True: deaf or text}, end
        self.config = FakeBackend(uniform, max_positions).config

    def prefill(self, input_ids, audio_mask, audio, n_logits=1):
        if audio is None:
            assert input_ids.tolist() == OPENING
        cache = FakeCache(deaf=audio is None)
        return cache, self._row(cache)[None]

    def decode_beams(self, cache, input_ids, parents):
        cache.ids.append(-1)
        return np.stack([self._row(cache) for _ in input_ids])

    def _row(self, cache):
        row = np.zeros(max(END, 255) + 1, np.float32)
        row[END] = self.end
        likes = [*TOKENIZER.encode(self.likes[cache.deaf]), END]
        row[likes[min(cache.length, len(likes) - 1)]] = 4.0
        return row


def search(backend, heard, n_beams=4, max_new_tokens=60, cancelled=lambda: False):
    audio = audio_of(heard)
    guide, draft = guide_of(audio), LetterDraft(heard, LETTERS, TOKENIZER)
    return list(beam_search(backend, TOKENIZER, PROMPT, audio, guide, draft, n_beams, max_new_tokens, cancelled))


def guided(backend, heard, max_new_tokens=60, cancelled=lambda: False):
    guide, draft = guide_of(audio_of(heard)), LetterDraft(heard, LETTERS, TOKENIZER)
    return list(guided_search(backend, TOKENIZER, PROMPT, None, guide, draft, max_new_tokens, cancelled))


def test_one_text_is_written_in_few_passes_and_with_the_letters():
    said, heard = "a bad cab had a dad.", "a bad cab hat a dad"
    backend = FakeBackend(scripted(said))
    text, reason, usage = collect(guided(backend, heard))
    assert (text, reason, usage.completion_tokens) == (said, "stop", len(said) + 1)
    assert backend.passes < len(said) / 2
    assert collect(guided(FakeBackend(scripted("a bad cab")), heard, max_new_tokens=4))[:2] == ("a ba", "length")
    assert collect(guided(FakeBackend(scripted(said)), heard, cancelled=lambda: True))[1] == "cancelled"


def test_letters_overrule_a_model_that_is_not_sure():
    def unsure(emitted):  # likes "mad" a little better than "bad"
        row = np.full(260, -8.0, np.float32)
        text = bytes(emitted).decode()
        for likely, score in (("a mad cab.", 1.0), ("a bad cab.", 0.5)):
            if likely.startswith(text):
                row[likely.encode()[len(text)] if len(text) < len(likely) else END] = score
        return row

    assert collect(guided(FakeBackend(unsure), "a bad cab"))[0] == "a bad cab."


def test_language_model_and_letters_both_have_a_say():
    text, reason, usage = collect(search(Biased("a bad cab."), "a bab cab"))
    assert text == "a bad cab." and reason == "stop"
    assert usage.completion_tokens == len("a bad cab.") + 1


def test_how_people_write_decides_where_the_others_waver():
    class Wavering(Biased):
        def _row(self, cache):
            row = super()._row(cache)
            if cache.length == 2 and not cache.deaf:
                row[ord("m")] = row[ord("b")] + 0.3
            return row

    unclear = "a ad cab"
    assert collect(search(Wavering("a bad cab", deaf="a mad cab"), unclear))[0] == "a mad cab"
    assert collect(search(Wavering("a bad cab", deaf="a bad cab"), unclear))[0] == "a bad cab"
    assert collect(search(Biased("a bad cab", deaf="a mad cab"), "a bad cab"))[0] == "a bad cab"


def test_how_people_write_says_nothing_of_marks_and_capitals():
    small, guide = small_letters(TOKENIZER), guide_of(audio_of("bad"))
    assert [small(token) for token in TOKENIZER.encode("aB,é")] == TOKENIZER.encode("ab,é") and small(END) == END
    row = np.zeros((1, max(END, 255) + 1), np.float32)
    deaf = row.copy()
    deaf[0, TOKENIZER.encode("B,x")] = -9.0
    proposed = [TOKENIZER.encode("bB,x")]
    begun = Hypothesis((0,), (0.0,), guide.start(), 0.0)
    grown = {h.tokens[-1]: h.favour for h, _ in _extend([begun], row, guide, proposed, frozenset(), None, deaf, small)}
    b, capital, mark, x = (grown[token] for token in proposed[0])
    assert b == capital < mark == 0.0 and x < b - 2.0


def test_letters_that_are_left_keep_a_text_from_ending():
    text, reason, _ = collect(search(Biased("a bad cab", end=4.5), "a bad cab"))
    assert text == "a bad cab" and reason == "stop"


def test_limit_and_cancel_end_the_search_with_what_there_is():
    text, reason, _ = collect(search(Biased("a bad cab"), "a bad cab", max_new_tokens=4))
    assert (text, reason) == ("a ba", "length")
    calls = itertools.count()
    text, reason, _ = collect(search(Biased("a bad cab"), "a bad cab", cancelled=lambda: next(calls) == 3))
    assert reason == "cancelled" and "a bad cab".startswith(text)


def test_a_prompt_without_room_and_numbers_that_are_none_are_errors():
    with pytest.raises(PromptError, match="context holds 12"):
        search(Biased("a", max_positions=12), "a")
    with pytest.raises(BackendError, match="not numbers"):
        search(Biased("a", end=float("nan")), "a")
    text, reason, _ = collect(search(Biased("a bad cab", max_positions=17), "a bad cab"))
    assert (text, reason) == ("a ba", "length")


@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_rows_of_a_beam_equal_conversations_of_their_own(moss_tiny, golden, kind):
    pytest.importorskip(kind)
    backend = load_backend(moss_tiny, kind, "cpu", "float32")
    ids = golden["short.input_ids"]
    audio = backend.encode_audio([golden["short.mel0"]])
    cache, _ = backend.prefill(ids, ids == 300, audio)
    backend.decode_beams(cache, np.array([5, 6, 7]), np.array([0, 0, 0]))
    second = backend.decode_beams(cache, np.array([8, 9]), np.array([2, 0]))
    third = backend.decode_beams(cache, np.array([10, 11, 12]), np.array([1, 1, 0]))
    for row, tokens in [(second[0], [7, 8]), (second[1], [5, 9]), (third[0], [5, 9, 10]), (third[2], [7, 8, 12])]:
        alone, _ = backend.prefill(ids, ids == 300, audio)
        np.testing.assert_allclose(row, backend.decode(alone, np.array(tokens))[-1], atol=1e-4)
