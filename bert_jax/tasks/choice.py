"""Multiple choice: which ending follows, which answer is right (paper, section 4.4), from files like SWAG's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config
from bert_jax.config import check_types, require
from bert_jax.model import heads, losses
from bert_jax.tasks import scores, tables
from bert_jax.tasks.base import Arrays, Batch, Context, Outputs, Pair, Source, Task, inputs, pack
from bert_jax.text import encoding
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Choose(Task):
    """One of several endings for each row of a file: [CLS] context [SEP] start ending [SEP], each read by itself.

    The defaults are SWAG's columns. Files are those that `tables.read` reads; paths are relative to the run's data_dir.
    """

    train: str
    dev: str = ""  # "": a share of the rows of `train`
    test: str = ""  # a file without labels, to be predicted
    context: str = "sent1"
    start: str = "sent2"  # what each ending begins with, as a question before its answers; "": nothing
    endings: tuple[str, ...] = ("ending0", "ending1", "ending2", "ending3")
    label: str = "label"  # the number of the right one, from 0
    columns: tuple[str, ...] = ()  # of files without a header line
    unlabelled: tuple[str, ...] = ()  # what stands for no label: such rows are left out, and counted in the log
    heldout: float = 0.2  # the share, where there is no dev file; the same rows in every run
    bilstm: config.BiLSTM | None = None  # between encoder and scores, in place of the pooler

    fresh: ClassVar[tuple[str, ...]] = ("choice", "bilstm")
    optional: ClassVar[tuple[str, ...]] = ("pooler",)

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.endings) > 1, f"endings must name at least two columns, not {self.endings}")
        require(0 < self.heldout < 1, f"heldout must lie in (0, 1), not {self.heldout}")

    @property
    def metric(self) -> str:
        return "accuracy"

    def tests(self) -> tuple[str, ...]:
        return ("test",) if self.test else ()

    def files(self) -> tuple[str, ...]:
        return (self.train, self.dev) if self.dev else (self.train,)

    def source(self, split: str, length: int, context: Context) -> Source:
        file = {"train": self.train, "validation": self.dev or self.train, "test": self.test}[split]
        rows = self.read(tables.path_of(file, context.data_dir), labelled=split != "test")
        if not self.dev and split != "test":
            order = np.random.default_rng(0).permutation(len(rows))
            held = set(order[: round(self.heldout * len(rows))].tolist())
            rows = [row for number, row in enumerate(rows) if (number in held) == (split == "validation")]
            require(bool(rows), f"{file}: too few rows to hold out a share of {self.heldout}")
        return Choices(rows, length, context.tokenizer, context.cache_dir)

    def read(self, path: str, labelled: bool = True) -> list[Choice]:
        """The questions of a file; without `labelled`, their labels are 0.

        Raises:
          ValueError: that names file and line, what was expected and what stands there.
        """
        texts = [name for name in (self.context, self.start, *self.endings) if name]
        known = [str(number) for number in range(len(self.endings))]
        found = []
        needed = [*texts, self.label] if labelled else texts
        rows = tables.read(path, needed, texts=texts, columns=self.columns)
        for row in tables.with_gold(rows, self.label, self.unlabelled, path).values() if labelled else rows:
            cells = row.cells
            if labelled and cells[self.label] not in known:
                raise ValueError(
                    f"{row.place}: {self.label} must be the number of the right ending, 0 to {known[-1]}, "
                    f"not {cells[self.label]!r}"
                )
            start = f"{cells[self.start]} " if self.start else ""
            endings = tuple(start + cells[name] for name in self.endings)
            found.append(Choice(cells[self.context], endings, int(cells[self.label]) if labelled else 0))
        return found

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        return inputs(batch_size, len(self.endings), length, label=((batch_size,), jnp.int32))

    def module(self, encoder: config.Encoder) -> nn.Module:
        return heads.MultipleChoice(encoder, self.bilstm)

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        answer = (outputs["logits"], batch["label"], batch["weight"])
        return {"choice_loss": losses.cross_entropy(*answer)}, {"accuracy": losses.accuracy(*answer)}

    def kept(self, outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits": outputs["logits"]}

    def score(self, source: Choices, outputs: Outputs) -> dict[str, float]:
        """The accuracy, and whether the same number was chosen everywhere."""
        chosen, expected = outputs["logits"].argmax(axis=1), source.arrays["label"]
        majority = float(np.bincount(expected).max() / len(expected))
        accuracy = scores.accuracy(chosen, expected)
        return {"accuracy": accuracy, "constant": scores.constant(chosen), "majority": majority}

    def predictions(self, split: str, source: Choices, outputs: Outputs, scores: Mapping[str, float]) -> dict[str, str]:
        """The number of the ending that was chosen, a line a row."""
        return {f"{split}.txt": "".join(f"{one}\n" for one in outputs["logits"].argmax(axis=1))}


class Choice(NamedTuple):
    """A context, its endings, and the number of the right one."""

    context: str
    endings: tuple[str, ...]
    label: int = 0


class Choices(Arrays):
    """Tokenised questions, padded: tokens, segments and mask [N, C, T], C the endings; label [N]."""

    def __init__(self, rows: Sequence[Choice], length: int, tokenizer: Tokenizer, cache_dir: str | None = None) -> None:
        texts = (text for row in rows for text in (row.context, *row.endings))
        encoded = encoding.encode(texts, tokenizer, cache_dir)
        parts = [(encoded[row.context].tokens, encoded[end].tokens) for row in rows for end in row.endings]
        packed = pack(parts, length, tokenizer)
        label: np.ndarray = np.asarray([row.label for row in rows], np.int32)
        super().__init__(label=label, **{k: v.reshape(len(rows), -1, length) for k, v in packed.items()})
