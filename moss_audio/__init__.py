"""MOSS-Audio: hears speech, music and sounds, and answers in text.

    import moss_audio

    model = moss_audio.load("mini")
    print(model.transcribe("speech.wav").text)

Names are imported when first used, so that `import moss_audio` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moss_audio.audio import load_audio
    from moss_audio.errors import MossAudioError
    from moss_audio.inference.engine import Answer, MossAudio, Transcript, load
    from moss_audio.inference.sampling import SamplingParams
    from moss_audio.messages import AudioPart, Message, TextPart
    from moss_audio.transcript import Segment, Word

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AudioPart",
    "Message",
    "MossAudio",
    "MossAudioError",
    "SamplingParams",
    "Segment",
    "TextPart",
    "Transcript",
    "Word",
    "load",
    "load_audio",
]

_MODULES = {
    "errors": ("MossAudioError",),
    "messages": ("AudioPart", "Message", "TextPart"),
    "audio": ("load_audio",),
    "transcript": ("Segment", "Word"),
    "inference.sampling": ("SamplingParams",),
    "inference.engine": ("Answer", "MossAudio", "Transcript", "load"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
