from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import END, VOCAB, ByteTokenizer, FakeBackend, hashed, prompt, scripted, uniform

from moss_audio.errors import BackendError, PromptError
from moss_audio.inference.generate import collect, generate, score
from moss_audio.inference.sampling import Sampler, SamplingParams

TOKENIZER = ByteTokenizer()


def answer(backend, params=None, inputs=None, **options):
    return list(generate(backend, TOKENIZER, inputs or prompt(), params or SamplingParams(), **options))


def test_stream_collected_is_the_answer_with_usage():
    events = answer(FakeBackend(scripted("A cat.")), inputs=prompt("what?", n_audio=25))
    text, reason, usage = collect(events)
    assert (text, reason) == ("A cat.", "stop")
    assert [event.text for event in events] == [*"A cat.", ""]
    assert (usage.prompt_tokens, usage.audio_tokens, usage.audio_seconds, usage.completion_tokens) == (30, 25, 2.0, 7)
    assert all(event.finish_reason is None and event.usage is None for event in events[:-1])
    assert events[-1].token_id == END


def test_length_counts_tokens_and_ends_with_the_last():
    events = answer(FakeBackend(scripted("A cat.")), SamplingParams(max_new_tokens=3))
    assert collect(events)[:2] == ("A c", "length")
    assert len(events) == 3


def test_characters_never_come_in_parts():
    events = answer(FakeBackend(scripted("naïve 🎵!")))
    assert [event.text for event in events if event.text] == [*"naïve 🎵!"]
    cut = answer(FakeBackend(scripted("é")), SamplingParams(max_new_tokens=1))
    assert collect(cut)[:2] == ("\ufffd", "length")


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (("STOP",), "one ST two "),
        (("two", "ST t"), "one "),
        (("zzz",), "one ST two STOP three"),
        (("e STOPX",), "one ST two STOP three"),
    ],
)
def test_stop_strings_straddle_tokens_and_are_not_shown(stop, said):
    events = answer(FakeBackend(scripted("one ST two STOP three")), SamplingParams(stop=stop))
    text, reason, usage = collect(events)
    assert (text, reason) == (said, "stop")
    assert usage.completion_tokens == len(events)


def test_a_half_stop_string_is_shown_when_the_answer_ends():
    events = answer(FakeBackend(scripted("abcST")), SamplingParams(stop=("STOP",)))
    assert collect(events)[0] == "abcST"
    events = answer(FakeBackend(scripted("abcSTxx")), SamplingParams(stop=("STOP",), max_new_tokens=5))
    assert collect(events)[:2] == ("abcST", "length")


def test_cancelled_before_and_within():
    backend = FakeBackend(scripted("A cat."))
    assert collect(answer(backend, cancelled=lambda: True))[:2] == ("", "cancelled")
    assert backend.passes == 0
    seen: list[str] = []
    events = generate(
        FakeBackend(scripted("A cat.")), TOKENIZER, prompt(), SamplingParams(), cancelled=lambda: len(seen) == 2
    )
    for event in events:
        seen.append(event.text)
    assert seen == ["A", " ", ""]
    assert event.finish_reason == "cancelled" and event.token_id is None and event.usage.completion_tokens == 2


def test_a_prompt_that_does_not_fit_is_refused_before_any_work():
    backend = FakeBackend(uniform, max_positions=30)
    with pytest.raises(PromptError, match="30 tokens and the context holds 30"):
        generate(backend, TOKENIZER, prompt("12345", n_audio=25), SamplingParams())
    assert backend.encoded == 0


def test_an_answer_ends_where_the_context_does():
    backend = FakeBackend(hashed, max_positions=40)
    wrong = [1, 2, 3, 4, 5, 6, 7, 8]
    for draft in (None, lambda emitted: wrong):
        _, reason, usage = collect(answer(backend, SamplingParams(max_new_tokens=500), draft=draft))
        assert (reason, usage.completion_tokens) == ("length", 35)


def test_given_audio_is_not_encoded_again():
    backend = FakeBackend(scripted("a", "a"))
    inputs = prompt(n_audio=4)
    audio = backend.encode_audio(inputs.mels)
    answer(backend, inputs=inputs, audio=audio)
    assert backend.encoded == 1


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("seed", range(5))
def test_drafts_never_change_a_greedy_answer(seed, penalty):
    params = SamplingParams(max_new_tokens=60, repetition_penalty=penalty)
    plain = answer(FakeBackend(hashed), params)
    truth = [event.token_id for event in plain]
    random = np.random.default_rng(seed)

    def draft(emitted):
        guess = truth[len(emitted) : len(emitted) + int(random.integers(0, 9))]
        return [token if random.random() < 0.8 else int(random.integers(VOCAB)) for token in guess]

    backend = FakeBackend(hashed)
    drafted = answer(backend, params, draft=draft)
    assert [(e.token_id, e.text, e.finish_reason, e.usage) for e in drafted] == [
        (e.token_id, e.text, e.finish_reason, e.usage) for e in plain
    ]
    np.testing.assert_allclose([e.logprob for e in drafted], [e.logprob for e in plain], rtol=1e-5)
    assert backend.passes < len(plain) - 1


def test_a_right_first_draft_costs_no_pass():
    backend = FakeBackend(scripted("hello world"))
    said = [*b"hello world", END]
    assert collect(answer(backend, draft=lambda emitted: said[len(emitted) :]))[0] == "hello world"
    assert backend.passes == 0  # it is read with the prompt


def test_drafts_are_ignored_when_sampling():
    def draft(emitted):
        raise AssertionError("asked for a draft")

    answer(FakeBackend(hashed), SamplingParams(temperature=1.0, max_new_tokens=5), draft=draft)


def test_sampling_repeats_with_its_seed_and_only_with_it():
    def say(seed):
        params = SamplingParams(temperature=1.0, seed=seed, max_new_tokens=20)
        return [event.token_id for event in answer(FakeBackend(uniform), params)]

    assert say(1) == say(1)
    assert say(1) != say(2)


def test_sampler_draws_from_the_stated_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))

    def frequencies(**options):
        sampler = Sampler(SamplingParams(seed=0, **{"temperature": 1.0, **options}))
        return np.bincount([sampler.pick(logits, [])[0] for _ in range(4000)], minlength=4) / 4000

    np.testing.assert_allclose(frequencies(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(frequencies(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(top_p=0.9), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(top_p=0.4), [1, 0, 0, 0])
    np.testing.assert_allclose(frequencies(temperature=0.5), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365, atol=0.03)
    np.testing.assert_allclose(frequencies(temperature=1e-320), [1, 0, 0, 0])


def test_penalty_moves_the_choice_but_not_the_logprob():
    logits = np.array([2.0, 1.9, -1.0, -1.2], dtype=np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=1.5))
    token, logprob = sampler.pick(logits, [0])
    assert token == 1
    assert logprob == pytest.approx(1.9 - np.log(np.exp(logits).sum()), abs=1e-5)
    assert Sampler(SamplingParams(repetition_penalty=1.5)).pick(logits[2:], [0])[0] == 1


def test_logits_that_are_no_numbers_are_an_error():
    with pytest.raises(BackendError, match="not numbers"):
        answer(FakeBackend(lambda emitted: np.full(VOCAB, np.nan, dtype=np.float32)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
        ("repetition_penalty", 0.0), ("seed", -1), ("max_new_tokens", 0), ("stop", ("",)), ("stop", "end"),
    ],
)  # fmt: skip
def test_parameters_are_checked_by_name_and_value(name, value):
    with pytest.raises(PromptError) as caught:
        replace(SamplingParams(), **{name: value})
    assert name in str(caught.value) and repr(value) in str(caught.value) and "valid" in str(caught.value)


def test_answers_are_scored_as_a_whole_and_leave_no_trace():
    answers = [list(b"ab"), list(b"c"), list(b"abcd")]

    def alone(answer):
        rows = [hashed(answer[:i]).astype(np.float64) for i in range(len(answer))]
        return sum(row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, answer, strict=True))

    backend = FakeBackend(hashed)
    scores = score(backend, prompt(), answers, None)
    assert scores == pytest.approx([alone(answer) for answer in answers])
    assert score(backend, prompt(), answers[::-1], None) == pytest.approx(scores[::-1])
    assert backend.passes == 4  # what is one token long needs none


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(PromptError, match="shorten them"):
        score(FakeBackend(hashed, max_positions=12), prompt("12345678"), [[1], [1] * 5], None)
