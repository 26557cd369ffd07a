"""Every error a caller can get, each with the bad value, the valid ones and the fix in its message.

    MossAudioError
    ├── AudioError            the recording
    │   ├── UnsupportedAudioError   no decoder, no audio track, or not media at all
    │   ├── CorruptAudioError       recognised, and then broken, truncated or empty
    │   └── AudioLimitError         longer, denser or wider than the limits allow
    ├── PromptError           what was asked: roles, order, a context that does not fit, a bad parameter
    ├── CheckpointError       a folder that is not a model: files, tensors, configuration
    │   └── ConfigError             config.json has an unknown key or a value that is not implemented
    └── BackendError          the runtime: a missing extra, a device that is not there
"""

from __future__ import annotations


class MossAudioError(Exception):
    """Base of everything this package raises on purpose."""


class AudioError(MossAudioError):
    """The recording cannot be used. Give another file or convert this one, for example `ffmpeg -i IN OUT.wav`."""


class UnsupportedAudioError(AudioError):
    """The bytes are not audio or video that FFmpeg knows, or hold no audio track."""


class CorruptAudioError(AudioError):
    """The container was recognised, but its audio is empty, cut off or damaged."""


class AudioLimitError(AudioError):
    """The recording exceeds a limit of `audio.Limits`. Raise the limit or cut the recording."""


class PromptError(MossAudioError):
    """The conversation or a sampling parameter is not one that the model can answer."""


class CheckpointError(MossAudioError):
    """The model folder is incomplete or does not agree with its configuration."""


class ConfigError(CheckpointError):
    """`config.json` has a key that nobody reads or a value that is not implemented."""


class BackendError(MossAudioError):
    """The runtime asked for cannot run here: install the extra it names or choose another."""
