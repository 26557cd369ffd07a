"""Live sessions: utterances found, captions and narration sent, nonsense survived."""

from __future__ import annotations

import base64
import os
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
from servers import KEY, KEYS, client, until
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.errors import PromptError
from moss_audio.inference.voice import CHUNK
from moss_audio.server.listening import LONGEST_SECONDS, Listener, Pcm
from moss_audio.server.realtime import MAX_ERRORS

URL = "ws://localhost/v1/realtime"


def loud(chunk: np.ndarray) -> float:
    """A detector for which noise is speech."""
    return float(np.abs(chunk).max() > 0.1)


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * SAMPLE_RATE)).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def heard(samples: np.ndarray, step: int) -> list[tuple[float, float, bool]]:
    listener = Listener(loud)
    found = [u for at in range(0, len(samples), step) for u in listener.push(samples[at : at + step])]
    return [(round(u.start, 1), round(u.end, 1), u.ended) for u in found]


@pytest.mark.parametrize("step", [160, 1000, 100_000])
def test_utterances_are_the_same_in_any_pieces(step):
    samples = np.concatenate([quiet(2), noise(1), quiet(0.4), noise(1), quiet(2), noise(0.05), quiet(1)])
    found = heard(samples, step)
    assert [ended for *_, ended in found] == [False, True]
    start, end, _ = found[-1]
    assert start == pytest.approx(1.7, abs=0.11) and end == pytest.approx(5.1, abs=0.11)


def test_long_speech_is_cut_and_a_commit_ends_it():
    found = heard(noise(2 * LONGEST_SECONDS + 4), 16_000)
    assert [ended for *_, ended in found] == [False, True, False, True, False]
    listener = Listener(loud)
    listener.push(noise(1))
    assert listener.current is not None
    ended = listener.finish()
    assert ended is not None and ended.ended and ended.end == pytest.approx(1, abs=CHUNK / SAMPLE_RATE)
    assert listener.finish() is None


def test_pcm_of_any_rate_in_any_pieces():
    tone = (8000 * np.sin(np.arange(48_000) * 2 * np.pi * 440 / 24_000)).astype("<i2").tobytes()
    pcm = Pcm(24_000)
    samples = np.concatenate([pcm.push(tone[at : at + 777]) for at in range(0, len(tone), 777)])
    assert len(samples) == pytest.approx(32_000, abs=100)
    assert np.abs(np.fft.rfft(samples[:16_000])).argmax() == 440
    np.testing.assert_array_equal(Pcm(16_000).push(b"\x00\x40"), np.array([0.5], np.float32))
    with pytest.raises(PromptError, match="valid: 16000"):
        Pcm(8000)


def until_type(socket, kind: str, skipped: list | None = None) -> dict:
    while (event := socket.receive_json())["type"] != kind:
        assert event["type"] != "error", event
        if skipped is not None:
            skipped.append(event["type"])
    return event


def speech(examples) -> bytes:
    samples = np.concatenate([load_audio(examples), quiet(1.5)])
    return (samples * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def said() -> bytes:
    from conftest import ROOT

    return speech(ROOT / "examples" / "speech_woman.ogg")


def test_captions_come_while_somebody_speaks(said):
    with client("Hello there.") as http, http.websocket_connect(URL, ["realtime"]) as socket:
        assert socket.accepted_subprotocol == "realtime"
        session = until_type(socket, "session.created")["session"]
        assert session["audio"]["input"]["format"]["rate"] == 24_000
        socket.send_json({"type": "session.update", "session": {"sample_rate": 16_000}})
        assert until_type(socket, "session.updated")["session"]["audio"]["input"]["format"]["rate"] == 16_000
        for at in range(0, len(said), 16_000):
            audio = base64.b64encode(said[at : at + 16_000]).decode()
            socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
        skipped: list[str] = []
        done = until_type(socket, "conversation.item.input_audio_transcription.completed", skipped)
        assert done["transcript"] == "Hello there." and 0 <= done["start"] < 0.5 < 2.5 < done["end"] < 4.5
        assert skipped[0] == "input_audio_buffer.speech_started" and "input_audio_buffer.committed" in skipped


def test_binary_frames_commit_and_clear(said):
    with client("Hello there.") as http, http.websocket_connect(URL) as socket:
        until_type(socket, "session.created")
        nested = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}, "partials": False}
        socket.send_json({"type": "session.update", "session": nested})
        socket.send_bytes(said[:40_001])
        started = until_type(socket, "input_audio_buffer.speech_started")
        socket.send_json({"type": "input_audio_buffer.commit"})
        done = until_type(socket, "conversation.item.input_audio_transcription.completed")
        assert done["item_id"] == started["item_id"]
        socket.send_json({"type": "input_audio_buffer.clear"})
        until_type(socket, "input_audio_buffer.cleared")


def opus(pcm: bytes) -> list[bytes]:
    """16 kHz PCM as stereo Opus packets."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "stereo", "s16"
    encoder.time_base = Fraction(1, 48_000)
    samples = np.frombuffer(pcm, "<i2").repeat(6)  # twice for the channels, three times for the rate
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="stereo")
    frame.sample_rate, frame.pts = 48_000, 0
    return [bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None))]


def test_opus_packets_are_heard(said):
    with client("Hello there.") as http, http.websocket_connect(URL) as socket:
        options = {"audio": {"input": {"format": {"type": "audio/opus"}}}}
        socket.send_json({"type": "session.update", "session": options})
        assert until_type(socket, "session.updated")["session"]["audio"]["input"]["format"] == {"type": "audio/opus"}
        packets = opus(said)
        assert max(map(len, packets)) < 1500
        for packet in packets:
            socket.send_bytes(packet)
        done = until_type(socket, "conversation.item.input_audio_transcription.completed")
        assert done["transcript"] == "Hello there." and 0 <= done["start"] < 0.5 < 2.5 < done["end"] < 4.5


def test_opus_that_is_none_is_an_error_and_a_dead_decoder_is_replaced(said):
    with client("Hello there.") as http, http.websocket_connect(URL) as socket:
        decoders = http.app.state.service.decoders
        options = {"audio": {"input": {"format": {"type": "audio/opus"}}}, "partials": False}
        socket.send_json({"type": "session.update", "session": options})
        until_type(socket, "session.updated")
        idle = set(decoders.pids)
        for bad in (b"", b"OggS" + bytes(50), bytes(9000)):
            socket.send_bytes(bad)
            assert "packet" in socket.receive_json()["error"]["message"]
        (worker,) = set(decoders.pids) - idle
        os.kill(worker, signal.SIGKILL)
        until(lambda: worker not in decoders.pids)
        for packet in opus(said):
            socket.send_bytes(packet)
        until_type(socket, "conversation.item.input_audio_transcription.completed")
    until(lambda: not decoders.pids)


def test_events_have_times_in_the_session():
    with client("[0.5]dog barking[1.5]") as http, http.websocket_connect(URL) as socket:
        options = {"sample_rate": 16_000, "events": True, "transcription": False}
        socket.send_json({"type": "session.update", "session": options})
        assert until_type(socket, "session.updated")["session"]["events"] is True
        frames = (noise(7) * 32767).astype("<i2").tobytes()
        for begin in (0, 7):
            socket.send_bytes(frames)
            found = until_type(socket, "events")
            assert (found["start"], found["end"]) == (pytest.approx(begin, abs=0.1), pytest.approx(begin + 7, abs=0.1))
            (event,) = found["events"]
            assert event["label"] == "dog barking"
            assert event["start"] == pytest.approx(begin + 0.5, abs=0.1)
            assert event["end"] == pytest.approx(begin + 1.5, abs=0.1)


def test_sounds_are_narrated_once():
    with client("A dog barking.") as http, http.websocket_connect(URL) as socket:
        options = {"sample_rate": 16_000, "narration": True, "transcription": False}
        socket.send_json({"type": "session.update", "session": options})
        until_type(socket, "session.updated")
        frames = (noise(7) * 32767).astype("<i2").tobytes()
        socket.send_bytes(frames)
        note = until_type(socket, "narration")
        assert note["text"] == "dog barking" and note["urgency"]
        assert note["end"] - note["start"] == pytest.approx(7, abs=0.1)
        socket.send_bytes(frames)
        socket.send_json({"type": "input_audio_buffer.clear"})
        until_type(socket, "input_audio_buffer.cleared")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"type": "nonsense"}', '{"type": "input_audio_buffer.append", "audio": "*"}', "[" * 100_000,
     '{"type": "session.update", "session": {"sample_rate": 3}}', '{"type": "session.update", "session": 9}', "\ud83d",
     '{"type": "session.update", "session": {"sample_rate": 1e400}}'],
    ids=range(10),
)  # fmt: skip
def test_nonsense_is_answered_with_an_error(text):
    with client() as http, http.websocket_connect(URL) as socket:
        until_type(socket, "session.created")
        try:
            socket.send_text(text)
        except UnicodeEncodeError:
            return
        error = socket.receive_json()
        assert error["type"] == "error" and error["error"]["message"]
        socket.send_json({"type": "input_audio_buffer.clear"})
        until_type(socket, "input_audio_buffer.cleared")


def test_a_session_of_nothing_but_nonsense_ends():
    with client() as http, http.websocket_connect(URL) as socket:
        for _ in range(MAX_ERRORS):
            socket.send_text("x")
        with pytest.raises(WebSocketDisconnect):
            while True:
                socket.receive_json()


def test_sessions_are_limited_in_number_and_time():
    with client(live_sessions_per_key=1) as http:
        live = http.app.state.service.metrics.live
        with http.websocket_connect(URL) as socket:
            until_type(socket, "session.created")
            with pytest.raises(WebSocketDenialResponse) as refused, http.websocket_connect(URL):
                pass
            assert refused.value.status_code == 429 and refused.value.json()["error"]["code"] == "too_many_live"
        until(lambda: live._value.get() == 0)
    for limit, code in (("live_idle_seconds", "session_idle"), ("live_seconds", "session_expired")):
        with client(**{limit: 1.0}) as http, http.websocket_connect(URL) as socket:
            until_type(socket, "session.created")
            assert socket.receive_json()["error"]["code"] == code


def test_a_browser_sends_its_key_as_a_subprotocol():
    with client(keys=KEYS) as http:
        with http.websocket_connect(URL, ["realtime", f"openai-insecure-api-key.{KEY}"]) as socket:
            assert socket.accepted_subprotocol == "realtime"
        for protocols in (["realtime"], ["openai-insecure-api-key.wrong"]):
            with pytest.raises(WebSocketDenialResponse) as refused, http.websocket_connect(URL, protocols):
                pass
            assert refused.value.status_code == 401
    elsewhere = {"Origin": "https://evil.example"}
    with (
        client() as http,
        pytest.raises(WebSocketDenialResponse) as refused,
        http.websocket_connect(URL, headers=elsewhere),
    ):
        pass
    assert refused.value.status_code == 403
