"""A trained model to use: `bert_jax.load(workdir)`."""

from __future__ import annotations

import functools
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
from absl import logging

from bert_jax import config
from bert_jax.config import nearest, require
from bert_jax.experiment import Experiment
from bert_jax.inference.predictions import Chosen, Entity, Filling, Hidden, Prediction, Tagged, Word
from bert_jax.model import encoder, heads
from bert_jax.model.features import Frozen
from bert_jax.tasks import scores
from bert_jax.tasks.base import Source, pack
from bert_jax.tasks.choice import Choice, Choices, Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.squad import Answer, Squad
from bert_jax.tasks.tagging import Sentence, Sentences, Tag, Words
from bert_jax.tasks.windows import Question, Windows
from bert_jax.text import tokenizer
from bert_jax.weights import pretrained
from bert_jax.weights.names import POOLINGS, Pooling

T = TypeVar("T")

# By the head that a model is asked by: what it can do. The first that is there counts.
_ABILITIES = {
    "classifier": ("classify", "score"),
    "tagger": ("tag",),
    "span": ("answer",),
    "choice": ("choose",),
    "masked_lm": ("fill_mask", "next_token"),
}


class Model:
    """Encoder, heads and tokenizer of a run. What it can do depends on the heads that were trained: see `abilities`.

    Calls of many texts show their progress on a terminal.
    """

    def __init__(
        self,
        exp: Experiment,
        params: Any,
        vocabulary: tokenizer.Tokenizer,
        scores: Mapping[str, Any] | None = None,
        length: int | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        """`scores` are those of result.json; `length` is the longest sequence that `params` were trained on, in tokens,
        by default that of the experiment's phases; `pooling` is what `embed` does unless it is told otherwise."""
        assert exp.encoder is not None
        self.experiment, self.params, self.tokenizer, self.scores = exp, params, vocabulary, dict(scores or {})
        self.config: config.Encoder = exp.encoder
        self.pooling = pooling or Pooling("mean", normalized=False)
        self.length = max(phase.length for phase in exp.phases) if length is None else length
        self._states = jax.jit(functools.partial(_states, self.config), static_argnames="layers")
        self._pooled = jax.jit(functools.partial(_pooled, self.config), static_argnames=("layer", "pooling"))
        module = exp.task.module(self.config) if exp.task.frozen else heads.module_of(self.config, params)
        self._heads = jax.jit(functools.partial(module.apply, train=False)) if module else None

    @property
    def abilities(self) -> tuple[str, ...]:
        """The names of the calls that its parts allow."""
        found = next((calls for head, calls in _ABILITIES.items() if head in self.params), ())
        if found[:1] == ("classify",):
            task = self.experiment.task
            found = found[int(isinstance(task, Classify) and task.problem == "regression") :][:1]
        elif found[:1] == ("fill_mask",):
            found = found[int(self.config.direction != "both") :][:1]
        return ("encode", "embed", *found)

    def __repr__(self) -> str:
        task, c = self.experiment.task, self.config
        labels = getattr(task, "names", getattr(task, "labels", ())) if "masked_lm" not in self.params else ()
        shown = ", ".join(labels[:6]) + (f", ... {len(labels)} in all" if len(labels) > 6 else "")
        kind = type(task).__name__ if len(self.abilities) > 2 else "no head"
        millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params)) / 1e6
        return (
            f"<bert_jax model {self.experiment.name!r}: {c.layers} layers, hidden size {c.hidden}, {c.heads} heads, "
            f"{c.vocab_size:,} tokens, {millions:.1f} million parameters; {kind}{f' ({shown})' if shown else ''}; "
            f"reads up to {self.length} tokens; can {', '.join(self.abilities)}>"
        )

    @property
    def null_threshold(self) -> float:
        """The odds of no answer above which there is none: the task's own, else those best on dev."""
        given = getattr(self.experiment.task, "null_threshold", None)
        return self.scores.get("best_f1_threshold", 0.0) if given is None else given

    def encode(
        self,
        texts: str | Sequence[str | tuple[str, str]],
        batch_size: int = 32,
        layers: Sequence[int] | Literal["all"] = (),
    ) -> Hidden:
        """Hidden states of each text, or pair of texts, with [CLS] and [SEP]; too long ones are cut, with a warning.

        The result has `last`, the last layer's, and in `layers` those of the numbers asked for, in that order: 0 is the
        embeddings' output, 1 the first layer, -1 the last; "all" are 0 to L. Each takes 4 * B * T * D bytes, of 1,000
        texts of 512 tokens through BERT-Large 2.1 GB. Rows are padded to the longest of all texts, and a mean over them
        that leaves out `mask` is no vector of a text: `embed` makes those, and keeps nothing else.

        Raises:
          ValueError: where there is no such layer, there are no texts, or pairs for a model of one segment type.

        Example:
          >>> hidden = model.encode(["a short text"], layers=[0, -2])   # doctest: +SKIP
          >>> hidden.layers[1, 0][hidden.mask[0]]  # [tokens, D], of the layer before the last   # doctest: +SKIP
        """
        most = self.config.layers
        asked = tuple(range(most + 1)) if layers == "all" else tuple(self.layer_number(number) for number in layers)
        wanted = asked if most in asked else (*asked, most)
        rows = _rows(texts)
        batches = list(self._batches(rows, batch_size))
        longest = max(int(batch["mask"].sum(axis=1).max()) for _, batch in batches)
        states = np.zeros((len(wanted), len(rows), longest, self.config.hidden), np.float32)
        tokens, mask = (np.zeros((len(rows), longest), dtype) for dtype in (np.int32, bool))
        for ids, batch in batches:
            length = min(batch["mask"].shape[1], longest)
            found = np.asarray(self._states(self.params["encoder"], **self._checked(batch), layers=wanted))
            there = batch["mask"][: len(ids), :length]
            mask[ids, :length], tokens[ids, :length] = there, batch["tokens"][: len(ids), :length]
            for number, state in enumerate(found):
                states[number, ids, :length] = state[: len(ids), :length] * there[..., None]
        pieces = [self.tokenizer.pieces(row[there].tolist()) for row, there in zip(tokens, mask, strict=True)]
        return Hidden(states[wanted.index(most)], states[: len(asked)] if asked else None, mask, pieces)

    def embed(
        self,
        texts: str | Sequence[str | tuple[str, str]],
        pooling: str | None = None,
        layer: int = -1,
        batch_size: int = 32,
        normalize: bool | None = None,
    ) -> np.ndarray:
        """A vector of each text, or pair of texts, float32 [N, D]; too long texts are cut, with a warning.

        Texts of like length share a batch, which is padded to its own longest, and what it took is let go of before the
        next: beyond the result, memory does not grow.

        Args:
          texts: one or several.
          pooling: "mean" is the mean over a text's tokens ([CLS] and [SEP] among them, padding not), "cls" the vector
            of [CLS], "max" the greatest value at each of D over the tokens. None: as a sentence-transformers directory
            says, else "mean".
          layer: 0 for the embeddings' output, 1 for the first layer, -1 for the last.
          batch_size: texts at a time.
          normalize: whether each vector is scaled to a length of one. None: as such a directory says, else not.

        Raises:
          ValueError: at an unknown pooling or layer, without texts, at pairs for a model of one segment type, and
            without `pooling` where the directory says what is not done here.

        Example:
          >>> model.embed(["a text", "another"])  # [2, D]   # doctest: +SKIP
        """
        require(
            pooling is not None or not self.pooling.lacking, f"name a pooling: {self.pooling.lacking} is not done here"
        )
        pooling = self.pooling.how if pooling is None else pooling
        require(pooling in POOLINGS, f"no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
        compute = functools.partial(
            self._pooled, self.params["encoder"], layer=self.layer_number(layer), pooling=pooling
        )
        found = self._over(texts, batch_size, compute)
        if self.pooling.normalized if normalize is None else normalize:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found

    def layer_number(self, number: int) -> int:
        """The number of a layer, counted from 0, of one that may be counted from the end.

        Raises:
          ValueError: where there is none.
        """
        most = self.config.layers
        require(
            -most - 1 <= number <= most,
            f"there is no layer {number}: 0 (the embeddings) to {most}, or from -1 backwards",
        )
        return number % (most + 1)

    def outputs(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the heads give on a batch, by name, such as `logits`: see the modules in heads.py.

        `batch` holds tokens, segments and mask [B, T] (of a choice [B, N, T]), for a masked LM also positions [B, M].

        Raises:
          ValueError: the model is an encoder without a head, or `batch` has tokens beyond the positions or segments
            beyond the types that the model was trained with.
        """
        require(self._heads is not None, f"this model has no head: its parts are {', '.join(self.params)}")
        assert self._heads is not None
        outputs: Any = self._heads({"params": self.params}, self._checked(batch))
        return {name: np.asarray(array) for name, array in outputs.items()}

    @overload
    def fill_mask(self, text: str, top: int = 5, batch_size: int = 32) -> list[Filling]: ...

    @overload
    def fill_mask(self, text: Sequence[str], top: int = 5, batch_size: int = 32) -> list[list[Filling]]: ...

    def fill_mask(
        self, text: str | Sequence[str], top: int = 5, batch_size: int = 32
    ) -> list[Filling] | list[list[Filling]]:
        """The most probable pieces for the [MASK] in `text`, best first; of several texts, a list for each.

        Raises:
          ValueError: where there is not exactly one [MASK], or the run trained no masked LM.
        """
        require("masked_lm" in self.params, "this model has no masked LM head: load the pre-training run's workdir")
        require(
            self.config.direction == "both",
            "a model that reads from left to right fills no [MASK]: ask for its next_token",
        )
        texts = [text] if isinstance(text, str) else list(text)
        require(bool(texts), "there are no texts")
        rows = []
        for one in texts:
            parts = one.split("[MASK]")
            require(len(parts) == 2, f"the text must hold [MASK] exactly once, not {len(parts) - 1} times: {one!r}")
            # Raw text never yields special tokens, so the mask's place is set by hand.
            before, after = (self.tokenizer.encode(part) for part in parts)
            rows.append((before, [self.tokenizer.mask], after))
        found = self._fill("mlm_logits", rows, top, batch_size)
        return found[0] if isinstance(text, str) else found

    def next_token(self, text: str, top: int = 5) -> list[Filling]:
        """The most probable pieces to follow `text`, best first, by a left-to-right LM.

        Raises:
          ValueError: where the run trained none.
        """
        require(
            "masked_lm" in self.params and self.config.direction == "left_to_right",
            "this model has no left-to-right LM: load the workdir of a pre-training with task.objective=left_to_right",
        )
        return self._fill("lm_logits", [(self.tokenizer.encode(text), [], [])], top, 1)[0]

    def _fill(
        self, logits: str, rows: Sequence[tuple[list[int], list[int], list[int]]], top: int, batch_size: int
    ) -> list[list[Filling]]:
        """What the logits of that name say of each row of tokens before, at and after a place."""
        tokens = [[self.tokenizer.cls, *before, *at, *after, self.tokenizer.sep] for before, at, after in rows]
        longest = max(map(len, tokens))
        require(
            longest <= self.length,
            f"{longest} tokens are too many for this model: it was trained on {self.length} at most",
        )
        count, found = _rows_of(len(rows), batch_size), [list[Filling]() for _ in rows]
        order = np.argsort([len(one) for one in tokens], kind="stable")
        for start in _watched(range(0, len(rows), count), len(rows)):
            ids = order[np.minimum(np.arange(start, start + count), len(rows) - 1)]
            length = self._length(len(tokens[ids[-1]]))
            batch = {
                "tokens": np.full((count, length), self.tokenizer.pad, np.int32),
                "segments": np.zeros((count, length), np.int32),
                "mask": np.zeros((count, length), bool),
                "positions": np.asarray([[len(rows[number][0]) + 1] for number in ids], np.int32),
            }
            for row, number in enumerate(ids):
                batch["tokens"][row, : len(tokens[number])] = tokens[number]
                batch["mask"][row, : len(tokens[number])] = True
            values = self.outputs(batch)[logits]
            for row, number in enumerate(ids[: len(rows) - start]):
                before, _, after = rows[number]
                place = 0 if logits == "mlm_logits" else len(before)
                chances = np.asarray(jax.nn.softmax(values[row, place, : self.tokenizer.vocab_size]))
                found[number] = [
                    Filling(
                        self.tokenizer.pieces([int(best)])[0],
                        float(chances[best]),
                        self.tokenizer.decode([*before, int(best), *after]),
                    )
                    for best in np.argsort(-chances)[:top]
                ]
        return found

    def classify(self, texts: str | Sequence[str | tuple[str, str]], batch_size: int = 32) -> list[Prediction]:
        """The class of each text, or pair of texts; too long ones are cut, with a warning.

        Raises:
          ValueError: where the run trained no classifier.
        """
        task = self.experiment.task
        require(isinstance(task, Classify), "this model has no classifier: load the workdir of a fine-tuning run")
        assert isinstance(task, Classify)
        require(task.problem != "regression", "this model gives a score, no class: ask it with `score`")
        logits = self._over(texts, batch_size, self._logits)
        several = task.problem == "multi_label_classification"
        chances = 1 / (1 + np.exp(-logits.astype(np.float64))) if several else _softmax(logits)
        return [
            Prediction(task.names[int(row.argmax())], dict(zip(task.names, row.tolist(), strict=True)))
            for row in chances
        ]

    def score(
        self, texts: str | Sequence[str | tuple[str, str]], batch_size: int = 32
    ) -> list[float] | list[dict[str, float]]:
        """The value that a regression gives each text, or pair of texts; too long ones are cut, with a warning.

        A regression of several values gives them by their names. Of a classifier with a single output, which is a
        probability (as a published re-ranker's), it is that.

        Raises:
          ValueError: where the run trained no regression.
        """
        task = self.experiment.task
        require(
            isinstance(task, Classify) and (task.problem == "regression" or len(task.labels) == 1),
            "this model has no regression: load that run's workdir",
        )
        assert isinstance(task, Classify)
        if task.problem != "regression":
            return [next(iter(one.probabilities.values())) for one in self.classify(texts, batch_size)]
        values = self._over(texts, batch_size, self._logits)
        if task.labels:
            return [dict(zip(task.names, row.tolist(), strict=True)) for row in values]
        return values[:, 0].tolist()

    def answer(self, questions: Sequence[tuple[str, str]], batch_size: int = 32) -> list[Answer]:
        """For each question and context, the spans of the context that may answer it, best first.

        A context is read in the windows that the task was trained with: its last phase's length, its stride. A question
        above the task's `question` tokens is cut, with a warning.

        Raises:
          ValueError: where the run was not trained on questions.

        Example:
          >>> model.answer([("Who?", "It was Ada.")])[0].candidates[0].text   # doctest: +SKIP
        """
        task = self.experiment.task
        require(isinstance(task, Squad), "this model answers no questions: load the workdir of a run of task Squad")
        assert isinstance(task, Squad)
        require(len(questions) > 0, "there are no questions")
        asked = [Question(str(n), question, context) for n, (question, context) in enumerate(questions)]
        sizes = [len(self.tokenizer.encode(one.text)) for one in asked]
        self._warn(sum(size > task.question for size in sizes), len(sizes), "questions", task.question)
        sizes = [size + len(self.tokenizer.encode(one.context)) + 3 for size, one in zip(sizes, asked, strict=True)]
        length = self._window(max(sizes))
        source = Windows(asked, length, task.stride, task.question, self.tokenizer)
        return list(task.decode(source, self._kept(source, batch_size)).values())

    def tag(self, texts: str | Sequence[str | Sequence[str]], batch_size: int = 32) -> list[Tagged]:
        """The tags of each text's words. A text may be given as its words: training data has its own idea of them.
        Each of these has its tag, whatever is in it.

        A text above the length of the task's last phase is read in as many windows as it needs.

        Raises:
          ValueError: where the run trained no tagger, or a text has no words.
        """
        task = self.experiment.task
        require(isinstance(task, Tag), "this model tags no words: load the workdir of a run of task Tag")
        assert isinstance(task, Tag)
        given = [texts] if isinstance(texts, str) else list(texts)
        whole = [one if isinstance(one, str) else " ".join(one) for one in given]
        spans = [_spans(one) for one in given]
        require(bool(spans) and all(spans), "a text has no words")
        documents = [
            [Sentence(tuple(text[low:high] for low, high in places), (task.labels[0],) * len(places))]
            for text, places in zip(whole, spans, strict=True)
        ]
        longest = max(sum(len(self.tokenizer.encode(word)) or 1 for word in one[0].words) + 2 for one in documents)
        length = self._window(longest)
        sentences = task.sentences(documents, length, self.tokenizer)
        frozen = Frozen(self.config, self.params["encoder"]) if task.frozen else None
        source: Sentences | Words = sentences if frozen is None else task.words(sentences, frozen)
        found = []
        for text, words, tags in zip(whole, spans, source.tags(self._kept(source, batch_size)["tags"]), strict=True):
            tagged = [Word(text[low:high], low, high, tag) for (low, high), tag in zip(words, tags, strict=True)]
            places = [(c.kind, words[c.start][0], words[c.stop - 1][1]) for c in scores.chunks(tags) if c.kind]
            found.append(Tagged(tagged, [Entity(text[low:high], kind, low, high) for kind, low, high in places]))
        return found

    def choose(self, questions: Sequence[tuple[str, Sequence[str]]], batch_size: int = 32) -> list[Chosen]:
        """For each context and its endings, which ending fits best; all have as many endings.

        Too long ones are cut, with a warning.

        Raises:
          ValueError: where the run was not trained on choices.
        """
        task = self.experiment.task
        require(isinstance(task, Choose), "this model makes no choices: load the workdir of a run of task Choose")
        require(len(questions) > 0, "there are no questions")
        require(len({len(endings) for _, endings in questions}) == 1, "all contexts must have as many endings")
        rows = [Choice(context, tuple(endings)) for context, endings in questions]
        sizes = [
            len(self.tokenizer.encode(row.context)) + len(self.tokenizer.encode(ending)) + 3
            for row in rows
            for ending in row.endings
        ]
        self._warn(sum(size > self.length for size in sizes), len(sizes), "endings with their contexts", self.length)
        source = Choices(rows, self._length(max(sizes)), self.tokenizer)
        return [Chosen(int(row.argmax()), row.tolist()) for row in _softmax(self._kept(source, batch_size)["logits"])]

    def _kept(self, source: Source, batch_size: int) -> dict[str, np.ndarray]:
        """What the task keeps of every example, in order.

        Examples of like length share a batch, cut to its own longest; arrays of shorter ones are filled up with zeros.
        """
        count, parts = _rows_of(len(source), batch_size), []
        sizes = getattr(source, "sizes", None)
        order = np.arange(len(source)) if sizes is None else np.argsort(sizes, kind="stable")
        for start in _watched(range(0, len(source), count), len(source)):
            ids = order[np.minimum(np.arange(start, start + count), len(source) - 1)]
            batch = source.batch(ids)
            if sizes is not None and "mask" in batch:
                full, length = batch["mask"].shape[-1], self._length(int(sizes[ids].max()))
                batch = {k: v[..., :length] if v.ndim > 1 and v.shape[-1] == full else v for k, v in batch.items()}
            parts.append((ids, jax.device_get(self._kept_of(batch))))
        found = {}
        for name, first in parts[0][1].items():
            shape = np.max([part[name].shape[1:] for _, part in parts], axis=0, initial=0).astype(int)
            found[name] = np.zeros((len(source), *shape), first.dtype)
            for ids, part in parts:
                place: Any = (ids, *map(slice, part[name].shape[1:]))
                found[name][place] = part[name]  # the rows that fill up the last batch repeat an example
        return found

    def _kept_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        assert self._heads is not None
        outputs: Any = self._heads({"params": self.params}, self._checked(batch))
        return self.experiment.task.kept(outputs)

    def _logits(self, **batch: np.ndarray) -> jax.Array:
        return self._kept_of(batch)["logits"]

    def _over(
        self, texts: str | Sequence[str | tuple[str, str]], batch_size: int, compute: Callable[..., Any]
    ) -> np.ndarray:
        """What `compute(tokens=, segments=, mask=)` gives of each text [N, ...], in the texts' order."""
        rows = _rows(texts)
        found: np.ndarray | None = None
        for ids, batch in self._batches(rows, batch_size):
            values = np.asarray(compute(**self._checked(batch)))
            if found is None:
                found = np.empty((len(rows), *values.shape[1:]), values.dtype)
            found[ids] = values[: len(ids)]
        assert found is not None
        return found

    def _batches(
        self, rows: list[tuple[str, ...]], batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Texts of like length together: their numbers [up to B], and their tokens, segments and mask [B, T].

        Each batch is padded to its own longest text. Texts are tokenised as their batch comes, so their order is by
        characters. A batch that is not full repeats its last row.
        """
        count = _rows_of(len(rows), batch_size)
        order = np.argsort([sum(map(len, row)) for row in rows], kind="stable")
        cut = 0
        for start in _watched(range(0, len(rows), count), len(rows)):
            ids = order[start : start + count]
            parts = [[self.tokenizer.encode(text) for text in rows[number]] for number in ids]
            sizes = [sum(len(part) + 1 for part in row) + 1 for row in parts]
            cut += sum(size > self.length for size in sizes)
            parts += parts[-1:] * (count - len(ids))
            yield ids, pack(parts, self._length(max(sizes)), self.tokenizer)
        self._warn(cut, len(rows), "texts", self.length)

    def _length(self, longest: int) -> int:
        """The length of a batch whose longest row has so many tokens: few shapes are few compilations.

        Two at most from one power of two to the next, and none above what the model was trained at.
        """
        grain = max(32, 1 << max(0, (longest - 1).bit_length() - 2))
        return min(-(-longest // grain) * grain, self.length)

    def _window(self, longest: int) -> int:
        """The same of a task that reads what is longer in windows: none above those that it was trained with."""
        return min(self._length(longest), self.experiment.phases[-1].length)

    @staticmethod
    def _warn(cut: int, count: int, what: str, length: int) -> None:
        if cut:
            said = "%d of %d %s were cut to %d tokens, the most that this model was trained on"
            logging.warning(said, cut, count, what, length)

    def _checked(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch, in which no token has a position or a segment that the model was not trained with."""
        encoder.check_inputs(self.config, batch)
        if "tokens" in batch:
            mask = batch["mask"]
            require(
                not mask[..., self.length :].any(),
                f"sequences have more than {self.length} tokens, the most that this model was trained on",
            )
        return dict(batch)


MANY = 256  # texts, of which the progress is shown


def _watched(steps: Sequence[T], count: int) -> Iterator[T]:
    """The steps through `count` texts, with a bar where these are many and somebody looks at a terminal."""
    if count < MANY or not sys.stderr.isatty():
        yield from steps
        return
    console = rich.console.Console(stderr=True)
    yield from rich.progress.track(steps, f"{count:,} texts", console=console, transient=True)


def _rows_of(examples: int, batch_size: int) -> int:
    """The rows of a batch, where there are so many examples: few shapes are few compilations."""
    require(batch_size > 0, f"batch_size must be above 0, not {batch_size}")
    return min(batch_size, 1 << (examples - 1).bit_length())


def _states(
    size: config.Encoder, params: Any, tokens: jax.Array, segments: jax.Array, mask: jax.Array, layers: tuple[int, ...]
) -> jax.Array:
    """The hidden states after those layers, float32 [S, B, T, D]."""
    every = any(layer < size.layers for layer in layers)  # of no other layer but the last, nothing is kept
    encoded: Any = encoder.Bert(size).apply({"params": params}, tokens, segments, mask, all_layers=every)
    found = [encoded.layers[layer] if layer < size.layers else encoded.hidden for layer in layers]
    return jnp.stack(found).astype(jnp.float32)


def _pooled(
    size: config.Encoder,
    params: Any,
    tokens: jax.Array,
    segments: jax.Array,
    mask: jax.Array,
    layer: int,
    pooling: str,
) -> jax.Array:
    """A vector of each row, float32 [B, D]: see `Model.embed`."""
    states = _states(size, params, tokens, segments, mask, (layer,))[0]
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return jnp.where(mask[:, :, None], states, -jnp.inf).max(axis=1)
    weights = mask[:, :, None].astype(jnp.float32)
    return (states * weights).sum(axis=1) / weights.sum(axis=1)  # not a product of matrices, which TPUs round


def load(directory: str) -> Model:
    """The model in a run's workdir (its last checkpoint), a Hugging Face directory or a TF1 checkpoint's.

    Raises:
      ValueError: where the directory is none of these, holds no weights, or its parts do not fit each other.

    Example:
      >>> bert_jax.load("run").fill_mask("the capital of france is [MASK].")   # doctest: +SKIP
    """
    source = pretrained.open(directory)
    require(source.tokenizer is not None, f"{directory} holds no tokenizer: put the vocab.txt of its weights there")
    assert source.tokenizer is not None
    params = source.params()
    head = next((head for head in _ABILITIES if head in params), None)
    others = [one for one in (*_ABILITIES, "next_sentence") if one in params and one != head]
    others = [one for one in others if (head, one) != ("masked_lm", "next_sentence")]
    if others:
        logging.warning("of %s: %s left out, the model is asked by its %s", directory, ", ".join(others), head)
        params = {name: leaf for name, leaf in params.items() if name not in others}
    # Array by array: what is on the device needs no copy on the host.
    params = jax.tree.map(lambda leaf: jax.block_until_ready(jnp.asarray(np.asarray(leaf))), params)
    return Model(source.experiment, params, source.tokenizer, source.scores, source.length, source.pooling)


# Words within a text: letters and digits, joined by a mark between two of them, or any other character by itself.
_WORD = re.compile(r"[^\W_]+(?:[-.,'’&/][^\W_]+)*|\S")


def _spans(text: str | Sequence[str]) -> list[tuple[int, int]]:
    """The words [start, stop) of a text, or those given, in the text that they make with a space between them."""
    if isinstance(text, str):
        return [word.span() for word in _WORD.finditer(text)]
    ends = [end - 1 for end in itertools.accumulate(len(word) + 1 for word in text)]
    return [(end - len(word), end) for word, end in zip(text, ends, strict=True)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    scale = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return scale / scale.sum(axis=-1, keepdims=True)


def _rows(texts: str | Sequence[str | tuple[str, str]]) -> list[tuple[str, ...]]:
    texts = [texts] if isinstance(texts, str) else texts
    require(len(texts) > 0, "there are no texts")
    return [(text,) if isinstance(text, str) else tuple(text) for text in texts]
