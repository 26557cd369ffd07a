"""Keeps a transcript to what was heard: what the heads say of every token that the language model would write.

Joint decoding of a language model with CTC (Watanabe et al. 2017, https://doi.org/10.1109/JSTSP.2017.2763455), on slots
instead of frames: neighbouring frames with the same best output are one slot, frames that are surely blank are none.
The cheapest way of a text through the slots is an edit distance with the head's own probabilities as costs, one row of
the table a letter, for all candidate tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moss_audio.runtime.backend import AudioEmbeds
    from moss_audio.tokenizer import Tokenizer

LETTERS_WEIGHT = 0.5
"""What a nat of the letters counts beside a nat of the language model."""

PIECES_WEIGHT = 0.4
"""What a nat of the pieces of words counts."""

FLOOR = -6.0
"""The least log-probability of a letter in a slot: the head is surer of itself than it is right."""

PIECE_FLOOR = -8.0
"""The same for a piece."""

LEAST_PIECE = 1e-3
"""Probability below which a piece is not thought of in a slot."""

INSERTION = 4.0
"""Cost in nats of a letter that has no slot, about what the head makes of a letter that it misses; also of one that a
piece has and the text has not, or another."""

MOST_PIECES = 2000
"""Pieces in the slots of a window: where the head is sure of nothing, each slot has fewer, and a step stays fast."""

UNSPOKEN = " .,;:?!-\"'"
"""Characters that may be written without having been heard. All others that the head cannot spell cost an insertion."""

BLANK_ENOUGH = 0.9
"""Frames with more blank than this are no slot of the letters."""

PIECE_BLANK_ENOUGH = 0.95
"""Steps with more blank than this are no slot of the pieces."""

FOREIGN = -1
"""Stands for a character that the heads cannot spell."""


@dataclass(frozen=True, eq=False)
class Place:
    """How far a text has come: the cheapest way to each slot of the letters, `letters [slots + 1]`, and to each node of
    the pieces, `pieces [nodes]`; and how many letters it has."""

    letters: np.ndarray
    pieces: np.ndarray
    written: int = 0


class Guide:
    """The cost, in nats, of writing tokens against what the heads heard in one window."""

    def __init__(self, audio: AudioEmbeds, letters: str, pieces: Sequence[str], tokenizer: Tokenizer) -> None:
        """`letters` and `pieces` are what the heads' outputs from 1 on spell; `audio` has what they heard."""
        assert audio.letter_logprobs is not None
        self._letters, self._tokenizer = letters, tokenizer
        self._by_letter = LetterSlots(audio.letter_logprobs)
        self._by_piece = None
        if audio.piece_ids is not None and audio.piece_logprobs is not None:
            spell = lambda piece: self._spelled(pieces[piece - 1].lower())  # noqa: E731
            self._by_piece = PieceSlots(audio.piece_ids, audio.piece_logprobs, spell, self._spelled(" "))
        self._spell = cache(self._token_letters)

    def start(self) -> Place:
        """Nothing written yet."""
        return Place(self._by_letter.start(), np.zeros(0) if self._by_piece is None else self._by_piece.start())

    def extend(self, steps: Sequence[tuple[Place, int]]) -> list[Place]:
        """The places after each step, a token written at a place; all of them in one go."""
        spelled = [self._spell(token, place.written > 0) for place, token in steps]
        letters = np.stack([place.letters for place, _ in steps])
        pieces = np.stack([place.pieces for place, _ in steps])
        for at in range(max(map(len, spelled), default=0)):
            rows = np.array([i for i, ids in enumerate(spelled) if len(ids) > at])
            letter = np.array([spelled[i][at] for i in rows])
            letters[rows] = self._by_letter.step(letters[rows], letter)
            if self._by_piece is not None:
                pieces[rows] = self._by_piece.step(pieces[rows], letter)
        written = (place.written + len(ids) for (place, _), ids in zip(steps, spelled, strict=True))
        return [Place(*rows) for rows in zip(letters, pieces, written, strict=True)]

    def cost(self, place: Place, ended: bool = False) -> float:
        """What the heads hold against a text so far; of one that has `ended` also what it has left unsaid."""
        cost = LETTERS_WEIGHT * float(place.letters[-1] if ended else place.letters.min())
        if self._by_piece is not None:
            cost += PIECES_WEIGHT * float(self._by_piece.end(place.pieces) if ended else place.pieces.min())
        return cost

    def behind(self, place: Place, ended: bool = False) -> int:
        """How many slots of the letters lie behind a text."""
        return len(place.letters) - 1 if ended else int(place.letters.argmin())

    def _token_letters(self, token: int, started: bool) -> tuple[int, ...]:
        """The outputs that spell a token; the space before the first word is not said."""
        if self._tokenizer.is_special(token):
            return ()
        text = self._tokenizer.token_bytes(token).decode("latin-1").lower()
        return self._spelled(text if started else text.lstrip())

    def _spelled(self, text: str) -> tuple[int, ...]:
        """The outputs of the letter head that spell `text`."""
        spoken = [c for c in text if c in self._letters or c not in UNSPOKEN]
        return tuple(self._letters.index(c) + 1 if c in self._letters else FOREIGN for c in spoken)


class LetterSlots:
    """What the letter head heard: a letter takes a slot, is said without one, or passes over one."""

    def __init__(self, logprobs: np.ndarray) -> None:
        """`logprobs [E, L]`, blank first."""
        heard = np.flatnonzero(logprobs[:, 0] < np.log(BLANK_ENOUGH))
        sums = np.zeros((0, logprobs.shape[1]))
        if len(heard):
            first = _runs(heard, logprobs[heard].argmax(axis=1))
            sums = np.add.reduceat(np.exp(logprobs[heard].astype(np.float64)), first, axis=0)
            sums /= np.diff(np.append(first, len(heard)))[:, None]
        costs = _costs(sums, FLOOR)
        foreign = np.full((len(costs), 1), np.inf)
        self._take = np.ascontiguousarray(np.concatenate([costs, foreign], axis=1).T)
        self._pass = np.concatenate([[0.0], np.cumsum(costs[:, 0])])

    def start(self) -> np.ndarray:
        """Costs `[slots + 1]` before the first letter."""
        return self._pass

    def step(self, costs: np.ndarray, letter: np.ndarray) -> np.ndarray:
        """Costs `[n, slots + 1]` after one more letter a row, `letter [n]`."""
        new = costs + INSERTION
        np.minimum(new[:, 1:], costs[:, :-1] + self._take[letter], out=new[:, 1:])
        after: np.ndarray = np.minimum.accumulate(new - self._pass, axis=1) + self._pass
        return after


class PieceSlots:
    """What the piece head heard: a lattice in which every likely piece of a slot is a chain of its letters.

    Node 0 is the start; behind each slot is a node where all of its pieces end, and inside a piece one behind each of
    its letters but the last. A text takes an edge a letter. Where the letter is another than the edge's, where it
    has none, and where a piece is left before its end, each letter costs an insertion.
    """

    def __init__(
        self, ids: np.ndarray, logprobs: np.ndarray, spell: Callable[[int], Sequence[int]], before: Sequence[int] = ()
    ) -> None:
        """Of P steps the K most likely outputs `ids [P, K]`, 0 the blank, and their `logprobs`; `spell` says how an
        output is spelled. Letters `before` the first are those that a piece at the beginning of a text has."""
        n_nodes, bounds, unsaid = 1, [0], [0.0]
        edges: list[tuple[int, int, int, float]] = []  # to, from, letter, cost
        leave: list[tuple[int, int, float]] = []  # to, from, cost
        slots = list(_piece_slots(ids, np.exp(logprobs.astype(np.float64))))
        most = max(1, MOST_PIECES // max(1, len(slots)))
        for blank, likely in slots:
            chains = [(chain, cost) for cost, piece in likely[:most] if (chain := spell(piece))]
            here, inner = bounds[-1], n_nodes
            n_nodes += 1 + sum(len(chain) - 1 for chain, _ in chains)
            bounds.append(n_nodes - 1)
            for chain, cost in chains:
                nodes = [here, *range(inner, inner := inner + len(chain) - 1), bounds[-1]]
                costs = [cost] + [0.0] * (len(chain) - 1)
                edges += zip(nodes[1:], nodes, chain, costs, strict=False)
                leave += [(bounds[-1], node, INSERTION * (len(chain) - i)) for i, node in enumerate(nodes[1:-1], 1)]
            unsaid.append(blank)
        self._bounds, self._pass = np.array(bounds), np.cumsum(unsaid)
        to, source, self._letter, costs_of = _columns(edges, 4)
        self._edges, self._leave = _Moves(to, source, costs_of), _Moves(*_columns(leave, 3))
        self._start: np.ndarray = np.full((1, n_nodes), np.inf)
        self._start[0, 0] = 0.0
        self._passed(self._start)
        for letter in before:
            self._start = self.step(self._start, np.array([letter]))

    def start(self) -> np.ndarray:
        """Costs `[nodes]` before the first letter."""
        return self._start[0]

    def step(self, costs: np.ndarray, letter: np.ndarray) -> np.ndarray:
        """Costs `[n, nodes]` after one more letter a row, `letter [n]`."""
        new = costs + INSERTION
        self._edges.into(new, costs, np.where(self._letter == letter[:, None], 0.0, INSERTION))
        return self._passed(new)

    def end(self, costs: np.ndarray) -> float:
        """The cost `costs [nodes]` have behind the last slot."""
        return float(costs[self._bounds[-1]])

    def _passed(self, costs: np.ndarray) -> np.ndarray:
        """`costs [n, nodes]` with the ways that leave pieces and pass over slots."""
        self._leave.into(costs, costs)
        costs[:, self._bounds] = np.minimum.accumulate(costs[:, self._bounds] - self._pass, axis=1) + self._pass
        return costs


class _Moves:
    """Moves between nodes, those to one node together."""

    def __init__(self, to: np.ndarray, source: np.ndarray, cost: np.ndarray) -> None:
        self._source, self._cost = source, cost
        self._first = np.flatnonzero(np.diff(to, prepend=-1))
        self._to = to[self._first]

    def into(self, new: np.ndarray, costs: np.ndarray, more: np.ndarray | float = 0.0) -> None:
        """Lower `new [n, nodes]` to what the cheapest move to each node costs from `costs`, each move `more`."""
        if len(self._to):
            moved = np.minimum.reduceat(costs[:, self._source] + self._cost + more, self._first, axis=1)
            new[:, self._to] = np.minimum(new[:, self._to], moved)


def _columns(rows: Sequence[tuple[float, ...]], width: int) -> list[np.ndarray]:
    """The `width` columns of `rows`, by node: whole numbers, and the last, a cost, a float."""
    columns = np.array(sorted(rows), np.float64).reshape(-1, width).T
    return [*columns[:-1].astype(np.int64), columns[-1]]


def _piece_slots(ids: np.ndarray, probs: np.ndarray) -> Iterator[tuple[float, list[tuple[float, int]]]]:
    """The cost of saying nothing in each slot, and of its likely pieces, best first: that one is heard in any step."""
    blank = np.where(ids == 0, probs, 0.0).sum(axis=1)
    heard = np.flatnonzero(blank < PIECE_BLANK_ENOUGH)
    first = _runs(heard, ids[heard, 0])
    for rows in np.split(heard, first[1:]) if len(heard) else ():
        own, chances = ids[rows], probs[rows]
        pieces = np.unique(own[own > 0])
        missed = np.prod(1 - np.where(own == pieces[:, None, None], chances, 0.0).sum(axis=2), axis=1)
        kept = 1 - missed > LEAST_PIECE
        costs = _costs(1 - missed[kept], PIECE_FLOOR).tolist()
        yield float(_costs(blank[rows].prod(), PIECE_FLOOR)), sorted(zip(costs, pieces[kept].tolist(), strict=True))


def _costs(probabilities: np.ndarray, floor: float) -> np.ndarray:
    """What probabilities cost in nats, at most as much as a log-probability of `floor`."""
    costs: np.ndarray = np.minimum(-np.log(np.maximum(probabilities, 1e-9)), -floor)
    return costs


def _runs(places: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Where runs of neighbouring `places` with the same `best` output begin."""
    return np.flatnonzero(np.concatenate([[True], (np.diff(best) != 0) | (np.diff(places) != 1)])[: len(places)])
