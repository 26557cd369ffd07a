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
from moss_audio.training import align, ground  # noqa: E402
from moss_audio.training.examples import Scenes  # noqa: E402
from moss_audio.training.naming import Words, frame_names  # noqa: E402
from moss_audio.training.scenes import World, ask, is_dev, label_of  # noqa: E402

KINDS = tuple(SCENES["shares"])
RECIPE = {
    "scenes": SCENES | {"shares": {"sound": 0.7, "emotion": 0.2, "music": 0.1}}, "whiten": True, "kept_scenes": 24,
    "dev_every": 60, "seed": 0, "steps": 60, "warmup": 3, "batch_size": 6, "frame_weight": 0.3,
    "lr": {"deepstack": 5e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


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


def test_whitened_gates_see_unit_variance():
    torch.manual_seed(0)
    taps = 3 + torch.randn(2, 800, 64) * torch.linspace(0.2, 1.5, 64)
    mergers = [GatedMLP(64, 256, 32) for _ in taps]
    ground.whiten(mergers, taps)
    for merger, tap in zip(mergers, taps, strict=True):
        with torch.no_grad():
            for seen in (merger.gate_proj(tap), merger.up_proj(tap)):
                assert float(seen.std(0).mean()) == pytest.approx(1, abs=0.1)
                assert float(seen.mean(0).std()) == pytest.approx(0.5, abs=0.1)


def test_ground_teaches_the_mergers_and_nothing_else(data, tmp_path, byte_tokenizer, capsys):
    torch.manual_seed(0)
    model, processor, state = AudioLM(tiny_config()), tiny_processor(byte_tokenizer), tmp_path / "ground.safetensors"
    before = deepcopy(model.state_dict())
    ground.train(model, processor, RECIPE, data, state, resume=False)
    log = [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20, 40, 60] and log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["dev_clips"] == 80 and 0 <= log[-1]["dev_named"] <= 1
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("deepstack_audio_merger_list.") for name in changed)

    trained = deepcopy(model.state_dict())
    ground.train(model, processor, RECIPE | {"steps": 61, "lr": {"deepstack": 1e-9}}, data, state, resume=True)
    for name in changed:  # whitened once: a resumed run keeps what it has learned
        torch.testing.assert_close(model.state_dict()[name], trained[name], atol=1e-4, rtol=1e-3)


def test_reading_goes_on_naming(data, tmp_path, byte_tokenizer):
    torch.manual_seed(0)
    model, processor = AudioLM(tiny_config()), tiny_processor(byte_tokenizer)
    world, rng = World(RECIPE["scenes"], data, tmp_path), np.random.default_rng(0)
    scenes = Scenes(world, 1.0, 80, turns=(1,))
    examples = [scenes.draw(rng, (), 0.0) for _ in range(4)]
    assert all(example.frames and not example.more for example in examples)
    reader, words = align.Reader(model, processor), Words.of(model, processor, world)
    alone = reader.loss(examples, np.random.default_rng(0), 0.0)
    reader.name(words, 0.5)
    both = reader.loss(examples, np.random.default_rng(0), 0.0)
    targets = [words.target(example.frames, -(-example.mel.shape[1] // 8)) for example in examples]
    heard = model.adapt_output(reader.hear([example.mel for example in examples])).deepstack
    apart = words.loss(heard, torch.cat(targets), [len(target) for target in targets], align.FRAME_WEIGHT)
    assert float((both - alone).detach()) == pytest.approx(0.5 * float(apart.detach()), rel=1e-4)


def test_turns_come_in_their_shares(data, tmp_path):
    rng = np.random.default_rng(0)
    scenes = Scenes(World(SCENES | {"shares": {"scene": 1}}, data, tmp_path), 1.0, 80, turns=(0, 1))
    counts = [len(scenes.draw(rng, (), 0.0).more) for _ in range(8)]
    assert max(counts) == 1 and counts.count(1) > 4  # a question that does not fit the scene is left out
