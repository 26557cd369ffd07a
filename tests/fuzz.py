"""Damaged recordings and bodies through loader and server: typed errors only, in bounded time and memory.

    python -m tests.fuzz --count 20000 --seed 1 [--keep DIR]

Every case is a seed made here, damaged in a way that its number decides, so that a finding is its number. A finding is
an exception that is not the package's own, a status of 500, an answer that is not the error shape, or a slow case.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))

from servers import client, question, wav

from moss_audio.audio import SAMPLE_RATE, Limits, load_audio
from moss_audio.errors import AudioError

LIMITS = Limits(max_seconds=60, max_bytes=8 << 20)
SLOW_SECONDS = 20.0
"""For one case on a busy machine; a case that is not slow takes milliseconds."""

MAX_MEMORY_MB = 512
"""Of this process, which loads and serves, and of each decoder."""

FORMATS = (
    ("wav", "pcm_s16le", 16_000), ("wav", "pcm_f32le", 44_100), ("flac", "flac", 16_000), ("mp3", "libmp3lame", 22_050),
    ("ogg", "libopus", 48_000), ("mov", "pcm_s24le", 44_100), ("mp4", "aac", 44_100), ("matroska", "libopus", 48_000),
    ("adts", "aac", 16_000), ("aiff", "pcm_s16be", 8_000), ("webm", "libopus", 48_000),
)  # fmt: skip

RATES = (0, 1, 3, 3999, 4000, 384_000, 384_001, 2**31 - 1, 4_000_000_000)
NUMBERS = (0, -1, 1e308, 2**63, 10**400, 1e-320, True, None, "1", [], {}, "NaN", "\ud800", "\0", "x" * 3000)


FRONTS = (
    b"PK\x03\x04", b"%PDF-1.7\n", b"<html><script>", b'{"messages": [', b"#EXTM3U\nfile:///etc/passwd\n", b"\x1f\x8b",
)  # fmt: skip


@cache
def seeds() -> tuple[bytes, ...]:
    """A second of a tone in every container, and the bombs."""
    tone = (np.sin(np.arange(48_000) / 17) * 12_000).astype(np.int16)
    return tuple(encoded(*form, tone[: form[2]]) for form in FORMATS) + tuple(bombs(tone))


def bombs(tone: np.ndarray) -> Iterator[bytes]:
    """Little that says or decodes to much."""
    yield encoded("flac", "flac", 16_000, np.zeros(3600 * 16_000, np.int16))
    yield encoded("ogg", "libopus", 48_000, np.zeros(120 * 48_000, np.int16))
    mp4, many = encoded("mp4", "aac", 44_100, tone[:44_100]), 0x0FFFFFFF
    yield patched(mp4, {b"stsz": (4, 1, many), b"stsc": (8, 1, many, 1), b"stts": (8, many, 1024)})
    zeros = zlib.compress(bytes(64 << 20), 9)
    inflated = box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 64 << 20) + zeros))
    yield box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"moov", inflated)
    title = b"TIT2" + struct.pack(">IHI", len(zeros) + 4, 0x0080, many) + zeros
    size = bytes(len(title) >> shift & 127 for shift in (21, 14, 7, 0))
    yield b"ID3\x03\x00\x00" + size + title + encoded("mp3", "libmp3lame", 22_050, tone[:22_050])


def box(kind: bytes, content: bytes) -> bytes:
    """A part of an MP4 file."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def patched(data: bytes, parts: dict[bytes, tuple[int, ...]]) -> bytes:
    """The file with numbers in some of its parts, from an offset on."""
    changed = bytearray(data)
    for kind, (offset, *numbers) in parts.items():
        at = data.index(kind) + 4 + offset
        changed[at : at + 4 * len(numbers)] = struct.pack(f">{len(numbers)}I", *numbers)
    return bytes(changed)


def encoded(container: str, codec: str, rate: int, samples: np.ndarray) -> bytes:
    """A file of `samples [n]`, int16."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        for block in [*(samples[at : at + rate] for at in range(0, len(samples), rate)), None]:
            frame = None if block is None else av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            if frame is not None:
                frame.sample_rate = rate
            output.mux(stream.encode(frame))
    return file.getvalue()


def damaged(rng: np.random.Generator) -> bytes:
    """One file that is not quite one."""
    data = bytearray(seeds()[int(rng.integers(len(seeds())))])
    for _ in range(int(rng.integers(1, 4))):
        data = bytearray(WAYS[int(rng.integers(len(WAYS)))](data, rng))
    return bytes(data[: 1 << 20])


def flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for at in rng.integers(0, max(1, len(data)), int(rng.integers(1, 60))):
        data[at : at + 1] = bytes([int(rng.integers(256))])
    return data


def flip_head(data: bytearray, rng: np.random.Generator) -> bytes:
    head, rest = data[:200], data[200:]
    return flip(head, rng) + rest


def truncate(data: bytearray, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data) + 1))]


def splice(data: bytearray, rng: np.random.Generator) -> bytes:
    other = seeds()[int(rng.integers(len(seeds())))]
    return data[: int(rng.integers(0, len(data) + 1))] + other[int(rng.integers(0, len(other))) :]


def repeat(data: bytearray, rng: np.random.Generator) -> bytes:
    return data * int(rng.integers(2, 6))


def polyglot(data: bytearray, rng: np.random.Generator) -> bytes:
    return FRONTS[int(rng.integers(len(FRONTS)))] + data


def huge_number(data: bytearray, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(0, max(1, min(len(data), 300) - 4)))
    data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])))
    return data


def lying_wav(data: bytearray, rng: np.random.Generator) -> bytes:
    channels, bits = int(rng.choice([0, 1, 2, 33, 255, 65_535])), int(rng.choice([0, 1, 8, 12, 16, 24, 32, 64, 65_535]))
    rate, code = int(rng.choice(RATES)), int(rng.choice([0, 1, 2, 3, 6, 7, 0x11, 0x55, 0xFFFE]))
    block = int(rng.choice([0, 1, 2, 4, 65_535]))
    size = int(rng.choice([0, 10, len(data), 2**31, 2**32 - 1]))
    form = struct.pack("<HHIIHH", code, channels, rate, min(rate * 4, 2**32 - 1), block, bits)
    return b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack(
        "<I", size
    ) + data[:5000]


def noise(data: bytearray, rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 3000)))


WAYS: tuple[Callable[[bytearray, np.random.Generator], bytes], ...] = (
    flip, flip, flip_head, truncate, splice, repeat, polyglot, huge_number, lying_wav, noise,
)  # fmt: skip


def body(rng: np.random.Generator) -> bytes:
    """A chat body that is not quite one."""
    value = question(clip=wav(0.2), n=1, max_tokens=4, stop=["x"], temperature=0.5)
    places = list(paths(value))
    for _ in range(int(rng.integers(1, 4))):
        owner, key = places[int(rng.integers(len(places)))]
        owner[key] = NUMBERS[int(rng.integers(len(NUMBERS)))]
    text = json.dumps(value)
    match int(rng.integers(6)):
        case 0:
            return bytes(flip(bytearray(text.encode()), rng))
        case 1:
            return bytes(truncate(bytearray(text.encode()), rng))
        case 2:
            return b"[" * int(rng.integers(1, 50_000)) + text.encode()
        case 3:
            return (b'{"messages":' * int(rng.integers(1, 5000))) + b"1"
        case _:
            return text.encode()


def paths(value: dict | list) -> Iterator[tuple[dict | list, str | int]]:
    """Every place of a JSON value."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from paths(part)


def through_loader(data: bytes) -> str:
    try:
        samples = load_audio(data, LIMITS)
    except AudioError as error:
        return type(error).__name__
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
    assert len(samples) <= (LIMITS.max_seconds + 1) * SAMPLE_RATE
    return "decoded"


def through_server(http: TestClient, number: int, rng: np.random.Generator) -> str:
    headers = {"Content-Type": "application/json"}
    match number % 4:
        case 0:
            response = http.post("/v1/audio/transcriptions", files={"file": ("a", damaged(rng))})
        case 1:
            data = base64.b64encode(damaged(rng))
            text = json.dumps(question()).encode().replace(base64.b64encode(wav()), data)
            response = http.post("/v1/chat/completions", content=text, headers=headers)
        case 2:
            response = http.post("/v1/chat/completions", content=body(rng), headers=headers)
        case _:
            content = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + damaged(rng)
            content = bytes(flip(bytearray(content + b"\r\n--x--\r\n"), rng))
            kind = {"Content-Type": "multipart/form-data; boundary=x"}
            response = http.post("/v1/audio/events", content=content, headers=kind)
    assert response.status_code in (200, 400, 413, 415, 422), f"status {response.status_code}: {response.text[:200]}"
    assert response.status_code == 200 or response.json()["error"]["message"]
    return str(response.status_code)


def run(count: int, seed: int, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Run `count` cases; returns how they ended, and the findings."""
    ends, findings = Counter[str](), list[str]()
    with client("Hi.", max_audio_seconds=60.0, decoded_cache_seconds=0.0) as http:
        for number in range(count):
            rng, began = np.random.default_rng([seed, number]), time.monotonic()
            try:
                if number % 2 == 0:
                    end = f"loader {through_loader(damaged(rng))}"
                else:
                    end = f"server {through_server(http, number // 2, rng)}"
                if time.monotonic() - began > SLOW_SECONDS:
                    raise AssertionError(f"took {time.monotonic() - began:.1f} s")
            except Exception as error:
                end = "finding"
                findings.append(f"seed {seed} case {number}: {type(error).__name__}: {str(error)[:300]}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{number}").write_bytes(damaged(np.random.default_rng([seed, number])))
            ends[end] += 1
    return ends, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    args = parser.parse_args()
    ends, findings = run(args.count, args.seed, args.keep)
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    if max(peaks) > MAX_MEMORY_MB:
        findings.append(f"memory: over {MAX_MEMORY_MB} MB")
    for end, n in ends.most_common():
        print(f"{n:7} {end}")
    print("peak memory {:.0f} MB, of its decoders {:.0f} MB".format(*peaks), *findings[:50], sep="\n")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
