"""Official scores, on the host, over a whole split. All are shares in [0, 1] or correlations in [-1, 1]: the official
scripts print some of them times 100. What a degenerate prediction leaves undefined is 0, where the formula gives none.
"""

from __future__ import annotations

import collections
import functools
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.config import require

# Of classes and values: GLUE (paper, section 4.1).


def accuracy(predicted: np.ndarray, expected: np.ndarray) -> float:
    """The share of equal entries."""
    return float(np.mean(predicted == expected))


def f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    """F1 of class 1: the harmonic mean of precision and recall; 0 where nothing is 1 on either side."""
    found, there = predicted == 1, expected == 1
    return _ratio(2 * np.sum(found & there), np.sum(found) + np.sum(there))


def matthews(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Matthews' correlation of classes, two or more (Gorodkin 2004); 0 where one side is constant."""
    classes = np.union1d(predicted, expected)
    a, b = ((side[:, None] == classes[None, :]).astype(np.float64) for side in (predicted, expected))
    a, b = a - a.mean(axis=0, keepdims=True), b - b.mean(axis=0, keepdims=True)
    return _ratio((a * b).sum(), np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))


def pearson(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    if constant(predicted) or constant(expected):  # of which the mean may differ by a rounding
        return 0.0
    a, b = (side.astype(np.float64) - side.astype(np.float64).mean() for side in (predicted, expected))
    return _ratio((a * b).sum(), np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))


def spearman(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of theirs."""
    return pearson(_ranks(predicted), _ranks(expected))


def macro_f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    """The mean of the F1 of each class that is predicted or expected anywhere."""
    classes = np.union1d(predicted, expected)
    return float(np.mean([f1(predicted == one, expected == one) for one in classes]))


def constant(predicted: np.ndarray) -> float:
    """1 where all predictions are the same, the mark of a fine-tuning that has collapsed; else 0."""
    return float(np.all(predicted == predicted[:1]))


def collapsed(predicted: np.ndarray, expected: np.ndarray) -> float:
    """1 where predicted values are one value but for noise: they spread less than a hundredth of the expected; else 0.

    The spread is the standard deviation.
    """
    spread = float(np.std(predicted.astype(np.float64)))
    return float(spread < 0.01 * float(np.std(expected.astype(np.float64))) or bool(constant(predicted)))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _ratio(a: Any, b: Any) -> float:
    return float(a / b) if b else 0.0


CLASSES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "mcc": matthews,
}
VALUES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {"pearson": pearson, "spearman": spearman}


# Of answers: SQuAD 1.1 and 2.0 (paper, sections 4.2 and 4.3). A text without spaces, as a Chinese one, is one word: its
# F1 is its exact match, as with the official script; the scripts of Chinese sets count characters instead.

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without ASCII punctuation, then without English articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def answer_exact(predicted: str, gold: str) -> float:
    """1 where both are normalised to the same text."""
    return float(normalised(predicted) == normalised(gold))


def answer_f1(predicted: str, gold: str) -> float:
    """F1 of the two bags of normalised words; 0 where nothing is shared, as between two empty ones."""
    a, b = normalised(predicted).split(), normalised(gold).split()
    return _ratio(2 * (collections.Counter(a) & collections.Counter(b)).total(), len(a) + len(b))


def squad(predicted: Mapping[str, str], golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`exact` and `f1` of SQuAD 1.1: each question's best over its gold answers; one without a prediction counts 0.

    Source: the behaviour of the official evaluate-v1.1.py.
    """
    require(bool(golds), "there are no questions to score")
    marks = [[_best(one, predicted, key, golds[key]) for key in golds] for one in (answer_exact, answer_f1)]
    return {"exact": float(np.mean(marks[0])), "f1": float(np.mean(marks[1]))}


def _best(mark: Callable[[str, str], float], predicted: Mapping[str, str], key: str, golds: Sequence[str]) -> float:
    return max((mark(predicted[key], gold) for gold in golds), default=0.0) if key in predicted else 0.0


def squad2(
    predicted: Mapping[str, str], golds: Mapping[str, Sequence[str]], null_odds: Mapping[str, float], threshold: float
) -> dict[str, float]:
    """The scores of SQuAD 2.0, where a question may have no answer (no golds) and the right prediction then is "".

    Args:
      predicted: an answer to each question, "" for none; a question that is not in it is left out of the scores.
      golds: all gold answers of each question; those that are normalised to nothing do not count.
      null_odds: how much more probable no answer is than `predicted`, on any scale.
      threshold: above these odds the prediction is taken to be "".

    Returns:
      `exact` and `f1` at the threshold; of the questions with an answer `has_answer_exact` and `has_answer_f1`, of
      those without `no_answer_exact` (their F1 is the same); and over all thresholds the best of both, `best_exact` and
      `best_f1`, with where it lies, `best_exact_threshold` and `best_f1_threshold`: what the paper's "tuned on dev" is.

    Source: the behaviour of the official evaluate-v2.0.py.
    """
    keys = [key for key in golds if key in predicted]
    require(bool(keys), "there are no predictions to score")
    real = {key: [gold for gold in golds[key] if normalised(gold)] for key in keys}
    answerable = np.array([len(golds[key]) > 0 for key in keys])
    odds = np.array([null_odds[key] for key in keys])
    figures: dict[str, float] = {}
    for name, mark in (("exact", answer_exact), ("f1", answer_f1)):
        marks = np.array([_mark2(mark, predicted[key], real[key]) for key in keys])
        thresholded = np.where(odds > threshold, ~answerable, marks)
        figures[name] = float(thresholded.mean())
        if answerable.any():
            figures[f"has_answer_{name}"] = float(thresholded[answerable].mean())
        if not answerable.all():
            figures["no_answer_exact"] = float(thresholded[~answerable].mean())
        best, figures[f"best_{name}_threshold"] = _best_threshold(keys, predicted, marks, answerable, odds)
        figures[f"best_{name}"] = best
    return figures


def _mark2(mark: Callable[[str, str], float], predicted: str, golds: Sequence[str]) -> float:
    """A mark in SQuAD 2.0: with nothing on one side, 1 where there is nothing on the other."""
    if not golds or not normalised(predicted):
        return float(not golds and not normalised(predicted))
    return max(mark(predicted, gold) for gold in golds)


def _best_threshold(
    keys: Sequence[str], predicted: Mapping[str, str], marks: np.ndarray, answerable: np.ndarray, odds: np.ndarray
) -> tuple[float, float]:
    """The best mean over thresholds and the lowest that gives it. "No answer" to all comes first, at threshold 0; then
    the predictions are let through one by one, from the least odds of no answer on."""
    answered = np.array([predicted[key] != "" for key in keys])
    gains = np.where(answerable, marks, -answered.astype(np.float64))
    order = np.argsort(odds, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(gains[order])]) + np.sum(~answerable)
    best = int(np.argmax(totals))
    return float(totals[best] / len(keys)), float(odds[order[best - 1]]) if best else 0.0


# Of tags: named entities (paper, section 5.3).

# The marks of tags, as those of IOBES: B- begins, I- goes on, E- ends, S- stands alone. BILOU has L- and U-, BMEWO and
# BMES M-, E- and W- or S-.
_MARKS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I", "W": "S"}


class Chunk(NamedTuple):
    """Words [start, stop) of one kind."""

    kind: str
    start: int
    stop: int


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """The chunks that the tags of a sentence mark: IOB1, IOB2, IOBES, BILOU, BMEWO and BMES alike.

    A chunk starts at B- and S-, where the kind changes, and after O, E- or S-; it ends before such a place and before
    O. Of IOB1 and IOB2 these are conlleval's rules; of IOBES they are seqeval's: the Perl script does not know S- and
    takes two of a kind in a row for one, nor does it end a chunk between E- and B-. Other marks count as I-.
    """
    found: list[Chunk] = []
    start, before = 0, ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        mark = _MARKS.get(mark, mark)
        new = kind != before[1] or mark in ("B", "S", "O") or before[0] in ("E", "S", "O")
        if new and before[0] != "O":
            found.append(Chunk(before[1], start, place))
        if new:
            start = place
        before = (mark, kind)
    return found


def as_iob2(tags: Sequence[str]) -> list[str]:
    """The same chunks, each begun with B-; "B" and "I" where the tags name no kind.

    Raises:
      ValueError: at a tag that is not O or a mark that is known, with or without a kind.
    """
    for tag in tags:
        check_tag(tag)
    result = ["O"] * len(tags)
    for kind, start, stop in chunks(tags):
        ending = f"-{kind}" if kind else ""
        result[start:stop] = [f"B{ending}"] + [f"I{ending}"] * (stop - start - 1)
    return result


@functools.cache
def check_tag(tag: str) -> None:
    """Raises `ValueError` at a tag that marks no chunk in a scheme that `chunks` reads, and is not O."""
    mark, dash, kind = tag.partition("-")
    if tag != "O" and (mark not in _MARKS or bool(dash) != bool(kind)):
        raise ValueError(
            f"the tag {tag!r} is neither O nor a mark ({', '.join(_MARKS)}) and a kind, as B-PER; tags that mark no "
            "chunks need task.scheme='as is'"
        )


def conlleval(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of chunks (kind, start and end all right) and `accuracy` of tags, by sentence.

    What a chunk is, `chunks` says.

    Raises:
      ValueError: where a sentence has more or fewer tags than it should.
    """
    pairs = list(_aligned(predicted, expected))
    found, there = ([set(chunks(tags)) for tags in side] for side in zip(*pairs, strict=True))
    right = sum(len(a & b) for a, b in zip(found, there, strict=True))
    made, gold = sum(map(len, found)), sum(map(len, there))
    equal = [a == b for tags, others in pairs for a, b in zip(tags, others, strict=True)]
    return {
        "precision": _ratio(right, made),
        "recall": _ratio(right, gold),
        "f1": _ratio(2 * right, made + gold),
        "accuracy": float(np.mean(equal)),
    }


def _aligned(a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    require(len(a) == len(b) > 0, f"{len(a)} sentences of tags, {len(b)} expected")
    for number, (one, other) in enumerate(zip(a, b, strict=True)):
        require(len(one) == len(other), f"sentence {number} has {len(one)} tags, {len(other)} expected")
        yield one, other
