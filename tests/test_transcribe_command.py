"""`moss-audio transcribe` with files: many at once, interrupted and gone on with, videos with subtitles."""

from __future__ import annotations

import json
import re
import shlex
import stat
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import FakeBackend, FakeProcessor, scripted

import moss_audio
from moss_audio.audio import load_audio
from moss_audio.cli import build_parser, main
from moss_audio.errors import BackendError, UnsupportedAudioError
from moss_audio.inference.engine import MossAudio
from moss_audio.transcript import Segment
from moss_audio.video import add_track, burn, find_ffmpeg

SPEECH = Path(__file__).parent.parent / "examples" / "speech_woman.ogg"


def write_wav(path: Path, seconds: float, seed: int = 0) -> Path:
    samples = np.random.default_rng(seed).normal(0, 3000, int(16_000 * seconds)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format="wav") as out:
        track = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        out.mux([*track.encode(frame), *track.encode()])
    return path


@pytest.fixture
def says(monkeypatch):
    """Make the model say these answers, one a window; returns how many windows it has heard."""

    def say(*answers: str, interrupted_after: int | None = None):
        model = MossAudio(FakeBackend(scripted(*answers)), FakeProcessor())  # type: ignore[arg-type]
        encode = model.backend.encode_audio

        def encode_or_stop(mels):
            if model.backend.encoded == interrupted_after:
                raise KeyboardInterrupt
            return encode(mels)

        model.backend.encode_audio = encode_or_stop  # type: ignore[method-assign]
        monkeypatch.setattr(moss_audio, "load", lambda *_, **__: model, raising=False)
        return lambda: model.backend.encoded

    return say


def test_folders_and_patterns_give_a_file_each(says, tmp_path, capsys):
    write_wav(tmp_path / "in" / "a.wav", 1)
    write_wav(tmp_path / "in" / "deep" / "b.wav", 1)
    (tmp_path / "in" / "notes.txt").write_text("no recording")
    (tmp_path / "in" / "deep" / "c.mp3").write_bytes(b"ID3 and then nothing")
    write_wav(tmp_path / "x1.wav", 1)
    out = tmp_path / "out"
    argv = ["transcribe", str(tmp_path / "in"), str(tmp_path / "x?.wav"), str(tmp_path / "y*"), "--output", str(out)]
    says("[0.1]A.[0.5]", "[0.1]B.[0.5]", "[0.1]X.[0.5]")
    assert main([*argv, "--format", "txt,srt"]) == 1
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert made == ["a.srt", "a.txt", "deep/b.srt", "deep/b.txt", "x1.srt", "x1.txt"]
    assert (out / "deep" / "b.txt").read_text() == "B.\n"
    assert (out / "x1.srt").read_text() == "1\n00:00:00,100 --> 00:00:00,500\nX.\n"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "moss-audio: 2 failed:\n" in captured.err
    assert f"moss-audio: {tmp_path / 'y*'}: matches no file" in captured.err.split("2 failed:")[1]
    assert "c.mp3 is cut off or damaged" in captured.err.split("2 failed:")[1]


def test_what_is_done_is_skipped(says, tmp_path, capsys):
    recording, out = write_wav(tmp_path / "a.wav", 1), tmp_path / "out"
    argv = ["transcribe", str(recording), "--output", str(out)]
    says("One.")
    assert main(argv) == 0
    heard = says("Two.")
    assert main(argv) == 0 and heard() == 0
    assert "1 of 1 recordings are done; --overwrite writes them again" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0 and heard() == 1
    assert (out / "a.txt").read_text() == "Two.\n"
    says("Three.")
    assert main([*argv, "--format", "txt,json"]) == 0
    document = json.loads((out / "a.json").read_text())
    assert (document["text"], document["finish_reason"], document["duration"]) == ("Three.", "stop", 1.0)


def test_many_are_what_they_are_alone(says, tmp_path):
    names = [str(write_wav(tmp_path / f"{i}.wav", 1 + i, seed=i)) for i in range(3)]
    answers = [f"[0.1]Number {i}.[0.9]" for i in range(3)]
    says(*answers)
    assert main(["transcribe", *names, "--output", str(tmp_path / "many"), "--format", "json"]) == 0
    for name, answer in zip(names, answers, strict=True):
        says(answer)
        assert main(["transcribe", name, "--output", str(tmp_path / "one"), "--format", "json"]) == 0
    for path in (tmp_path / "many").iterdir():
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()


def test_two_of_one_name_keep_their_suffixes(says, tmp_path):
    write_wav(tmp_path / "in" / "a.wav", 1)
    (tmp_path / "in" / "a.ogg").write_bytes(SPEECH.read_bytes())
    says("One.", "Two.")
    assert main(["transcribe", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.ogg.txt", "a.wav.txt"]


def test_interrupted_and_gone_on_with(says, tmp_path, capsys):
    recording, out = write_wav(tmp_path / "long.wav", 70), tmp_path / "out"
    argv = ["transcribe", str(recording), "--output", str(out), "--format", "json"]
    answers = ["[0.5]One.[1.0]", "[0.5]Two.[1.0]", "[0.5]Three.[1.0]"]
    says(*answers)
    assert main([*argv[:-3], str(tmp_path / "whole"), "--format", "json"]) == 0
    whole = (tmp_path / "whole" / "long.json").read_text()

    says(*answers, interrupted_after=2)
    assert main(argv) == 130
    partial = json.loads((out / "long.json").read_text())
    assert (partial["text"], partial["finish_reason"]) == ("One. Two.", "cancelled")
    assert "; --resume goes on" in capsys.readouterr().err
    assert (out / "long.unfinished.json").exists()

    heard = says(answers[2])
    assert main([*argv, "--resume"]) == 0 and heard() == 1
    assert (out / "long.json").read_text() == whole
    assert not (out / "long.unfinished.json").exists()


@pytest.mark.parametrize("change", ["settings", "damaged"])
def test_what_was_interrupted_otherwise_begins_anew(says, tmp_path, change):
    recording, out = write_wav(tmp_path / "long.wav", 40), tmp_path / "out"
    argv = ["transcribe", str(recording), "--output", str(out), "--resume"]
    says("One.", interrupted_after=1)
    assert main(argv) == 130
    if change == "damaged":
        (out / "long.unfinished.json").write_text('{"of": ')
    heard = says("One.", "Two.")
    assert main([*argv, *(["--max-new-tokens", "99"] if change == "settings" else [])]) == 0
    assert heard() == 2 and (out / "long.txt").read_text() == "One.\nTwo.\n"


def test_ctrl_c_prints_what_there_is(says, tmp_path, capsys):
    says("One.", interrupted_after=1)
    assert main(["transcribe", str(write_wav(tmp_path / "long.wav", 40))]) == 130
    out, err = capsys.readouterr()
    assert out == "One.\n" and "stopped at" in err


def test_who_watches_sees_how_long_it_takes(says, tmp_path, capsys, monkeypatch):
    says("One.", "Two.", "Three.")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["transcribe", str(write_wav(tmp_path / "long.wav", 70))]) == 0
    lines = capsys.readouterr().err.replace("\033[K", "").split("\r")
    assert re.fullmatch(r"\[#{7,10} {14,17}\] 0:2\d of 1:10, 0:\d\d left", lines[1])
    assert len(lines) == 4 and lines[-1] == ""


def test_subtitles_can_be_made_readable(says, tmp_path, capsys):
    says("[0.0]One two three four five six seven.[0.9]")
    name = str(write_wav(tmp_path / "a.wav", 1))
    assert main(["transcribe", name, "--format", "srt", "--line-length", "20"]) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == ["One two three four", "five six seven."]


def test_commands_of_the_page_parse():
    page = (SPEECH.parent.parent / "docs" / "transcripts.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("moss-audio ")]
    assert len(lines) == 4
    for line in lines:
        build_parser().parse_args(shlex.split(line.split(">")[0])[1:])


def grey_video(path: Path, codec: str, size: tuple[int, int], pixels: str) -> Path:
    """Three seconds of grey with a voice, ten frames a second."""
    samples = load_audio(SPEECH)
    with av.open(path, "w") as out:
        picture = out.add_stream(codec, rate=10)
        (picture.width, picture.height), picture.pix_fmt = size, pixels
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        grey = np.full((*size[::-1], 3), 40, np.uint8)
        for _ in range(30):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(samples[None, :48_000], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux([*sound.encode(frame), *sound.encode()])
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return grey_video(tmp_path_factory.mktemp("video") / "talk.mp4", "libx264", (320, 240), "yuv420p")


CUES = (Segment(0.5, 1.5, "Hello there"), Segment(2.0, 2.8, "How are you?"))


def test_a_video_is_given_a_track(video, tmp_path):
    made = add_track(video, CUES, tmp_path / "talk.subtitled")
    assert made.name == "talk.subtitled.mkv" and [path.name for path in tmp_path.iterdir()] == [made.name]
    with av.open(made) as copy:
        assert [stream.type for stream in copy.streams] == ["video", "audio", "subtitle"]
        cues = [packet for packet in copy.demux(copy.streams.subtitles[0]) if packet.pts is not None]
        assert [bytes(packet).decode() for packet in cues] == ["Hello there", "How are you?"]
        first = float(cues[0].pts * cues[0].time_base)
        assert first == pytest.approx(0.5, abs=0.1)  # the sound's priming may shift the whole copy
    assert len(load_audio(made)) == pytest.approx(len(load_audio(video)), abs=1600)
    with pytest.raises(UnsupportedAudioError, match="has no picture"):
        add_track(SPEECH, CUES, tmp_path / "none")


def test_the_command_makes_the_copy(says, video, tmp_path, capsys):
    says("[0.5]Hello there.[1.5]")
    assert main(["transcribe", str(video), "--output", str(tmp_path), "--format", "srt", "--track"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.srt", "talk.subtitled.mkv"]
    assert "talk.subtitled.mkv" in capsys.readouterr().err
    (tmp_path / "talk.subtitled.mkv").unlink()
    says("[0.5]Hello again.[1.5]")
    assert main(["transcribe", str(video), "--output", str(tmp_path), "--format", "srt", "--track"]) == 0
    assert (tmp_path / "talk.subtitled.mkv").exists() and "Hello again" in (tmp_path / "talk.srt").read_text()
    assert main(["transcribe", str(video), "--output", str(tmp_path), "--format", "srt", "--track"]) == 0
    assert "1 of 1 recordings are done" in capsys.readouterr().err


def fake_ffmpeg(folder: Path, body: str) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport shutil, sys\nif '-filters' in sys.argv:\n    sys.exit({body})\n"
                       "open(sys.argv[-1].removeprefix('file:'), 'w').write(' '.join(sys.argv[1:]))\n"
                       "shutil.copy('subtitles.vtt', sys.argv[-1].removeprefix('file:') + '.vtt')\n")  # fmt: skip
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_burning_runs_ffmpeg_on_the_one_file(video, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="needs the program ffmpeg on the PATH; install it, or add a track"):
        burn(video, CUES, tmp_path / "out")
    fake_ffmpeg(tmp_path, "print('no text filters')")
    with pytest.raises(BackendError, match="no filter `subtitles`"):
        burn(video, CUES, tmp_path / "out")
    fake_ffmpeg(tmp_path, "print(' ... subtitles  V->V')")
    made = burn(video, CUES, tmp_path / "out")
    assert made == tmp_path / "out.mp4"
    assert "-protocol_whitelist file -format_whitelist wav" in made.read_text()
    assert f"-i file:{video}" in made.read_text() and "-vf subtitles=subtitles.vtt," in made.read_text()


@pytest.fixture
def drawing():
    """Skips a test where there is no `ffmpeg` that draws."""
    try:
        find_ffmpeg()
    except BackendError as error:
        pytest.skip(str(error))


def drawn(path: Path) -> np.ndarray:
    """Whether anything is drawn `[frame, row]` into the grey of `grey_video`; text is white."""
    with av.open(path) as copy:
        return np.stack([frame.to_ndarray(format="gray") for frame in copy.decode(video=0)]).max(axis=2) > 150


def test_burnt_subtitles_are_in_the_picture_while_they_are_said(drawing, video, tmp_path):
    made = burn(video, CUES, tmp_path / "talk")
    seen = drawn(made).any(axis=1)
    assert [i / 10 for i in np.flatnonzero(np.diff(seen)) + 1] == [0.5, 1.5, 2.0, 2.8]
    assert len(load_audio(made)) == pytest.approx(len(load_audio(video)), abs=1600)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:600])
    with pytest.raises(UnsupportedAudioError, match="ffmpeg cannot draw subtitles"):
        burn(broken, CUES, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "talk.mp4"]


@pytest.mark.parametrize("text", ["{\\an8}Hello", "<b>{\\fs1}</b>", "It's [x], 50%: \\N {y}"])
def test_nothing_in_a_text_commands_the_drawing(drawing, video, tmp_path, text):
    """SubRip's readers would move the first to the top and draw nothing of the second."""
    rows = drawn(burn(video, [Segment(0.5, 1.5, text)], tmp_path / "talk"))[10]
    assert rows[120:].any() and not rows[:120].any()


@pytest.mark.parametrize(
    "name",
    ["it's.mp4", "a:b,c;d=e.mp4", "[x]{y}.mp4", "back\\slash.mp4", 'žluť "日本".mp4', "-i.mp4", "%d.mp4", "a\nb.mp4"],
)
def test_burning_minds_no_name(drawing, video, tmp_path, name):
    odd = tmp_path / name
    odd.write_bytes(video.read_bytes())
    assert drawn(burn(odd, CUES, tmp_path / f"{odd.stem}.subtitled")).any()


@pytest.mark.parametrize(("size", "pixels"), [((321, 241), "bgr0"), ((320, 240), "yuv444p10le")])
def test_a_burnt_copy_plays_where_h264_does(drawing, tmp_path, size, pixels):
    """Half the resolution of colours needs an even picture, and is all that most players know."""
    path = grey_video(tmp_path / "screen.mkv", "ffv1", size, pixels)
    with av.open(burn(path, CUES, tmp_path / "copy")) as copy:
        track = copy.streams.video[0]
        assert (track.codec_context.name, track.pix_fmt[:7]) == ("h264", "yuv420p")
        assert (track.width, track.height) == tuple(n + n % 2 for n in size)


def test_a_playlist_is_never_followed(tmp_path):
    list_file = tmp_path / "list.mp4"
    list_file.write_text(f"#EXTM3U\n#EXTINF:1,\n{SPEECH}\n")
    with pytest.raises(UnsupportedAudioError):
        add_track(list_file, CUES, tmp_path / "out")
