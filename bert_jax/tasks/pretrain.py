"""Pre-training: masked LM and next sentence prediction over a corpus (paper, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config, heads, losses, masking
from bert_jax.config import require
from bert_jax.corpus import Corpus
from bert_jax.pairing import PairExamples, unigram_entropy
from bert_jax.tasks.base import FINE_TUNED, Batch, Context, Pair, Source, Task, Vocabulary, inputs
from bert_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Pretrain(Task):
    """Masked LM + next sentence prediction on the corpus in the directory `corpus`."""

    corpus: str = ""
    dupe_factor: int = 10  # passes over the corpus that differ in pairing and masks, before the first comes again
    heldout: float = 0.005  # share of the documents that are kept for validation
    masking: config.Masking = config.Masking()

    optional: ClassVar[tuple[str, ...]] = ("pooler", "masked_lm", "next_sentence")
    unused: ClassVar[tuple[str, ...]] = FINE_TUNED
    seeded: ClassVar[bool] = True  # the held-out documents and the pairs

    def __post_init__(self) -> None:
        require(self.dupe_factor > 0, f"dupe_factor must be above 0, not {self.dupe_factor}")
        require(0 < self.heldout <= 0.5, f"heldout must lie in (0, 0.5], not {self.heldout}")

    def open(self) -> Corpus:
        require(
            self.corpus != "",
            "pre-training needs a corpus: build one with scripts/build_corpus.py and name its directory with "
            "--config.task.corpus=DIR",
        )
        return Corpus.open(self.corpus)

    def tokenizer(self) -> Tokenizer:
        return self.open().tokenizer

    def source(self, split: str, length: int, context: Context) -> Source:
        passes = self.dupe_factor if split == "train" else 1
        return PairExamples(
            self.open(), length=length, passes=passes, seed=context.seed, split=split, heldout=self.heldout
        )

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        return inputs(batch_size, length, next_sentence=((batch_size,), jnp.int32))

    def module(self, encoder: config.Encoder) -> nn.Module:
        return heads.PreTraining(encoder)

    def corrupt(self, key: jax.Array, batch: Batch, tokenizer: Vocabulary) -> Batch:
        vocabulary = masking.Vocabulary(
            mask=tokenizer.mask,
            cls=tokenizer.cls,
            sep=tokenizer.sep,
            size=tokenizer.vocab_size,
            continuation=tokenizer.continuation if self.masking.whole_word else None,
        )
        return masking.corrupt(key, batch, self.masking, vocabulary)

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        weights = batch["weights"] * batch["weight"][:, None]
        masked = (outputs["mlm_logits"], batch["targets"], weights)
        following = (outputs["nsp_logits"], batch["next_sentence"], batch["weight"])
        return (
            {"mlm_loss": losses.cross_entropy(*masked), "nsp_loss": losses.cross_entropy(*following)},
            {"mlm_accuracy": losses.vocabulary_accuracy(*masked), "nsp_accuracy": losses.accuracy(*following)},
        )

    def baselines(self, context: Context, length: int) -> dict[str, float]:
        """The held-out text's unigram entropy (nats: below it, the model reads context) and the larger NSP class."""
        validation = self.source("validation", length, context)
        labels = validation.batch(np.arange(min(len(validation), 10_000)))["next_sentence"]
        return {
            "unigram_entropy": unigram_entropy(self.open(), "validation", self.heldout, context.seed),
            "nsp_majority": float(max(np.mean(labels), 1 - np.mean(labels))),
        }
