"""Write docs/cli.md from the help texts: `python docs/make_cli.py`. A test compares the two."""

from __future__ import annotations

import argparse
from pathlib import Path

from moss_audio.cli import build_parser

PAGE = Path(__file__).with_name("cli.md")


def render() -> str:
    """The page: the help of the program, then that of each command."""
    parser = build_parser()
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = [parser, *(command for group in groups for command in group.choices.values())]
    pages = [f"## {command.prog}\n\n```\n{command.format_help()}```\n" for command in parsers]
    return "# The command line\n\nMade from `--help` by `python docs/make_cli.py`.\n\n" + "\n".join(pages)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
