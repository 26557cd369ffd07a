"""Take the pictures of the page, docs/page-*.png: `python docs/make_page.py`.

The recording and live views, wide and on a phone, light and dark. Needs Playwright and Chromium (`CHROMIUM` names its
binary). What is on the pictures the embedded model says, live of the same recording played into the microphone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from playwright.sync_api import sync_playwright

from moss_audio.audio import SAMPLE_RATE, load_audio
from moss_audio.server.app import create_app
from moss_audio.server.settings import Settings

DOCS = Path(__file__).parent
CLIPS = ("speech_woman.ogg", "siren.ogg", "speech_man.ogg")
QUESTIONS = ("What does the woman say?",)
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def record(path: Path) -> Path:
    """The examples one after another, with a pause after each, as a WAV file."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    parts = [part for name in CLIPS for part in (load_audio(DOCS.parent / "examples" / name), pause)]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((np.concatenate(parts) * 32767).astype("<i2").tobytes())
    return path


def serve() -> str:
    """A server of the embedded model in this process; gives its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(Settings()), port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"


def recording(page: Any, file: Path) -> None:
    """Work as a visitor would who has a recording."""
    page.set_input_files("#file", file)
    page.click("#transcribe")
    page.wait_for_selector("#exports:not([hidden])")
    page.click("#find-events")
    page.wait_for_selector("#send[aria-label=Send]")
    for question in QUESTIONS:
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_selector("#send[aria-label=Send]")
    page.click("#transcript .word >> nth=4")
    page.mouse.move(640, 30)


def live(page: Any, file: Path) -> None:
    """Listen until two sentences and a sound have been told."""
    page.click("#to-live")
    page.click("#live-start")
    page.wait_for_selector("#captions p >> nth=1")
    page.wait_for_selector("#sounds p")


VIEWS: dict[str, tuple[dict[str, Any], Callable[[Any, Path], None]]] = {
    "page": (WIDE, recording),
    "page-phone": (PHONE, recording),
    "page-live": (WIDE, live),
    "page-live-phone": (PHONE, live),
}


def main() -> None:
    address = serve()
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        file = record(Path(folder) / "street.wav")
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        heard = f"--use-file-for-fake-audio-capture={file}"
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", *microphone, heard])
        for name, (device, visit) in VIEWS.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(color_scheme=scheme, **device)
                page.set_default_timeout(300_000)
                page.goto(address)
                visit(page, file)
                if device is PHONE:  # all of it; a screenshot of the full page would forget that fingers touch it
                    height = page.evaluate("document.documentElement.scrollHeight")
                    page.set_viewport_size({"width": 360, "height": height})
                page.wait_for_timeout(500)
                page.screenshot(path=DOCS / f"{name}-{scheme}.png")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
