"""What a transcript becomes: text on the screen, files beneath a folder, a copy of a video with subtitles."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moss_audio.cli.common import json_line
from moss_audio.transcript import SubtitleShape, shape, write

if TYPE_CHECKING:
    from moss_audio.cli.recordings import Named
    from moss_audio.inference.engine import Transcript
    from moss_audio.transcript import Segment

SUBTITLED = ".subtitled"
"""What the name of a video with its subtitles ends with, before the suffix."""

UNFINISHED = ".unfinished.json"
"""What the name of an interrupted transcript ends with, beside its results."""


@dataclass(frozen=True)
class Results:
    """The forms in which transcripts are wanted, and the folder they go to, or None for the screen."""

    folder: Path | None
    formats: Sequence[str]
    json_lines: bool = False
    rules: SubtitleShape | None = None
    word_cues: bool = False
    video: str | None = None
    """`burn` or `track`: how a copy of the video is given subtitles."""

    def unfinished(self, named: Named) -> Path | None:
        """Where an interrupted transcript is kept; nowhere for standard input, which cannot be read again."""
        return None if self.folder is None or named.name == "-" else self._beside(named, UNFINISHED)

    def are_done(self, named: Named) -> bool:
        """Whether every file of a recording is there and was not interrupted."""
        kept = self.unfinished(named)
        if self.folder is None or (kept is not None and kept.exists()):
            return False
        copy = self._beside(named, f"{SUBTITLED}.")
        if self.video and not any(path.name.startswith(copy.name) for path in copy.parent.glob("*")):
            return False
        return all(self._beside(named, f".{form}").exists() for form in self.formats)

    def hand_out(self, named: Named, transcript: Transcript) -> None:
        """Print a transcript or write its files."""
        if self.folder is None:
            text = _line(named.name, transcript) if self.json_lines else self._text(transcript, self.formats[0])
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        for form in self.formats:
            path = self._beside(named, f".{form}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._text(transcript, form), encoding="utf-8", newline="\n")
        if self.video:
            from moss_audio.video import add_track, burn

            copy = burn if self.video == "burn" else add_track
            made = copy(Path(named.name), self._cues(transcript), self._beside(named, SUBTITLED))
            print(f"wrote {made}", file=sys.stderr)

    def _beside(self, named: Named, ending: str) -> Path:
        place = (self.folder or Path()) / named.place
        return place.with_name(place.name + ending)

    def _cues(self, transcript: Transcript) -> tuple[Segment, ...]:
        return shape(transcript.segments, self.rules) if self.rules else transcript.segments

    def _text(self, transcript: Transcript, form: str) -> str:
        if form == "json":
            segments = [segment.to_dict() for segment in transcript.segments]
            return json.dumps(_document(transcript, segments), ensure_ascii=False, indent=2) + "\n"
        cues = self._cues(transcript) if form in ("srt", "vtt") else transcript.segments
        return write(cues, form, word_cues=self.word_cues)


def _line(name: str, transcript: Transcript) -> str:
    """A transcript as one line of JSON, its segments without their words."""
    known = [segment.to_dict() for segment in transcript.segments]
    segments = [{key: value for key, value in segment.items() if key != "words"} for segment in known]
    return json_line(file=name, **_document(transcript, segments))


def _document(transcript: Transcript, segments: list[dict[str, object]]) -> dict[str, object]:
    return {
        "text": transcript.text,
        "segments": segments,
        "duration": transcript.duration,
        "finish_reason": transcript.finish_reason,
        "notes": list(transcript.notes),
        "usage": asdict(transcript.usage),
    }
