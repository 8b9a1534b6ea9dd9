"""Classification of sentences and sentence pairs, from tab-separated files (paper, section 4.1 and appendix B.1)."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config, heads, losses
from bert_jax.config import nearest, require
from bert_jax.tasks.base import Batch, Context, Pair, Source, Task
from bert_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """A class for each row of a TSV file with a header line: `text` names one column, or two for a pair.

    Paths are relative to the run's data_dir. Quotes are ordinary characters, as in the GLUE files.
    """

    train: str
    dev: str
    labels: tuple[str, ...]  # as the file spells them; their order numbers the classes
    text: tuple[str, ...] = ("sentence",)
    label: str = "label"

    fresh: ClassVar[tuple[str, ...]] = ("classifier",)
    optional: ClassVar[tuple[str, ...]] = ("pooler",)
    unused: ClassVar[tuple[str, ...]] = ("masked_lm", "next_sentence")

    def __post_init__(self) -> None:
        require(len(self.labels) > 1, f"a classification needs at least two labels, not {self.labels}")
        require(len(self.text) in (1, 2), f"text must name one column or two, not {self.text}")

    def source(self, split: str, length: int, context: Context) -> Source:
        path = os.path.join(context.data_dir, self.train if split == "train" else self.dev)
        return Examples(read_tsv(path, self.text, self.label, self.labels), length, context.tokenizer)

    def spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        row, one = (batch_size, length), (batch_size,)
        return {
            "tokens": jax.ShapeDtypeStruct(row, jnp.int32),
            "segments": jax.ShapeDtypeStruct(row, jnp.int32),
            "mask": jax.ShapeDtypeStruct(row, jnp.bool_),
            "label": jax.ShapeDtypeStruct(one, jnp.int32),
            "weight": jax.ShapeDtypeStruct(one, jnp.float32),
        }

    def module(self, encoder: config.Encoder) -> nn.Module:
        return heads.Classification(encoder, len(self.labels))

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        answer = (outputs["logits"], batch["label"], batch["weight"])
        return {"label_loss": losses.cross_entropy(*answer)}, {"accuracy": losses.accuracy(*answer)}

    def baselines(self, context: Context, length: int) -> dict[str, float]:
        """The share of the largest class: what always answering it would score."""
        rows = read_tsv(os.path.join(context.data_dir, self.dev), self.text, self.label, self.labels)
        return {"majority": max(collections.Counter(label for _, label in rows).values()) / len(rows)}


def read_tsv(path: str, text: Sequence[str], label: str, labels: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
    """The rows of a TSV file with a header: (texts, class).

    Raises:
      ValueError: that names file and line, what was expected and what stands there.
    """
    file = pathlib.Path(path)
    require(
        file.is_file(),
        f"there is no file {path}: --data_dir must name the folder of the official files",
    )
    try:
        # Only "\n" ends a line: some texts hold other characters that Python takes for line ends.
        lines = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; convert the file, for example with iconv") from None
    header = lines[0].split("\t")
    for name in (*text, label):
        require(name in header, f"{path}:1: no column {name!r}: {nearest(name, header)}")
    columns, answer = [header.index(name) for name in text], header.index(label)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        cells = line.split("\t")
        require(
            len(cells) == len(header),
            f"{path}:{number}: {len(header)} columns expected ({', '.join(header)}), {len(cells)} found: {line[:80]!r}",
        )
        require(
            cells[answer] in labels,
            f"{path}:{number}: label {cells[answer]!r} is none of {', '.join(labels)}; name all in task.labels",
        )
        rows.append((tuple(cells[column] for column in columns), list(labels).index(cells[answer])))
    require(bool(rows), f"{path}: no rows after the header")
    return rows


class Examples:
    """Tokenised rows, padded: tokens, segments and mask [N, T], label [N]."""

    def __init__(self, rows: Sequence[tuple[tuple[str, ...], int]], length: int, tokenizer: Tokenizer) -> None:
        self.arrays = {**pack([texts for texts, _ in rows], length, tokenizer)}
        self.arrays["label"] = np.asarray([label for _, label in rows], np.int32)

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[ids] for name, array in self.arrays.items()}


def pack(texts: Sequence[tuple[str, ...]], length: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] of each row, padded to `length`: tokens, segments, mask [N, T].

    What is too long is cut at its end, the longer text first, as the reference cuts it.
    """
    tokens = np.full((len(texts), length), tokenizer.pad, np.int32)
    segments, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for row, pieces in enumerate(texts):
        parts = [tokenizer.encode(piece) for piece in pieces]
        while sum(map(len, parts)) > length - 1 - len(parts):
            max(reversed(parts), key=len).pop()
        end = 1
        tokens[row, 0] = tokenizer.cls
        for segment, part in enumerate(parts):
            start, end = end, end + len(part) + 1
            tokens[row, start:end] = [*part, tokenizer.sep]
            segments[row, start:end] = segment
        mask[row, :end] = True
    return {"tokens": tokens, "segments": segments, "mask": mask}
