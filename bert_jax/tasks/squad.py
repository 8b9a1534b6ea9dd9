"""Question answering as SQuAD has it, with and without answers (paper, sections 4.2 and 4.3; reference: run_squad.py).

The reference cuts the context at white space first and rebuilds an answer's text from its words; here each token knows
the characters that it came from, so an answer is a slice of the original context.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bert_jax import config
from bert_jax.config import check_types, require
from bert_jax.model import heads, losses
from bert_jax.tasks import scores, tables
from bert_jax.tasks.base import Batch, Context, Outputs, Pair, Source, Task, inputs
from bert_jax.tasks.windows import Question, Windows, read, require_distinct

NO_CANDIDATE = 1e6  # the odds of no answer, where no span can be one


@dataclasses.dataclass(frozen=True)
class Squad(Task):
    """The span of a context that answers a question, from files in SQuAD's JSON form, in any language."""

    train: str
    dev: str
    test: str = ""  # a file without answers, to be predicted
    unanswerable: bool = False  # as in SQuAD 2.0, some questions have no answer
    stride: int = 128  # tokens from one window to the next
    question: int = 64  # tokens that are read of a question
    answer: int = 30  # tokens of the longest answer
    best: int = 20  # candidates for each question
    null_threshold: float | None = None  # odds above which there is no answer; none: those best on dev
    misplaced: Literal["error", "relocate", "skip"] = "error"  # of answers that are not at their offset
    bilstm: config.BiLSTM | None = None  # between encoder and span

    fresh: ClassVar[tuple[str, ...]] = ("span", "bilstm")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("stride", "question", "answer", "best"):
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")

    @property
    def metric(self) -> str:
        """F1; of SQuAD 2.0 that at the best threshold, as the paper reports it."""
        return "best_f1" if self.unanswerable else "f1"

    def tests(self) -> tuple[str, ...]:
        return ("test",) if self.test else ()

    def files(self) -> tuple[str, ...]:
        return (self.train, self.dev)

    def source(self, split: str, length: int, context: Context) -> Source:
        path = tables.path_of({"train": self.train, "validation": self.dev, "test": self.test}[split], context.data_dir)
        questions = list(read(path))
        if split == "test":
            require_distinct(questions, path)
        else:
            questions = self.located(questions, path, train=split == "train")
        return Windows(questions, length, self.stride, self.question, context.tokenizer, context.cache_dir)

    def located(self, questions: Sequence[Question], path: str, train: bool) -> list[Question]:
        """The questions with answers that stand at their offsets; of those that do not, what `misplaced` says.

        A question that is skipped is not trained on; in a dev set it is still scored.

        Raises:
          ValueError: that names the file and the question; also where a dev set has two of one id.
        """
        if not train:
            require_distinct(questions, path)
        found, lost, moved = [], 0, 0
        for one in questions:
            if not one.answers:
                if train and not self.unanswerable:
                    raise ValueError(
                        f"{path}: question {one.id} has no answer: a set like SQuAD 2.0 needs task.unanswerable=true"
                    )
                found.append(one)
                continue
            text, start = one.answers[0]
            if text and one.context[start : start + len(text)] == text and start >= 0:
                found.append(one)
                continue
            if self.misplaced == "error":
                there = one.context[max(start, 0) : max(start, 0) + len(text)]
                raise ValueError(
                    f"{path}: question {one.id}: the answer {text!r} is not at its offset {start}, there is {there!r}; "
                    "task.misplaced can relocate or skip such answers"
                )
            places = list(_occurrences(one.context, text)) if self.misplaced == "relocate" else []
            if places:
                nearest = min(places, key=lambda place: abs(place - start))
                found.append(one._replace(answers=((text, nearest), *one.answers[1:])))
                moved += 1
            else:
                lost += 1
                if not train:
                    found.append(one._replace(located=False))
        if lost or moved:
            logging.warning("%s: %d answers are not at their offset; %d relocated", path, lost + moved, moved)
        require(bool(found), f"{path}: no questions")
        return found

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        return inputs(batch_size, length, start=((batch_size,), jnp.int32), end=((batch_size,), jnp.int32))

    def module(self, encoder: config.Encoder) -> nn.Module:
        return heads.SpanPrediction(encoder, self.bilstm)

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        """The mean of the two ends' losses. A window without the answer, and a question without, point at [CLS]."""
        (start, weight), (end, _) = (
            losses.cross_entropy(outputs[f"{side}_logits"], batch[side], batch["weight"]) for side in ("start", "end")
        )
        return {"span_loss": ((start + end) / 2, weight)}, {}

    def kept(self, outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"start": outputs["start_logits"], "end": outputs["end_logits"]}

    def score(self, source: Windows, outputs: Outputs) -> dict[str, float]:
        answers = self.decode(source, outputs)
        golds = {one.id: [text for text, _ in one.answers] for one in source.questions}
        predicted = {key: one.best_text for key, one in answers.items()}
        if not self.unanswerable:
            return {**scores.squad(predicted, golds), "constant": float(len(set(predicted.values())) == 1)}
        odds = {key: one.null_odds for key, one in answers.items()}
        figures = scores.squad2(predicted, golds, odds, self.null_threshold or 0.0)
        texts = {one.text(figures["best_f1_threshold"]) for one in answers.values()}
        return {**figures, "constant": float(len(texts) == 1)}

    def predictions(self, split: str, source: Windows, outputs: Outputs, scores: Mapping[str, float]) -> dict[str, str]:
        """predictions.json, nbest_predictions.json and, for SQuAD 2.0, null_odds.json, as the reference writes them.

        Those of the test split begin with "test_".
        """
        answers = self.decode(source, outputs)
        tuned = scores.get("best_f1_threshold", 0.0) if self.null_threshold is None else self.null_threshold
        found: dict[str, Any] = {
            "predictions.json": {key: one.text(tuned if self.unanswerable else None) for key, one in answers.items()},
            "nbest_predictions.json": {key: [c.written() for c in one.candidates] for key, one in answers.items()},
        }
        if self.unanswerable:
            found["null_odds.json"] = {key: one.null_odds for key, one in answers.items()}
        prefix = "" if split == "validation" else f"{split}_"
        return {prefix + name: json.dumps(values, indent=4) + "\n" for name, values in found.items()}

    def decode(self, source: Windows, outputs: Outputs) -> dict[str, Answer]:
        """The answers to all questions, by id, in their order, from start and end logits [N, T]."""
        spans: list[list[Candidate]] = [[] for _ in source.questions]
        nulls: list[Candidate | None] = [None for _ in source.questions]
        for window in range(len(source)):
            number = int(source.table[window, 0])
            start, end = (outputs[side][window].astype(np.float64) for side in ("start", "end"))
            null = Candidate("", 0, 0, float(start[0]), float(end[0]))
            before = nulls[number]
            if before is None or null.score < before.score:
                nulls[number] = null
            spans[number] += self._spans(source, window, start, end)
        found = {}
        for question, candidates, lowest in zip(source.questions, spans, nulls, strict=True):
            assert lowest is not None  # a context has a window, even an empty one
            if self.unanswerable:
                candidates = [*candidates, lowest]
            chosen: dict[str, Candidate] = {}
            for one in sorted(candidates, key=lambda c: -c.score):
                if len(chosen) == self.best:
                    break
                chosen.setdefault(one.text, one)
            if self.unanswerable:
                chosen.setdefault("", lowest)
            ranked = list(chosen.values()) or [Candidate("empty", 0, 0, 0.0, 0.0)]
            scale = np.exp([one.score - ranked[0].score for one in ranked])
            chances = scale / scale.sum()
            ranked = [one._replace(probability=float(p)) for one, p in zip(ranked, chances, strict=True)]
            text = next((one for one in ranked if one.text), None)
            found[question.id] = Answer(ranked, lowest.score - text.score if text else NO_CANDIDATE)
        return found

    def _spans(self, source: Windows, window: int, start: np.ndarray, end: np.ndarray) -> Iterator[Candidate]:
        """A window's spans between the best starts and the best ends, of all its tokens, that can be answers."""
        shape = source.shape(window)
        starts, ends = (np.argsort(-side[: shape.size], kind="stable")[: self.best].tolist() for side in (start, end))
        starts = [place for place in starts if shape.in_context(place) and shape.most_context[place - shape.first]]
        for i in starts:
            for j in ends:
                if shape.in_context(j) and i <= j < i + self.answer:
                    low, high = int(shape.offsets[i - shape.first][0]), int(shape.offsets[j - shape.first][1])
                    yield Candidate(shape.context[low:high], low, high, float(start[i]), float(end[j]))


class Candidate(NamedTuple):
    """A span of the context, [start, stop) in characters, and its logits; "" is no answer."""

    text: str
    start: int
    stop: int
    start_logit: float
    end_logit: float
    probability: float = 0.0

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit

    def written(self) -> dict[str, Any]:
        """As in nbest_predictions.json."""
        names = ("text", "probability", "start_logit", "end_logit")
        return {name: getattr(self, name) for name in names}


class Answer(NamedTuple):
    """The candidates of a question, best first, and by how much no answer outscores the best that is one."""

    candidates: list[Candidate]
    null_odds: float

    @property
    def best_text(self) -> str:
        """The best answer that is one; "" where there is none."""
        return next((one.text for one in self.candidates if one.text), "")

    def text(self, threshold: float | None) -> str:
        """The answer, "" where the odds of none are above the threshold; None: there always is one."""
        return "" if threshold is not None and self.null_odds > threshold else self.best_text


def _occurrences(context: str, text: str) -> Iterator[int]:
    place = context.find(text) if text else -1
    while place >= 0:
        yield place
        place = context.find(text, place + 1)
