"""config.json is read strictly."""

import json

import pytest

from moss_audio.config import ModelConfig
from moss_audio.errors import ConfigError


@pytest.fixture
def raw(moss_tiny):
    return json.loads((moss_tiny / "config.json").read_text())


def test_both_spellings_of_rope_and_a_missing_window(raw):
    expected = ModelConfig.parse(json.loads(json.dumps(raw)))
    del raw["audio_config"]["n_window"], raw["language_config"]["rope_theta"]
    raw["language_config"]["rope_parameters"] = {"rope_theta": 1000000, "rope_type": "default"}
    assert ModelConfig.parse(raw) == expected
    assert expected.audio.chunk_mel_frames == 400


@pytest.mark.parametrize(
    "section, key, value",
    [
        (None, "surprise", 1),
        ("audio_config", "surprise", 1),
        ("language_config", "surprise", 1),
        ("language_config", "rope_scaling", {"rope_type": "yarn"}),
        ("language_config", "use_sliding_window", True),
        ("language_config", "attention_bias", True),
        ("language_config", "hidden_act", "gelu"),
        ("language_config", "model_type", "mamba"),
        ("audio_config", "stem", "conv3d"),
        ("audio_config", "n_window", 0),
        ("audio_config", "deepstack_encoder_layer_indexes", [1, 2, 99]),
        (None, "deepstack_num_inject_layers", 7),
        (None, "model_type", "whisper"),
    ],
)
def test_what_is_not_implemented_is_named(raw, section, key, value):
    (raw if section is None else raw[section])[key] = value
    with pytest.raises(ConfigError, match=r"surprise|" + key.split("_")[-1] + r"|taps|window"):
        ModelConfig.parse(raw)


def test_a_missing_key_is_named(raw):
    del raw["audio_config"]["d_model"]
    with pytest.raises(ConfigError, match="d_model"):
        ModelConfig.parse(raw)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_broken_file_is_a_config_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        ModelConfig.load(tmp_path)
