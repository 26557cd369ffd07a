"""From any recording to samples, and from samples to the log-mel spectrogram the encoder reads.

Knows containers, codecs, limits and the frame arithmetic of the front end. Does not know the model, the prompt or the
network: nothing here ever opens a URL, a playlist or a second file.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer

from moss_audio.errors import AudioError, AudioLimitError, CorruptAudioError, UnsupportedAudioError

SAMPLE_RATE = 16_000
N_FFT = 400
HOP_LENGTH = 160

CONTAINERS = "wav,w64,flac,mp3,ogg,mov,matroska,aac,aiff,caf,au,amr"
"""FFmpeg demuxers that read one self-contained file; HLS, DASH, concat and image sequences open others and are out."""

_MAGIC = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"FORM", b"caff", b".snd", b"\xff\xfb")
"""First bytes of the containers above: what starts so and then fails is damaged, anything else is not audio."""

_MIN_DECODED = 0.9
"""Share of the declared duration that must decode; encoder padding and rounding stay far below the missing tenth."""

_PRIMING = 0.1
"""Seconds that sound may lag behind the picture because of its codec alone."""

_SAMPLES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}
"""FFmpeg's sample formats that are read."""

_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles in other encodings than UTF-8 are no error. PyAV 19 always takes them, and has no such argument any more."""

_MAX_AMPLITUDE = 1e6
"""Full scale is 1, and 32768 in float files written carelessly; squares of what is far beyond overflow the mel."""

_NEVER_QUICKTIME = (b"RIFF", b"fLaC", b"OggS", b"\x1aE\xdf\xa3")
"""Beginnings of files in which no compressed header needs to be looked for."""

_COMPRESSED_HEADER, _COMPRESSED_BYTES = re.compile(rb"cmov.{4}dcomzlib", re.DOTALL), 16


@dataclass(frozen=True)
class Limits:
    """What a recording may cost, checked while it is decoded. A whole decoded hour takes 230 MB of memory."""

    max_seconds: float = 4 * 3600.0
    """Decoded duration."""
    max_bytes: int = 2 << 30
    """Size of the file itself."""
    min_sample_rate: int = 4_000
    """Lowest rate in Hz; narrow-band telephony is 8000."""
    max_sample_rate: int = 384_000
    """Highest rate in Hz; studio converters end here."""
    max_channels: int = 32
    """Channels in a frame."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Recording:
    """An open recording. `seconds` is the duration that the file declares, or None where it declares none.

    `blocks` are its `samples [n]`, float32 mono at 16 kHz, decoded as they are asked for, once.
    """

    seconds: float | None
    blocks: Iterator[np.ndarray]


def load_audio(source: str | os.PathLike[str] | bytes | BinaryIO, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Decode a recording to `samples [n]`, float32 mono at 16 kHz: the blocks of `open_audio`, and its errors."""
    with open_audio(source, limits) as recording:
        return np.concatenate(list(recording.blocks))


@contextmanager
def open_audio(
    source: str | os.PathLike[str] | bytes | BinaryIO, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Recording]:
    """Decode a recording block by block, in memory that does not grow with its length.

    `source` is a local path (never a URL), the bytes of a file, or a binary file object, read from its beginning and
    left open. Reads WAV, FLAC, MP3, Ogg (Opus, Vorbis), M4A/AAC, WebM, and the best audio track of MP4 and MKV.
    Channels are averaged, other rates resampled with libswresample; 16 kHz mono passes exactly, int16 as x / 32768.

    Where the sound of a video begins after its picture, silence comes first, so that times are those of the video.
    Damaged packets are skipped. A file that decodes to less than 90 % of the duration it declares counts as cut off;
    Ogg, ADTS and streamed WAV declare none, so what is there is returned.

    Raises, some of it only when the last block is asked for, `UnsupportedAudioError` (not media, or no audio track),
    `CorruptAudioError` (empty, cut off, damaged, or with samples that are no numbers), `AudioLimitError`, and Python's
    own `OSError`s, such as `FileNotFoundError`, for a path that cannot be read.
    """
    with ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            file, name = cast(BinaryIO, io.BytesIO(source)), f"the {len(source)} bytes given"
        elif isinstance(source, str | os.PathLike):
            name = os.fspath(source)
            if os.path.isdir(source):
                raise UnsupportedAudioError(f"{name} is a folder; give a file in it")
            file = stack.enter_context(open(source, "rb"))
        elif not hasattr(source, "read") or isinstance(source, io.TextIOBase):
            raise TypeError(f"audio source is {type(source).__name__}; valid: a path, bytes, a binary file object")
        else:
            file, name = source, str(getattr(source, "name", "the audio stream"))
            if not source.seekable():
                file = cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20)))
                while block := source.read(1 << 20):
                    file.write(block)
                    _check_size(file.tell(), name, limits)
        yield stack.enter_context(_open(file, name, limits))


def log_mel(samples: np.ndarray, n_mels: int) -> np.ndarray:
    """The log-mel spectrogram `[n_mels, n // 160]` float32 of `samples [n]`, 100 frames a second, without padding.

    Whisper's front end (openai/whisper, whisper/audio.py): periodic Hann window of 400 samples every 160, centred by
    reflection, last frame dropped, Slaney mel filters, `log10(max(x, 1e-10))` floored at the clip's maximum - 8, then
    `(x + 4) / 4`. Clips under 201 samples are first filled up with zeros so that they can be reflected.
    Raises `CorruptAudioError` for clips of less than one frame (10 ms).
    """
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim != 1:
        raise AudioError(f"samples have shape {samples.shape}; one mono clip [n] is needed: average the channels")
    n_frames = mel_frames(len(samples))
    if n_frames == 0:
        raise CorruptAudioError(f"the clip has {len(samples)} samples; at least {HOP_LENGTH} (10 ms) are needed")
    half = N_FFT // 2
    padded = np.pad(np.pad(samples, (0, max(0, half + 1 - len(samples)))), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    window, filters = _hann(), mel_filters(n_mels)
    mel: np.ndarray = np.empty((n_mels, n_frames), dtype=np.float32)
    for start in range(0, n_frames, 500):  # blocks that stay in the cache
        block = slice(start, min(start + 500, n_frames))
        spectrum = np.fft.rfft(frames[block] * window)
        power = spectrum.real**2 + spectrum.imag**2
        mel[:, block] = filters @ power.T
    np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
    np.maximum(mel, mel.max() - 8.0, out=mel)
    mel += 4.0
    mel /= 4.0
    return mel


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> np.ndarray:
    """Slaney's triangular filters `[n_mels, 201]`, 0 to 8000 Hz, each of unit area (M. Slaney, Auditory Toolbox, 1998).

    The scale is linear below 1000 Hz, 200/3 Hz a mel, and logarithmic above, 27 mels for a factor of 6.4.
    """
    hz_per_mel, break_hz, step = 200 / 3, 1000.0, math.log(6.4) / 27
    break_mel = break_hz / hz_per_mel
    top = break_mel + math.log(SAMPLE_RATE / 2 / break_hz) / step
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mels < break_mel, mels * hz_per_mel, break_hz * np.exp(step * (mels - break_mel)))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    filters: np.ndarray = (triangles * 2.0 / (high - low)).astype(np.float32)
    return filters


@lru_cache(maxsize=1)
def _hann() -> np.ndarray:
    return np.hanning(N_FFT + 1)[:-1].astype(np.float32)


def mel_frames(n_samples: int) -> int:
    """Mel frames (10 ms) of a clip of `n_samples`."""
    return n_samples // HOP_LENGTH


def audio_frames(n_mel_frames: int) -> int:
    """Audio frames (80 ms), which is placeholders in the prompt, of a clip of `n_mel_frames`."""
    return -(-n_mel_frames // 8)


@contextmanager
def _open(file: BinaryIO, name: str, limits: Limits) -> Iterator[Recording]:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise CorruptAudioError(f"{name} is empty; give a recording")
    _check_size(size, name, limits)
    file.seek(0)
    head = file.read(12)
    _check_wav_length(file, head, size, name)
    _check_header_is_plain(file, head, name)
    file.seek(0)
    try:
        with av.open(
            file,
            "r",
            container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "none"},
            **_TOLERANT,
        ) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                kinds = ", ".join(sorted({other.type for other in container.streams}))
                raise UnsupportedAudioError(f"{name} has no audio track, only {kinds or 'a header'}")
            late = _late(container, stream)
            if late > limits.max_seconds:
                raise AudioLimitError(f"{name} has its sound {late:g} s after its picture; cut the recording")
            seconds = _declared_seconds(container, stream, size, late)
            blocks = chain(_silence(late), _resampled(_mono_blocks(container, stream, name, limits)))
            yield Recording(seconds, _complete(blocks, seconds, name))
    except av.error.FFmpegError as error:
        if head.startswith(_MAGIC) or head[4:8] == b"ftyp":
            raise CorruptAudioError(f"{name} is cut off or damaged: FFmpeg says {error.strerror!r}") from error
        raise UnsupportedAudioError(
            f"{name} is not audio or video that can be read here; convert it, for example ffmpeg -i IN OUT.wav"
        ) from error


def _check_size(size: int, name: str, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise AudioLimitError(f"{name} has over {limits.max_bytes} bytes; raise Limits.max_bytes or cut the recording")


def _check_wav_length(file: BinaryIO, head: bytes, size: int, name: str) -> None:
    """Compare a WAV header with the file: FFmpeg takes the shorter of the two without a word.

    Programs that stream write 0 or a number near 2 or 4 GiB, which promises nothing.
    """
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    for _ in range(1000):
        header = file.read(8)
        if len(header) < 8:
            return
        chunk, promised = struct.unpack("<4sI", header)
        if chunk == b"data":
            held = size - file.tell()
            if held < _MIN_DECODED * promised and promised < 0x7FFF0000:
                raise CorruptAudioError(f"{name} is cut off: {promised} bytes of samples are promised, {held} follow")
            return
        if promised > size - file.tell():  # FFmpeg would take that much memory before it finds out
            raise CorruptAudioError(f"{name} is damaged: its part {chunk!r} claims to have {promised} bytes")
        file.seek(promised + promised % 2, os.SEEK_CUR)


def _check_header_is_plain(file: BinaryIO, head: bytes, name: str) -> None:
    """Refuse QuickTime's compressed headers: FFmpeg inflates them whole, two megabytes to two gigabytes."""
    if head.startswith(_NEVER_QUICKTIME):
        return
    file.seek(0)
    last = b""
    while block := file.read(1 << 20):
        if _COMPRESSED_HEADER.search(last + block):
            raise UnsupportedAudioError(f"{name} has a compressed QuickTime header; convert it: ffmpeg -i IN OUT.wav")
        last = block[-_COMPRESSED_BYTES:]


def _complete(blocks: Iterator[np.ndarray], declared: float | None, name: str) -> Iterator[np.ndarray]:
    """Pass `blocks` on; at their end, raise `CorruptAudioError` where there were none or far too few."""
    n_samples = 0
    for block in blocks:
        n_samples += block.size
        yield block
    if n_samples == 0:
        raise CorruptAudioError(f"{name} has an audio track of which nothing can be decoded; is the file complete?")
    decoded = n_samples / SAMPLE_RATE
    if declared is not None and decoded < _MIN_DECODED * declared:
        raise CorruptAudioError(f"{name} is cut off or damaged: {decoded:.2f} s of its {declared:.2f} s can be decoded")


def _declared_seconds(container: InputContainer, stream: AudioStream, size: int, late: float) -> float | None:
    """When the audio track ends by what the file states, or None where FFmpeg only guesses it from the size.

    The track begins `late`; Matroska states its end, others how long it is.
    """
    if stream.duration is None or stream.time_base is None:
        tag = re.fullmatch(r"(\d\d):(\d\d):(\d\d\.\d{1,9})", stream.metadata.get("DURATION", ""))  # MKV and WebM
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else None
    declared = float(stream.duration * stream.time_base)
    if container.format.name in ("mp3", "aac") and stream.bit_rate:
        guess = 8 * size / stream.bit_rate
        return None if abs(declared - guess) <= 0.02 * guess else declared
    return declared + late


def _late(container: InputContainer, stream: AudioStream) -> float:
    """Seconds by which the sound of a video begins after the video, or 0 where that is a matter of its priming."""
    start, base, begin = stream.start_time, stream.time_base, container.start_time
    if not container.streams.video or start is None or base is None or begin is None:
        return 0.0
    late = float(start * base) - begin / av.time_base
    return late if late > _PRIMING else 0.0


def _silence(seconds: float) -> Iterator[np.ndarray]:
    """So many `seconds` of zeros, one at a time."""
    left = round(seconds * SAMPLE_RATE)
    while left > 0:
        yield np.zeros(min(left, SAMPLE_RATE), np.float32)
        left -= SAMPLE_RATE


def _mono_blocks(
    container: InputContainer, stream: AudioStream, name: str, limits: Limits
) -> Iterator[tuple[np.ndarray, int]]:
    """Decoded blocks `[n]` with their sample rate, each checked before the next is decoded."""
    seconds = 0.0
    for packet in _packets(container, stream):
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, ValueError):  # damaged; the length check at the end tells how much is missing
            continue
        for frame in frames:
            rate = frame.sample_rate
            if not limits.min_sample_rate <= rate <= limits.max_sample_rate:
                valid = f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz"
                raise AudioLimitError(f"{name} has a sample rate of {rate} Hz; valid: {valid}; resample it")
            channels = frame.layout.nb_channels
            if channels > limits.max_channels:
                raise AudioLimitError(f"{name} has {channels} channels, over {limits.max_channels}; mix it down")
            seconds += frame.samples / rate
            if seconds > limits.max_seconds:
                raise AudioLimitError(
                    f"{name} is longer than {limits.max_seconds:g} s; raise Limits.max_seconds or cut the recording"
                )
            mono = _mono(frame, channels)
            if not np.abs(mono).max(initial=0.0) <= _MAX_AMPLITUDE:
                raise CorruptAudioError(f"{name} has samples that are NaN, infinite or far beyond full scale")
            yield mono, rate


def _packets(container: InputContainer, stream: AudioStream) -> Iterator[Any]:
    """Packets of the stream up to the first that cannot be read."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def _mono(frame: av.AudioFrame, channels: int) -> np.ndarray:
    """The mean over the channels of a frame, float32 with full scale at 1."""
    kind = _SAMPLES.get(frame.format.name.removesuffix("p"))
    if kind is None:
        raise UnsupportedAudioError(f"samples of type {frame.format.name} cannot be read; convert to 16 bits")
    # Not `frame.planes`: beyond the eighth PyAV counts planes by what lies behind them.
    planar = frame.format.is_planar
    planes: list[Any] = [AudioPlane(frame, i) for i in range(channels if planar else 1)]
    if planar:
        samples = np.stack([np.frombuffer(plane, kind, frame.samples) for plane in planes])
    else:
        samples = np.frombuffer(planes[0], kind, frame.samples * channels).reshape(-1, channels).T
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
        scaled = samples.astype(np.float32)
    if samples.dtype == np.uint8:
        scaled = (scaled - 128.0) / 128.0
    elif samples.dtype.kind == "i":
        scaled /= 2.0 ** (8 * samples.dtype.itemsize - 1)
    return scaled[0] if channels == 1 else np.asarray(scaled.mean(axis=0))


def _resampled(blocks: Iterator[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    """The same audio at 16 kHz; a change of rate within the stream starts a new resampler."""
    resampler: av.AudioResampler | None = None
    current = SAMPLE_RATE
    for samples, rate in blocks:
        if rate != current:
            yield from _pull(resampler, None)
            resampler = None if rate == SAMPLE_RATE else av.AudioResampler("fltp", "mono", SAMPLE_RATE)
            current = rate
        if resampler is None:
            yield samples
        else:
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            yield from _pull(resampler, frame)
    yield from _pull(resampler, None)


def _pull(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    if resampler is not None:
        yield from (out.to_ndarray()[0] for out in resampler.resample(frame))
