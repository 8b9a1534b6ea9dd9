"""Questions on contexts, from files of SQuAD's form; the windows that a context is read in (reference: run_squad.py).

A context that is too long is read in windows. A token that lies in several is scored in the one where it has the most
context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bert_jax.tasks import tables
from bert_jax.text import arrow, decoding, encoding
from bert_jax.text.tokenizer import Tokenizer


class Question(NamedTuple):
    """A question, its context, and its gold answers with the characters that they begin at."""

    id: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    located: bool = True  # the first answer stands where it says


FORM = "data > paragraphs > context, qas > id, question, answers > text, answer_start"


def read(path: str) -> Iterator[Question]:
    """The questions of a file in SQuAD's form: data > paragraphs > context, qas > id, question, answers.

    Parquet, Arrow and folders (see `arrow.paths`) hold a question a row: id, question, context, answers. An answer of
    an empty text is no answer.

    Raises:
      ValueError: that says where the file is not of that form.
    """
    if arrow.is_source(path):
        for place, row in arrow.rows(path, ["id", "question", "context"]):
            yield _question(place, row, _context(row, place))
        return
    content = tables.read_text(path)
    try:
        found = decoding.json_value(content)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    for n, article in enumerate(_entries(found, "data", path)):
        for m, paragraph in enumerate(_entries(article, "paragraphs", f"{path}: data[{n}]")):
            place = f"{path}: data[{n}].paragraphs[{m}]"
            for k, entry in enumerate(_entries(paragraph, "qas", place)):
                yield _question(f"{place}.qas[{k}]", entry, _context(paragraph, place))


def _context(paragraph: dict[str, Any], place: str) -> str:
    return decoding.a_text(_field(paragraph, "context", place), f"{place}.context")


def _question(place: str, entry: Any, context: str) -> Question:
    name = _field(entry, "id", place)
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        raise ValueError(f"{place}.id must be a text or a number, not {decoding.shown(name)}")
    # Messages name a question by its id, which is quicker to find than its place.
    where = f"{place.partition(': ')[0]}: question {name}"
    text = decoding.a_text(_field(entry, "question", where), f"{where}: question")
    impossible = entry.get("is_impossible")
    if impossible not in (None, False, True):
        raise ValueError(f"{where}: is_impossible must be true or false, not {decoding.shown(impossible)}")
    return Question(str(name), text, context, () if impossible else tuple(_answers(entry.get("answers"), where)))


def _answers(found: Any, where: str) -> Iterator[tuple[str, int]]:
    if isinstance(found, dict) and isinstance(found.get("text"), list):  # as `datasets` keeps them, column by column
        starts = found.get("answer_start")
        if not isinstance(starts, list) or len(starts) != len(found["text"]):
            raise ValueError(f"{where}: answers.text and answers.answer_start must be lists of one length")
        found = [{"text": text, "answer_start": start} for text, start in zip(found["text"], starts, strict=True)]
    if not isinstance(found, (list, type(None))):
        raise ValueError(f"{where}: answers must be a list, not {decoding.shown(found)}; the form is {FORM}")
    for number, gold in enumerate(found or []):
        place = f"{where}: answers[{number}]"
        text = decoding.a_text(_field(gold, "text", place), f"{place}.text")
        start = _field(gold, "answer_start", place)
        if isinstance(start, bool) or not (isinstance(start, int) or (isinstance(start, float) and start.is_integer())):
            raise ValueError(f"{place}.answer_start must be a number of characters, not {decoding.shown(start)}")
        if text:
            yield text, int(start)


def _field(found: Any, name: str, place: str) -> Any:
    if not isinstance(found, dict) or name not in found:
        there = f"there is {', '.join(map(str, found))}" if isinstance(found, dict) else f"not {decoding.shown(found)}"
        raise ValueError(f"{place}: not SQuAD's form, {FORM}: {name!r} is expected, {there}"[:500])
    return found[name]


def _entries(found: Any, name: str, place: str) -> list[Any]:
    entries = _field(found, name, place)
    if not isinstance(entries, list):
        shown = decoding.shown(entries)
        raise ValueError(f"{place}: not SQuAD's form, {FORM}: {name!r} must be a list, not {shown}")
    return entries


def require_distinct(questions: Sequence[Question], path: str) -> None:
    """Raises `ValueError` where two questions have one id: predictions are known by it, so one of them has none."""
    known: set[str] = set()
    for one in questions:
        if one.id in known:
            raise ValueError(f"{path}: two questions have the id {one.id!r}: predictions are scored by it, rename one")
        known.add(one.id)


class Shape(NamedTuple):
    """What a window's places mean: 0 is [CLS], then the question, then the context from `first` on, then [SEP]."""

    first: int
    size: int  # tokens, padding not counted
    offsets: np.ndarray  # int [K, 2]: the characters of the window's K context tokens
    most_context: np.ndarray  # bool [K]: no other window has more context for the token
    context: str

    def in_context(self, place: int) -> bool:
        return self.first <= place < self.first + len(self.offsets)


class Windows:
    """[CLS] question [SEP] part of the context [SEP], for each part of each context: the examples of a file."""

    def __init__(
        self,
        questions: Sequence[Question],
        length: int,
        stride: int,
        question: int,
        tokenizer: Tokenizer,
        cache_dir: str | None = None,
    ) -> None:
        self.questions, self.length, self.tokenizer = questions, length, tokenizer
        asked_texts = encoding.encode((one.text for one in questions), tokenizer, cache_dir)
        self._asked = [asked_texts[one.text].tokens[:question] for one in questions]
        read = encoding.encode((one.context for one in questions), tokenizer, cache_dir, offsets=True)
        rows = []
        for number, (one, asked) in enumerate(zip(questions, self._asked, strict=True)):
            room = length - len(asked) - 3
            if room <= 0:
                raise ValueError(
                    f"length {length} leaves no room for a context beside a question of {len(asked)} tokens"
                )
            first, last = answer_tokens(one, read[one.context][1])
            for start, stop in windows(len(read[one.context][0]), room, stride):
                inside = start <= first <= last < stop
                shift = len(asked) + 2 - start
                rows.append((number, start, stop, first + shift if inside else 0, last + shift if inside else 0))
        self._read = read
        self.table = np.asarray(rows, np.int32).reshape(-1, 5)  # question, [start, stop) in the context, the answer
        self._first = np.searchsorted(self.table[:, 0], np.arange(len(questions) + 1))  # a question's first window

    def __len__(self) -> int:
        return len(self.table)

    @property
    def epoch_size(self) -> int:
        """Questions, however many windows their contexts are read in: see `base.epoch_size`."""
        return len(self.questions)

    @property
    def sizes(self) -> np.ndarray:
        asked = np.asarray([len(one) for one in self._asked])
        return asked[self.table[:, 0]] + 3 + self.table[:, 2] - self.table[:, 1]

    @property
    def terms(self) -> np.ndarray:
        return np.ones(len(self))

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        tokens = np.full((len(ids), self.length), self.tokenizer.pad, np.int32)
        segments, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        for row, (number, start, stop) in enumerate(self.table[ids, :3]):
            asked, context = self._asked[number], self._read[self.questions[number].context][0]
            sep = [self.tokenizer.sep]
            whole = np.concatenate([[self.tokenizer.cls], asked, sep, context[start:stop], sep])
            tokens[row, : len(whole)], mask[row, : len(whole)] = whole, True
            segments[row, len(asked) + 2 : len(whole)] = 1
        return {
            "tokens": tokens,
            "segments": segments,
            "mask": mask,
            "start": self.table[ids, 3],
            "end": self.table[ids, 4],
        }

    def shape(self, window: int) -> Shape:
        """What the places of a window mean."""
        number, start, stop = self.table[window, :3].tolist()
        first, context = len(self._asked[number]) + 2, self.questions[number].context
        siblings = self.table[self._first[number] : self._first[number + 1], 1:3]
        own = window - self._first[number]
        near = (siblings[:, 0] < stop) & (siblings[:, 1] > start)  # those that share a token with it
        near[own] = True  # of an empty context, too
        best = np.flatnonzero(near)[most_context(siblings[near] - start)][: stop - start] == own
        return Shape(first, first + stop - start + 1, self._read[context][1][start:stop], best, context)


def windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The parts [start, stop) of a context: `stride` apart, `room` long, until one reaches the end.

    Windows that would leave a gap, with a stride above the room, stand side by side instead.
    """
    found = [(0, min(room, tokens))]
    while found[-1][1] < tokens:
        start = found[-1][0] + min(room, stride)
        found.append((start, min(start + room, tokens)))
    return found


def most_context(spans: np.ndarray) -> np.ndarray:
    """For each token of a context that is read in the windows `spans` [W, 2], the one where it has the most context.

    That is the smaller of its distances to the window's two ends; the first of equals. (Reference:
    `_check_is_max_context`. What it adds for a window's length decides nothing: only the last window is shorter.)
    """
    places = np.arange(spans[:, 1].max())[None, :]
    start, stop = spans[:, :1], spans[:, 1:]
    context = np.minimum(places - start, stop - 1 - places)
    return np.argmax(context, axis=0)  # it is negative outside a window


def answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int]:
    """The first and the last token of a question's first answer; (-1, -2) where it has none, or it has no tokens."""
    if not question.answers or not question.located:
        return -1, -2
    text, start = question.answers[0]
    touched = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
    return (int(touched[0]), int(touched[-1])) if len(touched) else (-1, -2)


class Misfit(NamedTuple):
    """A gold answer that does not come back exactly from its tokens."""

    id: str  # the question's
    answer: str
    reason: Literal["not at its offset", "invisible ends", "within a token"]
    found: str  # what comes back, or stands at the offset


def misfits(questions: Sequence[Question], tokenizer: Tokenizer) -> Iterator[Misfit]:
    """Those of all gold answers, each once a question, that no span of tokens gives exactly.

    An answer has "invisible ends" where it begins or ends with what no token covers, such as white space, and is
    "within a token" where that goes on beyond it, as in the "2" of "27".
    """
    encoded = encoding.encode((one.context for one in questions), tokenizer, offsets=True)
    for one in questions:
        for text, start in dict.fromkeys(one.answers):
            stop = start + len(text)
            there = one.context[max(start, 0) : max(stop, 0)]
            if start < 0 or there != text:
                yield Misfit(one.id, text, "not at its offset", there)
                continue
            offsets = encoded[one.context].offsets
            first, last = answer_tokens(one._replace(answers=((text, start),)), offsets)
            low, high = (int(offsets[first][0]), int(offsets[last][1])) if first >= 0 else (start, start)
            if (low, high) != (start, stop):
                reason: Any = "invisible ends" if start <= low <= high <= stop else "within a token"
                yield Misfit(one.id, text, reason, one.context[low:high])
