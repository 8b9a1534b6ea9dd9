"""Lines in, JSON lines out: what `scripts/predict.py` asks of a model."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bert_jax.config import nearest, require
from bert_jax.inference.model import Model
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.text import decoding
from bert_jax.weights.names import POOLINGS

VECTORS = (*POOLINGS, "tokens")  # of a text, or of each of its tokens: see `embeddings`


Line = tuple[int, "str | ValueError"]  # its number, and what stands there, or why it cannot be read


_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}  # to some readers of JSON lines


class UnansweredError(ValueError):
    """Some lines have no answer. Those of the others were given before."""


def numbered(stream: Any) -> Iterator[Line]:
    """The lines of a stream of bytes, counted from 1, without their ends.

    A byte order mark says UTF-16; else it is UTF-8. "\\n" and "\\r\\n" end a line, and "\\r" where the input has
    no other. A line of bytes that are not UTF-8 comes as the error that says so.
    """
    first = stream.readline()
    try:
        known = decoding.encoding(first[:4])
    except ValueError as error:
        yield 1, ValueError(f"line 1: {error}")
        return
    if not known.startswith("utf-8"):
        yield from enumerate(decoding.text(first + stream.read(), "the input").removesuffix("\n").split("\n"), start=1)
        return
    first = first.removeprefix(codecs.BOM_UTF8)
    parts = first.split(b"\r") if not first.endswith(b"\n") else [first]  # without "\n" it is the whole input
    parts = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    for number, line in enumerate(itertools.chain(parts if first else [], stream), start=1):
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} of it is {line[error.start]:#04x}, which is not UTF-8"
            yield number, ValueError(f"line {number}: {byte}; convert the input, for example with iconv")


def parse(
    number: int, line: str, names: Sequence[str], optional: Sequence[str] = (), lists: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of an input line: a JSON object that has `names` and perhaps `optional`, or the same parted by tabs.

    Their values are texts, those of `lists` may be lists of texts; an optional one that is null is not there. What
    else an object holds is given back with the answer.

    Raises:
      ValueError: that names the line.
    """
    line = line.rstrip("\r\n")
    if number == 1:
        line = line.removeprefix("\ufeff")
    require(line.strip() != "", f"line {number} is empty: one question a line")
    if line.lstrip().startswith("{"):
        try:
            found: dict[str, Any] = decoding.json_value(line, strict=True)
        except ValueError as error:
            raise ValueError(f"line {number}: no JSON object: {error}") from None
    else:
        found = dict(zip([*names, *optional], line.split("\t", len(names) + len(optional) - 1), strict=False))
    found = {name: value for name, value in found.items() if name not in optional or value is not None}
    missing = [name for name in names if found.get(name) is None]
    wanted = " and ".join(map(repr, names))
    if missing:
        raise ValueError(f"line {number} needs {wanted}, as a JSON object or parted by tabs: {line[:80]!r}")
    for name in (*names, *optional):
        value = found.get(name, "")
        if name in lists and isinstance(value, list):
            require(bool(value), f"line {number}: {name!r} is an empty list")
            for place, item in enumerate(value):
                decoding.a_text(item, "line ", number, ": ", name, "[", place, "]")
        else:
            decoding.a_text(value, "line ", number, ": ", repr(name))
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"line {number} holds half a surrogate pair") from None
    return found


def answers(model: Model, lines: Sequence[Line], top: int = 5, null_threshold: float | None = None) -> Iterator[str]:
    """A JSON line for each numbered input line: what it holds, and what the model's task says to it.

    A pre-training run fills in the [MASK] of a "text"; a classifier labels and a regression scores a "text" and perhaps
    its "pair"; a tagger tags a "text"; to a "question" and its "context" there is an answer, with its place in the
    context, "" where the odds of no answer are above `null_threshold` (by default the model's own, of a model that was
    not trained on questions without one, none); of a "context" and its "endings" one is chosen. A line that cannot be
    answered has the number of its "line" and an "error".

    Raises:
      UnansweredError: after all answers, where a line has none; it names the first.
      ValueError: that says what the model lacks.
    """
    task = model.experiment.task
    require(
        null_threshold is None or isinstance(task, Squad), "null_threshold is of question answering: leave it out here"
    )
    rows = _Rows(lines)
    names, optional = ["text"], []
    if isinstance(task, Classify):
        optional = ["pair"]
    elif isinstance(task, Squad):
        names = ["question", "context"]
    elif isinstance(task, Choose):
        names = ["context", "endings"]
    lists = ["text"] if isinstance(task, Tag) else ["endings"]
    rows.each(lambda number, line: parse(number, line, names, optional, lists))
    if isinstance(task, Choose):
        rows.each(_with_endings)
    rows.ask(lambda good: _ask(model, good, top, null_threshold))
    yield from rows.written()


def embeddings(model: Model, lines: Sequence[Line], kind: str, layer: int = -1) -> Iterator[str]:
    """A JSON line for each numbered input line, a "text" and perhaps its "pair": what it holds, and its vectors.

    "mean" gives an "embedding", the mean over its tokens ([CLS] and [SEP] among them), "cls" the vector of [CLS], and
    "tokens" each token's: "pieces", and as many "vectors". Layer 0 is the embeddings' output, -1 the last layer. A line
    that has none has the number of its "line" and an "error".

    Raises:
      UnansweredError: after all others, where a line has none; it names the first.
      ValueError: that says which layers there are.
    """
    require(kind in VECTORS, f"no vectors {kind!r}: {nearest(kind, VECTORS)}")
    layer = model.layer_number(layer)
    rows = _Rows(lines)
    rows.each(lambda number, line: parse(number, line, ["text"], ["pair"]))
    rows.ask(lambda good: _vectors(model, good, kind, layer))
    yield from rows.written()


class _Rows:
    """The lines of a batch, and what is made of each; one that fails stays out of all that comes after."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.numbers = [number for number, _ in lines]
        self._found: list[Any] = [found for _, found in lines]

    def each(self, function: Callable[[int, Any], Any]) -> None:
        for place, (number, found) in enumerate(zip(self.numbers, self._found, strict=True)):
            if not isinstance(found, ValueError):
                try:
                    self._found[place] = function(number, found)
                except ValueError as error:
                    named = str(error).startswith(f"line {number}")
                    self._found[place] = error if named else ValueError(f"line {number}: {error}")

    def ask(self, function: Callable[[list[dict[str, Any]]], Iterable[dict[str, Any]]]) -> None:
        """Adds to each row what `function` says to it: all are asked together, and one by one where that fails."""
        good = [found for found in self._found if not isinstance(found, ValueError)]
        if not good:
            return
        try:
            answers = iter(list(function(good)))
        except ValueError:
            self.each(lambda _, row: {**row, **next(iter(function([row])))})
        else:
            self.each(lambda _, row: {**row, **next(answers)})

    def written(self) -> Iterator[str]:
        """A JSON line for each: its answer with what it is an answer to, or what is wrong."""
        failed = [found for found in self._found if isinstance(found, ValueError)]
        for number, found in zip(self.numbers, self._found, strict=True):
            row = {"line": number, "error": str(found)} if isinstance(found, ValueError) else found
            yield json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS)
        if failed:
            raise UnansweredError(str(failed[0]) + (f" (and {len(failed) - 1} more lines)" if len(failed) > 1 else ""))


def _with_endings(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its endings in a list."""
    endings = row["endings"] if isinstance(row["endings"], list) else row["endings"].split("\t")
    require(len(endings) > 1, f"line {number} needs two endings or more")
    return {**row, "endings": endings}


def _texts(rows: Sequence[dict[str, Any]]) -> list[Any]:
    return [(row["text"], row["pair"]) if "pair" in row else row["text"] for row in rows]


def _vectors(model: Model, rows: Sequence[dict[str, Any]], kind: str, layer: int) -> Iterator[dict[str, Any]]:
    if kind == "tokens":
        hidden = model.encode(_texts(rows), len(rows), layers=[layer])
        assert hidden.layers is not None
        for pieces, vectors, mask in zip(hidden.pieces, hidden.layers[0], hidden.mask, strict=True):
            yield {"pieces": pieces, "vectors": vectors[mask].tolist()}
    else:
        yield from ({"embedding": vector.tolist()} for vector in model.embed(_texts(rows), kind, layer, len(rows)))


def _ask(
    model: Model, rows: Sequence[dict[str, Any]], top: int, null_threshold: float | None
) -> Iterator[dict[str, Any]]:
    task, size = model.experiment.task, len(rows)
    if isinstance(task, Classify):
        if task.problem == "regression":
            name = "scores" if task.labels else "score"
            yield from ({name: score} for score in model.score(_texts(rows), size))
        else:
            several = task.problem == "multi_label_classification"
            for found in model.classify(_texts(rows), size):
                yield {**found._asdict(), **({"labels": found.labels} if several else {})}
    elif isinstance(task, Squad):
        for answer in model.answer([(row["question"], row["context"]) for row in rows], size):
            best = next((one for one in answer.candidates if one.text), None)
            limit = model.null_threshold if task.unanswerable and null_threshold is None else null_threshold
            none = best is None or (limit is not None and answer.null_odds > limit)
            place = {} if none or best is None else {"start": best.start, "end": best.stop, "score": best.probability}
            odds = {} if limit is None else {"null_odds": answer.null_odds}
            yield {"answer": "" if none or best is None else best.text, **place, **odds}
    elif isinstance(task, Tag):
        for tagged in model.tag([row["text"] for row in rows], size):
            words = [(word.text, word.tag) for word in tagged.words]
            yield {"tags": words, "entities": [entity._asdict() for entity in tagged.entities]}
    elif isinstance(task, Choose):
        for _, alike in itertools.groupby(rows, key=lambda row: len(row["endings"])):
            asked = [(row["context"], row["endings"]) for row in alike]
            yield from (chosen._asdict() for chosen in model.choose(asked, len(asked)))
    else:
        for fillings in model.fill_mask([row["text"] for row in rows], top, size):
            yield {"fill": [filling._asdict() for filling in fillings]}
