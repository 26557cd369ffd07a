"""Scenes drawn from manifests, and the stage that teaches the mergers the words for what sounds in them."""

import json
from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toys import SCENES, SOUNDS, tiny_config, tiny_processor, write_world  # noqa: E402

from moss_audio.data.manifest import held_out  # noqa: E402
from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.model.decoder import GatedMLP  # noqa: E402
from moss_audio.training import ground, vectors  # noqa: E402
from moss_audio.training.examples import Scenes  # noqa: E402
from moss_audio.training.loop import load_weights  # noqa: E402
from moss_audio.training.naming import Words, frame_names  # noqa: E402
from moss_audio.training.scenes import World, ask, is_dev, label_of  # noqa: E402

KINDS = tuple(SCENES["shares"])
RECIPE = {
    "scenes": SCENES | {"shares": {"sound": 0.7, "emotion": 0.2, "music": 0.1}}, "recordings": 30, "kept_scenes": 30,
    "dev_clips": 20, "dev_every": 60, "seed": 0, "steps": 60, "warmup": 3, "batch_size": 6, "dropout": 0.2,
    "weight_decay": 0.1, "scale": 1.0, "lr": {"weight": 1e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def words():
    torch.manual_seed(1)
    return Words(["a", "b", "c", "d"], torch.randn(2, 4, 16))


def drawn(world, kind, n):
    rng = np.random.default_rng(1)
    return [getattr(world, f"_{kind}")(rng) for _ in range(n)]


@pytest.mark.parametrize("dev", [False, True])
def test_rows_kept_for_development_are_never_drawn_in_training(data, tmp_path, dev):
    world = World(SCENES, data, tmp_path, dev)
    for kind in KINDS:
        if dev and kind in ("voice", "mixed"):  # speech has a development manifest of its own
            continue
        truths = [event.truth for scene in drawn(world, kind, 10) for event in scene.events]
        assert all(is_dev(row) == dev for row in truths), kind
        assert truths or kind == "nothing"
    indices = {i for rows in world.ambient.by_label.values() for i in rows}
    assert indices and all((world.ambient.store.rows[i]["fold"] == 3) == dev for i in indices)


def test_which_rows_are_kept_for_development(data):
    assert is_dev({"fold": 3}) and not is_dev({"fold": 1})
    assert is_dev({"emotion": "anger", "speaker": "emodb_14"}) and not is_dev({"emotion": "anger", "speaker": "x"})
    order = {"intent": "order_drink", "audio": "a.wav"}
    assert is_dev(order) == held_out(order)
    assert not is_dev({"text": "spoken"})
    assert label_of({"label": "drinking, sipping"}) == "drinking" and label_of({"text": "spoken"}) == "speech"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_scene_has_questions(data, tmp_path, kind):
    world, rng = World(SCENES, data, tmp_path), np.random.default_rng(2)
    assert world.labels == sorted(SOUNDS)
    turns = [turn for scene in drawn(world, kind, 12) for turn in ask(kind, scene, world.labels, rng, n=3)]
    assert len(turns) > 12 and all(question for question, _ in turns)
    assert len({question for question, _ in turns}) > 3


def test_a_world_draws_its_kinds_by_their_shares(data, tmp_path):
    world = World(SCENES | {"shares": {"nothing": 3, "music": 1}}, data, tmp_path)
    rng = np.random.default_rng(0)
    kinds = [world.draw(rng)[0] for _ in range(60)]
    assert set(kinds) == {"nothing", "music"} and 33 <= kinds.count("nothing") <= 57


def test_frames_are_named_by_what_sounds_in_them(data, tmp_path):
    (scene,) = drawn(World(SCENES, data, tmp_path), "emotion", 1)
    (event,) = scene.events
    frames, truth = frame_names(scene), event.truth
    mood = {"anger": "angry", "sadness": "sad"}[truth["emotion"]]
    expected = f"{mood} a {'man' if truth['gender'] == 'male' else 'woman'} speaking"
    assert [expected] in frames and len(frames) == int(scene.seconds * 12.5) + 1


def test_units_that_do_least_make_room_for_a_linear_map(words):
    torch.manual_seed(0)
    taps = 3 + torch.randn(40, 2, 24) * torch.linspace(0.2, 1.5, 24)
    maps = ground.Maps(words, taps, torch.arange(40) % 4)
    mergers = [GatedMLP(24, 64, 16) for _ in range(2)]
    for merger in mergers:  # half of the units say nothing
        merger.down_proj.weight.data[:, ::2] = 0
    frames = taps.transpose(0, 1)
    with torch.no_grad():
        before = torch.stack([merger(x) for merger, x in zip(mergers, frames, strict=True)])
        ground.put_in(mergers, maps, [frames], scale=2.0)
        after = torch.stack([merger(x) for merger, x in zip(mergers, frames, strict=True)])
        wanted = 2 * maps(taps)
    error = (after - before - wanted).norm() / wanted.norm()
    assert error < 0.4, float(error)  # the gates' mean varies a little
    correlation = torch.nn.functional.cosine_similarity((after - before).flatten(), wanted.flatten(), dim=0)
    assert correlation > 0.95


def test_sounds_are_pooled_over_the_frames_in_which_they_are_heard(data, tmp_path, byte_tokenizer):
    model, processor = AudioLM(tiny_config()), tiny_processor(byte_tokenizer)
    listener = ground.Listener(model, Words.of(model, processor, World(SCENES, data, tmp_path)))
    mel = np.random.default_rng(0).normal(size=(80, 80)).astype(np.float32)
    frames = [["rain"]] * 4 + [["rain", "siren"]] * 2 + [["silence"]] * 4
    (taps,) = listener.taps([mel])
    pooled = {listener.words.names[label]: mean for mean, label in listener.pooled([(mel, frames)])}
    assert pooled.keys() == {"rain", "siren"}
    torch.testing.assert_close(pooled["siren"], taps[:, 4:6].mean(1))
    torch.testing.assert_close(pooled["rain"], taps[:, :6].mean(1))
    ((_, label),) = listener.pooled([(mel, [["silence"]])])
    assert listener.words.names[label] == "silence"


def test_ground_teaches_the_mergers_and_nothing_else(data, tmp_path, byte_tokenizer):
    torch.manual_seed(0)
    model, processor, state = AudioLM(tiny_config()), tiny_processor(byte_tokenizer), tmp_path / "ground.safetensors"
    before = deepcopy(model.state_dict())
    ground.train(model, processor, RECIPE, data, state, resume=False)
    log = [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20, 40, 60] and log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["dev_clips"] == len(SOUNDS) and log[-1]["dev_named"] > 0.3
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("deepstack_audio_merger_list.") for name in changed)

    again = AudioLM(tiny_config())
    again.load_state_dict(before)
    ground.train(again, processor, RECIPE, data, state, resume=True)  # all steps are done: what was kept is put in
    load_weights(state, again)
    for name in changed:
        torch.testing.assert_close(again.state_dict()[name], model.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_vectors_leave_the_model_as_it_is_and_ground_fits_the_mergers_to_them(data, tmp_path, byte_tokenizer):
    torch.manual_seed(0)
    model, processor, state = AudioLM(tiny_config()), tiny_processor(byte_tokenizer), tmp_path / "vectors.safetensors"
    before = deepcopy(model.state_dict())
    recipe = {
        "scenes": SCENES, "recordings": 2, "share": [0.5, 1.0], "blur": 0.2, "dev_every": 20, "seed": 0, "steps": 20,
        "warmup": 3, "batch_size": 6, "weight_decay": 0.0, "scale": 1.0, "lr": {"moved": 0.3},
    }  # fmt: skip
    vectors.train(model, processor, recipe, data, state, resume=False)
    log = [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20] and log[-1]["moved"] > 0  # a decoder of chance reads nothing
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    world, learned = World(SCENES, data, tmp_path), state.with_suffix(".vectors")
    words = Words.learned(learned, world, torch.device("cpu"))
    assert {name for name, said in zip(words.names, words.said, strict=True) if said} == set(SOUNDS)
    ground.train(model, processor, RECIPE, data, tmp_path / "ground.safetensors", False, learned)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("deepstack_audio_merger_list.") for name in changed)


def test_what_stays_unsaid_is_kept_quiet():
    torch.manual_seed(2)
    targets = torch.randn(2, 3, 16)
    targets[:, 2] = 0
    words = Words(["a", "b", "speech"], targets)
    labels = torch.tensor([0, 1, 2, 2])
    quiet = targets[:, labels]
    loud = quiet + torch.tensor([0.0, 0, 1, 1])[:, None]
    assert words.loss(quiet, labels) < words.loss(loud, labels)
    assert words.nearest(quiet)[:2].tolist() == [0, 1] and set(words.nearest(loud).tolist()) <= {0, 1}
    assert words.loss(quiet[:, 2:], labels[2:]) == 0


def test_turns_come_in_their_shares(data, tmp_path):
    rng = np.random.default_rng(0)
    scenes = Scenes(World(SCENES | {"shares": {"scene": 1}}, data, tmp_path), 1.0, 80, turns=(0, 1))
    counts = [len(scenes.draw(rng, (), 0.0).more) for _ in range(8)]
    assert max(counts) == 1 and counts.count(1) > 4  # a question that does not fit the scene is left out
