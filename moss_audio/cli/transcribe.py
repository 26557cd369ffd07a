"""`moss-audio transcribe`: recordings to text, subtitles or JSON."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from moss_audio.cli.common import add_model, add_output, complain, json_line, load, sampling, source, stream, why
from moss_audio.errors import MossAudioError
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.transcript import WRITERS, Segment

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands
    from moss_audio.inference.engine import Transcript


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("transcribe", help="write down what is said", description="Write down what is said.")
    command.add_argument("inputs", nargs="+", metavar="FILE", help="audio or video file; - reads standard input")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--format", choices=list(WRITERS), default="txt", help="form of the output (default: txt)")
    add_output(output, "print a JSON object a line: file, text, segments, finish_reason, usage")
    add_model(command)
    beams_help = f"texts weighed at a time; 1 is fastest (default: {TRANSCRIPT_BEAMS})"
    command.add_argument("--beams", type=int, default=TRANSCRIPT_BEAMS, metavar="N", help=beams_help)
    command.set_defaults(command=_transcribe)


def _transcribe(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if len(args.inputs) > 1 and args.format not in ("txt",):
        parser.error(f"--format {args.format} writes one file at a time; use --json for many")
    params, failed = sampling(args, parser, args.beams), False
    model = load(args)
    for number, name in enumerate(args.inputs, 1):
        if len(args.inputs) > 1:
            print(f"[{number}/{len(args.inputs)}] {name}", file=sys.stderr, flush=True)
        try:
            if args.stream:
                stream(model, [name], None, params)
                continue
            transcript = model.transcribe(source(name), params=params)
        except BrokenPipeError:
            raise
        except (MossAudioError, OSError) as error:
            failed = True
            complain(f"{name}: {why(error)}")
            continue
        sys.stdout.write(_transcript_line(name, transcript) if args.json else WRITERS[args.format](transcript.segments))
        sys.stdout.flush()
    return int(failed)


def _transcript_line(name: str, transcript: Transcript) -> str:
    def timed(segment: Segment) -> dict[str, object]:
        return {"start": segment.start, "end": segment.end, "text": segment.text}

    return json_line(
        file=name,
        text=transcript.text,
        segments=[timed(segment) for segment in transcript.segments],
        finish_reason=transcript.finish_reason,
        usage=asdict(transcript.usage),
    )
