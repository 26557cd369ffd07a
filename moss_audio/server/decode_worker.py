"""One decoding process: files in on standard input, samples out on standard output, one after the other.

It may crash or be killed without harm to the server, and it can do little: its memory and processor time are limited,
it may not write files, and what it sends back is numbers and text, never pickled objects.

A job is a line of JSON (`n_bytes`, `cpu_seconds`, and `max_seconds` of a file or `packet` for the next one of an Opus
stream) and the bytes; the reply is a line of JSON (`n_samples`, or `error` and `message`) and the samples as float32.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import av
import numpy as np

from moss_audio.audio import SAMPLE_RATE, Limits, load_audio
from moss_audio.errors import AudioError, AudioLimitError, CorruptAudioError, UnsupportedAudioError

ERRORS: dict[str, type[AudioError]] = {
    kind.__name__: kind for kind in (AudioError, UnsupportedAudioError, CorruptAudioError, AudioLimitError)
}
"""What a worker may answer instead of samples."""


def main(memory_bytes: int) -> None:
    """Decode jobs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jobs, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints must not end up among the samples
    packets = OpusPackets()
    while line := jobs.readline():
        job = json.loads(line)
        _limit_cpu(job["cpu_seconds"])
        data = jobs.read(job["n_bytes"])
        if job.get("packet"):
            answer(partial(packets.decode, data), replies)
        else:
            answer(partial(load_audio, data, Limits(max_seconds=job["max_seconds"])), replies)
        replies.flush()


class OpusPackets:
    """Opus packets as of WebRTC and WebCodecs, without a container, of any number of channels."""

    def __init__(self) -> None:
        self._decoder = av.CodecContext.create("libopus", "r")
        self._decoder.sample_rate, self._decoder.layout = 48_000, "mono"
        self._resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)

    def decode(self, packet: bytes) -> np.ndarray:
        """The samples `[n]` of the packet after the last one. Raises `CorruptAudioError`."""
        try:
            frames = self._decoder.decode(av.Packet(packet)) if packet else []  # an empty one would end the stream
        except (av.error.FFmpegError, ValueError):
            frames = []
        if not frames:
            raise CorruptAudioError("this is no Opus packet; send one whole packet a message, without Ogg or WebM")
        return np.concatenate([out.to_ndarray()[0] for frame in frames for out in self._resampler.resample(frame)])


def answer(decode: Callable[[], np.ndarray], replies: BinaryIO) -> None:
    """Decode and write the reply."""
    try:
        samples = decode()
    except AudioError as error:
        _line(replies, error=type(error).__name__, message=str(error))
    except MemoryError:
        _line(replies, error="AudioLimitError", message="decoding the recording takes more memory than is allowed")
    else:
        _line(replies, n_samples=len(samples))
        replies.write(samples.astype("<f4", copy=False).data)


def _line(replies: BinaryIO, **values: object) -> None:
    replies.write(json.dumps(values).encode() + b"\n")


def _limit_cpu(seconds: float) -> None:
    """End the process `seconds` of processor time from now; the limit counts from the process's start."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Last words, as a line of the server's log."""
    line = {"level": "error", "event": "decoder failed", "error": f"{kind.__name__}: {error}"[:500]}
    print(json.dumps(line), file=sys.stderr)


if __name__ == "__main__":
    sys.excepthook = _report
    main(int(sys.argv[1]))
