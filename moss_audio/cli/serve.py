"""`moss-audio serve`: the model over HTTP, as OpenAI's clients speak it, with a page for people."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from moss_audio.cli.common import load
from moss_audio.errors import BackendError
from moss_audio.server.settings import Settings, environment_name

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands

PLAIN_KEY = environment_name("api_key")
"""The variable with one API key in plain text, as a container's secret gives it; never an option, which `ps` shows."""

METAVARS = {tuple: "A,B", str: "TEXT", int: "N", float: "SECONDS"}


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "serve",
        help="answer over HTTP, with a page to try it",
        description="Answer over HTTP as OpenAI's API does, and serve a page to try it. Every setting is also a "
        f"variable: --max-clips is {environment_name('max_clips')}. {PLAIN_KEY} may hold one API key.",
    )
    command.add_argument("--model", default="mini", metavar="NAME", help="mini (the default), a model folder, a hub id")
    command.add_argument("--backend", choices=["openvino", "torch"], help="what runs the model (default: what fits)")
    command.add_argument("--device", default="auto", metavar="NAME", help="auto (the default), cpu, gpu or cuda")
    command.add_argument(
        "--new-key", metavar="NAME", help="print a new API key and the line for the keys file, and end"
    )
    settings = command.add_argument_group("settings")
    for setting in fields(Settings):
        settings.add_argument(
            f"--{setting.name.replace('_', '-')}",
            metavar=METAVARS[type(setting.default)],
            help=setting.metadata["help"] + _shown(setting.default),
        )
    command.usage = "moss-audio serve [options]"
    command.set_defaults(command=_serve)


def _serve(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if args.new_key is not None:
        return _new_key(args.new_key)
    settings = Settings.read(os.environ, {setting.name: getattr(args, setting.name) for setting in fields(Settings)})
    try:
        from moss_audio.server.run import run
    except ImportError as error:
        raise BackendError(f"{error.name} is not installed; run: pip install 'moss-audio[server]'") from error
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    return run(settings, lambda: load(args), name, os.environ.get(PLAIN_KEY))


def _new_key(name: str) -> int:
    from moss_audio.server.keys import new_key

    key, line = new_key(name)
    print(f"The key, for the client; it is shown only now:\n{key}\nThe line for the keys file:\n{line}")
    return 0


def _shown(default: object) -> str:
    """A default as the help tells it."""
    if default in ("", ()):
        return ""
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
