"""`python -m moss_audio.cli` is `moss-audio`."""

from moss_audio.cli import run

run()
