"""A conversation to an answer: every clip encoded, the whole rendered, and as many answers as are wanted, in turn.

`MossAudio.ask` is one question about its clips; here there are earlier turns, a system prompt and forms of answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moss_audio.audio import log_mel
from moss_audio.inference.generate import TokenEvent, generate, room
from moss_audio.inference.grammar import State
from moss_audio.inference.grammar_tokens import Constraint, vocabulary
from moss_audio.inference.letters import spelling
from moss_audio.inference.sampling import SamplingParams
from moss_audio.messages import AudioPart, MelPart, Message, Part, TextPart
from moss_audio.prompts import SPELLED
from moss_audio.server.turns import Cancelled

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio
    from moss_audio.runtime.backend import AudioEmbeds


@dataclass(frozen=True)
class Question:
    """What is asked: a conversation that ends with the user, how to answer, how often, and in what form."""

    messages: tuple[Message, ...]
    params: SamplingParams
    n: int = 1
    form: State | None = None


def answers(model: MossAudio, question: Question, cancelled: Cancelled) -> Iterator[tuple[int, TokenEvent]]:
    """The events of all answers, each with its answer's number. Audio is encoded once; the seed goes up by one."""
    messages, audio = _hear(model, question.messages)
    inputs = model.processor.encode(messages)
    for index in range(question.n):
        params, allowed = question.params, None
        if params.seed is not None:
            params = replace(params, seed=params.seed + index)
        if question.form is not None:
            words = vocabulary(model.tokenizer, model.backend.config.decoder.vocab_size)
            allowed = Constraint(question.form, words, min(params.max_new_tokens, room(model.backend, inputs)))
        for event in generate(
            model.backend, model.tokenizer, inputs, params, audio=audio, allowed=allowed, cancelled=cancelled
        ):
            yield index, event
        if cancelled():
            return


def _hear(model: MossAudio, messages: Sequence[Message]) -> tuple[list[Message], AudioEmbeds | None]:
    """Encode all clips. Where there is a letter head, a message with clips ends in their spelling, as in training."""
    config = model.backend.config.audio
    mels = [
        log_mel(part.samples, config.n_mels) for m in messages for part in m.parts if isinstance(part, AudioPart)
    ]
    if not mels:
        return list(messages), None
    audio = model.backend.encode_audio(mels)
    heard, rendered, frame, step = iter(mels), list[Message](), 0, 0
    for message in messages:
        parts: list[Part] = [MelPart(next(heard)) if isinstance(part, AudioPart) else part for part in message.parts]
        if audio.letter_logprobs is not None:
            lengths = [part.mel.shape[1] for part in parts if isinstance(part, MelPart)]
            if lengths:
                letters = audio.letter_logprobs[frame : (frame := frame + sum(-(-n // 2) for n in lengths))]
                steps = slice(step, step := step + sum(-(-n // 4) for n in lengths))
                pieces = None if audio.piece_ids is None else audio.piece_ids[steps, 0]
                parts = _spelled(parts, spelling(letters, config.letters, pieces, model.processor.pieces).quoted)
        rendered.append(Message(message.role, tuple(parts)))
    return rendered, audio


def _spelled(parts: Sequence[Part], words: str) -> list[Part]:
    """Clips first and then one text with their spelling: the one order that a model with a letter head has seen."""
    text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    clips = [part for part in parts if not isinstance(part, TextPart)]
    return [*clips, TextPart(SPELLED.format(question=text, letters=words))]
