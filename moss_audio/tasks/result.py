"""What every task's result has: what it cost, and itself as text, as a JSON object and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from moss_audio.inference.generate import FinishReason, Usage
from moss_audio.transcript import Segment

Rows = tuple[Sequence[str], Sequence[Sequence[object]]]
"""The head of a table and its rows."""


@dataclass(frozen=True)
class Cost:
    """Of how long a recording an answer is, how it ended, and what it cost.

    `finish_reason` is `length` where any of the model's texts was cut, and `cancelled` where the caller stopped it.
    """

    duration: float
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class Result:
    """A typed answer; every task has its own."""

    cost: Cost

    @property
    def usage(self) -> Usage:
        """What it cost in tokens."""
        return self.cost.usage

    def to_dict(self) -> dict[str, Any]:
        """A JSON object: the result's own fields, then `duration`, `finish_reason` and `usage`."""
        own = {one.name: plain(getattr(self, one.name)) for one in fields(self) if one.name != "cost"}
        return own | asdict(self.cost)

    def to_text(self) -> str:
        """What a person reads first, without a line break at the end."""
        raise NotImplementedError

    def to_table(self) -> str:
        """Columns of equal width, in the form of Markdown."""
        head, rows = self.rows()
        cells = [list(head), *([cell(value) for value in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)) + " |" for row in cells]
        return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

    def rows(self) -> Rows:
        """The table's head and rows."""
        raise NotImplementedError


def cell(value: object) -> str:
    """A value in a table: times with two decimals, nothing for None, no line breaks."""
    text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "/").split())


def clock(seconds: float, tenths: bool = False) -> str:
    """A time a person reads: `0:07`, `1:02:30`, and with `tenths` `0:07.4`."""
    whole, tenth = divmod(int(10 * seconds + 0.01), 10)
    hours, minutes = divmod(whole // 60, 60)
    text = f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
    return f"{text}.{tenth}" if tenths else text


def plain(value: object) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, Segment):
        return plain(value.to_dict())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    return value
