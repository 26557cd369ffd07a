"""`moss-audio transcribe`: recordings to text, subtitles or JSON, one or many, on the screen or in a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_audio.cli.common import (
    INTERRUPTED,
    add_model,
    add_output,
    complain,
    complain_failures,
    load,
    sampling,
    source,
    stream,
    why,
)
from moss_audio.cli.recordings import Named, check_places, find
from moss_audio.cli.results import Results
from moss_audio.errors import MossAudioError, PromptError
from moss_audio.prompts import TRANSCRIPT_BEAMS
from moss_audio.transcript import WRITERS, SubtitleShape

if TYPE_CHECKING:
    from moss_audio.cli.common import Commands
    from moss_audio.inference.engine import MossAudio, Progress
    from moss_audio.inference.passages import Passage
    from moss_audio.inference.sampling import SamplingParams

_SHAPE = ("line_length", "lines", "characters_per_second", "min_seconds")
"""Options that are fields of `SubtitleShape`."""

BAR_WIDTH = 24


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "transcribe",
        help="write down what is said",
        description="Write down what is said. After Ctrl-C, what is written so far is printed or kept.",
    )
    inputs_help = "audio or video file, a folder of them, or a pattern in quotes; - reads standard input"
    command.add_argument("inputs", nargs="+", metavar="FILE", help=inputs_help)
    output = command.add_mutually_exclusive_group()
    format_help = f"{', '.join(WRITERS)} (default: txt); several, with commas, go to --output"
    output.add_argument("--format", type=_formats, default=["txt"], metavar="FORMAT", help=format_help)
    add_output(output, "print a JSON object a line: file, text, segments, duration, finish_reason, notes, usage")
    add_model(command)
    beams_help = f"texts weighed at a time; 1 is fastest (default: {TRANSCRIPT_BEAMS})"
    command.add_argument("--beams", type=int, default=TRANSCRIPT_BEAMS, metavar="N", help=beams_help)
    command.add_argument("--hotwords", metavar="WORDS", help="names and terms that may occur, with commas between them")
    files = command.add_argument_group("files")
    files.add_argument("--output", type=Path, metavar="DIR", help="write a file for each recording and format; "
                       "recordings that have theirs are skipped")  # fmt: skip
    files.add_argument("--overwrite", action="store_true", help="write them again")
    files.add_argument("--resume", action="store_true", help="go on with transcripts that were interrupted")
    video = files.add_mutually_exclusive_group()
    video.add_argument("--burn", action="store_true", help="also a copy of the video with subtitles in the picture; "
                       "needs the program ffmpeg")  # fmt: skip
    video.add_argument("--track", action="store_true", help="also a copy with subtitles as a track, in Matroska")
    subtitles = command.add_argument_group("subtitles (srt, vtt)")
    subtitles.add_argument("--readable", action="store_true", help="lines and cues that are easy to read; "
                           "the options below imply it")  # fmt: skip
    rules = SubtitleShape()
    subtitles.add_argument("--line-length", type=int, metavar="N", help=f"characters (default: {rules.line_length})")
    subtitles.add_argument("--lines", type=int, metavar="N", help=f"lines in a cue (default: {rules.lines})")
    subtitles.add_argument("--characters-per-second", type=float, metavar="N",
                           help=f"reading speed (default: {rules.characters_per_second:g})")  # fmt: skip
    subtitles.add_argument("--min-seconds", type=float, metavar="S",
                           help=f"shortest cue (default: {rules.min_seconds:g})")  # fmt: skip
    subtitles.add_argument("--word-cues", action="store_true", help="the time of every word, in vtt and lrc")
    command.set_defaults(command=_transcribe)


def _formats(text: str) -> list[str]:
    forms = text.split(",")
    if wrong := [form for form in forms if form not in WRITERS]:
        raise argparse.ArgumentTypeError(f"no format {wrong[0]!r}; valid: {', '.join(WRITERS)}")
    return forms


def _transcribe(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    recordings, failures = find(args.inputs)
    _check(args, parser, recordings)
    params, results = sampling(args, parser, args.beams), _results(args, parser)
    if args.burn:
        from moss_audio.video import find_ffmpeg

        find_ffmpeg()
    for name, reason in failures:
        complain(f"{name}: {reason}")
    wanted = [named for named in recordings if args.overwrite or not results.are_done(named)]
    if len(wanted) < len(recordings):
        skipped = len(recordings) - len(wanted)
        print(f"{skipped} of {len(recordings)} recordings are done; --overwrite writes them again", file=sys.stderr)
    whole = _each(wanted, results, args, params, failures) if wanted else True
    complain_failures(failures, len(recordings))
    return int(bool(failures)) if whole else INTERRUPTED


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser, recordings: Sequence[Named]) -> None:
    """Refuse, before anything is loaded, options that contradict each other."""
    if args.output is None:
        if len(args.format) > 1 or (len(recordings) > 1 and args.format != ["txt"]):
            forms = ",".join(args.format)
            parser.error(f"--format {forms} for several recordings or formats needs --output, or use --json")
        for option in ("resume", "overwrite", "burn", "track"):
            if getattr(args, option):
                parser.error(f"--{option} needs --output, the folder of the results")
    elif args.json or args.stream:
        parser.error(f"--{'json' if args.json else 'stream'} prints and --output writes files; use --format json")
    else:
        check_places(recordings, parser)


def _results(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Results:
    given = {name: getattr(args, name) for name in _SHAPE if getattr(args, name) is not None}
    try:
        rules = SubtitleShape(**given) if given or args.readable else None
    except PromptError as error:
        parser.error(str(error))
    video = "burn" if args.burn else "track" if args.track else None
    return Results(args.output, args.format, args.json, rules, args.word_cues, video)


def _each(
    recordings: Sequence[Named],
    results: Results,
    args: argparse.Namespace,
    params: SamplingParams,
    failures: list[tuple[str, str]],
) -> bool:
    """Transcribe one after another, noting `failures`; False once Ctrl-C cut one short."""
    model = load(args)
    for number, named in enumerate(recordings, 1):
        if len(recordings) > 1:
            print(f"[{number}/{len(recordings)}] {named.name}", file=sys.stderr, flush=True)
        try:
            if args.stream:
                stream(model, [named.name], None, params, _hotwords(args))
            elif not _one(model, named, results, args, params):
                return False
        except BrokenPipeError:
            raise
        except (MossAudioError, OSError) as error:
            failures.append((named.name, why(error)))
            complain(f"{named.name}: {why(error)}")
    return True


def _one(
    model: MossAudio, named: Named, results: Results, args: argparse.Namespace, params: SamplingParams
) -> bool:
    """Transcribe one recording and hand out the result; False if Ctrl-C cut it short."""
    from moss_audio.cli import unfinished

    kept, hotwords = results.unfinished(named), _hotwords(args)
    of = dict[str, Any]()
    if kept is not None:
        chosen = {**asdict(params), "stop": list(params.stop)}
        settings = {"model": args.model, "hotwords": hotwords, "words": args.word_cues, **chosen}
        of = unfinished.fingerprint(named.name, settings)
        kept.parent.mkdir(parents=True, exist_ok=True)
    found: list[Passage] = unfinished.restore(kept, of) if kept is not None and args.resume else []

    def report(progress: Progress) -> None:
        found.append(progress.passage)
        if kept is not None:
            unfinished.save(kept, of, found)
        _show(progress)

    try:
        transcript = model.transcribe(
            source(named.name),
            params=params,
            hotwords=hotwords,
            progress=report,
            done=tuple(found),
            words=args.word_cues,
        )
        whole = True
    except KeyboardInterrupt:
        from moss_audio.inference.engine import Transcript

        transcript, whole = Transcript.of(found, cancelled=True), False
    if whole and kept is not None:
        kept.unlink(missing_ok=True)
    results.hand_out(named, transcript)
    for note in transcript.notes:
        complain(f"{named.name}: {note}")
    if not whole:
        complain(f"{named.name}: stopped at {transcript.duration:.1f} s" + ("; --resume goes on" if kept else ""))
    return whole


def _hotwords(args: argparse.Namespace) -> list[str]:
    return [word.strip() for word in (args.hotwords or "").split(",") if word.strip()]


def _show(progress: Progress) -> None:
    """A line on the screen that is written over; nothing where nobody watches or there is nothing to wait for."""
    is_last = progress.total is not None and progress.seconds > progress.total - 0.5
    if not sys.stderr.isatty() or (is_last and progress.windows == 1):
        return
    bar, total = "", ""
    if progress.total:
        done = round(BAR_WIDTH * min(1.0, progress.seconds / progress.total))
        bar, total = f"[{'#' * done:<{BAR_WIDTH}}] ", f" of {_clock(progress.total)}"
    left = f", {_clock(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    line = "" if is_last else f"{bar}{_clock(progress.seconds)}{total}{left}"
    print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
