"""Decoding, its limits and its errors, and the log-mel front end. Every file is encoded here."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from moss_audio.audio import SAMPLE_RATE, Limits, audio_frames, load_audio, log_mel, mel_filters, mel_frames
from moss_audio.errors import AudioError, AudioLimitError, CorruptAudioError, UnsupportedAudioError


def tone(seconds: float, rate: int = SAMPLE_RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(
    container: str,
    codec: str,
    channels: np.ndarray,
    rate: int = SAMPLE_RATE,
    layout: str = "mono",
    video: bool = False,
    **options: str,
) -> bytes:
    """Encode float samples `[c, n]` (or `[n]`), with a small moving picture beside them if asked."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        picture: Any = output.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p") if video else None
        track: Any = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.atleast_2d(channels).astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        convert = av.AudioResampler(track.codec_context.format or "s16", layout, rate)
        if picture is not None:
            for index in range(25 * np.shape(channels)[-1] // rate):
                image = av.VideoFrame(32, 32, "yuv420p")
                image.pts, image.time_base = index, Fraction(1, 25)
                output.mux(picture.encode(image))
            output.mux(picture.encode(None))
        for piece in convert.resample(frame):
            output.mux(track.encode(piece))
        output.mux(track.encode(None))
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    return encode("wav", "pcm_s16le", samples, rate)


def with_data_size(recording: bytes, size: int) -> bytes:
    at = recording.index(b"data") + 4
    return recording[:at] + struct.pack("<I", size) + recording[at + 4 :]


def similarity(heard: np.ndarray, truth: np.ndarray) -> float:
    n = min(len(heard), len(truth))
    spectra = [np.abs(np.fft.rfft(x[:n])) for x in (heard, truth)]
    return float(spectra[0] @ spectra[1] / np.linalg.norm(spectra[0]) / np.linalg.norm(spectra[1]))


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 44_100),
        ("wav", "pcm_u8", 8_000),
        ("wav", "pcm_s24le", 48_000),
        ("wav", "pcm_f64le", 22_050),
        ("flac", "flac", 48_000),
        ("mp3", "mp3", 44_100),
        ("ogg", "libopus", 48_000),
        ("ipod", "aac", 44_100),
        ("adts", "aac", 32_000),
        ("mp4", "aac", 48_000),
        ("matroska", "aac", 48_000),
        ("webm", "libopus", 48_000),
        ("aiff", "pcm_s16be", 11_025),
    ],
)
def test_every_container_becomes_16_khz_mono(container: str, codec: str, rate: int) -> None:
    samples = load_audio(encode(container, codec, tone(2.0, rate), rate))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 2.0 <= len(samples) / SAMPLE_RATE < 2.1  # codecs may pad the end
    assert similarity(samples, tone(2.0)) > 0.95


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_the_audio_track_of_a_video(container: str) -> None:
    samples = load_audio(encode(container, "aac", tone(2.0, 48_000), 48_000, video=True))
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.1)
    assert similarity(samples, tone(2.0)) > 0.95


def test_16_khz_mono_passes_exactly_from_every_kind_of_source(tmp_path: Path) -> None:
    truth = (np.random.default_rng(0).integers(-32768, 32768, 5000) / 32768).astype(np.float32)
    recording = wav(truth)
    path = tmp_path / "http:clip,1.wav"
    path.write_bytes(recording)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with path.open("rb") as opened:
        opened.seek(7)
        for source in (path, str(path), recording, bytearray(recording), opened, Pipe(recording)):
            np.testing.assert_array_equal(load_audio(source), truth)  # type: ignore[arg-type]
        assert not opened.closed


def test_channels_are_averaged_without_a_downmix_matrix() -> None:
    left, right = tone(0.5), tone(0.5, hz=1000.0)
    stereo = load_audio(encode("wav", "pcm_f32le", np.stack([left, right]), layout="stereo"))
    np.testing.assert_array_equal(stereo, (left + right) / 2)
    surround = np.zeros((6, 8000), np.float32)
    surround[3] = left  # the low-frequency channel, which FFmpeg would drop
    np.testing.assert_allclose(load_audio(encode("wav", "pcm_f32le", surround, layout="5.1")), left / 6, atol=1e-7)


def test_channels_beyond_the_eighth_of_a_planar_stream() -> None:
    """Found by fuzzing: AAC that begins with 15 channels and goes on with one; reading its 31 "planes" crashed."""
    samples = load_audio(Path(__file__).parent / "data/fifteen_channels.aac")
    assert samples.shape == (5 * 1024,) and np.isfinite(samples).all()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_that_begins_after_the_picture_is_late(tmp_path, suffix) -> None:
    path = tmp_path / f"late.{suffix}"
    with av.open(path, "w") as out:
        picture = out.add_stream("libx264", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        for _ in range(40):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 32_000
        out.mux([*picture.encode(), *sound.encode(frame), *sound.encode()])
    samples = load_audio(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(3.0, abs=0.2)
    assert not samples[: int(1.8 * SAMPLE_RATE)].any() and np.abs(samples[int(2.2 * SAMPLE_RATE) :]).max() > 0.1
    with pytest.raises(AudioLimitError, match="after its picture"):
        load_audio(path, Limits(max_seconds=1.5))


def test_resampling_keeps_time_and_shape() -> None:
    samples = load_audio(encode("wav", "pcm_f32le", tone(1.0, 48_000), 48_000))
    assert len(samples) == SAMPLE_RATE
    np.testing.assert_allclose(samples[200:-200], tone(1.0)[200:-200], atol=1e-3)


def test_a_change_of_rate_in_the_stream() -> None:
    parts = [encode("adts", "aac", tone(1.0, rate), rate) for rate in (16_000, 48_000, 16_000)]
    samples = load_audio(b"".join(parts))
    assert len(samples) / SAMPLE_RATE == pytest.approx(3.0, abs=0.4)
    for start in (4000, 20_000, 38_000):
        spectrum = np.abs(np.fft.rfft(samples[start : start + 8000]))
        assert spectrum.argmax() * SAMPLE_RATE / 8000 == pytest.approx(440, abs=4)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (b"", CorruptAudioError, "empty"),
        (b"a shopping list\n" * 50, UnsupportedAudioError, "not audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), UnsupportedAudioError, "not audio"),
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.wav\n#EXT-X-ENDLIST\n",
            UnsupportedAudioError,
            "not audio",
        ),
        (b"ffconcat version 1.0\nfile clip.wav\n", UnsupportedAudioError, "not audio"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", CorruptAudioError, "damaged"),
        (b"RIFF\x24\x00\x00\x00WAVELIST\x1a\x00\x00TINFO", CorruptAudioError, "claims to have 1409286170 bytes"),
    ],
)
def test_what_is_no_recording(
    source: bytes, error: type[AudioError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.wav").write_bytes(wav(tone(1.0)))  # what a playlist must not reach
    (tmp_path / "source").write_bytes(source)
    monkeypatch.chdir(tmp_path)
    for given in (source, "source", tmp_path / "source"):
        with pytest.raises(error, match=says):
            load_audio(given)


def test_video_without_audio() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        picture: Any = output.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        output.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(picture.encode(None))
    with pytest.raises(UnsupportedAudioError, match="no audio track, only video"):
        load_audio(file.getvalue())


@pytest.mark.parametrize("path", ["missing.wav", "http://127.0.0.1:9/a.wav", "concat:a.wav|b.wav", "file:a.wav"])
def test_a_name_is_a_local_path_and_nothing_else(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(wav(tone(0.1)))
    with pytest.raises(FileNotFoundError, match=path.split("|")[0]):
        load_audio(path)


def test_folders_and_objects_that_are_no_source(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAudioError, match="folder"):
        load_audio(tmp_path)
    for wrong in (3, io.StringIO("text")):
        with pytest.raises(TypeError, match="binary file object"):
            load_audio(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("mp3", "mp3"),
        ("ipod", "aac"),
        ("webm", "libopus"),
        ("aiff", "pcm_s16be"),
    ],
)
def test_a_file_cut_in_the_middle(container: str, codec: str) -> None:
    recording = encode(container, codec, np.random.default_rng(0).normal(0, 0.1, 96_000), 48_000)
    assert len(load_audio(recording)) > 1.9 * SAMPLE_RATE
    with pytest.raises(CorruptAudioError, match="cut off"):
        load_audio(recording[: len(recording) // 2])


@pytest.mark.parametrize("container", ["adts", "ogg"])
def test_formats_that_declare_no_length_give_what_is_there(container: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 96_000)
    recording = encode(container, {"adts": "aac", "ogg": "libopus"}[container], noise, 48_000)
    assert 0.5 < len(load_audio(recording[: len(recording) * 3 // 4])) / SAMPLE_RATE < 2.0


def test_a_header_without_samples() -> None:
    recording = wav(tone(1.0))
    for bare in (recording[: recording.index(b"data") + 8], with_data_size(wav(tone(0.1)), 3_200_000)):
        with pytest.raises(CorruptAudioError):
            load_audio(bare)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_streamed_wav_does_not_know_its_length(size: int) -> None:
    np.testing.assert_allclose(load_audio(with_data_size(wav(tone(1.0)), size)), tone(1.0), atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_samples_that_are_no_sound(bad: float) -> None:
    samples = tone(1.0)
    samples[9000] = bad
    with pytest.raises(CorruptAudioError, match="NaN"):
        load_audio(encode("wav", "pcm_f32le", samples))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(max_seconds=1.0), "longer than 1 s"),
        (Limits(max_bytes=1000), "1000 bytes"),
        (Limits(max_sample_rate=8000), "16000 Hz"),
        (Limits(min_sample_rate=22_050), "16000 Hz"),
        (Limits(max_channels=1), "2 channels"),
    ],
)
def test_limits_name_what_they_met(limits: Limits, says: str) -> None:
    with pytest.raises(AudioLimitError, match=says):
        load_audio(encode("wav", "pcm_s16le", np.stack([tone(2.0)] * 2), layout="stereo"), limits)


def test_limits_stop_decoding_and_copying_early() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            block = super().read(size)
            self.taken += len(block)
            return block

    class Pipe(Counting):
        def seekable(self) -> bool:
            return False

    recording = with_data_size(wav(np.zeros(100 * SAMPLE_RATE)), 0)
    for kind, limits in ((Counting, Limits(max_seconds=1)), (Pipe, Limits(max_bytes=100_000))):
        source = kind(recording)
        with pytest.raises(AudioLimitError):
            load_audio(source, limits)
        assert source.taken < len(recording) / 2


def test_log_mel_is_the_reference_number_for_number(golden: Any) -> None:
    cases = [key for key in golden.files if ".samples" in key]
    assert len(cases) == 5
    for key in cases:
        expected = golden[key.replace("samples", "mel")]
        np.testing.assert_allclose(log_mel(golden[key], len(expected)), expected, atol=1e-5, rtol=0)


def test_log_mel_does_not_depend_on_its_blocks() -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, 12 * SAMPLE_RATE).astype(np.float32)
    padded = np.pad(samples.astype(np.float64), 200, mode="reflect")
    frames = np.stack([padded[160 * i : 160 * i + 400] for i in range(1200)]) * np.hanning(401)[:-1]
    plain = np.log10(np.maximum(mel_filters(80) @ (np.abs(np.fft.rfft(frames)) ** 2).T, 1e-10))
    np.testing.assert_allclose(log_mel(samples, 80), (np.maximum(plain, plain.max() - 8) + 4) / 4, atol=1e-5)


@pytest.mark.parametrize("n", [160, 200, 201, 319, 320])
def test_log_mel_of_very_short_clips(n: int) -> None:
    mel = log_mel(tone(1.0)[:n], 80)
    assert mel.shape == (80, n // 160) and np.isfinite(mel).all() and mel.max() > mel.min()


def test_log_mel_of_silence_is_flat_and_of_too_little_an_error() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32), 128), -1.5, atol=1e-6)
    with pytest.raises(CorruptAudioError, match="159 samples"):
        log_mel(np.zeros(159, np.float32), 128)
    with pytest.raises(AudioError, match="average"):
        log_mel(np.zeros((2, 1600), np.float32), 128)


def test_frame_arithmetic() -> None:
    assert [mel_frames(n) for n in (0, 159, 160, 64_000)] == [0, 0, 1, 400]
    assert [audio_frames(f) for f in (1, 8, 9, 400, 401)] == [1, 1, 2, 50, 51]


def test_a_compressed_quicktime_header_is_refused_before_it_is_inflated():
    """Two such megabytes took two gigabytes of memory and half a minute."""
    zeros = zlib.compress(bytes(4 << 20), 9)
    movie = b"zlib", struct.pack(">I", len(zeros) + 12) + b"cmvd" + struct.pack(">I", 4 << 20) + zeros
    header = b"cmov" + struct.pack(">I", 12) + b"dcom" + b"".join(movie)
    moov = b"moov" + struct.pack(">I", len(header) + 4) + header
    data = struct.pack(">I", 16) + b"ftypqt  \0\0\0\0" + struct.pack(">I", len(moov) + 4) + moov
    for place in (data, bytes(8) + data[8:], struct.pack(">I", 1 << 20) + b"wide" + bytes((1 << 20) - 30) + data):
        with pytest.raises(UnsupportedAudioError, match="compressed QuickTime header"):
            load_audio(place)
