"""What a task is: its data, its heads, its losses. Pre-training is one, each fine-tuning another; the loop is one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np

from bert_jax import config
from bert_jax.tokenizer import Tokenizer

Batch = dict[str, Any]  # named arrays with a leading batch axis
Pair = tuple[jax.Array, jax.Array]  # a sum and its weight: pairs add up over batches, shards and hosts


@runtime_checkable
class Source(Protocol):
    """Examples by number. The same number gives the same example, in any process."""

    def __len__(self) -> int: ...

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The examples `ids` [B] as arrays [B, ...]."""
        ...


@dataclasses.dataclass(frozen=True)
class Context:
    """What a task's data may depend on besides the task's own fields."""

    tokenizer: Tokenizer
    data_dir: str = ""  # official files, laid out as published
    seed: int = 0


class Task(abc.ABC):
    """A frozen dataclass of knobs with these methods. Nothing is read or allocated before `source` is called."""

    # What `init_from` may lack or have to spare, by top-level parameter name. Anything else is an error.
    fresh: ClassVar[tuple[str, ...]] = ()  # starts anew in any case
    optional: ClassVar[tuple[str, ...]] = ()  # starts anew where it is not there
    unused: ClassVar[tuple[str, ...]] = ()  # may be there to no use

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the data is bound to, as a corpus is; None where any will do."""
        return None

    @abc.abstractmethod
    def source(self, split: str, length: int, context: Context) -> Source:
        """The examples of "train" or "validation", at most `length` tokens each."""

    @abc.abstractmethod
    def spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch, known without any data."""

    @abc.abstractmethod
    def module(self, encoder: config.Encoder) -> nn.Module:
        """Encoder and heads: `module(batch, train=...)` gives the outputs that `losses` takes."""

    def corrupt(self, key: jax.Array, batch: Batch, tokenizer: Tokenizer) -> Batch:
        """What happens to a batch on the device before the model sees it. Keyed by example, not by step."""
        return batch

    @abc.abstractmethod
    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        """The losses, whose means add up to the objective, and further metrics, as (sum, weight) pairs."""

    def baselines(self, context: Context, length: int) -> dict[str, float]:
        """Figures of the validation data that a score must be held against, such as the majority class."""
        return {}
