"""`moss-audio events`, `music`, `review` and the other typed tasks: one command each, made from the task's options.

`transcribe` and `ask` have commands of their own, which do more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from moss_audio.cli.common import add_model, complain, complain_cut, json_line, load, sampling, source, why
from moss_audio.errors import MossAudioError, PromptError
from moss_audio.tasks import TASKS, Task
from moss_audio.tasks.options import read_options

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    for name, task in TASKS.items():
        if name in ("transcribe", "ask"):
            continue
        command = commands.add_parser(
            name, help=task.summary, description=f"{task.summary[:1].upper()}{task.summary[1:]}."
        )
        command.add_argument("inputs", nargs="+", metavar="FILE", help="audio or video file; - reads standard input")
        output = command.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="print a JSON object a line")
        output.add_argument("--table", action="store_true", help="print a table")
        if name == "events":
            command.add_argument("--plot", metavar="FILE", help="draw it with waveform and spectrogram, as PNG or SVG")
        _add_options(command, task)
        add_model(command)
        command.set_defaults(command=_run, task=task)


def _add_options(command: argparse.ArgumentParser, task: Task[Any]) -> None:
    """A flag for each option; lists are flags that are given several times, and a policy is a file."""
    kinds = get_type_hints(task.options)
    for one in fields(task.options):
        kind, text = kinds[one.name], one.metadata["help"].replace("%", "%%")
        flag: dict[str, Any] = {"dest": f"option_{one.name}", "default": argparse.SUPPRESS, "required": False}
        if one.default is MISSING:
            flag["required"] = True
        elif one.default is not None:
            text += f" (default: {one.default})"
        if one.name == "policy":
            flag |= {"type": _policy, "metavar": "FILE"}
            text = f"file with {text}"
        elif kind == tuple[str, ...]:
            flag |= {"action": "append", "metavar": "TEXT"}
            text += "; once for each"
        elif kind in (int, float, float | None):
            flag |= {"type": int if kind is int else float, "metavar": "N"}
        else:
            flag |= {"metavar": "TEXT"}
        command.add_argument(f"--{one.name.replace('_', '-')}", help=text, **flag)


def _policy(name: str) -> dict[str, str]:
    from moss_audio.tasks.reviewing import read_policy

    try:
        return read_policy(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{name}: {why(error)}") from error
    except PromptError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from error


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    prefix = "option_"
    options = {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}
    try:
        read_options(args.task.options, options)
    except PromptError as error:
        parser.error(str(error))
    plot = getattr(args, "plot", None)
    if plot and len(args.inputs) > 1:
        parser.error("--plot draws one recording at a time")
    from moss_audio.audio import load_audio

    params, failed = sampling(args, parser), False
    model = load(args)
    for number, name in enumerate(args.inputs, 1):
        if len(args.inputs) > 1:
            print(f"[{number}/{len(args.inputs)}] {name}", file=sys.stderr, flush=True)
        try:
            samples = load_audio(source(name))
            result = args.task(model, samples, params=params, **options)
            if plot:
                from moss_audio.tasks.plots import draw_events

                draw_events(samples, result.events, plot)
        except BrokenPipeError:
            raise
        except (MossAudioError, OSError) as error:
            failed = True
            complain(f"{name}: {why(error)}")
            continue
        text = result.to_table() if args.table else result.to_text()
        sys.stdout.write(json_line(file=name, **result.to_dict()) if args.json else f"{text}\n")
        sys.stdout.flush()
        if result.cost.finish_reason == "length":
            complain_cut(name)
    return int(failed)

