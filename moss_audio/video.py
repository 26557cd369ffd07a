"""A copy of a video with its subtitles: drawn into the picture, or as a track that players switch on.

Drawing needs the program `ffmpeg` with libass; the FFmpeg inside PyAV has no filter that writes text. A track is only
copied, by PyAV, without encoding anything again. Neither ever opens anything but the one local file.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av

from moss_audio.audio import CONTAINERS
from moss_audio.errors import BackendError, UnsupportedAudioError
from moss_audio.transcript import Segment, write

_BURNT_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
"""Containers that take H.264 and any of the sound that they are likely to hold; others become Matroska."""

_DRAWN = "subtitles=subtitles.vtt,pad=ceil(iw/2)*2:ceil(ih/2)*2,format=yuv420p|yuv420p10le"
"""Players want H.264 whose colours have half the resolution, which an odd width or height does not allow."""


def find_ffmpeg() -> str:
    """The path of `ffmpeg`. Raises `BackendError` where there is none or it cannot draw text."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise BackendError("drawing subtitles needs the program ffmpeg on the PATH; install it, or add a track instead")
    filters = subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, check=False).stdout
    if " subtitles " not in filters:
        raise BackendError(f"{program} has no filter `subtitles`; install one with libass, or add a track instead")
    return program


def burn(video: Path, segments: Sequence[Segment], target: Path) -> Path:
    """Draw `segments` into the picture of `video` and copy its sound. Returns `target` with the suffix it was given.

    Raises `UnsupportedAudioError` with what ffmpeg said where it fails, and what `find_ffmpeg` raises.
    """
    program = find_ffmpeg()
    suffix = video.suffix.lower()
    target = target.with_name(target.name + (suffix if suffix in _BURNT_SUFFIXES else ".mkv")).absolute()
    with tempfile.TemporaryDirectory() as folder:
        # The filter has its own quoting of paths; a plain name in the working folder needs none. WebVTT, since `<i>`
        # and `{\an8}` are text there, as in any transcript, where SubRip would obey them.
        Path(folder, "subtitles.vtt").write_text(write(segments, "vtt"), encoding="utf-8")
        part = target.with_name(f".{target.name}.part{target.suffix}")
        command = [
            program, "-nostdin", "-hide_banner", "-loglevel", "error", "-y",
            "-protocol_whitelist", "file", "-format_whitelist", CONTAINERS, "-i", f"file:{video.absolute()}",
            "-map", "0:v:0", "-map", "0:a?", "-vf", _DRAWN, "-c:a", "copy", f"file:{part}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
                raise UnsupportedAudioError(f"ffmpeg cannot draw subtitles into {video}; it says {said!r}")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


def add_track(video: Path, segments: Sequence[Segment], target: Path) -> Path:
    """Copy `video` to a Matroska file with `segments` as its subtitle track; returns its path.

    Raises `UnsupportedAudioError` where there is no picture, or tracks that Matroska does not take.
    """
    target = target.with_name(f"{target.name}.mkv")
    part = target.with_name(f".{target.name}.part")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        with video.open("rb") as file, av.open(file, "r", container_options=options) as source:
            if not source.streams.video:
                raise UnsupportedAudioError(f"{video} has no picture; write subtitles to a file instead")
            _copy(source, write(segments, "srt"), part)
        os.replace(part, target)
    except av.error.FFmpegError as error:
        raise UnsupportedAudioError(f"{video} cannot be copied to Matroska: {error.strerror!r}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _copy(source: av.container.InputContainer, subtitles: str, part: Path) -> None:
    """The first picture and all sound of `source`, with `subtitles`, packet by packet."""
    with av.open(part, "w", format="matroska") as copy:
        wanted = [source.streams.video[0], *source.streams.audio]
        tracks = {stream.index: copy.add_stream_from_template(stream) for stream in wanted}
        if subtitles:
            with av.open(io.BytesIO(subtitles.encode()), "r", format="srt") as text:
                track = copy.add_stream_from_template(text.streams.subtitles[0])
                for packet in text.demux():
                    if packet.pts is not None:
                        packet.stream = track
                        copy.mux(packet)
        for packet in source.demux(wanted):
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                copy.mux(packet)
