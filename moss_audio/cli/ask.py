"""`moss-audio ask`: a question about one recording, or about several heard together."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from moss_audio.cli.common import (
    add_model,
    add_output,
    complain,
    complain_cut,
    json_line,
    load,
    sampling,
    source,
    stream,
    why,
)

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands
    from moss_audio.inference.engine import Answer


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "ask",
        help="ask a question about recordings",
        description="Ask a question about one recording, or about several that are heard together, in their order.",
    )
    command.add_argument(
        "inputs", nargs="+", metavar="FILE", help="audio or video files (- reads standard input), and last the QUESTION"
    )
    add_output(
        command.add_mutually_exclusive_group(), "print a JSON object: file, text, reasoning, finish_reason, usage"
    )
    add_model(command)
    command.usage = "moss-audio ask [options] FILE [FILE ...] QUESTION"
    command.set_defaults(command=_ask)


def _ask(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    *names, question = args.inputs
    if not names:
        parser.error(f"ask needs a FILE and then a QUESTION, not only {question!r}")
    if Path(question).is_file():
        parser.error(f"ask ends with a QUESTION, not with the file {question!r}")
    params = sampling(args, parser)
    try:
        if args.stream:
            stream(load(args), names, question, params)
            return 0
        answer = load(args).ask([source(name) for name in names], question, params=params)
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(f"{error.filename or ', '.join(names)}: {why(error)}")
        return 1
    sys.stdout.write(_answer_line(names, answer) if args.json else f"{answer.text}\n")
    if answer.finish_reason == "length":
        complain_cut(", ".join(names))
    return 0


def _answer_line(names: list[str], answer: Answer) -> str:
    return json_line(
        file=names[0] if len(names) == 1 else names,
        text=answer.text,
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        usage=asdict(answer.usage),
    )
