"""Lines in, JSON lines out: what `scripts/predict.py` asks of a model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bert_jax.config import nearest, require
from bert_jax.model import Model
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.weights.names import POOLINGS

VECTORS = (*POOLINGS, "tokens")  # of a text, or of each of its tokens: see `embeddings`


def parse(
    number: int, line: str, names: Sequence[str], optional: Sequence[str] = (), lists: bool = False
) -> dict[str, Any]:
    """The fields of an input line: a JSON object that has `names` and perhaps `optional`, or the same parted by tabs.

    Values are texts, with `lists` also lists of texts.

    Raises:
      ValueError: that names the line.
    """
    line = line.rstrip("\n")
    require(line.strip() != "", f"line {number} is empty: one question a line")
    if line.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: no JSON object: {error}") from None
    else:
        found = dict(zip([*names, *optional], line.split("\t", len(names) + len(optional) - 1), strict=False))
    missing = [name for name in names if not isinstance(found.get(name), (str, list) if lists else str)]
    wanted = " and ".join(map(repr, names))
    require(not missing, f"line {number} needs {wanted}, as a JSON object or parted by tabs: {line[:80]!r}")
    return found


def answers(
    model: Model, lines: Sequence[tuple[int, str]], top: int = 5, null_threshold: float | None = None
) -> Iterator[str]:
    """A JSON line for each numbered input line: what it holds, and what the model's task says to it.

    A pre-training run fills in the [MASK] of a "text"; a classifier labels and a regression scores a "text" and perhaps
    its "pair"; a tagger tags a "text"; to a "question" and its "context" there is an answer, with its place in the
    context, "" where the odds of no answer are above `null_threshold` (by default the model's own, of a model that was
    not trained on questions without one, none); of a "context" and its "endings" one is chosen.

    Raises:
      ValueError: that names the line that cannot be answered, or says what the model lacks.
    """
    task = model.experiment.task
    names, optional = ["text"], []
    if isinstance(task, Classify):
        optional = ["pair"]
    elif isinstance(task, Squad):
        names = ["question", "context"]
    elif isinstance(task, Choose):
        names = ["context", "endings"]
    lists = isinstance(task, (Tag, Choose))
    numbered, error = _parse_all(lines, names, optional, lists)
    for row, answer in zip(numbered.values(), _ask(model, numbered, top, null_threshold), strict=True):
        yield json.dumps({**row, **answer}, ensure_ascii=False)
    if error:
        raise error


def embeddings(model: Model, lines: Sequence[tuple[int, str]], kind: str, layer: int = -1) -> Iterator[str]:
    """A JSON line for each numbered input line, a "text" and perhaps its "pair": what it holds, and its vectors.

    "mean" gives an "embedding", the mean over its tokens ([CLS] and [SEP] among them), "cls" the vector of [CLS], and
    "tokens" each token's: "pieces", and as many "vectors". Layer 0 is the embeddings' output, -1 the last layer.

    Raises:
      ValueError: that names the line that is none, or says which layers there are.
    """
    require(kind in VECTORS, f"no vectors {kind!r}: {nearest(kind, VECTORS)}")
    layer = model.layer_number(layer)
    numbered, error = _parse_all(lines, ["text"], ["pair"])
    rows = list(numbered.values())
    texts = [(row["text"], row["pair"]) if "pair" in row else row["text"] for row in rows]
    found: Iterable[dict[str, Any]]
    if kind == "tokens":
        hidden = model.encode(texts, len(texts), layers=[layer])
        assert hidden.layers is not None
        states = zip(hidden.pieces, hidden.layers[0], hidden.mask, strict=True)
        found = ({"pieces": pieces, "vectors": vectors[mask].tolist()} for pieces, vectors, mask in states)
    else:
        found = ({"embedding": vector.tolist()} for vector in model.embed(texts, kind, layer, len(texts)))
    for row, one in zip(rows, found, strict=True):
        yield json.dumps({**row, **one}, ensure_ascii=False)
    if error:
        raise error


def _parse_all(
    lines: Sequence[tuple[int, str]], names: Sequence[str], optional: Sequence[str] = (), lists: bool = False
) -> tuple[dict[int, dict[str, Any]], ValueError | None]:
    """The lines, by their numbers, up to one that cannot be read, and what is wrong with that: those before it are to
    have their answers first. Where it is the first, there is nothing to wait for.
    """
    rows: dict[int, dict[str, Any]] = {}
    for number, line in lines:
        try:
            rows[number] = parse(number, line, names, optional, lists)
        except ValueError as error:
            if not rows:
                raise
            return rows, error
    return rows, None


def _ask(
    model: Model, numbered: Mapping[int, dict[str, Any]], top: int, null_threshold: float | None
) -> Iterator[dict[str, Any]]:
    task, size, rows = model.experiment.task, len(numbered), list(numbered.values())
    if isinstance(task, Classify):
        texts = [(row["text"], row["pair"]) if "pair" in row else row["text"] for row in rows]
        if task.problem == "regression":
            name = "scores" if task.labels else "score"
            yield from ({name: score} for score in model.score(texts, size))
        else:
            several = task.problem == "multi_label_classification"
            for found in model.classify(texts, size):
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
        questions = []
        for number, row in numbered.items():
            endings = row["endings"] if isinstance(row["endings"], list) else row["endings"].split("\t")
            questions.append((number, row["context"], endings))
        for count, alike in itertools.groupby(questions, key=lambda question: len(question[2])):
            group = list(alike)
            require(count > 1, f"line {group[0][0]} needs two endings or more")
            asked = [(context, endings) for _, context, endings in group]
            for (_, endings), chosen in zip(asked, model.choose(asked, len(asked)), strict=True):
                yield {"endings": endings, **chosen._asdict()}
    else:
        try:
            fillings = model.fill_mask([row["text"] for row in rows], top, size)
        except ValueError:  # of one of them, which is found by asking one by one
            for number, row in numbered.items():
                try:
                    yield {"fill": [one._asdict() for one in model.fill_mask(row["text"], top)]}
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
        else:
            yield from ({"fill": [one._asdict() for one in filling]} for filling in fillings)
