"""Suites, perplexity and chats: figures are counted right, on a model whose answers are known."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fakes import FakeBackend, FakeProcessor, scripted  # noqa: E402
from toys import SCENES, tiny_config, write_world  # noqa: E402

from moss_audio.data import chats  # noqa: E402
from moss_audio.evaluation import suites  # noqa: E402
from moss_audio.evaluation.perplexity import perplexity  # noqa: E402
from moss_audio.evaluation.suites import Count, nearest, words  # noqa: E402
from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.training.scenes import World  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return World(SCENES | {"shares": {"sound": 1}}, write_world(folder / "data"), folder / "cache", dev=True)


def counted(suite, world, answer, limit=6):
    """Share of right items by figure."""
    found: dict[str, list[bool]] = {}
    for name, right in suite(answer, world, limit):
        found.setdefault(name, []).append(bool(right))
    return {name: np.mean(rights) for name, rights in found.items()}


def test_the_interval_is_wilsons():
    low, high = Count(8, 10).interval
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert Count(0, 0).interval == (0.0, 1.0)
    assert Count(0, 20).interval[0] == 0 and Count(20, 20).interval[1] == pytest.approx(1)
    assert Count(50, 100).interval[1] - Count(50, 100).interval[0] < high - low
    assert str(Count(1, 2)) == "1/2 = 50.0 % (9…91)"


def test_the_nearest_label_shares_most_of_its_words():
    labels = ["dog barking", "church bell", "bell", "clock ticking"]
    assert words("The dogs barked!") == {"the", "dog", "bark"}
    assert nearest("A dog that barks.", labels) == "dog barking"
    assert nearest("I hear a church bell ringing", labels) == "church bell"
    assert nearest("a bell", labels) == "bell"
    assert nearest("music", labels) is None


def test_a_model_that_hears_everything_gets_everything(world):
    def perfect(samples, question, options=()):
        for pool in (world.sounds[0][0], world.music, world.emotion, world.orders):
            for i in (i for rows in pool.by_label.values() for i in rows):
                if np.array_equal(pool.store[i], samples):
                    row = pool.store.rows[i]
                    return row["label"] if options else answer(row, question)
        raise AssertionError("a clip that is not kept for development")

    def answer(row, question):
        if "music" in row:
            return json.dumps(row["music"])
        if "intent" in row:
            return json.dumps({"intent": row["intent"], "slots": row["slots"]})
        label = row["label"]
        return ("Yes." if label in question else "No.") if question.startswith("Is there") else f"It is {label}."

    assert counted(suites.sounds, world, perfect) == {"sound, open": 1, "sound, four choices": 1}
    assert counted(suites.absent, world, perfect) == {"yes to a present sound": 1, "false yes to an absent sound": 0}
    assert set(counted(suites.music, world, perfect).values()) == {1}
    assert set(counted(suites.orders, world, perfect).values()) == {1}


@pytest.mark.parametrize("answer", ["", "[]", "null", "{", '{"instruments": 3, "slots": []}', "Yes. Yes. Yes."])
def test_no_answer_breaks_a_suite(world, answer):
    for suite in (suites.sounds, suites.absent, suites.events, suites.music, suites.orders):
        assert counted(suite, world, lambda samples, question, options=(): answer, limit=2)


def test_timelines_count_events_within_half_a_second(world):
    def shifted(by):
        rng = np.random.default_rng(2)  # the suite's own seed: the same scenes again
        scenes = [world.draw(rng)[1] for _ in range(4)]
        answers = ["".join(f"[{e.start + by:.2f}]{e.label}[{e.end + by:.2f}]" for e in s.events) for s in scenes]
        turns = iter(answers)
        return counted(suites.events, world, lambda samples, question, options=(): next(turns), limit=4)

    exact, late = shifted(0.0), shifted(0.3)
    assert exact["events, precision"] == exact["events, recall"] == exact["events, named at any time"] == 1
    assert late["events, start within 0.5 s where named"] == 1


def test_perplexity_of_a_model_without_an_opinion_is_its_vocabulary():
    model = AudioLM(tiny_config()).eval()
    with torch.no_grad():
        model.language_model.embed_tokens.weight.zero_()
    assert perplexity(model, [[1, 2, 3], [4, 5]]) == pytest.approx(266, rel=1e-4)
    torch.manual_seed(0)
    model = AudioLM(tiny_config()).eval()
    rows = [[1, 2, 3, 9], [4, 5]]
    with torch.no_grad():
        logprobs = [model.decode(torch.tensor([row]))[0].log_softmax(-1) for row in rows]
    total = sum(float(p[i, row[i + 1]]) for p, row in zip(logprobs, rows, strict=True) for i in range(len(row) - 1))
    assert perplexity(model, rows) == pytest.approx(math.exp(-total / 4), rel=1e-4)
    assert perplexity(model, []) == 1.0


def test_chats_are_the_models_own_answers_and_go_on_where_they_stopped(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("the quick brown fox\njumps over lazy hounds\n")

    def run(count, *answers):
        monkeypatch.setattr(chats, "load_backend", lambda *_: FakeBackend(scripted(*answers)))
        monkeypatch.setattr(chats, "Processor", SimpleNamespace(load=lambda *_: FakeProcessor()))
        args = ["chats", "model", tmp_path / "lines.txt", tmp_path / "chats.jsonl", "--count", count]
        monkeypatch.setattr(sys, "argv", [*map(str, args)])
        chats.main()
        return [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]

    whole = run(3, "one", "two", "three")
    assert [row["answer"] for row in whole] == ["one", "two", "three"]
    assert {row["finish_reason"] for row in whole} == {"stop"}
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole[:2]))
    again = run(3, "other")
    assert [row["question"] for row in again] == [row["question"] for row in whole]
    assert [row["answer"] for row in again] == ["one", "two", "other"]
