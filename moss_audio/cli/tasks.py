"""`moss-audio events`, `music`, `review` and the other typed tasks: one command each, made from the task's options.

`transcribe` and `ask` have commands of their own, which do more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from moss_audio.cli.common import (
    add_model,
    complain,
    complain_cut,
    complain_failures,
    json_line,
    load,
    sampling,
    source,
    why,
)
from moss_audio.cli.recordings import Named, check_places, find
from moss_audio.errors import MossAudioError, PromptError
from moss_audio.tasks import TASKS, Task
from moss_audio.tasks.options import read_options

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands
    from moss_audio.tasks.result import Result


def add(commands: Commands) -> None:
    """Declare the commands."""
    for name, task in TASKS.items():
        if name in ("transcribe", "ask"):
            continue
        command = commands.add_parser(
            name, help=task.summary, description=f"{task.summary[:1].upper()}{task.summary[1:]}."
        )
        inputs_help = "audio or video file, a folder of them, or a pattern in quotes; - reads standard input"
        command.add_argument("inputs", nargs="+", metavar="FILE", help=inputs_help)
        output = command.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="print a JSON object a line")
        output.add_argument("--table", action="store_true", help="print a table")
        output.add_argument("--output", type=Path, metavar="DIR", help=f"write NAME.{name}.json for each recording; "
                            "those that have theirs are skipped")  # fmt: skip
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
    from moss_audio.audio import load_audio

    params = sampling(args, parser)
    recordings, failures = find(args.inputs)
    if plot and len(recordings) > 1:
        parser.error("--plot draws one recording at a time")
    if args.output:
        check_places(recordings, parser)
    for name, reason in failures:
        complain(f"{name}: {reason}")
    wanted = [(named, _target(args, named)) for named in recordings]
    wanted = [(named, target) for named, target in wanted if target is None or not target.exists()]
    if len(wanted) < len(recordings):
        print(f"{len(recordings) - len(wanted)} of {len(recordings)} recordings are done", file=sys.stderr)
    model = load(args) if wanted else None
    for number, (named, target) in enumerate(wanted, 1):
        if len(wanted) > 1:
            print(f"[{number}/{len(wanted)}] {named.name}", file=sys.stderr, flush=True)
        try:
            samples = load_audio(source(named.name))
            result = args.task(model, samples, params=params, **options)
            if plot:
                from moss_audio.tasks.plots import draw_events

                draw_events(samples, result.events, plot)
            _hand_out(result, named, target, args)
        except BrokenPipeError:
            raise
        except (MossAudioError, OSError) as error:
            failures.append((named.name, why(error)))
            complain(f"{named.name}: {why(error)}")
    complain_failures(failures, len(recordings))
    return int(bool(failures))


def _target(args: argparse.Namespace, named: Named) -> Path | None:
    """The file that a result goes to, or None for the screen."""
    if args.output is None:
        return None
    place: Path = args.output / named.place
    return place.with_name(f"{place.name}.{args.task.name}.json")


def _hand_out(result: Result, named: Named, target: Path | None, args: argparse.Namespace) -> None:
    """Print a result or write its file."""
    line = json_line(file=named.name, **result.to_dict())
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(line, encoding="utf-8")
    else:
        text = result.to_table() if args.table else result.to_text()
        sys.stdout.write(line if args.json else f"{text}\n")
        sys.stdout.flush()
    if result.cost.finish_reason == "length":
        complain_cut(named.name)

