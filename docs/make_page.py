"""Take the pictures of the page, docs/page-light.png and docs/page-dark.png: `python docs/make_page.py`.

Needs Playwright and Chromium (`CHROMIUM` names its binary). What is on the pictures the embedded model says.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
import wave
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


def recording() -> bytes:
    """The examples one after another, as a WAV file."""
    samples = np.concatenate([load_audio(DOCS.parent / "examples" / name) for name in CLIPS])
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return data.getvalue()


def serve() -> str:
    """A server of the embedded model in this process; gives its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(Settings()), port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"


def take(page: Any, path: Path) -> None:
    """Work as a visitor would, and take the picture."""
    page.set_input_files("#file", {"name": "street.wav", "mimeType": "audio/wav", "buffer": recording()})
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
    page.wait_for_timeout(500)
    page.screenshot(path=path)


def main() -> None:
    address = serve()
    with sync_playwright() as driver:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
            page.set_default_timeout(300_000)
            page.goto(address)
            take(page, DOCS / f"page-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
