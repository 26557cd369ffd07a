"""A real browser on the real server with a scripted model. Skips where Chromium or Playwright is missing."""

from __future__ import annotations

import os
import shutil
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackend, FakeProcessor, letter_head, scripted

from moss_audio.audio import load_audio

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

SAID = "We walked along the river. The boats came home."
ANSWER = "A woman tells of a walk along a river.\n\nShe sounds calm, and nothing else is audible."


class Scripted(FakeBackend):
    """Answers by what the prompt asks for, one prompt at a time, with `pause` seconds before each token."""

    def __init__(self) -> None:
        letters = letter_head("we walked along the river the boats came home", frames_per_letter=3)
        super().__init__(self._next, letter_logprobs=lambda mels: letters)
        self.pause = 0.0
        self._script = scripted("")

    def prefill(self, input_ids: np.ndarray, audio_mask: np.ndarray, audio: Any, n_logits: int = 1) -> Any:
        asked = bytes(int(i) for i in input_ids if 0 <= i < 255).decode(errors="replace")
        answer = SAID if "Transcribe" in asked else ANSWER
        self._script = scripted(answer)
        return super().prefill(input_ids, audio_mask, audio, n_logits)

    def _next(self, emitted: list[int]) -> np.ndarray:
        time.sleep(self.pause)
        return self._script(emitted)


@pytest.fixture(scope="session")
def backend() -> Scripted:
    return Scripted()


@pytest.fixture(scope="session")
def serve(backend: Scripted) -> Iterator[Callable[..., str]]:
    """Starts a server in this process and gives its address; `keys` and settings as `create_app` takes them."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    from moss_audio.inference.engine import MossAudio
    from moss_audio.server.app import create_app
    from moss_audio.server.settings import Settings

    running: list[tuple[Any, threading.Thread]] = []

    def start(keys: Any = None, **settings: Any) -> str:
        model = MossAudio(backend, FakeProcessor())  # type: ignore[arg-type]
        app = create_app(Settings(decoders=1, running=1, **settings), model, keys=keys)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(30)


@pytest.fixture(scope="session")
def address(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium; install it or name it in CHROMIUM")
    speech = load_audio(ROOT / "examples" / "speech_woman.ogg")
    heard = wav(tmp_path_factory.mktemp("microphone") / "speech.wav", speech)
    arguments = [
        "--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}",
    ]  # fmt: skip
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a profile of its own; a script error or a breach of the content policy fails the test."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_page(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine is slow, and no test waits for it in vain
        page.on("pageerror", lambda error: wrong.append(str(error)))
        # The network's refusals are logged as errors too: tests provoke them.
        page.on("console", lambda entry: entry.type == "error" and "Failed to load" not in entry.text
                and "WebSocket" not in entry.text and wrong.append(entry.text))  # fmt: skip
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def page(new_page: Callable[..., Any], address: str) -> Any:
    return new_page(address)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of two gliding tones."""
    return sound(tmp_path_factory.mktemp("clips") / "walk.wav", 3.0)


def sound(path: Path, seconds: float) -> Path:
    t = np.arange(int(16_000 * seconds)) / 16_000
    samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * t) * t) * (np.sin(4 * t) > 0) + 0.01 * np.sin(7000 * t)
    return wav(path, samples)


def wav(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path
