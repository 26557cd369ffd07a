"""`moss-audio models`: what `--model` takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands

RELEASED = {
    "OpenMOSS-Team/MOSS-Audio-4B-Instruct": 10.4,
    "OpenMOSS-Team/MOSS-Audio-4B-Thinking": 10.4,
    "OpenMOSS-Team/MOSS-Audio-8B-Instruct": 18.1,
    "OpenMOSS-Team/MOSS-Audio-8B-Thinking": 18.1,
}
"""Hub ids of the released models and the size of their weights in GB."""


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("models", help="list the models", description="List the models that --model takes.")
    command.set_defaults(command=_models)


def _models(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from moss_audio.checkpoint import embedded_models

    for name, folder in embedded_models().items():
        size_gb = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9
        print(f"{name:<40}{size_gb:5.2f} GB  in this package")
    for hub_id, size_gb in RELEASED.items():
        print(f"{hub_id:<40}{size_gb:5.1f}  GB  downloaded at first use")
    return 0
