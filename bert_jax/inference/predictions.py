"""What a loaded model says, as named tuples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Filling(NamedTuple):
    """A candidate for a [MASK]: the piece, its probability, and the text with it in place."""

    token: str
    probability: float
    text: str


class Prediction(NamedTuple):
    """A text's class and the probability of every class.

    Of a multi-label classifier, whose labels hold each by itself, the most probable one and the probability of each.
    """

    label: str
    probabilities: dict[str, float]

    @property
    def labels(self) -> list[str]:
        """The labels whose probability is at least a half: those that hold, of a multi-label classifier."""
        return [label for label, probability in self.probabilities.items() if probability >= 0.5]


class Word(NamedTuple):
    """A word [start, stop) of a text, in characters, and its tag."""

    text: str
    start: int
    stop: int
    tag: str


class Entity(NamedTuple):
    """What words of one kind make up together, [start, stop) of the text."""

    text: str
    kind: str
    start: int
    stop: int


class Tagged(NamedTuple):
    """A text's words with their tags, and the entities that the tags mark, if they mark any."""

    words: list[Word]
    entities: list[Entity]


class Chosen(NamedTuple):
    """The number of the ending that fits best, from 0, and the probability of each."""

    choice: int
    probabilities: list[float]


class Hidden(NamedTuple):
    """Hidden states of a batch of texts, padded to the longest with zeros."""

    last: np.ndarray  # float32 [B, T, D], of the last layer
    layers: np.ndarray | None  # float32 [S, B, T, D], of the S layers that were asked for; None: of none
    mask: np.ndarray  # bool [B, T], True where there is a token
    pieces: list[list[str]]  # the tokens, [CLS] and [SEP] included
