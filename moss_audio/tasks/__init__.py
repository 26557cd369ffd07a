"""What people want of a recording, each a question, a reading of the answer, and a typed result.

    from moss_audio import load
    from moss_audio.tasks import events

    result = events(load("mini"), "street.wav", gap=1.0)
    print(result.to_text(), result.to_dict(), result.to_table(), sep="\\n")

Every task is a `Task`: called with a model and a recording it returns its own kind of `Result`. Importing this loads
nothing heavy, so that the command line and the server can read names and options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moss_audio.errors import PromptError
from moss_audio.tasks.options import (
    AskOptions,
    ChooseOptions,
    EventsOptions,
    FeedbackOptions,
    NarrateOptions,
    ReviewOptions,
    TranscribeOptions,
)
from moss_audio.tasks.task import Task

if TYPE_CHECKING:
    from moss_audio.inference.engine import AudioSource, MossAudio
    from moss_audio.tasks.answers import ChooseResult, TextResult, TranscribeResult
    from moss_audio.tasks.lessons import FeedbackResult
    from moss_audio.tasks.narration import NarrateResult
    from moss_audio.tasks.result import Result
    from moss_audio.tasks.reviewing import ReviewResult
    from moss_audio.tasks.songs import MusicResult
    from moss_audio.tasks.sounds import EventsResult
    from moss_audio.tasks.voices import ConverseResult, EmotionResult, SpeakerResult

transcribe: Task[TranscribeResult] = Task(
    "transcribe", "what is said, in sentences with times", "answers:transcribe", TranscribeOptions
)
describe: Task[TextResult] = Task("describe", "what is going on", "answers:describe")
events: Task[EventsResult] = Task("events", "a timeline of sounds", "sounds:find_events", EventsOptions)
music: Task[MusicResult] = Task("music", "instruments, tempo, key and mood of music", "songs:music")
speaker: Task[SpeakerResult] = Task("speaker", "how a speaker sounds, in thirteen fields", "voices:speaker")
emotion: Task[EmotionResult] = Task("emotion", "the emotion of a speaker", "voices:emotion")
ask: Task[TextResult] = Task("ask", "the answer to a question", "answers:ask", AskOptions)
choose: Task[ChooseResult] = Task("choose", "one of up to four answers", "answers:choose", ChooseOptions)
summarize: Task[TextResult] = Task("summarize", "what is said, in short", "answers:summarize")
review: Task[ReviewResult] = Task(
    "review", "a description, sentences to keep, and labels of a policy", "reviewing:review", ReviewOptions
)
narrate: Task[NarrateResult] = Task(
    "narrate", "what is around, only news, the most urgent first", "narration:narrate", NarrateOptions
)
feedback: Task[FeedbackResult] = Task(
    "feedback", "what was said or played against what was to be", "lessons:feedback", FeedbackOptions
)
converse: Task[ConverseResult] = Task("converse", "what a caller wants, and how they feel", "voices:converse")

TASKS: Mapping[str, Task[Any]] = {
    task.name: task
    for task in (
        transcribe, describe, events, music, speaker, emotion, ask, choose, summarize, review, narrate, feedback,
        converse,
    )
}  # fmt: skip
"""Every task by its name."""

__all__ = ["TASKS", "Task", "run", *TASKS]


def run(model: MossAudio, name: str, audio: AudioSource, **options: Any) -> Result:
    """Run the task called `name`. Raises `PromptError` for a name that is not one."""
    if name not in TASKS:
        raise PromptError(f"no task {name!r}; valid: {', '.join(TASKS)}")
    result: Result = TASKS[name](model, audio, **options)
    return result
