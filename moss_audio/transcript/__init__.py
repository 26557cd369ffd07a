"""Time-stamped text: words and segments, the released model's bracket form, and files of seven formats.

Knows nothing of models; times are seconds from the start of the recording.
"""

from __future__ import annotations

from moss_audio.transcript.formats import WRITERS, write
from moss_audio.transcript.parse import parse_timestamped
from moss_audio.transcript.segments import SENTENCE_END, Segment, Word, group_words
from moss_audio.transcript.subtitles import SubtitleShape, shape

__all__ = [
    "SENTENCE_END", "WRITERS", "Segment", "SubtitleShape", "Word", "group_words", "parse_timestamped", "shape", "write",
]  # fmt: skip
