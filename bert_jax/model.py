"""A trained model to use: `bert_jax.load(workdir)`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config, encoder, heads, pretrained, scores, tokenizer
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.features import Frozen
from bert_jax.tasks.base import Arrays, Source, pack
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


class Hidden(NamedTuple):
    """Hidden states of a batch of texts, padded to the longest."""

    last: np.ndarray  # float32 [B, T, D], of the last layer
    layers: np.ndarray  # float32 [L + 1, B, T, D], the embeddings first
    mask: np.ndarray  # bool [B, T], True where there is a token
    pieces: list[list[str]]  # the tokens, [CLS] and [SEP] included


class Model:
    """Encoder, heads and tokenizer of a run. What it can do depends on the heads that were trained."""

    def __init__(
        self, exp: Experiment, params: Any, vocabulary: tokenizer.Tokenizer, scores: Mapping[str, Any] | None = None
    ) -> None:
        """`scores` are those of result.json."""
        assert exp.encoder is not None
        self.experiment, self.params, self.tokenizer, self.scores = exp, params, vocabulary, dict(scores or {})
        self.config: config.Encoder = exp.encoder
        self._bert = encoder.Bert(self.config)
        self._encode = jax.jit(functools.partial(self._bert.apply, all_layers=True))
        module = exp.task.module(self.config) if exp.task.frozen else heads.module_of(self.config, params)
        self._heads = jax.jit(functools.partial(module.apply, train=False)) if module else None

    @property
    def null_threshold(self) -> float:
        """The odds of no answer above which there is none: the task's own, else those best on dev."""
        given = getattr(self.experiment.task, "null_threshold", None)
        return self.scores.get("best_f1_threshold", 0.0) if given is None else given

    def encode(self, texts: str | Sequence[str | tuple[str, str]], batch_size: int = 32) -> Hidden:
        """Hidden states of each text, or pair of texts, with [CLS] and [SEP]; too long ones are cut.

        Example:
          >>> model.encode(["a short text"]).last.mean(axis=1)  # a sentence embedding   # doctest: +SKIP
        """
        rows = _rows(texts)
        batch = self._packed(rows).arrays
        found = []
        for part in _parts(batch, batch_size):
            output = self._encode({"params": self.params["encoder"]}, part["tokens"], part["segments"], part["mask"])
            found.append(np.asarray(output.layers, np.float32))
        layers = np.concatenate(found, axis=1)[:, : len(rows)]
        pieces = [
            self.tokenizer.pieces(row[mask].tolist()) for row, mask in zip(batch["tokens"], batch["mask"], strict=True)
        ]
        return Hidden(layers[-1], layers, batch["mask"], pieces)

    def outputs(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the heads give on a batch, by name, such as `logits`: see the modules in heads.py.

        `batch` holds tokens, segments and mask [B, T] (of a choice [B, N, T]), for a masked LM also positions [B, M].

        Raises:
          ValueError: the model is an encoder without a head.
        """
        require(self._heads is not None, f"this model has no head: its parts are {', '.join(self.params)}")
        assert self._heads is not None
        return {name: np.asarray(array) for name, array in self._heads({"params": self.params}, dict(batch)).items()}

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
            len(ids) <= self.config.max_positions,
            f"{len(ids)} tokens are too many for this model: at most {self.config.max_positions}",
        )
        length = min(-(-len(ids) // 32) * 32, self.config.max_positions)  # few shapes, few compilations
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
        """The class of each text, or pair of texts.

        Raises:
          ValueError: where the run trained no classifier.
        """
        task = self.experiment.task
        require(isinstance(task, Classify), "this model has no classifier: load the workdir of a fine-tuning run")
        assert isinstance(task, Classify)
        require(bool(task.labels), "this model gives a score, no class: ask it with `score`")
        chances = _softmax(self._kept(self._packed(_rows(texts)), batch_size)["logits"])
        return [
            Prediction(task.labels[int(row.argmax())], dict(zip(task.labels, row.tolist(), strict=True)))
            for row in chances
        ]

    def score(self, texts: str | Sequence[str | tuple[str, str]], batch_size: int = 32) -> list[float]:
        """The value that a regression gives each text, or pair of texts.

        Raises:
          ValueError: where the run trained no regression.
        """
        task = self.experiment.task
        require(isinstance(task, Classify) and not task.labels, "this model has no regression: load that run's workdir")
        return self._kept(self._packed(_rows(texts)), batch_size)["logits"][:, 0].tolist()

    def answer(self, questions: Sequence[tuple[str, str]], batch_size: int = 32) -> list[Answer]:
        """For each question and context, the spans of the context that may answer it, best first.

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
        sizes = [len(self.tokenizer.encode(one.text)) + len(self.tokenizer.encode(one.context)) + 3 for one in asked]
        length = min(self._length(max(sizes)), self.experiment.phases[-1].length)
        source = Windows(asked, length, task.stride, task.question, self.tokenizer)
        return list(task.decode(source, self._kept(source, batch_size)).values())

    def tag(self, texts: str | Sequence[str | Sequence[str]], batch_size: int = 32) -> list[Tagged]:
        """The tags of each text's words. A text may be given as its words: training data has its own idea of them.

        Raises:
          ValueError: where the run trained no tagger, or a text has no words.
        """
        task = self.experiment.task
        require(isinstance(task, Tag), "this model tags no words: load the workdir of a run of task Tag")
        assert isinstance(task, Tag)
        given = [texts] if isinstance(texts, str) else list(texts)
        whole = [one if isinstance(one, str) else " ".join(one) for one in given]
        spans = [
            list(_WORD.finditer(one)) if isinstance(one, str) else list(re.finditer(r"[^ ]+", text))
            for one, text in zip(given, whole, strict=True)
        ]
        require(bool(spans) and all(spans), "a text has no words")
        documents = [
            [Sentence(words, (task.labels[0],) * len(words))] for words in (tuple(w[0] for w in s) for s in spans)
        ]
        longest = max(sum(len(self.tokenizer.encode(word)) or 1 for word in one[0].words) + 2 for one in documents)
        length = min(self._length(longest), self.experiment.phases[-1].length)
        sentences = task.sentences(documents, length, self.tokenizer)
        frozen = Frozen(self.config, self.params["encoder"]) if task.frozen else None
        source: Sentences | Words = sentences if frozen is None else task.words(sentences, frozen)
        found = []
        for text, words, tags in zip(whole, spans, source.tags(self._kept(source, batch_size)["tags"]), strict=True):
            tagged = [Word(word[0], *word.span(), tag) for word, tag in zip(words, tags, strict=True)]
            places = [(c.kind, words[c.start].start(), words[c.stop - 1].end()) for c in scores.chunks(tags) if c.kind]
            found.append(Tagged(tagged, [Entity(text[low:high], kind, low, high) for kind, low, high in places]))
        return found

    def choose(self, questions: Sequence[tuple[str, Sequence[str]]], batch_size: int = 32) -> list[Chosen]:
        """For each context and its endings, which ending fits best; all have as many endings.

        Raises:
          ValueError: where the run was not trained on choices.
        """
        task = self.experiment.task
        require(isinstance(task, Choose), "this model makes no choices: load the workdir of a run of task Choose")
        require(len(questions) > 0, "there are no questions")
        require(len({len(endings) for _, endings in questions}) == 1, "all contexts must have as many endings")
        rows = [Choice(context, tuple(endings)) for context, endings in questions]
        sizes = [len(self.tokenizer.encode(f"{row.context} {ending}")) + 3 for row in rows for ending in row.endings]
        source = Choices(rows, self._length(max(sizes)), self.tokenizer)
        return [Chosen(int(row.argmax()), row.tolist()) for row in _softmax(self._kept(source, batch_size)["logits"])]

    def _kept(self, source: Source, batch_size: int) -> dict[str, np.ndarray]:
        """What the task keeps of every example, in order, computed in batches of one shape."""
        found = []
        for start in range(0, len(source), batch_size):
            ids = np.minimum(np.arange(start, start + batch_size), len(source) - 1)
            outputs: Any = self._heads({"params": self.params}, source.batch(ids))
            found.append(jax.device_get(self.experiment.task.kept(outputs)))
        return {name: np.concatenate([part[name] for part in found])[: len(source)] for name in found[0]}

    def _packed(self, rows: list[tuple[str, ...]]) -> Arrays:
        parts = [[self.tokenizer.encode(text) for text in row] for row in rows]
        longest = max(sum(len(part) + 1 for part in row) + 1 for row in parts)
        return Arrays(**pack(parts, self._length(longest), self.tokenizer))

    def _length(self, longest: int) -> int:
        """The length of a batch whose longest row has so many tokens: few shapes are few compilations."""
        return min(-(-longest // 32) * 32, self.config.max_positions)


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
    return Model(source.experiment, params, source.tokenizer, source.scores)


# Words within a text: letters and digits, joined by a mark between two of them, or any other character by itself.
_WORD = re.compile(r"[^\W_]+(?:[-.,'’&/][^\W_]+)*|\S")


def _softmax(logits: np.ndarray) -> np.ndarray:
    scale = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return scale / scale.sum(axis=-1, keepdims=True)


def _rows(texts: str | Sequence[str | tuple[str, str]]) -> list[tuple[str, ...]]:
    texts = [texts] if isinstance(texts, str) else texts
    require(len(texts) > 0, "there are no texts")
    return [(text,) if isinstance(text, str) else tuple(text) for text in texts]


def _parts(batch: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """Cuts a batch into parts of one shape: the last is filled up with copies of its last row."""
    count = len(batch["tokens"])
    places = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
    return [{name: array[place] for name, array in batch.items()} for place in places]
