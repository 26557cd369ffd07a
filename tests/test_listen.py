"""The stage in which the encoder learns sounds and keeps its speech."""

import json
from copy import deepcopy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toys import SCENES, SOUNDS, tiny_config  # noqa: E402

from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.training import listen  # noqa: E402
from moss_audio.training.augment import colour, fitted  # noqa: E402
from moss_audio.training.letters import heard  # noqa: E402
from moss_audio.training.loop import load_weights  # noqa: E402
from moss_audio.training.naming import Words, kinds_of  # noqa: E402
from moss_audio.training.scenes import World, is_dev  # noqa: E402

RECIPE = {
    "pools": {"sound.jsonl": 0.6, "music.jsonl": 0.2, "emotion.jsonl": 0.2}, "sounds": ["sound.jsonl"],
    "speech": ["speech.jsonl", "emotion.jsonl"], "seconds": 12, "augment": 1.0, "dropout": 0.1, "dev_clips": 12,
    "every": 1, "dev_every": 60, "seed": 0, "steps": 60, "warmup": 3, "decay": {"detectors": 0.1},
    "units": {"sound": 2, "instrument": 1, "emotion": 1, "gender": 1},
    "lr": {"detectors": 3e-3, "audio_encoder\\.(conv|layers\\.0\\.)": 1e-3},
}  # fmt: skip


@pytest.fixture
def words(data, tmp_path):
    return Words.unsaid(kinds_of(World(SCENES, data, tmp_path), 2), torch.device("cpu"))


def test_crops_are_of_training_rows_of_one_length_and_say_where_it_sounds(data, tmp_path, words):
    crops = listen.Crops(RECIPE, data, tmp_path, 80, words)
    drawn = [clip for own in (*(pool.clips for pool in crops.pools), crops.speech) for clip in own]
    assert not any(is_dev(clip.store.rows[clip.row]) for clip in drawn)
    assert all(is_dev(clip.store.rows[clip.row]) for clip in crops.unheard) and crops.unheard
    batch = crops.next(np.random.default_rng(0))
    count, _, frames = batch.mels.shape
    assert frames in listen.LENGTHS and count == 1200 // frames and batch.labels.shape == (count, len(words.names))
    assert (batch.labels.max(1) == 1).all()
    assert batch.frames.min() >= 0 and batch.frames.max() <= 1.3 * 60 / listen.MELS_PER_FRAME  # of 60, stretched
    assert tuple(batch.speech.shape[::2]) in listen.SPEECH


def test_the_first_layers_learn_sounds_and_the_rest_stays(data, tmp_path, words):
    torch.manual_seed(0)
    model, state = AudioLM(tiny_config()), tmp_path / "listen.safetensors"
    model.audio_encoder.letter_head = model.audio_encoder.piece_head = None
    before = deepcopy(model.state_dict())
    listen.train(model, words, RECIPE | {"keep": [1.0] * (len(model.config.audio.taps) + 1)}, data, state, False)
    log = [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["dev_sound"].endswith(f"/{len(SOUNDS)}")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith(("audio_encoder.conv", "audio_encoder.layers.0.")) for name in changed)

    again = AudioLM(tiny_config())
    load_weights(state, again)
    assert all(torch.equal(again.state_dict()[name], model.state_dict()[name]) for name in changed)


def test_the_lower_part_is_the_encoder_up_to_its_first_tap():
    torch.manual_seed(0)
    encoder = AudioLM(tiny_config()).audio_encoder
    lower, mel = listen.lower_part(encoder), np.random.default_rng(0).normal(size=(80, 128))
    assert len(lower.layers) == encoder.config.taps[0] + 1 <= len(encoder.layers)
    now, before = heard(lower, [mel]), heard(encoder, [mel])
    torch.testing.assert_close(now.taps[0], before.taps[0])
    assert now.letter_logprobs is None and before.letter_logprobs is not None
    assert listen.distances(before, before).tolist() == [0.0] * (len(encoder.config.taps) + 1)


def test_a_clip_is_coloured_and_fitted():
    mel = torch.rand(80, 30)
    changed = colour(mel, np.random.default_rng(0)) - mel
    torch.testing.assert_close(changed, changed[:, :1].expand(-1, 30), atol=1e-6, rtol=0)
    assert fitted(mel, 20).equal(mel[:, :20]) and fitted(mel, 40)[:, 30:].unique().tolist() == [float(mel.min())]
