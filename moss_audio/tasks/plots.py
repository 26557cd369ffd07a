"""A timeline as a picture: waveform, spectrogram, and a lane for every kind of sound. Needs the extra `plot`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moss_audio.audio import HOP_LENGTH, SAMPLE_RATE, log_mel, mel_filters
from moss_audio.errors import BackendError
from moss_audio.prompts import NOTHING
from moss_audio.tasks.result import clock
from moss_audio.tasks.sounds import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#5b8c00")
"""Told apart by colour-blind people too (after Okabe and Ito, 2008), dark enough on white."""

INK, FAINT = "#333333", "#d9d9d9"
WIDTH, COLUMNS = 10.0, 1500
"""Inches, and the most points in time that are drawn: a little over the pixels there are."""

SILENT = 0.0
"""A log-mel that is never above this is drawn dark: its loudest band is 40 dB under that of normal recordings."""

MAX_LANES = 14
"""Kinds of sound that get a lane; the rest, those that sound least, share the last one."""


def draw_events(samples: np.ndarray, events: Sequence[Event], path: str | os.PathLike[str]) -> None:
    """Write the picture of `samples [n]` and its events to `path`; the suffix says in which format.

    Raises `BackendError` without matplotlib, and for a suffix that it cannot write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError("a plot needs matplotlib; install it with pip install 'moss-audio[plot]'") from error
    lanes = _lanes(events)
    heights = (0.9, 1.9, max(0.5, 0.34 * len(lanes)))
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), dpi=150, layout="constrained")
    wave, spectrum, timeline = figure.subplots(3, sharex=True, height_ratios=heights)
    seconds = len(samples) / SAMPLE_RATE
    _draw_wave(wave, samples, seconds)
    _draw_spectrum(spectrum, samples, seconds)
    _draw_lanes(timeline, lanes, seconds)
    for lane, (_, found) in enumerate(lanes):
        for event in found:  # faintly through all three
            wave.axvspan(event.start, event.end, color=_colour(lane), alpha=0.15, linewidth=0, zorder=0)
            spectrum.axvline(event.start, color="white", alpha=0.35, linewidth=0.7)
    for axes in (wave, spectrum, timeline):
        axes.tick_params(colors=INK, labelsize=8)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(side == "bottom" and axes is timeline)
        axes.set_xlim(0, seconds)
    timeline.set_xlabel("seconds" if seconds < 60 else "minutes", color=INK, fontsize=8)
    if seconds >= 60:
        timeline.xaxis.set_major_locator(_minutes(seconds))
        timeline.xaxis.set_major_formatter(lambda time, _: clock(time))
    try:
        figure.savefig(path)
    except ValueError as error:
        raise BackendError(f"{os.fspath(path)}: {error}") from error


def _draw_wave(axes: Axes, samples: np.ndarray, seconds: float) -> None:
    size = max(1, -(-len(samples) // COLUMNS))
    blocks = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size)
    times = (np.arange(len(blocks)) + 0.5) * size / SAMPLE_RATE
    axes.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color=INK, linewidth=0.2, zorder=2)
    peak = max(1e-3, float(np.abs(samples).max(initial=0.0)))
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_yticks([])
    axes.tick_params(bottom=False)
    axes.set_ylabel("level", color=INK, fontsize=8, rotation=0, ha="right", va="center")


def _draw_spectrum(axes: Axes, samples: np.ndarray, seconds: float) -> None:
    n_mels = 80
    size = max(1, -(-len(samples) // (HOP_LENGTH * COLUMNS)))  # frames in a column
    step = 1000 * size * HOP_LENGTH  # so that hours do not need gigabytes
    blocks = [log_mel(samples[i : i + step], n_mels) for i in range(0, len(samples) - HOP_LENGTH + 1, step)]
    columns = [np.maximum.reduceat(block, range(0, block.shape[1], size), axis=1) for block in blocks]
    mel = np.concatenate(columns, axis=1)
    top = max(float(mel.max()), SILENT)
    axes.imshow(
        mel, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, n_mels), vmin=top - 1.5, vmax=top
    )
    centres = mel_filters(n_mels).argmax(axis=1) * SAMPLE_RATE / 400
    marks = {hertz: int(np.abs(centres - hertz).argmin()) for hertz in (250, 1000, 2000, 4000)}
    axes.set_yticks([at + 0.5 for at in marks.values()], [f"{h} Hz" if h < 1000 else f"{h // 1000} kHz" for h in marks])
    axes.tick_params(bottom=False)


def _draw_lanes(axes: Axes, lanes: Sequence[tuple[str, list[Event]]], seconds: float) -> None:
    least = seconds / 250  # shorter ones would be too thin to see
    for lane, (_, events) in enumerate(lanes):
        spans = [(min(event.start, seconds - least), max(least, event.end - event.start)) for event in events]
        axes.axhline(lane, color=FAINT, linewidth=0.6, zorder=0)
        axes.broken_barh(spans, (lane - 0.32, 0.64), color=_colour(lane), zorder=2)
    axes.set_yticks(range(len(lanes)), [name for name, _ in lanes])
    for lane, label in enumerate(axes.get_yticklabels()):
        label.set_color(_colour(lane) if lanes[lane][1] else INK)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.tick_params(left=False)


def _lanes(events: Sequence[Event]) -> list[tuple[str, list[Event]]]:
    """Names with their events, in order of their first; one empty lane says so where nothing was heard."""
    lanes: dict[str, list[Event]] = {}
    for event in events:
        lanes.setdefault(event.label, []).append(event)
    if not lanes:
        return [(NOTHING.rstrip("."), [])]
    ranked = sorted(lanes, key=lambda name: -sum(event.end - event.start for event in lanes[name]))
    kept = set(ranked if len(ranked) <= MAX_LANES else ranked[: MAX_LANES - 1])
    rest = [event for name, found in lanes.items() if name not in kept for event in found]
    shown = [(_short(name), found) for name, found in lanes.items() if name in kept]
    return [*shown, (f"{len(ranked) - len(kept)} others", rest)] if rest else shown


def _colour(lane: int) -> str:
    return COLOURS[lane % len(COLOURS)]


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def _minutes(seconds: float) -> Any:
    """Ticks at round times, at most ten of them."""
    from matplotlib.ticker import MultipleLocator

    steps = (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    return MultipleLocator(next((step for step in steps if seconds / step <= 10), 7200))
