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
from moss_audio.video import add_track, burn

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
    assert re.fullmatch(r"0:2\d of 1:10, 1 windows, 0:\d\d left", lines[1])
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


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Three seconds of grey with a voice."""
    path = tmp_path_factory.mktemp("video") / "talk.mp4"
    samples = load_audio(SPEECH)
    with av.open(path, "w") as out:
        picture = out.add_stream("libx264", rate=10)
        picture.width, picture.height, picture.pix_fmt = 320, 240, "yuv420p"
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        grey = np.full((240, 320, 3), 40, np.uint8)
        for _ in range(30):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(samples[None, :48_000], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux([*sound.encode(frame), *sound.encode()])
    return path


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
                       "shutil.copy('subtitles.srt', sys.argv[-1].removeprefix('file:') + '.srt')\n")  # fmt: skip
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
    assert f"-i file:{video}" in made.read_text() and "-vf subtitles=subtitles.srt" in made.read_text()


def test_burnt_subtitles_change_the_picture(video, tmp_path):
    try:
        made = burn(video, CUES, tmp_path / "talk")
    except BackendError as error:
        pytest.skip(str(error))
    with av.open(made) as copy:
        frames = [frame.to_ndarray(format="gray") for frame in copy.decode(video=0)]
    assert frames[10].max() > 150 and frames[1].max() < 100  # white text at 1 s, none at 0.1 s
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:600])
    with pytest.raises(UnsupportedAudioError, match="ffmpeg cannot draw subtitles"):
        burn(broken, CUES, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "talk.mp4"]


def test_a_playlist_is_never_followed(tmp_path):
    list_file = tmp_path / "list.mp4"
    list_file.write_text(f"#EXTM3U\n#EXTINF:1,\n{SPEECH}\n")
    with pytest.raises(UnsupportedAudioError):
        add_track(list_file, CUES, tmp_path / "out")
