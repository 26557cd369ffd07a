"""A long recording, composed of clips with known words: `python benchmarks/long_file.py MANIFEST [--minutes 180]`.

Clips of the manifest (`audio`, `text`) follow one another with pauses between them, over and over, as a FLAC file; with
`--unbroken` without any pause, between them or in them, so that windows must be cut where somebody speaks. It prints

- the word error rate within `--near` seconds of the seams between windows, beside that of all other words, with 95 %
  intervals;
- drift: how far words near the end lie from where they lie when their clip is transcribed alone, plus its start
  (not where pauses were taken out);
- the peak of memory beyond what the model takes for one window, after half and at the end, and the speed.

Each seam is where a window really ended.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

import moss_audio
from moss_audio.audio import SAMPLE_RATE, load_audio, log_mel
from moss_audio.data.manifest import read_manifest
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english
from moss_audio.evaluation.speech import interval
from moss_audio.inference.engine import Progress
from moss_audio.inference.letters import forced_alignment

LAST_CLIPS = 5
QUIET_DB, KEPT_FRAMES = -30.0, 6
"""`unbroken` keeps 60 ms of what is so much quieter than the loudest twentieth."""


@dataclass(frozen=True)
class Placed:
    """A clip in the recording."""

    path: Path
    start: float
    seconds: float
    words: tuple[str, ...]


def unbroken(samples: np.ndarray) -> np.ndarray:
    """`samples [n]` without pauses, in steps of 10 ms."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    loud = level > np.quantile(level, 0.95) + QUIET_DB
    last = np.maximum.accumulate(np.where(loud, np.arange(len(frames)), -1))
    return frames[np.arange(len(frames)) - last <= KEPT_FRAMES].ravel()


def read(path: Path, pauses: bool) -> np.ndarray:
    """Samples of a clip, with or without its pauses."""
    samples = load_audio(path)
    return samples if pauses else unbroken(samples)


def compose(manifest: Path, minutes: float, target: Path, pauses: bool = True, seed: int = 0) -> list[Placed]:
    """Write the recording at `target`, clip by clip, and return what is where."""
    random, placed, n_samples = np.random.default_rng(seed), list[Placed](), 0
    rows = read_manifest(manifest)
    with av.open(target, "w", format="flac") as out:
        track = out.add_stream("flac", rate=SAMPLE_RATE, layout="mono")

        def add(samples: np.ndarray) -> None:
            pcm = np.clip(32767 * samples, -32768, 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, n_samples
            out.mux(track.encode(frame))

        for row in itertools.cycle(rows):
            if n_samples > minutes * 60 * SAMPLE_RATE:
                break
            path = manifest.parent / row["audio"]
            clip = read(path, pauses)
            words = tuple(english(row["text"]))
            placed.append(Placed(path, n_samples / SAMPLE_RATE, len(clip) / SAMPLE_RATE, words))
            pause = random.normal(0, 1e-3, int(random.uniform(0.2, 1.5) * SAMPLE_RATE)).astype(np.float32)
            for samples in (clip, pause) if pauses else (clip,):
                add(samples)
                n_samples += len(samples)
        out.mux(track.encode())
    return placed


def word_times(model: moss_audio.MossAudio, words: Sequence[str], samples: np.ndarray) -> np.ndarray:
    """Middles of the known `words` of a clip, in seconds: by the letter head, or else by how long they are written."""
    config = model.backend.config.audio
    if config.letters:
        heard = model.backend.encode_audio([log_mel(samples, config.n_mels)]).letter_logprobs
        if heard is not None and (found := forced_alignment(heard, " ".join(words), config.letters)):
            return np.array([(word.start + word.end) / 2 for word in found])
    lengths = np.array([len(word) for word in words])
    return (np.cumsum(lengths) - lengths / 2) / lengths.sum() * len(samples) / SAMPLE_RATE


def errors_by_word(reference: Sequence[str], hypothesis: Sequence[str]) -> np.ndarray:
    """Edits `[len(reference)]` of the cheapest alignment: each at its word, insertions at the word before them."""
    n, m = len(reference), len(hypothesis)
    ids = {word: i for i, word in enumerate({*reference, *hypothesis})}
    wanted, got = (np.array([ids[word] for word in words], np.int32) for words in (reference, hypothesis))
    steps = np.arange(m + 1, dtype=np.int32)
    row, moves = steps.copy(), np.zeros((n + 1, m + 1), np.int8)  # 0 left (insertion), 1 both, 2 up (deletion)
    for i in range(1, n + 1):
        both, up = row[:-1] + (got != wanted[i - 1]), row[1:] + 1
        new = np.concatenate([[i], np.minimum(both, up)]).astype(np.int32)
        best = np.minimum.accumulate(new - steps) + steps
        moves[i, 1:] = np.where(best[1:] == both, 1, np.where(best[1:] == up, 2, 0))
        moves[i, 0], row = 2, best
    errors, i, j = np.zeros(n, np.int32), n, m
    while i or j:
        move = moves[i, j]
        errors[max(i - 1, 0)] += 1 if move != 1 else int(wanted[i - 1] != got[j - 1])
        i, j = i - (move != 0), j - (move != 2)
    return errors


def rates_by_clip(clips: Sequence[Placed], errors: np.ndarray, chosen: np.ndarray) -> list[ErrorRate]:
    """Rates of the `chosen` words of every file that has any; what is heard again is no new evidence."""
    owners = np.array([str(clip.path) for clip in clips for _ in clip.words])
    of = [chosen & (owners == path) for path in np.unique(owners[chosen])]
    return [ErrorRate(int(errors[words].sum()), int(words.sum())) for words in of]


def drift(model: moss_audio.MossAudio, whole: moss_audio.Transcript, clips: Sequence[Placed]) -> list[float]:
    """Seconds by which words of `clips` lie later in the whole than in the clip alone, for words found in both."""
    found = []
    for clip in clips:
        alone = [word for segment in model.transcribe(clip.path).segments for word in segment.words]
        inside = [word for segment in whole.segments for word in segment.words
                  if clip.start - 0.5 <= word.start <= clip.start + clip.seconds + 0.5]  # fmt: skip
        for word in alone:
            same = [other.start - clip.start - word.start for other in inside if other.text == word.text]
            if same and min(map(abs, same)) < 1.0:
                found.append(min(same, key=abs))
    return found


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Seams, drift and memory of a long recording.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--minutes", type=float, default=180)
    parser.add_argument("--unbroken", action="store_true", help="take out all pauses")
    parser.add_argument("--near", type=float, default=3.0, help="seconds")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--beams", type=int, default=4)
    args = parser.parse_args()
    model, params = moss_audio.load(args.model), moss_audio.SamplingParams(n_beams=args.beams)
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder, "long.flac")
        clips = compose(args.manifest, args.minutes, recording, pauses=not args.unbroken)
        model.transcribe(np.resize(load_audio(clips[0].path), 28 * SAMPLE_RATE), params=params)
        before, began, seams, peaks = peak_bytes(), time.perf_counter(), list[float](), list[int]()

        def report(progress: Progress) -> None:
            seams.append(progress.passage.end)
            peaks.append(peak_bytes())

        whole = model.transcribe(recording, params=params, progress=report)
    busy = time.perf_counter() - began
    known = {clip.path: clip.words for clip in clips}
    inside = {path: word_times(model, words, read(path, not args.unbroken)) for path, words in known.items()}
    times = np.concatenate([clip.start + inside[clip.path] for clip in clips])
    errors = errors_by_word([word for clip in clips for word in clip.words], english(whole.text))
    near = np.abs(times[:, None] - np.array(seams[:-1] or [-1e9])).min(axis=1) < args.near
    for name, chosen in (("near seams", near), ("elsewhere", ~near)):
        rates = rates_by_clip(clips, errors, chosen)
        rate, (low, high) = sum(rates, ErrorRate()), interval(rates) if rates else (0.0, 1.0)
        print(f"{name}: {rate.value:.1%} (95 % {low:.1%}…{high:.1%}) of {rate.words} words wrong")
    if not args.unbroken:
        shifts = drift(model, whole, clips[-LAST_CLIPS:])
        median = f"{1000 * float(np.median(shifts)):+.0f} ms over {len(shifts)} words" if shifts else "no common word"
        print(f"drift at the end: {median}")
    half, most = ((peaks[at] - before) / 1e6 for at in (len(peaks) // 2, -1))
    print(f"memory beyond one window: {half:.0f} MB after half, {most:.0f} MB at the end, of {peaks[-1] / 1e6:.0f} MB")
    print(f"{whole.duration / 60:.1f} min in {len(seams)} windows, {busy / whole.duration:.3f} of real time; "
          f"{whole.finish_reason}; {len(whole.notes)} notes")  # fmt: skip
    for note in whole.notes:
        print(f"  {note}")


if __name__ == "__main__":
    main()
