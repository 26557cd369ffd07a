"""`review`: a recording described, sentences worth keeping, and labels of a policy with spans and reasons.

A policy is labels in plain words, as TOML or as lines:

    violence = 'fighting, screams or threats, such as "kill you" or "gun"'
    - profanity: swear words, such as "damn"

Words in double quotes are searched in the transcript, without regard to case, and flagged to the word. Whatever else a
description says is a question to the model about every window, and flagged to the window where it says yes. Words are
found as surely as they were transcribed; the model's yes is a hint for a person who listens, not a decision.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moss_audio.audio import SAMPLE_RATE
from moss_audio.errors import PromptError
from moss_audio.prompts import DESCRIBE, PRESENT
from moss_audio.tasks.listener import Listener
from moss_audio.tasks.options import ReviewOptions
from moss_audio.tasks.result import Result, Rows, clock
from moss_audio.transcript import Segment, Word

_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]")
_LINE = re.compile(r"^\s*[-*]?\s*([\w ./-]{1,60}?)\s*[:=]\s*(.+?)\s*$")
_SUCH_AS = re.compile(r",?\s*\b(such as|for example|e\.g\.|like)?\W*(\bor\b|\band\b|,)?\W*$")
_COMMON = frozenset(
    "a an and are as at be but by for from had has have he her his i in is it its me my no not of on or our she so "
    "that the their them they this to was we were what when which who will with you your".split()
)


@dataclass(frozen=True)
class Flag:
    """A label of the policy with the span that it holds for, and why. `confidence` is 1 for words that were found."""

    label: str
    start: float
    end: float
    reason: str
    source: Literal["words", "model"]
    confidence: float


@dataclass(frozen=True)
class ReviewResult(Result):
    """`description` by window; `keep` are sentences of the transcript that stand for the rest, none of them flagged."""

    description: tuple[Segment, ...]
    keep: tuple[Segment, ...]
    flags: tuple[Flag, ...]

    def to_text(self) -> str:
        lines = [f"{clock(part.start)} {part.text}" for part in self.description]
        lines += [f"keep {_span(part)} {part.text}" for part in self.keep]
        lines += [f"flag {_span(flag)} {flag.label}: {flag.reason}" for flag in self.flags]
        return "\n".join(lines)

    def rows(self) -> Rows:
        rows: list[tuple[object, ...]] = [("description", p.start, p.end, "", p.text) for p in self.description]
        rows += [("keep", p.start, p.end, "", p.text) for p in self.keep]
        rows += [("flag", flag.start, flag.end, flag.label, flag.reason) for flag in self.flags]
        return ("what", "start", "end", "label", "text"), rows


def review(listener: Listener, samples: np.ndarray, options: ReviewOptions) -> ReviewResult:
    """Describe, flag and propose what to keep."""
    policy = options.policy or {}
    transcript = listener.transcribe(samples)
    flags = [flag for label, text in policy.items() for flag in match_words(label, text, transcript.segments)]
    description: list[Segment] = []
    for start, part in listener.parts(samples):
        end = round(start + len(part) / SAMPLE_RATE, 2)
        description.append(Segment(round(start, 2), end, listener.ask(part, DESCRIBE)))
        for label, text in policy.items():
            if what := question_of(text):
                picked = listener.choose(part, PRESENT.format(what=what), ("Yes.", "No."))
                if picked is not None and picked.text == "Yes.":
                    sure = round(picked.probability, 3)
                    reason = f"the model hears {what} ({100 * sure:.0f} %)"
                    flags.append(Flag(label, round(start, 2), end, reason, "model", sure))
    flags.sort(key=lambda flag: (flag.start, flag.end, flag.label))
    said = [flag for flag in flags if flag.source == "words"]
    clean = [one for one in transcript.segments if not any(f.start < one.end and one.start < f.end for f in said)]
    keep = key_sentences(clean, options.keep)
    return ReviewResult(listener.cost(samples), tuple(one for one in description if one.text), keep, tuple(flags))


def read_policy(text: str) -> dict[str, str]:
    """A policy file: TOML (strings at the top or under `[labels]`), or lines `label: description`; `#` is a heading.

    Raises `PromptError` naming the first line that is neither.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return dict(_policy_lines(text))
    labels = raw.get("labels", raw)
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise PromptError("the policy's labels must be texts: label = \"what it means\"")
    return {str(label): " ".join(value.split()) for label, value in labels.items()}


def _policy_lines(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(("#", "[")):
            continue
        match = _LINE.match(line)
        if match is None:
            raise PromptError(f"line {number} of the policy is {line.strip()!r}; valid: label: what it means")
        yield match[1], match[2]


def match_words(label: str, description: str, segments: Sequence[Segment]) -> Iterator[Flag]:
    """Where the quoted words of a description are said: at the words, or at the sentence where those have no times."""
    for phrase in _QUOTED.findall(description):
        wanted = plain_words(phrase)
        for segment in segments:
            words = segment.words or tuple(Word(text, segment.start, segment.end) for text in segment.text.split())
            said = [" ".join(plain_words(word.text)) for word in words]
            for i in range(len(said) - len(wanted) + 1):
                if wanted and said[i : i + len(wanted)] == wanted:
                    start, end = words[i].start, words[i + len(wanted) - 1].end
                    yield Flag(label, start, end, f"{phrase!r} is said", "words", 1.0)


def question_of(description: str) -> str:
    """What of a description is to be heard and not read: all but its quoted words."""
    head = _QUOTED.split(description)[0]
    return _SUCH_AS.sub("", head).strip(" .,;:")


def key_sentences(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    """The `count` sentences whose words come most often in the whole, in order of time (Luhn, IBM Journal 2, 1958).

    Sentences of fewer than three words that carry meaning say too little to be kept, and one said twice is kept once.
    """
    once: dict[tuple[str, ...], Segment] = {}
    for segment in segments:
        once.setdefault(tuple(plain_words(segment.text)), segment)
    segments = list(once.values())
    meant = [[word for word in plain_words(segment.text) if word not in _COMMON] for segment in segments]
    often = Counter(word for words in meant for word in words)
    scores = [sum(often[word] for word in words) / len(words) if len(words) >= 3 else 0.0 for words in meant]
    ranked = sorted((i for i in range(len(segments)) if scores[i]), key=lambda i: (-scores[i], -len(meant[i]), i))
    return tuple(segments[i] for i in sorted(ranked[:count]))


def _span(part: Segment | Flag) -> str:
    return f"{clock(part.start, tenths=True)}-{clock(part.end, tenths=True)}"


def plain_words(text: str) -> list[str]:
    """Words without case and marks; apostrophes stay."""
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))


