"""The command line: arguments in, text out. Loads a model only for a command that needs one.

Every command is a module with `add(commands)`, which declares its arguments and the function that runs it.

Exit status: 0 for success, 1 if a recording or the model could not be used, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import moss_audio
from moss_audio.cli import ask, mcp, models, serve, tasks, transcribe
from moss_audio.cli.common import INTERRUPTED, Parser, complain
from moss_audio.errors import MossAudioError

COMMANDS = (transcribe, ask, tasks, models, serve, mcp)
"""In the order of the help."""

BROKEN_PIPE = 141
"""128 + the signal, as a shell reports a program that SIGPIPE ended."""


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
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """All commands and options; `docs/cli.md` is made from it."""
    parser = Parser(prog="moss-audio", description="Transcribe recordings and ask about them.")
    parser.add_argument("--version", action="version", version=f"moss-audio {moss_audio.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
