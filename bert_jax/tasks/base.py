"""What a task is: its data, its heads, its losses, its scores. Pre-training is one, each fine-tuning another; the loop
is one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config
from bert_jax.model.features import Frozen
from bert_jax.text.tokenizer import Tokenizer

Batch = dict[str, Any]  # named arrays with a leading batch axis
Pair = tuple[jax.Array, jax.Array]  # a sum and its weight: pairs add up over batches, shards and hosts
Outputs = Mapping[str, np.ndarray]  # what `Task.kept` keeps, of a whole split: arrays [N, ...] in the source's order

# The heads of fine-tuning, each made for its own task.
FINE_TUNED = ("classifier", "tagger", "span", "choice", "bilstm", "mix")


@runtime_checkable
class Source(Protocol):
    """Examples by number. The same number gives the same example, in any process."""

    def __len__(self) -> int: ...

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The examples `ids` [B] as arrays [B, ...]."""
        ...


def epoch_size(source: Source) -> int:
    """How many examples an epoch of a phase counts: what the task reads, as the reference counts it.

    The source says so by an `epoch_size` of its own where its examples are parts or copies of that, as windows of a
    context are; by default each example counts.
    """
    return getattr(source, "epoch_size", len(source))


@runtime_checkable
class Measured(Source, Protocol):
    """A source that knows its examples' lengths without reading them: its batches can be grouped by length."""

    @property
    def sizes(self) -> np.ndarray:
        """How many places each example takes, int [N]: tokens, or words of a frozen encoder's features."""
        ...

    @property
    def terms(self) -> np.ndarray:
        """Over how many terms of each example the loss is a mean, [N]."""
        ...


@runtime_checkable
class Vocabulary(Protocol):
    """What of a tokenizer a program on the device depends on: all that it takes to compile one."""

    mask: int
    cls: int
    sep: int
    continuation: np.ndarray  # bool [V]: the piece continues a word

    @property
    def vocab_size(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Context:
    """What a task's data may depend on besides the task's own fields."""

    tokenizer: Tokenizer
    data_dir: str = ""  # official files, laid out as published
    seed: int = 0
    cache_dir: str = ""  # where `cache.arrays` keeps what takes long to make; "": at its default place
    frozen: Frozen | None = None  # the encoder, where the task does not train it
    quiet: bool = True  # no progress on stderr


class Task(abc.ABC):
    """A frozen dataclass of knobs with these methods. Nothing is read or allocated before `source` is called.

    Training minimises `losses`. Evaluation goes through every example of the splits `validation()` once; what `kept`
    keeps of each is brought together on the host, and `score` makes the official figures of it. The figures of the
    first split have their plain names, those of others the split's name after theirs ("accuracy_dev_mismatched").
    """

    # What `init_from` may lack or have to spare, by top-level parameter name. Anything else is an error.
    fresh: ClassVar[tuple[str, ...]] = ()  # starts anew in any case
    optional: ClassVar[tuple[str, ...]] = ()  # starts anew where it is not there
    unused: ClassVar[tuple[str, ...]] = ("pooler", "masked_lm", "next_sentence", *FINE_TUNED)  # may be there to no use

    seeded: ClassVar[bool] = False  # whether the examples depend on the seed

    def predicted(self, length: int) -> int:
        """M, the positions of an example that meet the vocabulary; 0 without a language model."""
        return 0

    @property
    def frozen(self) -> bool:
        """Whether the encoder stays as it is: the module has none, and the examples hold what the encoder says."""
        return False

    @property
    def metric(self) -> str:
        """The figure that counts, the greater the better: what grids and studies choose by. "": none, as the losses."""
        return ""

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the data is bound to, as a corpus is; None where any will do."""
        return None

    def validation(self) -> tuple[str, ...]:
        """The splits that are scored."""
        return ("validation",)

    def tests(self) -> tuple[str, ...]:
        """The splits that are only predicted: their labels are hidden."""
        return ()

    def files(self) -> tuple[str, ...]:
        """The files of training and validation, as `tables.path_of` takes them; none where there are no such files."""
        return ()

    def corpora(self) -> tuple[str, ...]:
        """The directories of the token stores that it reads; none where it reads files."""
        return ()

    @abc.abstractmethod
    def source(self, split: str, length: int, context: Context) -> Source:
        """The examples of "train" or of one of `validation()` and `tests()`, at most `length` tokens each."""

    @abc.abstractmethod
    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch, known without any data."""

    @abc.abstractmethod
    def module(self, encoder: config.Encoder) -> nn.Module:
        """Encoder and heads: `module(batch, train=...)` gives the outputs that `losses` takes."""

    def corrupt(self, key: jax.Array, batch: Batch, tokenizer: Vocabulary) -> Batch:
        """What happens to a batch on the device before the model sees it. Keyed by example, not by step."""
        return batch

    @abc.abstractmethod
    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        """The losses, whose means add up to the objective, and further metrics, as (sum, weight) pairs."""

    def kept(self, outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What `score` and `predictions` need of the outputs, arrays [B, ...], on the device."""
        return {}

    def score(self, source: Any, outputs: Outputs) -> dict[str, float]:
        """The official figures of a split, from its source and all that was kept. On the host."""
        return {}

    def predictions(self, split: str, source: Any, outputs: Outputs, scores: Mapping[str, float]) -> dict[str, str]:
        """Files to write of a split's outputs, by name, as the leaderboard or the reference has them.

        `scores` are the figures of the validation: a threshold that was tuned there holds for the test.
        """
        return {}

    def baselines(self, context: Context, length: int) -> dict[str, float]:
        """Figures of the validation data alone that a score must be held against."""
        return {}


def inputs(*shape: int, **more: tuple[tuple[int, ...], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The half of `spec` that all tasks share: tokens [B, ..., T] and what `data.Batches` adds; and `more` arrays,
    given as (shape, dtype)."""
    arrays = {
        "tokens": (shape, jnp.int32),
        "segments": (shape, jnp.int32),
        "mask": (shape, jnp.bool_),
        "id": (shape[:1], jnp.int32),
        "visit": (shape[:1], jnp.int32),
        "weight": (shape[:1], jnp.float32),
        **more,
    }
    return {name: jax.ShapeDtypeStruct(*one) for name, one in arrays.items()}


def pack(
    parts: Sequence[Sequence[Sequence[int] | np.ndarray]], length: int, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] of each row's token lists, padded: tokens, segments, mask [N, length].

    What is too long is cut at its end, the longer text first, as the reference cuts it.
    """
    tokens = np.full((len(parts), length), tokenizer.pad, np.int32)
    segments, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for row, texts in enumerate(parts):
        sizes = [len(text) for text in texts]
        while sum(sizes) > length - 1 - len(sizes):
            sizes[max(reversed(range(len(sizes))), key=sizes.__getitem__)] -= 1
        end = 1
        tokens[row, 0] = tokenizer.cls
        for segment, (text, size) in enumerate(zip(texts, sizes, strict=True)):
            start, end = end, end + size + 1
            tokens[row, start : end - 1] = text[:size]
            tokens[row, end - 1] = tokenizer.sep
            segments[row, start:end] = segment
        mask[row, :end] = True
    return {"tokens": tokens, "segments": segments, "mask": mask}


class Arrays:
    """A source whose examples lie in memory as arrays [N, ...]."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[ids] for name, array in self.arrays.items()}

    @property
    def sizes(self) -> np.ndarray:
        mask = self.arrays["mask"]  # [N, T], or [N, C, T] of texts that are read one by one
        return mask.any(axis=tuple(range(1, mask.ndim - 1))).sum(axis=-1)

    @property
    def terms(self) -> np.ndarray:
        return np.ones(len(self))
