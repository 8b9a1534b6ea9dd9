"""Weights to start from or to use, whatever wrote them: a run, Hugging Face's `transformers`, the TF1 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from bert_jax import checkpoint, config, experiment, tokenizer
from bert_jax.config import require
from bert_jax.encoder import kernel_init
from bert_jax.experiment import Experiment, Positions
from bert_jax.tasks.base import Task
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.tokenizer import Tokenizer
from bert_jax.weights import huggingface, tf1
from bert_jax.weights.names import Lazy, Published


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a directory of weights holds. The weights themselves are read when `params` is called, or later."""

    origin: Literal["workdir", "huggingface", "tf1"]
    directory: str
    encoder: config.Encoder
    tokenizer: Tokenizer | None  # None: there are weights without a vocabulary
    task: Task | None  # None: an encoder alone
    read: Callable[[], dict[str, Any]]  # the parameters as they lie there

    @property
    def experiment(self) -> Experiment:
        """The run's own; of published weights, one that has their encoder and task, and nothing to run."""
        if self.origin == "workdir":
            return experiment.read_config(self.directory)
        phase = config.Phase(length=min(128, self.encoder.max_positions), steps=1)
        name = epath.Path(self.directory).absolute().name
        return Experiment(name=name, encoder=self.encoder, task=self.task or Pretrain(), phases=(phase,))

    @property
    def scores(self) -> dict[str, Any]:
        """What a run's result.json says; of other weights, and of a run that is not done, nothing."""
        path = epath.Path(self.directory) / "result.json"
        return config.read_json(path) if self.origin == "workdir" and path.exists() else {}

    def params(
        self, encoder: config.Encoder | None = None, positions: Positions = "same", seed: int = 0
    ) -> dict[str, Any]:
        """The parameters by our names, in nested dicts; a leaf has a shape, and `np.asarray(leaf)` reads it.

        Args:
          encoder: how they shall lie: with its `vocab_multiple`, and its `max_positions`. None: as they do.
          positions: what becomes of the position embeddings where `max_positions` is another, as in `Experiment`.
          seed: of the rows that `positions="fresh"` adds.

        Raises:
          ValueError: where the directory's files are damaged, or `positions` does not lead to `max_positions`.
        """
        tree = jax.tree.map(lambda leaf: leaf, self.read())  # dicts of its own
        encoder = encoder or self.encoder
        embeddings = tree["encoder"]["embeddings"]
        rows = embeddings["word"].shape[0]
        require(
            rows == self.encoder.vocab_rows,
            f"{self.directory}: config.json says {self.encoder.vocab_rows} embeddings, the checkpoint holds {rows}",
        )
        embeddings["word"] = _rows(embeddings["word"], self.encoder.vocab_size, encoder.vocab_rows)
        if "masked_lm" in tree:
            tree["masked_lm"]["bias"] = _rows(tree["masked_lm"]["bias"], self.encoder.vocab_size, encoder.vocab_rows)
        embeddings["position"] = _positions(embeddings["position"], encoder, positions, seed)
        return tree


def open(directory: str, step: int | None = None) -> Pretrained:
    """The weights in `directory`: a run's workdir, a Hugging Face directory, or a TF1 checkpoint's.

    `step` is for a workdir: which of its checkpoints; None is the last.

    Raises:
      ValueError: where it is none of these, or its files are missing, damaged or contradict each other.
    """
    folder = epath.Path(directory)
    if (folder / "config.json").exists():
        values = config.read_json(folder / "config.json")
        if values.get("is") == Experiment.__name__:
            exp = experiment.read_config(directory)
            require(exp.encoder is not None, f"{folder / 'config.json'} records no encoder")
            assert exp.encoder is not None
            own = folder / "tokenizer"
            vocabulary = tokenizer.load(own) if own.exists() else None
            return Pretrained(
                "workdir", directory, exp.encoder, vocabulary, exp.task, lambda: checkpoint.read_params(directory, step)
            )
        require(step is None, f"{directory} is no workdir of a run: it has no step {step}")
        return _published("huggingface", directory, huggingface.read(directory), huggingface.read_tokenizer(directory))
    require(
        (folder / "bert_config.json").exists(),
        f"{directory} is no workdir of a run, no Hugging Face directory and no TF1 checkpoint: it has neither "
        "config.json nor bert_config.json",
    )
    return _published("tf1", directory, tf1.read(directory), tf1.read_tokenizer(directory))


def _published(
    origin: Literal["huggingface", "tf1"], directory: str, found: Published, vocabulary: Tokenizer | None
) -> Pretrained:
    if vocabulary is not None:
        require(
            vocabulary.vocab_size <= found.encoder.vocab_size,
            f"{directory}: the vocabulary has {vocabulary.vocab_size} tokens, and the config says "
            f"vocab_size={found.encoder.vocab_size}",
        )
    task = _task(found)
    return Pretrained(origin, directory, found.encoder, vocabulary, task, lambda: found.params)


def _task(found: Published) -> Task | None:
    """The task that published heads belong to, without its data; None for an encoder alone."""
    if "classifier" in found.params:  # of one output, a regression
        return Classify(train="", dev=("",), labels=found.labels if len(found.labels) > 1 else ())
    if "tagger" in found.params:
        return Tag(train="", dev=("",), labels=found.labels)
    if "span" in found.params:
        return Squad(train="", dev="")
    if "choice" in found.params:
        return Choose(train="")
    return Pretrain() if "masked_lm" in found.params else None


def _rows(leaf: Any, words: int, rows: int) -> Any:
    """The vocabulary's `words` rows of a table or a bias, and zeros up to `rows`."""
    if leaf.shape[0] == rows:
        return leaf

    def read() -> np.ndarray:
        table = np.zeros((rows, *leaf.shape[1:]), np.float32)
        table[:words] = np.asarray(leaf)[:words]
        return table

    return Lazy((rows, *leaf.shape[1:]), read)


def _positions(leaf: Any, encoder: config.Encoder, choice: Positions, seed: int) -> Any:
    """The position embeddings for `encoder.max_positions`."""
    there, here = leaf.shape[0], encoder.max_positions
    if there == here:
        return leaf
    require(
        choice == "cut" if here < there else choice in ("fresh", "tile", "interpolate"),
        f"the weights have {there} positions and encoder.max_positions is {here}: set --config.init_positions="
        + ("cut" if here < there else "fresh, tile or interpolate")
        + f", not {choice!r}",
    )

    def read() -> np.ndarray:
        table = np.asarray(leaf)
        if choice == "cut":
            return table[:here].copy()
        if choice == "tile":
            return table[np.arange(here) % there]
        if choice == "fresh":
            more = kernel_init(encoder)(jax.random.key(seed), (here - there, table.shape[1]))
            return np.concatenate([table, np.asarray(more)])
        places = np.linspace(0, there - 1, here)  # first on first, last on last
        low = np.minimum(places.astype(int), there - 2)
        share = (places - low)[:, None]
        return ((1 - share) * table[low] + share * table[low + 1]).astype(np.float32)

    return Lazy((here, leaf.shape[1]), read)
