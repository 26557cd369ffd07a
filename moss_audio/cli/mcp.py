"""`moss-audio mcp`: the typed tasks as tools for agents that speak the Model Context Protocol."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from moss_audio.cli.common import load
from moss_audio.errors import BackendError

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "mcp",
        help="give an agent ears, over MCP",
        description="Serve the tasks as tools over standard input and output, as an agent's configuration starts it.",
    )
    command.add_argument(
        "--folder", action="append", metavar="DIR", help="folder whose recordings may be heard; repeatable (default: .)"
    )
    command.add_argument("--model", default="mini", metavar="NAME", help="mini (the default), a model folder, a hub id")
    command.add_argument("--backend", choices=["openvino", "torch"], help="what runs the model (default: what fits)")
    command.add_argument("--device", default="auto", metavar="NAME", help="auto (the default), cpu, gpu or cuda")
    command.set_defaults(command=_mcp)


def _mcp(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    folders = [Path(folder) for folder in args.folder or ["."]]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        parser.error(f"--folder {missing[0]} is not a folder")
    try:
        from moss_audio.server.agents import serve
    except ImportError as error:
        raise BackendError(f"{error.name} is not installed; run: pip install 'moss-audio[mcp]'") from error
    serve(load(args), folders)
    return 0
