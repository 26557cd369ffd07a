from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from fakes import ByteTokenizer, FakeBackend, FakeProcessor, letter_head, scripted

from moss_audio.config import LETTERS
from moss_audio.inference.generate import collect, generate
from moss_audio.inference.letters import LetterDraft, forced_alignment, greedy_words, is_silent, normalise, spelling
from moss_audio.inference.sampling import SamplingParams
from moss_audio.messages import Message

TOKENIZER = ByteTokenizer()
HEARD = "whour do i hea seeck and ye shal find it"


def proposal(heard: str, answer: str, n_tokens: int = 200) -> str:
    draft = LetterDraft(heard, LETTERS, TOKENIZER, n_tokens)
    return TOKENIZER.decode(draft(TOKENIZER.encode(answer)))


def test_a_prompt_quotes_the_pieces_where_there_are_some_and_the_letters_otherwise():
    assert spelling(letter_head("helo wurld"), LETTERS).quoted == "helo wurld"
    ids = np.array([0, 2, 2, 0, 1, 1, 3, 0, 3, 0])
    both = spelling(letter_head("helo"), LETTERS, ids, (" world", " hello", "ly"))
    assert both.best == "hello worldlyly" and both.quoted == "hello worldlyly / helo"
    assert spelling(np.zeros((4, 29), np.float32), LETTERS, np.zeros(4, np.int64), (" a",)).quoted == ""


def test_greedy_words_merge_repeats_drop_blanks_and_tell_the_time():
    words = greedy_words(letter_head("hello all"), LETTERS)
    assert [word.text for word in words] == ["hello", "all"]
    # 10 frames of blank, then a letter every 4 frames, each 2 frames long, 20 ms a frame
    assert words[0].start == pytest.approx(0.20) and words[0].end == pytest.approx(0.20 + (4 * 4 + 2) * 0.02)
    assert words[1].start == pytest.approx(0.20 + 6 * 4 * 0.02)


def test_a_letter_held_without_blank_is_one_letter():
    assert [w.text for w in greedy_words(letter_head("hello", frames_per_letter=2), LETTERS)] == ["helo"]


def test_silence_is_no_letters():
    assert is_silent(letter_head(""), LETTERS)
    assert is_silent(letter_head("h"), LETTERS)
    assert is_silent(letter_head("   "), LETTERS)
    assert not is_silent(letter_head("no"), LETTERS)


def test_letters_that_the_head_is_not_sure_of_are_noise():
    sure = np.exp(letter_head("a bark"))
    unsure = np.log(0.5 * sure + 0.5 / sure.shape[1])
    assert greedy_words(unsure, LETTERS) == greedy_words(np.log(sure), LETTERS)
    assert is_silent(unsure, LETTERS) and not is_silent(np.log(sure), LETTERS)


def test_normalise_spells_as_the_head_does():
    assert normalise("  Café, IT\u2019S 7 o'clock!\n", LETTERS) == "cafe it's o'clock"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("What", " do I hea seeck and ye shal find it."),
        ("What do I hear", " seeck and ye shal find it."),
        ("What do I hear?", " Seeck and ye shal find it."),
        ("What do I hear? ", "Seeck and ye shal find it."),
        ("What do I hear? Seek and", " ye shal find it."),
        ("What do I hear? Seek and you will f", "ind it."),
        ("Well, what do I really hear? Seek and", " ye shal find it."),  # words that the head missed
        ("What do I hear? And ye shall", " find it."),  # a word that the model left out
        ("What do I hear? Seek and ye shall find it.", ""),
    ],
)
def test_draft_goes_on_where_the_answer_is(answer, expected):
    assert proposal(HEARD, answer) == expected


def test_draft_keeps_its_place_as_the_answer_grows_and_forgets_another_answer():
    draft = LetterDraft(HEARD, LETTERS, TOKENIZER, 4)
    steps = [("What", " do "), ("What do I", " hea see"), ("What do I hear? Seek", " and"), ("What", " do ")]
    for answer, expected in steps:
        assert TOKENIZER.decode(draft(TOKENIZER.encode(answer))) == expected


def test_draft_says_each_of_repeated_words_in_turn():
    assert proposal("to be or not to be that is", "To be or not to be") == " that is."
    assert proposal("to be or not to be that is", "To be") == " or not to be that is."


def test_draft_saves_passes_and_changes_nothing():
    truth = "What do I hear? Seek and ye shall find it."
    inputs = FakeProcessor().encode([Message.of("user", "x")])
    params = SamplingParams()
    plain, drafted = FakeBackend(scripted(truth)), FakeBackend(scripted(truth))
    assert collect(generate(plain, TOKENIZER, inputs, params))[0] == truth
    draft = LetterDraft(HEARD, LETTERS, TOKENIZER)
    assert collect(generate(drafted, TOKENIZER, inputs, params, draft=draft))[0] == truth
    assert drafted.passes < plain.passes / 2


def test_draft_from_nothing_heard_is_empty():
    assert proposal("", "What") == ""


def test_alignment_times_words_and_keeps_their_spelling():
    words = forced_alignment(letter_head("what do i hear"), "What do I hear?", LETTERS)
    truth = greedy_words(letter_head("what do i hear"), LETTERS)
    assert [word.text for word in words] == ["What", "do", "I", "hear?"]
    assert [(w.start, w.end) for w in words] == [(pytest.approx(w.start), pytest.approx(w.end)) for w in truth]


def test_alignment_survives_rough_spelling():
    words = forced_alignment(letter_head("whour do i hea seeck"), "What do I hear? Seek.", LETTERS)
    truth = greedy_words(letter_head("whour do i hea seeck"), LETTERS)
    assert [w.text for w in words] == ["What", "do", "I", "hear?", "Seek."]
    np.testing.assert_allclose([w.start for w in words], [w.start for w in truth], atol=0.1)
    assert all(a.end <= b.start for a, b in pairwise(words))


def test_words_without_letters_lie_between_their_neighbours():
    words = forced_alignment(letter_head("in we met"), "7 In 1984 - we met 8 9", LETTERS)
    times = [(word.start, word.end) for word in words]
    assert [word.text for word in words] == ["7", "In", "1984", "-", "we", "met", "8", "9"]
    assert times[0] == (0.0, times[1][0])
    assert times[2][0] == times[1][1] and times[2][1] == times[3][0] and times[3][1] == pytest.approx(times[4][0])
    assert times[7][1] == pytest.approx(len(letter_head("in we met")) * 0.02)
    assert all(start <= end for start, end in times)


def test_alignment_is_the_best_path():
    """Against every path of a tiny case."""
    random = np.random.default_rng(0)
    logprobs = np.log(random.dirichlet(np.ones(4), size=6))
    letters = " ab"

    def collapse(path):
        kept = [p for i, p in enumerate(path) if p and (i == 0 or p != path[i - 1])]
        return "".join(letters[p - 1] for p in kept)

    paths = np.stack(np.meshgrid(*[range(4)] * 6, indexing="ij"), -1).reshape(-1, 6)
    scores = logprobs[np.arange(6), paths].sum(axis=1)
    for text in ("ab", "aab", "a b", "bba"):
        spelt = [i for i, path in enumerate(paths.tolist()) if collapse(path) == text]
        best = paths[max(spelt, key=lambda i: scores[i])]
        words = forced_alignment(logprobs, text, letters)
        frames = np.flatnonzero(best >= 2)
        assert words[0].start == pytest.approx(0.02 * frames[0])
        assert words[-1].end == pytest.approx(0.02 * (frames[-1] + 1))


def test_text_that_no_frames_can_hold_is_not_aligned():
    assert forced_alignment(letter_head("a", lead=1), "a long sentence", LETTERS) == ()
    assert forced_alignment(letter_head("ab"), "", LETTERS) == ()
    assert [w.text for w in forced_alignment(letter_head("ab"), "12 34", LETTERS)] == ["12", "34"]
