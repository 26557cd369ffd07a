"""What hotwords change on synthetic speech with rare names: `python benchmarks/hotwords.py [--model mini]`.

Needs the programs flite and espeak-ng. Every sentence is said by each voice and transcribed without hotwords and with
the whole list of names, of which at most one is said. Prints how many of the names said were written, how many were
written that nobody said, and the word error rate of all other words.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import moss_audio
from moss_audio.data.synthesis import espeak, flite
from moss_audio.evaluation.metrics import ErrorRate
from moss_audio.evaluation.normalise import english

NAMES = (
    "Maarten Saoirse Priyanka Tomasz Anneliese Okonkwo Delacroix Bjornson Takahashi Villanueva Szymanski Abernathy "
    "Cavanaugh Yamaguchi Rasmussen Hathaway Kowalczyk Montague Peregrine Tolliver"
).split()

WITH_NAME = (
    "Please ask {name} to call me back before noon.",
    "I think that {name} has left the keys at home.",
    "We met {name} at the station yesterday.",
    "The letter was signed by {name} and nobody else.",
)

WITHOUT_NAME = (
    "Please ask the driver to call me back before noon.",
    "I think that somebody has left the keys at home.",
    "The market is open until six in the evening.",
    "We walked along the river and watched the boats come home.",
)


@dataclass(frozen=True)
class Tally:
    """Names said, names written of those, names written that were not said, and errors in other words."""

    said: int = 0
    written: int = 0
    invented: int = 0
    rest: ErrorRate = field(default_factory=ErrorRate)

    def after(self, truth: str, text: str) -> Tally:
        """The tally with one more transcript."""
        names = {name.lower() for name in NAMES}
        wanted, got = english(truth), english(text)
        said, written = names & set(wanted), names & set(got)
        rest = ErrorRate.of([word for word in wanted if word not in names], [word for word in got if word not in names])
        return Tally(
            self.said + len(said), self.written + len(said & written), self.invented + len(written - said),
            self.rest + rest,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Rare names with and without hotwords.")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--names", type=int, default=len(NAMES), help="how many of the names are said")
    args = parser.parse_args()
    model = moss_audio.load(args.model)
    said = [WITH_NAME[i % len(WITH_NAME)].format(name=name) for i, name in enumerate(NAMES[: args.names])]
    tallies = {"without": Tally(), "with": Tally()}
    for speak, voice in ((flite, "slt"), (flite, "rms"), (espeak, "en-us+f2")):
        for truth in (*said, *WITHOUT_NAME):
            samples = speak(truth, voice, 0.9)
            for way, hotwords in (("without", ()), ("with", NAMES)):
                text = model.transcribe(samples, hotwords=hotwords).text
                tallies[way] = tallies[way].after(truth, text)
    for way, tally in tallies.items():
        print(
            f"{way:8} {tally.written} of {tally.said} names written, {tally.invented} that nobody said, "
            f"other words {tally.rest.value:.1%} wrong ({tally.rest.words})"
        )


if __name__ == "__main__":
    main()
