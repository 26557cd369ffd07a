"""The instructions that the released models were evaluated with, as data. Knows no tokens."""

from __future__ import annotations

TRANSCRIBE = "Transcribe the audio."
TRANSCRIPT_BEAMS = 4
"""Texts that a transcript weighs at a time unless told otherwise."""

DESCRIBE = "Describe this audio."

SPELLED = "{question}\nSpelled: {letters}"
"""A question with what the letter head made of the clip, for checkpoints that have one: rough spelling to read from."""

CHOOSE = (
    "Choose the correct answer from the options A, B, C and D. Output only the letter.\n"
    "Question: {question}\n{options}"
)
"""Multiple choice; `options` are lines such as `A. a dog`."""

CAPTION_FIELDS = (
    "gender", "age", "pitch", "speed", "volume", "clarity", "fluency", "accent", "texture", "emotion", "tone",
    "personality", "summary",
)  # fmt: skip
"""What a speech caption says of the speaker."""

CAPTION_SPEECH = f"Describe the speaker as a JSON object with the keys {', '.join(CAPTION_FIELDS)}."

TRANSCRIBE_TIMED = (
    "Transcribe the audio sentence by sentence. Put the start and end time in seconds around each sentence, "
    "as in [0.00]text[1.50]."
)
"""Answered in the form that `transcript.parse_timestamped` reads."""
