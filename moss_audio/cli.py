"""The command line: arguments in, text out. Loads a model only for a command that needs one.

Exit status: 0 for success, 1 if a recording or the model could not be used, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import moss_audio
from moss_audio.errors import MossAudioError, PromptError
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.transcript import WRITERS, Segment

if TYPE_CHECKING:
    from moss_audio.inference.engine import Answer, MossAudio, Transcript
    from moss_audio.inference.sampling import SamplingParams

RELEASED = {
    "OpenMOSS-Team/MOSS-Audio-4B-Instruct": 10.4,
    "OpenMOSS-Team/MOSS-Audio-4B-Thinking": 10.4,
    "OpenMOSS-Team/MOSS-Audio-8B-Instruct": 18.1,
    "OpenMOSS-Team/MOSS-Audio-8B-Thinking": 18.1,
}
"""Hub ids of the released models and the size of their weights in GB."""

INTERRUPTED, BROKEN_PIPE = 130, 141
"""128 + the signal, as a shell reports a program that SIGINT or SIGPIPE ended."""


def run() -> NoReturn:
    """The entry point `moss-audio`."""
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # the reader left, as `head` does; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Raises `SystemExit` for wrong usage, help and version."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if (word.startswith("-") and word != "-") or "inputs" not in args]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if "inputs" in args:
        args.inputs += rest  # files may follow options
    try:
        return int(args.command(args, parser))
    except MossAudioError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """All commands and options; `docs/cli.md` is made from it."""
    parser = _Parser(prog="moss-audio", description="Transcribe recordings and ask about them.")
    parser.add_argument("--version", action="version", version=f"moss-audio {moss_audio.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("transcribe", help="write down what is said", description="Write down what is said.")
    command.add_argument("inputs", nargs="+", metavar="FILE", help="audio or video file; - reads standard input")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--format", choices=list(WRITERS), default="txt", help="form of the output (default: txt)")
    _add_output(output, "print a JSON object a line: file, text, segments, finish_reason, usage")
    _add_model(command)
    beams_help = f"texts weighed at a time; 1 is fastest (default: {TRANSCRIPT_BEAMS})"
    command.add_argument("--beams", type=int, metavar="N", help=beams_help)
    command.set_defaults(command=_transcribe)

    command = commands.add_parser(
        "ask",
        help="ask a question about recordings",
        description="Ask a question about one recording, or about several that are heard together, in their order.",
    )
    command.add_argument(
        "inputs", nargs="+", metavar="FILE", help="audio or video files (- reads standard input), and last the QUESTION"
    )
    _add_output(
        command.add_mutually_exclusive_group(), "print a JSON object: file, text, reasoning, finish_reason, usage"
    )
    _add_model(command)
    command.usage = "moss-audio ask [options] FILE [FILE ...] QUESTION"
    command.set_defaults(command=_ask)

    command = commands.add_parser("models", help="list the models", description="List the models that --model takes.")
    command.set_defaults(command=_models)
    return parser


class _Parser(argparse.ArgumentParser):
    """Help of one width everywhere, and no guessing of shortened options."""

    def __init__(self, **options: object) -> None:
        def formatter(prog: str) -> argparse.HelpFormatter:
            return argparse.HelpFormatter(prog, max_help_position=28, width=100)

        super().__init__(**{"formatter_class": formatter, "allow_abbrev": False, **options})  # type: ignore[arg-type]


def _add_output(group: argparse._MutuallyExclusiveGroup, json_help: str) -> None:
    group.add_argument("--json", action="store_true", help=json_help)
    group.add_argument("--stream", action="store_true", help="print the text as it is written")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="mini", metavar="NAME", help="mini (the default), a model folder, or a hub id"
    )
    command.add_argument("--backend", choices=["openvino", "torch"], help="what runs the model (default: what fits)")
    command.add_argument("--device", default="auto", metavar="NAME", help="auto (the default), cpu, gpu or cuda")
    command.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (the default) takes the likeliest words"
    )
    command.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="longest answer, for each 30 s of a transcript"
    )


def _transcribe(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if len(args.inputs) > 1 and args.format not in ("txt",):
        parser.error(f"--format {args.format} writes one file at a time; use --json for many")
    params, failed = _params(args, parser), False
    model = _load(args)
    for number, name in enumerate(args.inputs, 1):
        if len(args.inputs) > 1:
            print(f"[{number}/{len(args.inputs)}] {name}", file=sys.stderr, flush=True)
        try:
            if args.stream:
                _stream(model, [name], None, params)
                continue
            transcript = model.transcribe(_source(name), params=params)
        except BrokenPipeError:
            raise
        except (MossAudioError, OSError) as error:
            failed = True
            _complain(f"{name}: {error.strerror or error if isinstance(error, OSError) else error}")
            continue
        sys.stdout.write(_transcript_line(name, transcript) if args.json else WRITERS[args.format](transcript.segments))
        sys.stdout.flush()
    return int(failed)


def _ask(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    *names, question = args.inputs
    if not names:
        parser.error(f"ask needs a FILE and then a QUESTION, not only {question!r}")
    if Path(question).is_file():
        parser.error(f"ask ends with a QUESTION, not with the file {question!r}")
    params = _params(args, parser)
    try:
        if args.stream:
            _stream(_load(args), names, question, params)
            return 0
        answer = _load(args).ask([_source(name) for name in names], question, params=params)
    except BrokenPipeError:
        raise
    except OSError as error:
        _complain(f"{error.filename or ', '.join(names)}: {error.strerror or error}")
        return 1
    sys.stdout.write(_answer_line(names, answer) if args.json else f"{answer.text}\n")
    return 0


def _models(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from moss_audio.checkpoint import embedded_models

    for name, folder in embedded_models().items():
        size_gb = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9
        print(f"{name:<40}{size_gb:5.2f} GB  in this package")
    for hub_id, size_gb in RELEASED.items():
        print(f"{hub_id:<40}{size_gb:5.1f}  GB  downloaded at first use")
    return 0


def _params(args: argparse.Namespace, parser: argparse.ArgumentParser) -> SamplingParams:
    n_beams = getattr(args, "beams", 1)
    try:
        return moss_audio.SamplingParams(
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            n_beams=TRANSCRIPT_BEAMS if n_beams is None else n_beams,
        )
    except PromptError as error:
        parser.error(str(error))


def _load(args: argparse.Namespace) -> MossAudio:
    return moss_audio.load(args.model, device=args.device, backend=args.backend)


def _source(name: str) -> str | BinaryIO:
    return sys.stdin.buffer if name == "-" else name


def _stream(model: MossAudio, names: list[str], question: str | None, params: SamplingParams) -> None:
    for event in model.stream([_source(name) for name in names], question, params=params):
        sys.stdout.write(event.text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _transcript_line(name: str, transcript: Transcript) -> str:
    def timed(segment: Segment) -> dict[str, object]:
        return {"start": segment.start, "end": segment.end, "text": segment.text}

    return _json_line(
        file=name,
        text=transcript.text,
        segments=[timed(segment) for segment in transcript.segments],
        finish_reason=transcript.finish_reason,
        usage=asdict(transcript.usage),
    )


def _answer_line(names: list[str], answer: Answer) -> str:
    return _json_line(
        file=names[0] if len(names) == 1 else names,
        text=answer.text,
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        usage=asdict(answer.usage),
    )


def _json_line(**values: object) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _complain(message: str) -> None:
    print(f"moss-audio: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    run()
