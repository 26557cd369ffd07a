"""What commands share: options of the model, reading a source, and the forms of output. Loads nothing heavy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import moss_audio
from moss_audio.errors import PromptError

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio
    from moss_audio.inference.sampling import SamplingParams

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED = 130
"""128 + the signal, as a shell reports a program that SIGINT ended."""


class Parser(argparse.ArgumentParser):
    """Help of one width everywhere, and no guessing of shortened options."""

    def __init__(self, **options: Any) -> None:
        def formatter(prog: str) -> argparse.HelpFormatter:
            return argparse.HelpFormatter(prog, max_help_position=28, width=100)

        super().__init__(**{"formatter_class": formatter, "allow_abbrev": False, **options})


def add_output(group: argparse._MutuallyExclusiveGroup, json_help: str) -> None:
    """`--json` and `--stream`, of which a command takes one."""
    group.add_argument("--json", action="store_true", help=json_help)
    group.add_argument("--stream", action="store_true", help="print the text as it is written")


def add_model(command: argparse.ArgumentParser) -> None:
    """Which model, where it runs, and how it chooses words."""
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


def load(args: argparse.Namespace) -> MossAudio:
    """The model that the options of `add_model` name."""
    return moss_audio.load(args.model, device=args.device, backend=args.backend)


def sampling(args: argparse.Namespace, parser: argparse.ArgumentParser, n_beams: int = 1) -> SamplingParams:
    """The sampling parameters of `add_model`; a value out of range is wrong usage."""
    try:
        return moss_audio.SamplingParams(
            temperature=args.temperature, max_new_tokens=args.max_new_tokens, n_beams=n_beams
        )
    except PromptError as error:
        parser.error(str(error))


def source(name: str) -> str | BinaryIO:
    """A path as it is; `-` is standard input."""
    return sys.stdin.buffer if name == "-" else name


def stream(
    model: MossAudio, names: list[str], question: str | None, params: SamplingParams, hotwords: Sequence[str] = ()
) -> None:
    """Print an answer, or without a question a transcript, as it is written."""
    for event in model.stream([source(name) for name in names], question, params=params, hotwords=hotwords):
        sys.stdout.write(event.text)
        sys.stdout.flush()
        if event.finish_reason == "length":
            complain_cut(", ".join(names))
    sys.stdout.write("\n")


def json_line(**values: object) -> str:
    """One JSON object on a line of its own."""
    return json.dumps(values, ensure_ascii=False) + "\n"


def why(error: Exception) -> str:
    """What to tell the user of an error whose file is named before it."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def complain_cut(name: str) -> None:
    """Say that a text is not whole; in JSON `finish_reason` says it."""
    complain(f"{name}: the text is cut off at the limit of tokens or in a loop; --max-new-tokens raises the limit")


def complain_failures(failures: Sequence[tuple[str, str]], n_recordings: int) -> None:
    """List the names that failed and why, once more at the end, where there was more than one recording."""
    if failures and n_recordings > 1:
        complain(f"{len(failures)} failed:")
        for name, reason in failures:
            complain(f"{name}: {reason}")


def complain(message: str) -> None:
    """One line on standard error."""
    print(f"moss-audio: {' '.join(message.split())}", file=sys.stderr)
