"""Scenes drawn from manifests, and the stages that teach the mergers to tell the decoder what is heard in them."""

import itertools
import json
from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from toys import SCENES, SOUNDS, tiny_config, tiny_processor  # noqa: E402

from moss_audio.data.manifest import held_out  # noqa: E402
from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.model.decoder import GatedMLP  # noqa: E402
from moss_audio.training import ground, vectors  # noqa: E402
from moss_audio.training.examples import Scenes  # noqa: E402
from moss_audio.training.loop import load_weights  # noqa: E402
from moss_audio.training.naming import BESIDE, Words, attributes, kinds_of  # noqa: E402
from moss_audio.training.scenes import World, ask, half_of, is_dev, label_of  # noqa: E402
from moss_audio.training.sounds import Sound  # noqa: E402

KINDS = tuple(SCENES["shares"])
HEARD = ("piano", "violin", "angry", "sad", "male", "female")
"""What else the toys' clips are labelled with."""

HEARD_SCENES = SCENES | {"shares": {"sound": 0.4, "scene": 0.2, "emotion": 0.2, "music": 0.1, "nothing": 0.1}}
RECIPE = {
    "scenes": HEARD_SCENES, "least": 2, "recordings": 40, "kept_scenes": 40, "dev_clips": 30, "dev_every": 60,
    "seed": 0, "steps": 60, "warmup": 3, "batch_size": 12, "dropout": 0.2, "weight_decay": 0.1,
    "units": {"sound": 2, "instrument": 1, "emotion": 1, "gender": 1},
    "said": dict.fromkeys(("sound", "instrument", "emotion", "gender"), (0.0, 1.0)),
    "lr": {"weight": 1e-2, "bias": 1e-2},
}  # fmt: skip


@pytest.fixture
def words():
    torch.manual_seed(1)
    return Words({"sound": ("a", "b"), "gender": ("male", "female")}, torch.randn(2, 4, 16))


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


@pytest.mark.parametrize("half", [0, 1])
def test_scenes_may_have_the_sounds_of_one_half(data, tmp_path, half):
    world = World(SCENES | {"half": half}, data, tmp_path)
    pools = [*(pool for pool, _ in world.sounds), world.ambient]
    rows = [pool.store.rows[i] for pool in pools for own in pool.by_label.values() for i in own]
    assert {half_of(row) for row in rows} == {half}
    assert len(world.music.labels) == len(World(SCENES, data, tmp_path).music.labels)


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


def test_what_is_true_of_a_clip(data, tmp_path):
    world = World(SCENES, data, tmp_path)
    (scene,) = drawn(world, "emotion", 1)
    (event,) = scene.events
    mood = {"anger": "angry", "sadness": "sad"}[event.truth["emotion"]]
    assert attributes(event.kind, event.label, event.truth) == {mood: 1.0, event.truth["gender"]: 1.0}
    assert attributes("music", "piano", {"music": {"instruments": ["piano", "harp"]}}) == {"piano": 1.0, "harp": BESIDE}
    assert attributes("sound", "siren", {}) == {"siren": 1.0} and attributes("speech", "speech", {"text": "x"}) == {}


def test_labels_of_a_kind_and_those_too_rare(data, tmp_path):
    world = World(SCENES, data, tmp_path)
    kinds = kinds_of(world, 2)
    assert kinds["sound"] == sorted(SOUNDS) and kinds["gender"] == ("male", "female")
    assert kinds_of(world, 3)["sound"] == []
    names = [name for labels in kinds.values() for name in labels]
    assert len(set(names)) == len(names)


def frames_of(n: int, labels: list[int], seed: int = 0) -> ground.Kept:
    """Sounds of which feature i is large where label i is true."""
    generator = torch.Generator().manual_seed(seed)
    taps = 3 + 0.3 * torch.randn(n, 2, ground.FRAMES, 24, generator=generator)
    true = torch.zeros(n, 4)
    for i, label in enumerate(labels):
        taps[i, :, :, label] += 2
        true[i, label] = 1
    return ground.Kept(taps, torch.full((n, ground.FRAMES), 1 / ground.FRAMES), true, torch.zeros(n))


def trained(words, kept, steps=150):
    detectors = ground.Detectors(*ground.spread_of(kept), [2, 2, 1, 1])
    optimiser = torch.optim.Adam(detectors.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        detectors.loss(kept, words, 0.2).backward()
        optimiser.step()
    return detectors


def test_units_that_do_least_say_what_the_detectors_hear(words):
    kept = frames_of(40, [i % 4 for i in range(40)])
    detectors = trained(words, kept)
    unheard = frames_of(20, [i % 4 for i in range(20)], seed=1)
    assert ground.right(detectors, unheard, words) == {"dev_sound": "10/10", "dev_gender": "10/10"}
    mergers = [GatedMLP(24, 64, 16) for _ in range(2)]
    for merger in mergers:  # half of the units say nothing
        merger.down_proj.weight.data[:, ::2] = 0
    frames = unheard.taps.transpose(0, 1).flatten(1, 2)
    with torch.no_grad():
        before = torch.stack([merger(x) for merger, x in zip(mergers, frames, strict=True)])
        ground.put_in(mergers, detectors, words, [frames], {"sound": (0.2, 2.0), "gender": (0.0, 0.5)})
        after = torch.stack([merger(x) for merger, x in zip(mergers, frames, strict=True)])
        (z, one), (_, amounts) = detectors.units(unheard.taps), detectors(unheard.taps)
        said = torch.nn.functional.silu(ground.SHARP * (z - 0.2 * one)) / ground.SHARP * one
        told = ground.told(detectors, words, frames, {"sound": (0.2, 2.0), "gender": (0.0, 0.5)})
        amounts = detectors.by_label(amounts)
        said = torch.cat([2 * detectors.by_label(said)[..., :2], 0.5 * amounts[..., 2:]], -1)
        wanted = torch.einsum("nkfl,kld->knfd", said, words.targets).flatten(1, 2)
    torch.testing.assert_close(after - before, wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(told @ words.targets, wanted, atol=1e-3, rtol=1e-3)
    assert amounts[0, :, :, 0].mean() > 0.5 and amounts[0, :, :, 1:].abs().mean() < 0.1


def test_what_is_heard_beside_another_is_said_less(words):
    kept = frames_of(40, [i % 4 for i in range(40)])
    kept.labels[::4, 1] = BESIDE  # where the first sound is, so is half of the second
    kept.taps[::4, :, :, 1] += 1
    detectors = trained(words, kept, 400)
    with torch.no_grad():
        amounts = detectors.by_label(detectors(kept.taps[::4])[1]).mean((0, 1, 2))
    assert amounts[0] > 2 * amounts[1] > 0 and amounts[1] > 2 * amounts[2:].abs().max()


def test_what_is_not_true_costs_more_in_voices(words):
    kept = frames_of(8, [0, 1, 2, 3, 0, 1, 2, 3])
    detectors = trained(words, kept)
    only = [ground.Kept(*(x[i : i + 1] for x in kept)) for i in (0, 2)]
    with torch.no_grad():
        before = [detectors.loss(one, words, 0.0) for one in only]
        heard_everywhere = detectors.owner == 1
        detectors.weight[..., heard_everywhere] = 0
        detectors.bias[..., heard_everywhere] = 0.25
        sound, voice = (detectors.loss(one, words, 0.0) - was for one, was in zip(only, before, strict=True))
    assert voice > 0.1 and sound > 0.1
    wrong = ground.CLOSENESS * 0.25 + ground.ELSEWHERE * 0.5
    assert float(voice) == pytest.approx(ground.QUIETNESS * wrong, rel=0.1)


def test_sounds_are_kept_where_they_are_heard(data, tmp_path, byte_tokenizer):
    model, processor = AudioLM(tiny_config()), tiny_processor(byte_tokenizer)
    words = Words.of(model, processor, kinds_of(World(SCENES, data, tmp_path), 1))
    listener = ground.Listener(model, words)
    mel = np.random.default_rng(0).normal(size=(80, 400)).astype(np.float32)
    (taps,) = listener.taps([mel])
    kept = listener.kept([Sound(mel, {"rain": 1.0}, 0.8, 1.6), Sound(mel, {}, 0.0, 4.0)])
    torch.testing.assert_close(kept.taps[0, :, :11].float(), taps[:, 10:21], atol=1e-2, rtol=1e-2)
    assert kept.weights[0].tolist() == pytest.approx([1 / 11] * 11 + [0] * 5)
    assert kept.weights[1].tolist() == pytest.approx([1 / 16] * 16)
    assert [words.names[i] for i in kept.labels[0].nonzero().flatten()] == ["rain"] and not kept.labels[1].any()


def test_ground_teaches_the_mergers_and_nothing_else(data, tmp_path, byte_tokenizer):
    torch.manual_seed(0)
    model, processor, state = AudioLM(tiny_config()), tiny_processor(byte_tokenizer), tmp_path / "ground.safetensors"
    before = deepcopy(model.state_dict())
    ground.train(model, processor, RECIPE, data, state, resume=False)
    log = [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20, 40, 60] and log[-1]["loss"] < 0.8 * log[0]["loss"]
    right, total = map(int, log[-1]["dev_sound"].split("/"))
    assert total == len(SOUNDS) and right >= 2
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("deepstack_audio_merger_list.") for name in changed)

    again = AudioLM(tiny_config())
    again.load_state_dict(before)
    ground.train(again, processor, RECIPE, data, state, resume=True)  # all steps are done: what was kept is put in
    load_weights(state, again)
    for name in changed:
        torch.testing.assert_close(again.state_dict()[name], model.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_vectors_leave_the_model_as_it_is_and_the_mergers_can_say_them(data, tmp_path, byte_tokenizer):
    torch.manual_seed(0)
    model, processor, state = AudioLM(tiny_config()), tiny_processor(byte_tokenizer), tmp_path / "vectors.safetensors"
    before = deepcopy(model.state_dict())
    recipe = {
        "scenes": SCENES, "least": 2, "recordings": 2, "share": [0.5, 1.0], "blur": 0.2, "dev_every": 20, "seed": 0,
        "steps": 20, "warmup": 3, "batch_size": 6, "weight_decay": 0.0, "scale": 1.0, "lr": {"moved": 0.3},
    }  # fmt: skip
    vectors.train(model, processor, recipe, data, state, resume=False)
    log = [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20] and log[-1]["moved"] > 0  # a decoder of chance reads nothing
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    world, learned = World(SCENES, data, tmp_path), state.with_suffix(".vectors")
    words = Words.learned(learned, kinds_of(world, 2), torch.device("cpu"))
    said = words.targets.norm(dim=-1).sum(0) > 0
    assert {name for name, yes in zip(words.names, said, strict=True) if yes} == {*SOUNDS, *HEARD}
    ground.train(model, processor, RECIPE, data, tmp_path / "ground.safetensors", False, learned)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("deepstack_audio_merger_list.") for name in changed)
    gates = [model.state_dict()[name] != before[name] for name in changed if "gate_proj" in name]
    units = len(HEARD) + 2 * len(SOUNDS)
    assert [int(rows.any(1).sum()) for rows in gates] == [units] * len(gates)


def test_vectors_learn_on_through_detectors_that_have_not_heard_a_recording(data, tmp_path, byte_tokenizer):
    torch.manual_seed(0)
    model, processor = AudioLM(tiny_config()), tiny_processor(byte_tokenizer)
    recipe = {
        "scenes": SCENES, "least": 2, "recordings": 2, "share": [0.5, 1.0], "blur": 0.2, "dev_every": 3,
        "seed": 0, "steps": 3, "warmup": 1, "batch_size": 6, "weight_decay": 0.0, "scale": 1.0, "lr": {"moved": 0.3},
    }  # fmt: skip
    vectors.train(model, processor, recipe, data, tmp_path / "vectors.safetensors", resume=False)
    learned, state = tmp_path / "vectors.vectors", tmp_path / "ground.safetensors"
    ground.train(deepcopy(model), processor, RECIPE | {"halves": True}, data, state, False, learned)
    assert all(file.is_file() for file in ground.halves_beside(state))
    told = [load_file(tmp_path / f"ground{part}.safetensors") for part in ("_half0_mergers", "_half1_mergers", "")]
    assert told[0].keys() == told[1].keys() == told[2].keys() <= model.state_dict().keys()
    gates = [name for name in told[0] if "gate_proj" in name]
    for a, b in itertools.combinations(told, 2):  # sounds are told otherwise, the rest is not
        assert [int((a[name] != b[name]).any(1).sum()) for name in gates] == [2 * len(SOUNDS)] * len(gates)

    kinds = kinds_of(World(SCENES, data, tmp_path), 2)
    before = vectors.Vectors.learned(learned)
    halves = vectors.Halves(state, Words.learned(learned, kinds, torch.device("cpu")), list(before.index))
    taps = torch.randn(len(before.start), 5, halves.detectors[0].mean.shape[-1])
    torch.testing.assert_close(
        halves.tell(taps, 0), ground.told(halves.detectors[1], halves.words, taps, RECIPE["said"])[..., halves.columns]
    )
    vectors.train(model, processor, recipe, data, tmp_path / "read.safetensors", False, learned, state)
    after = vectors.Vectors.learned(tmp_path / "read.vectors")
    assert after.index == before.index and not torch.equal(after.start, before.start)
    with pytest.raises(ValueError, match="has no vectors of"):
        few = tmp_path / "few.vectors"
        save_file({"vectors": before.start[:, :1].contiguous()}, few, {"labels": json.dumps(["siren"])})
        vectors.train(model, processor, recipe, data, tmp_path / "few.safetensors", False, few)


def test_every_kind_is_asked_about_in_its_own_words(data, tmp_path, byte_tokenizer):
    model, processor = AudioLM(tiny_config()), tiny_processor(byte_tokenizer)
    world, rng = World(SCENES, data, tmp_path), np.random.default_rng(0)
    kinds = kinds_of(world, 1)
    found = vectors.recordings_of(world, kinds, 80, 2, rng)
    assert {label for recording in found for label in recording.labels} == {*SOUNDS, *HEARD}
    assert {recording.text for recording in found} == {"", "Good morning to you."}
    kept = vectors.VectorReader(model, processor).keep(found)
    questions = vectors.Questions(kept, kinds, (0.5, 1.0), 0.2)
    asked = [questions.next(rng) for _ in range(200)]
    answers = {(one.answer, one.whole) for one in asked}
    assert {
        ('{"instruments": ["piano', False), ("Violin.", True), ("A man.", True), ('{"gender": "female', False),
        ("Sad.", True), ("Siren.", True), ("Yes.", True), ("No.", True), ("Good morning to you.", True),
    } <= answers  # fmt: skip


def test_turns_come_in_their_shares(data, tmp_path):
    rng = np.random.default_rng(0)
    scenes = Scenes(World(SCENES | {"shares": {"scene": 1}}, data, tmp_path), 1.0, 80, turns=(0, 1))
    counts = [len(scenes.draw(rng, (), 0.0).more) for _ in range(8)]
    assert max(counts) == 1 and counts.count(1) > 4  # a question that does not fit the scene is left out
