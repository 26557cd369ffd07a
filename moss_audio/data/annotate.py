"""Unlabelled recordings → conversations to train on: `python -m moss_audio.data.annotate AUDIO_FOLDER OUT.jsonl`.

Each recording is cut at event boundaries (`cutting`), each segment is heard by three branches (`branches`), and what
their annotators agree on becomes a caption and questions with answers, a conversation a line (`conversations`), with
the segments as WAV files in the folder OUT. `OUT.done.jsonl` has a line a recording: what it gave, what was dropped and
why, or why it could not be read. Resumable: that file is the record, and what a stopped run wrote behind it is cut off.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import moss_audio
from moss_audio.audio import SAMPLE_RATE, Limits, load_audio
from moss_audio.data.branches import BRANCHES, Annotators, Branch, Recogniser, caption
from moss_audio.data.conversations import Conversation
from moss_audio.data.cutting import Cut, segments
from moss_audio.data.speak import write_wav
from moss_audio.errors import AudioError
from moss_audio.prompts import DESCRIBE
from moss_audio.transcript import Segment

SUFFIXES = tuple(".wav .flac .mp3 .ogg .opus .m4a .aac .aiff .aif .caf .au .amr .webm .mkv .mp4 .mov".split())


@dataclass(frozen=True)
class Done:
    """A recording that is done. `bytes` is the size of OUT.jsonl behind it; `error` says why it could not be read."""

    recording: str
    seconds: float = 0.0
    segments: int = 0
    conversations: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    bytes: int = 0


def annotate(folder: Path, out: Path, by: Annotators, limits: Limits, recordings: Sequence[Path]) -> Iterator[Done]:
    """Annotate what is not done yet, a recording at a time, and tell of each."""
    clips, record = out.with_suffix(""), out.with_suffix(".done.jsonl")
    done = read_done(record)
    clips.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as lines, record.open("a", encoding="utf-8") as ledger:
        lines.truncate(done[-1].bytes if done else 0)
        lines.seek(0, 2)
        known = {one.recording for one in done}
        for path in recordings:
            name = path.relative_to(folder).as_posix()
            if name in known:
                continue
            found, summary = hear(path, name, clips, by, limits)
            lines.write("".join(conversation.line() for conversation in found).encode())
            lines.flush()
            summary = Done(**asdict(summary) | {"bytes": lines.tell()})
            ledger.write(json.dumps(asdict(summary), ensure_ascii=False) + "\n")
            ledger.flush()
            yield summary


def hear(path: Path, name: str, clips: Path, by: Annotators, limits: Limits) -> tuple[list[Conversation], Done]:
    """The conversations about one recording; its segments are written into `clips`."""
    try:
        samples = load_audio(path, limits)
    except (AudioError, OSError) as error:
        return [], Done(name, error=str(error))
    found, dropped, n = list[Conversation](), Counter[str](), 0
    for n, part in enumerate(segments(samples, by.voice), 1):
        clip = samples[int(part.start * SAMPLE_RATE) : int(part.end * SAMPLE_RATE)]
        branches = [branch(clip, by) for branch in BRANCHES]
        dropped.update(f"{one.name}: {reason.partition(': ')[0]}" for one in branches for reason in one.dropped)
        file = clips / f"{name.replace('/', '__')}.{n:04}.wav"
        if about := list(conversations(f"{clips.name}/{file.name}", name, part, branches)):
            write_wav(file, clip)
            found += about
    seconds = round(len(samples) / SAMPLE_RATE, 2)
    return found, Done(name, seconds, n, len(found), dict(dropped))


def conversations(audio: str, recording: str, part: Cut, branches: Sequence[Branch]) -> Iterator[Conversation]:
    """The caption of a segment, and what each branch has to ask about it."""
    place = {"recording": recording, "start": part.start, "end": part.end, "whole": part.whole}
    if text := caption(branches):
        known = {branch.name: dict(branch.truth) for branch in branches if branch.truth}
        yield Conversation.about(audio, (DESCRIBE, text), truth=place | {"branch": "caption"} | known)
    for branch in branches:
        if branch.asked:
            truth = place | {"branch": branch.name, branch.name: dict(branch.truth), "dropped": list(branch.dropped)}
            yield Conversation.about(audio, *branch.asked, truth=truth)


def read_done(record: Path) -> list[Done]:
    """The recordings that are done; a line that was half written is not."""
    if not record.exists():
        return []
    text = record.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        record.write_text(whole, encoding="utf-8")
    return [Done(**json.loads(line)) for line in whole.splitlines()]


def recordings_in(folder: Path) -> list[Path]:
    """Everything under a folder that has the name of a recording, in order of name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def whisper(folder: str, threads: int) -> Recogniser:
    """A recogniser by faster-whisper, in English."""
    from faster_whisper import WhisperModel

    model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(samples: np.ndarray) -> list[Segment]:
        segments, _ = model.transcribe(samples, language="en", beam_size=1)
        return [Segment(round(one.start, 2), round(one.end, 2), one.text.strip()) for one in segments]

    return transcribe


def main() -> None:
    parser = argparse.ArgumentParser(description="Annotate a folder of unlabelled recordings, for training.")
    parser.add_argument("folder", type=Path, help="searched for recordings, also below")
    parser.add_argument("out", type=Path, help="OUT.jsonl; its clips go into the folder OUT beside it")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--whisper", metavar="FOLDER", help="a faster-whisper model as second recogniser")
    parser.add_argument("--threads", type=int, default=1, help="of the second recogniser")
    parser.add_argument("--limit", type=int, help="recordings to annotate in this run")
    parser.add_argument("--max-seconds", type=float, default=3600.0, help="longer recordings are skipped and listed")
    args = parser.parse_args()
    todo = recordings_in(args.folder)
    known = {one.recording for one in read_done(args.out.with_suffix(".done.jsonl"))}
    todo = [path for path in todo if path.relative_to(args.folder).as_posix() not in known][: args.limit]
    print(f"{len(todo)} recordings to annotate, {len(known)} done before", file=sys.stderr)
    second = whisper(args.whisper, args.threads) if args.whisper else None
    by = Annotators.of(moss_audio.load(args.model), second)
    began, seconds, total, bad = time.monotonic(), 0.0, 0, list[Done]()
    dropped = Counter[str]()
    for i, one in enumerate(annotate(args.folder, args.out, by, Limits(max_seconds=args.max_seconds), todo), 1):
        seconds, total = seconds + one.seconds, total + one.conversations
        dropped.update(one.dropped)
        bad += [one] if one.error else []
        pace = seconds / (time.monotonic() - began)
        print(f"{i}/{len(todo)} {one.recording}: {one.segments} segments, {one.conversations} conversations; "
              f"{pace:.2f} s of audio a second", file=sys.stderr)  # fmt: skip
    print(f"{total} conversations from {seconds / 60:.1f} minutes -> {args.out}")
    for reason, count in dropped.most_common():
        print(f"  dropped {count}: {reason}")
    for one in bad:
        print(f"  could not be read: {one.recording}: {one.error}")


if __name__ == "__main__":
    main()
