"""Classification and regression of sentences and sentence pairs, from rows of a file (paper, section 4.1)."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bert_jax import config
from bert_jax.config import check_types, nearest, require
from bert_jax.model import heads, losses
from bert_jax.tasks import scores, tables
from bert_jax.tasks.base import Arrays, Batch, Context, Outputs, Pair, Source, Task, inputs, pack
from bert_jax.text import encoding
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """A class for each row of a file, or a number where `labels` is empty. A text is one column or, for a pair, two.

    Files are those that `tables.read` reads: tab- or comma-separated, JSON, parquet, "tfds:NAME:SPLIT". Their paths are
    relative to the run's data_dir.
    """

    train: str
    dev: tuple[str, ...]  # the first is what counts; the figures of others carry their names
    labels: tuple[str, ...] = ()  # as the file spells them; their order numbers the classes
    label_names: tuple[str, ...] = ()  # what they mean, in answers and exports; by default as the file spells them
    # What the outputs mean. "": one of `labels`, or without them a value. Of labels that hold each by itself
    # (multi-label), and of a regression of several values (whose names are `labels`), published models can be asked.
    problem_type: Literal["", "single_label_classification", "multi_label_classification", "regression"] = ""
    text: tuple[str, ...] = ("sentence",)
    label: str = "label"
    test: tuple[str, ...] = ()  # files without labels, to be predicted
    submissions: tuple[str, ...] = ()  # what the files of their predictions are called; by default as they are
    spelled: tuple[str, ...] = ()  # how predictions spell the labels, where not as the data does
    index: str = "index"  # the column that names a row in predictions; where there is none, it is the row's number
    columns: tuple[str, ...] = ()  # of files without a header line
    unlabelled: tuple[str, ...] = ()  # what stands for no gold label: such rows are left out, and counted in the log
    bounds: tuple[float, ...] = ()  # the lowest and highest value that a leaderboard takes: predictions are cut to them
    malformed: Literal["error", "skip"] = "error"  # what becomes of a row with too many or too few columns
    metrics: tuple[str, ...] = ()  # the first is what counts; by default accuracy, of a regression Spearman's
    bilstm: config.BiLSTM | None = None  # between encoder and classifier, in place of the pooler

    fresh: ClassVar[tuple[str, ...]] = ("classifier", "bilstm")
    optional: ClassVar[tuple[str, ...]] = ("pooler",)

    def __post_init__(self) -> None:
        check_types(self)
        require(
            len(self.labels) != 1 or self.problem != "single_label_classification",
            f"a classification needs at least two labels, not {self.labels}",
        )
        require(self.labels or self.problem == "regression", f"problem_type={self.problem} needs labels")
        require(len(set(self.labels)) == len(self.labels), f"a label is named twice: {self.labels}")
        require(len(self.text) in (1, 2), f"text must name one column or two, not {self.text}")
        require(len(self.dev) > 0, "dev must name a file")
        splits = ("train", *self.validation(), *self.tests())
        require(len(set(splits)) == len(splits), f"two files have one name: {', '.join(splits)}")
        require(len(self.bounds) in (0, 2), f"bounds must be the lowest and the highest value, not {self.bounds}")
        known = scores.CLASSES if self._one_of_several else scores.VALUES
        require(
            "f1" not in self.metrics or len(self.labels) <= 2,
            f"f1 is that of the second of two labels, not of {len(self.labels)}: the mean over all is macro_f1",
        )
        for name in self.metrics:
            kind = "classes" if self._one_of_several else "a regression"
            require(name in known, f"{kind} cannot be scored by {name!r}: {nearest(name, known)}")
        for name, names, count in (
            ("submissions", self.submissions, len(self.test)),
            ("spelled", self.spelled, len(self.labels)),
            ("label_names", self.label_names, len(self.labels)),
        ):
            require(len(names) in (0, count), f"{name} must be {count} names or none, not {len(names)}")

    @property
    def problem(self) -> str:
        """What the outputs mean, by `transformers`' word."""
        return self.problem_type or ("single_label_classification" if self.labels else "regression")

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called in answers and exports."""
        return self.label_names or self.labels

    @property
    def _one_of_several(self) -> bool:
        return self.problem == "single_label_classification"

    @property
    def metric(self) -> str:
        return (*self.metrics, "accuracy" if self._one_of_several else "spearman")[0]

    def validation(self) -> tuple[str, ...]:
        return ("validation", *map(tables.stem, self.dev[1:]))

    def tests(self) -> tuple[str, ...]:
        return tuple(map(tables.stem, self.test))

    def files(self) -> tuple[str, ...]:
        return (self.train, *self.dev)

    def source(self, split: str, length: int, context: Context) -> Source:
        require(
            self._one_of_several or not self.labels,
            f"{self.problem} of {len(self.labels)} outputs can be asked, and neither trained nor scored: a row has one "
            "label, or one value",
        )
        files = {
            "train": self.train,
            **dict(zip(self.tests(), self.test, strict=True)),
            **dict(zip(self.validation(), self.dev, strict=True)),
        }
        path = tables.path_of(files[split], context.data_dir)
        rows = self.read(path, labelled=split not in self.tests())
        if split in self.validation():
            self._check_varied(rows, path)
        dtype = np.int32 if self._one_of_several else np.float32
        return Examples(rows, length, context.tokenizer, dtype, context.cache_dir)

    def read(self, path: str, labelled: bool = True) -> list[Example]:
        """The examples of a file; without `labelled`, their labels are 0.

        Raises:
          ValueError: that names file and line, what was expected and what stands there.
        """
        needed = [*self.text, self.label] if labelled else self.text
        rows = tables.read(path, needed, texts=self.text, columns=self.columns, malformed=self.malformed)
        kept = tables.with_gold(rows, self.label, self.unlabelled, path) if labelled else dict(enumerate(rows))
        return [
            Example(
                tuple(row.cells[name] for name in self.text),
                self._number(row) if labelled else 0,
                row.cells.get(self.index, str(number)),
            )
            for number, row in kept.items()
        ]

    def _check_varied(self, rows: Sequence[Example], path: str) -> None:
        """Says that a metric means nothing where all rows have one label.

        Raises:
          ValueError: of a regression, whose correlations are not defined then. F1 and Matthews' correlation are 0 by
            definition.
        """
        if len({row.label for row in rows}) > 1:
            return
        if not self.labels:
            raise ValueError(f"{path}: all rows have the value {rows[0].label}: correlations with it are not defined")
        if {"f1", "macro_f1", "mcc"} & set(self.metrics):
            logging.warning("%s: all rows have one label: %s says little of a model", path, ", ".join(self.metrics))

    def _number(self, row: tables.Row) -> float | int:
        """A row's class or value."""
        cell = row.cells[self.label]
        if self._one_of_several:
            if cell not in self.labels:
                names = ", ".join(self.labels)
                hint = "; rows without a gold label are left out by task.unlabelled" if cell in ("", "-") else ""
                raise ValueError(f"{row.place}: label {cell!r} is none of {names}; name all in task.labels{hint}")
            return self.labels.index(cell)
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            hint = "; rows without one are left out by task.unlabelled" if cell in ("", "-") else ""
            raise ValueError(f"{row.place}: {self.label} must be a number, not {cell!r}{hint}")
        return value

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        return inputs(batch_size, length, label=((batch_size,), jnp.int32 if self._one_of_several else jnp.float32))

    def module(self, encoder: config.Encoder) -> nn.Module:
        return heads.Classification(encoder, len(self.labels) or 1, self.bilstm)

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        if not self._one_of_several:
            answer = (outputs["logits"][:, 0], batch["label"].astype(jnp.float32), batch["weight"])
            return {"label_loss": losses.squared_error(*answer)}, {}
        answer = (outputs["logits"], batch["label"], batch["weight"])
        return {"label_loss": losses.cross_entropy(*answer)}, {"accuracy": losses.accuracy(*answer)}

    def kept(self, outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits": outputs["logits"]}

    def score(self, source: Examples, outputs: Outputs) -> dict[str, float]:
        """The task's metrics, whether all predictions are one, and of classes the share of the largest."""
        expected, predicted = source.arrays["label"], self._predicted(outputs)
        known = scores.CLASSES if self._one_of_several else scores.VALUES
        figures = {name: known[name](predicted, expected) for name in self.metrics or (self.metric,)}
        classes = self._one_of_several
        figures["constant"] = scores.constant(predicted) if classes else scores.collapsed(predicted, expected)
        if classes:
            figures["majority"] = max(collections.Counter(expected.tolist()).values()) / len(expected)
        return figures

    def predictions(
        self, split: str, source: Examples, outputs: Outputs, scores: Mapping[str, float]
    ) -> dict[str, str]:
        """A line a row, as GLUE's server wants it: index, tab, label (or value), under a header."""
        names = dict(zip(self.tests(), self.submissions, strict=False))
        words = self.spelled or self.labels
        predicted = self._predicted(outputs)
        if self.bounds:
            lowest, highest = self.bounds
            predicted = np.clip(predicted, lowest, highest)
        written = [words[int(one)] if words else f"{one:.3f}" for one in predicted]
        lines = [f"{index}\t{word}" for index, word in zip(source.index, written, strict=True)]
        return {names.get(split, f"{split}.tsv"): "\n".join(["index\tprediction", *lines]) + "\n"}

    def _predicted(self, outputs: Outputs) -> np.ndarray:
        """The classes or values [N]."""
        return outputs["logits"].argmax(axis=1) if self._one_of_several else outputs["logits"][:, 0]


@dataclasses.dataclass(frozen=True)
class Example:
    """A row: its texts, its class or value, and its name in a file of predictions."""

    texts: tuple[str, ...]
    label: float | int
    index: str


class Examples(Arrays):
    """Tokenised rows, padded: tokens, segments and mask [N, T], label [N]."""

    def __init__(
        self,
        rows: Sequence[Example],
        length: int,
        tokenizer: Tokenizer,
        dtype: type,
        cache_dir: str | None = None,
    ) -> None:
        encoded = encoding.encode((text for row in rows for text in row.texts), tokenizer, cache_dir)
        parts = [[encoded[text].tokens for text in row.texts] for row in rows]
        label: np.ndarray = np.asarray([row.label for row in rows], dtype)
        super().__init__(label=label, **pack(parts, length, tokenizer))
        self.index = [row.index for row in rows]
