"""Losses and development figures of runs as a picture: `python -m moss_audio.training.curves OUT.png LOG.jsonl …`.

A log is what `training.loop.fit` writes beside a stage's weights. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_audio.tasks.plots import COLOURS, FAINT


def points(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps at which `key` was measured, and its values."""
    found = [(int(line["step"]), float(line[key])) for line in lines if isinstance(line.get(key), int | float)]
    return [step for step, _ in found], [value for _, value in found]


def draw(logs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One panel a log: the loss against the left axis, rates from 0 to 1 (`dev_…`) against the right one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(logs), 3.4), layout="constrained")
    axes = figure.subplots(1, len(logs), squeeze=False)[0]
    for axis, (name, lines) in zip(axes, logs.items(), strict=True):
        axis.plot(*points(lines, "loss"), color=COLOURS[0], label="loss")
        axis.set(title=name, xlabel="step", ylabel="loss, nats")
        axis.grid(color=FAINT, linewidth=0.6)
        rates = axis.twinx()
        keys = dict.fromkeys(key for line in lines for key, value in line.items()
                             if key.startswith("dev_") and isinstance(value, float))  # fmt: skip
        for key, colour in zip(keys, COLOURS[1:], strict=False):
            rates.plot(*points(lines, key), color=colour, marker="o", label=key)
        rates.set(ylim=(0, 1), ylabel="development")
        axis.legend(handles=[*axis.lines, *rates.lines], fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the losses and development figures of training runs.")
    parser.add_argument("out", type=Path)
    parser.add_argument("logs", type=Path, nargs="+")
    args = parser.parse_args()
    logs = {log.stem: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] for log in args.logs}
    draw(logs, args.out)


if __name__ == "__main__":
    main()
