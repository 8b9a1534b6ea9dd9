"""A trained model to use: `bert_jax.load(workdir)`."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bert_jax import config, encoder, heads, pretrained, scores, tokenizer
from bert_jax.config import nearest, require
from bert_jax.experiment import Experiment
from bert_jax.features import Frozen
from bert_jax.tasks.base import Source, pack
from bert_jax.tasks.choice import Choice, Choices, Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.squad import Answer, Squad
from bert_jax.tasks.tagging import Sentence, Sentences, Tag, Words
from bert_jax.tasks.windows import Question, Windows


class Filling(NamedTuple):
    """A candidate for a [MASK]: the piece, its probability, and the text with it in place."""

    token: str
    probability: float
    text: str


class Prediction(NamedTuple):
    """A text's class and the probability of every class."""

    label: str
    probabilities: dict[str, float]


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


POOLINGS = ("mean", "cls")  # of a text's vectors, to one: see `Model.embed`


class Hidden(NamedTuple):
    """Hidden states of a batch of texts, padded to the longest with zeros."""

    last: np.ndarray  # float32 [B, T, D], of the last layer
    layers: np.ndarray | None  # float32 [S, B, T, D], of the S layers that were asked for; None: of none
    mask: np.ndarray  # bool [B, T], True where there is a token
    pieces: list[list[str]]  # the tokens, [CLS] and [SEP] included


class Model:
    """Encoder, heads and tokenizer of a run. What it can do depends on the heads that were trained."""

    def __init__(
        self,
        exp: Experiment,
        params: Any,
        vocabulary: tokenizer.Tokenizer,
        scores: Mapping[str, Any] | None = None,
        length: int | None = None,
    ) -> None:
        """`scores` are those of result.json; `length` is the longest sequence that `params` were trained on, in tokens,
        by default that of the experiment's phases."""
        assert exp.encoder is not None
        self.experiment, self.params, self.tokenizer, self.scores = exp, params, vocabulary, dict(scores or {})
        self.config: config.Encoder = exp.encoder
        self.length = max(phase.length for phase in exp.phases) if length is None else length
        self._states = jax.jit(functools.partial(_states, self.config), static_argnames="layers")
        self._pooled = jax.jit(functools.partial(_pooled, self.config), static_argnames=("layer", "pooling"))
        module = exp.task.module(self.config) if exp.task.frozen else heads.module_of(self.config, params)
        self._heads = jax.jit(functools.partial(module.apply, train=False)) if module else None

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
        texts of 512 tokens through BERT-Large 2.1 GB. Rows are padded: a mean over their tokens needs `mask`. For a
        vector of each text, `embed` gives that and keeps nothing else.

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
        pooling: str = "mean",
        layer: int = -1,
        batch_size: int = 32,
    ) -> np.ndarray:
        """A vector of each text, or pair of texts, float32 [N, D]; too long texts are cut, with a warning.

        `pooling` "mean" is the mean over a text's tokens ([CLS] and [SEP] among them, padding not), "cls" the vector
        of [CLS]. `layer` is 0 for the embeddings' output, 1 for the first layer, -1 for the last. Texts of like length
        share a batch, and what a batch took is let go of before the next: beyond the result, memory does not grow.

        Raises:
          ValueError: at an unknown pooling or layer, without texts, and at pairs for a model of one segment type.

        Example:
          >>> model.embed(["a text", "another"])  # [2, D]   # doctest: +SKIP
        """
        require(pooling in POOLINGS, f"no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
        compute = functools.partial(
            self._pooled, self.params["encoder"], layer=self.layer_number(layer), pooling=pooling
        )
        return self._over(texts, batch_size, compute)

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

    def fill_mask(self, text: str, top: int = 5) -> list[Filling]:
        """The most probable pieces for the [MASK] in `text`, best first.

        Raises:
          ValueError: where there is not exactly one [MASK], or the run trained no masked LM.
        """
        require("masked_lm" in self.params, "this model has no masked LM head: load the pre-training run's workdir")
        require(
            self.config.direction == "both",
            "a model that reads from left to right fills no [MASK]: ask for its next_token",
        )
        parts = text.split("[MASK]")
        require(len(parts) == 2, f"the text must hold [MASK] exactly once, not {len(parts) - 1} times: {text!r}")
        # Raw text never yields special tokens, so the mask's place is set by hand.
        before, after = (self.tokenizer.encode(part) for part in parts)
        return self._fill("mlm_logits", 0, before, [self.tokenizer.mask], after, top)

    def next_token(self, text: str, top: int = 5) -> list[Filling]:
        """The most probable pieces to follow `text`, best first, by a left-to-right LM.

        Raises:
          ValueError: where the run trained none.
        """
        require(
            "masked_lm" in self.params and self.config.direction == "left_to_right",
            "this model has no left-to-right LM: load the workdir of a pre-training with task.objective=left_to_right",
        )
        before = self.tokenizer.encode(text)
        return self._fill("lm_logits", len(before), before, [], [], top)

    def _fill(
        self, logits: str, place: int, before: list[int], between: list[int], after: list[int], top: int
    ) -> list[Filling]:
        """What the logits of that name say at their `place`, put between `before` and `after`."""
        ids = [self.tokenizer.cls, *before, *between, *after, self.tokenizer.sep]
        require(
            len(ids) <= self.length,
            f"{len(ids)} tokens are too many for this model: it was trained on {self.length} at most",
        )
        length = self._length(len(ids))
        tokens = np.full((1, length), self.tokenizer.pad, np.int32)
        tokens[0, : len(ids)] = ids
        batch = {
            "tokens": tokens,
            "segments": np.zeros_like(tokens),
            "mask": np.arange(length)[None] < len(ids),
            "positions": np.asarray([[len(before) + 1]], np.int32),
        }
        chances = np.asarray(jax.nn.softmax(self.outputs(batch)[logits][0, place, : self.tokenizer.vocab_size]))
        return [
            Filling(
                self.tokenizer.pieces([int(best)])[0],
                float(chances[best]),
                self.tokenizer.decode([*before, int(best), *after]),
            )
            for best in np.argsort(-chances)[:top]
        ]

    def classify(self, texts: str | Sequence[str | tuple[str, str]], batch_size: int = 32) -> list[Prediction]:
        """The class of each text, or pair of texts; too long ones are cut, with a warning.

        Raises:
          ValueError: where the run trained no classifier.
        """
        task = self.experiment.task
        require(isinstance(task, Classify), "this model has no classifier: load the workdir of a fine-tuning run")
        assert isinstance(task, Classify)
        require(bool(task.labels), "this model gives a score, no class: ask it with `score`")
        chances = _softmax(self._over(texts, batch_size, self._logits))
        return [
            Prediction(task.labels[int(row.argmax())], dict(zip(task.labels, row.tolist(), strict=True)))
            for row in chances
        ]

    def score(self, texts: str | Sequence[str | tuple[str, str]], batch_size: int = 32) -> list[float]:
        """The value that a regression gives each text, or pair of texts; too long ones are cut, with a warning.

        Raises:
          ValueError: where the run trained no regression.
        """
        task = self.experiment.task
        require(isinstance(task, Classify) and not task.labels, "this model has no regression: load that run's workdir")
        return self._over(texts, batch_size, self._logits)[:, 0].tolist()

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
        """What the task keeps of every example, in order, computed in batches of one shape."""
        batch_size, found = _rows_of(len(source), batch_size), []
        for start in range(0, len(source), batch_size):
            ids = np.minimum(np.arange(start, start + batch_size), len(source) - 1)
            found.append(jax.device_get(self._kept_of(source.batch(ids))))
        return {name: np.concatenate([part[name] for part in found])[: len(source)] for name in found[0]}

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
        for start in range(0, len(rows), count):
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
    # Array by array: what is on the device needs no copy on the host.
    params = jax.tree.map(lambda leaf: jax.block_until_ready(jnp.asarray(np.asarray(leaf))), params)
    return Model(source.experiment, params, source.tokenizer, source.scores, source.length)


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
