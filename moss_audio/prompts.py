"""The instructions that models are asked with, as data: those the released models were evaluated with, and the Mini's.

Training renders them too (`data.wording` adds other wordings), so that a task is asked as it was
learned. Knows no tokens.
"""

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

TRANSCRIBE_WORDS = (
    "Transcribe the audio word by word. Put the start and end time in seconds around each word, as in [0.00]text[0.30]."
)
"""The same for words."""

EVENTS = "List the sound events with their start and end times."
"""Answered `[0.4]dog barking[1.2][3.0]siren[5.5]`, in order of start, or `NOTHING`."""

NAME = "What sound is this?"

NOTHING = "Nothing is audible."
"""The answer to a question about sounds where there are none."""

MUSIC_FIELDS = ("instruments", "tempo", "bpm", "key", "metre", "style", "mood")
"""What is said of music: `tempo` is slow, moderate or fast; `bpm` a whole number; `key` such as `D major`."""

DESCRIBE_MUSIC = f"Describe the music as a JSON object with the keys {', '.join(MUSIC_FIELDS)}."

EMOTIONS = ("neutral", "happy", "sad", "angry", "afraid", "bored", "disgusted")

EMOTION = f"What emotion does the speaker show? Answer with one word: {', '.join(EMOTIONS)}."

SUMMARIZE = "Summarize what is said in one sentence."

NARRATE = "Say what is around me, briefly, the most urgent first."

CONVERSE_FIELDS = ("intent", "details", "mood", "background", "urgency")
"""What is said of a caller: what is wanted, its particulars, how the caller feels, what sounds behind, how urgent."""

CONVERSE = f"Describe the caller's request as a JSON object with the keys {', '.join(CONVERSE_FIELDS)}."

PRESENT = "Is there {what} in the recording?"
"""Whether something is heard; answered `Yes.` or `No.`"""
