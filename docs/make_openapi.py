"""Write moss_audio/server/examples.json: `python docs/make_openapi.py` asks a server of the embedded model.

Requests are written here; answers are what came, of the recordings in `examples/`. The OpenAPI document shows both.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from moss_audio.server.app import create_app
from moss_audio.server.examples import FILE

ROOT = Path(__file__).resolve().parent.parent
WOMAN, TUNE, SIREN = "speech_woman.ogg", "arpeggio.ogg", "siren.ogg"

FORMS: dict[str, dict[str, Any]] = {
    "/v1/audio/transcriptions": {
        "file": WOMAN, "response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"],
    },
    "/v1/audio/transcribe": {"file": WOMAN, "hotwords": ["Watney", "Lisbon"]},
    "/v1/audio/describe": {"file": SIREN},
    "/v1/audio/events": {"file": SIREN, "gap": 0.5},
    "/v1/audio/music": {"file": TUNE},
    "/v1/audio/speaker": {"file": WOMAN},
    "/v1/audio/emotion": {"file": WOMAN},
    "/v1/audio/ask": {"file": SIREN, "question": "What sound is this?"},
    "/v1/audio/choose": {"file": WOMAN, "question": "Who speaks?", "choices": ["a man", "a woman", "nobody"]},
    "/v1/audio/summarize": {"file": WOMAN},
    "/v1/audio/review": {"file": WOMAN, "policy": '{"places": "\\"river\\""}', "keep": 1},
    "/v1/audio/narrate": {"file": SIREN, "window": 5},
    "/v1/audio/feedback": {"file": WOMAN, "text": "the water was calm and the boats came home"},
    "/v1/audio/converse": {"file": WOMAN},
}  # fmt: skip


def main() -> None:
    found: dict[str, Any] = {}
    with TestClient(create_app(), base_url="http://localhost") as http:
        clip = (ROOT / "examples" / SIREN).read_bytes()
        parts = [
            {"type": "input_audio", "input_audio": {"data": wire(clip), "format": "ogg"}},
            {"type": "text", "text": "What sound is this?"},
        ]
        chat = {"model": "mini", "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 64}
        answer = http.post("/v1/chat/completions", json=chat).json()
        parts[0]["input_audio"] = {"data": FILE, "format": "ogg"}
        found["POST /v1/chat/completions"] = {"request": chat, "response": answer}

        for path, form in FORMS.items():
            data = {name: value for name, value in form.items() if name != "file"}
            answer = http.post(path, files={"file": (ROOT / "examples" / form["file"]).read_bytes()}, data=data).json()
            found[f"POST {path}"] = {"request": form, "response": answer}

        line = {"custom_id": "1", "method": "POST", "url": "/v1/audio/events", "body": {"file": wire(clip)}}
        files, purpose = {"file": ("batch.jsonl", json.dumps(line).encode())}, {"purpose": "batch"}
        file = http.post("/v1/files", files=files, data=purpose).json()
        found["POST /v1/files"] = {"request": {"file": "batch.jsonl"} | purpose, "response": file}
        body = {"input_file_id": file["id"], "endpoint": "/v1/audio/events", "completion_window": "24h"}
        batch = http.post("/v1/batches", json=body).json()
        found["POST /v1/batches"] = {"request": body, "response": batch}
        path = f"/v1/batches/{batch['id']}"
        while (batch := http.get(path).json())["status"] == "in_progress":
            time.sleep(0.1)
        found["GET /v1/batches/{batch_id}"] = {"response": batch}
        for path in ("/v1/models", "/v1/files", "/v1/batches", "/health", "/ready"):
            found[f"GET {path}"] = {"response": http.get(path).json()}
    target = ROOT / "moss_audio" / "server" / "examples.json"
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def wire(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
