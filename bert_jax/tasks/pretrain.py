"""Pre-training: masked LM and next sentence prediction over a corpus (paper, section 3.1), and what section 5.1 sets
beside it: without next sentence prediction, and from left to right."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config
from bert_jax.config import check_types, require
from bert_jax.corpus.pairing import PairExamples, unigram_entropy
from bert_jax.corpus.store import Corpus
from bert_jax.model import heads, losses, masking
from bert_jax.tasks.base import FINE_TUNED, Batch, Context, Pair, Source, Task, Vocabulary, inputs
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Pretrain(Task):
    """Masked LM + next sentence prediction on the corpus in the directory `corpus`.

    "No NSP" can be read in two ways (Liu et al. 2019, section 4.2): without the loss alone, on the same pairs, of which
    half are of two documents; or without the pairs too, on whole stretches of a document. Here they are
    `next_sentence=False`, and with it `input_format="doc_sentences"`.
    """

    corpus: str = ""
    dupe_factor: int = 10  # passes over the corpus that differ in pairing and masks, before the first comes again
    heldout: float = 0.005  # share of the documents that are kept for validation
    masking: config.Masking = config.Masking()
    objective: Literal["masked", "left_to_right"] = "masked"  # the latter needs encoder.direction=left_to_right
    next_sentence: bool = True  # whether there is such a loss
    input_format: Literal["segment_pair", "doc_sentences"] = "segment_pair"  # A and B, or sentences of one document
    # In phases of shorter sequences the input is sentences of one document, without a pair to predict: in 16 tokens
    # hardly a B follows its A (3%), and two unrelated halves leave a masked LM half of the context.
    shortest_pair: int = 0

    optional: ClassVar[tuple[str, ...]] = ("pooler", "masked_lm", "next_sentence")
    unused: ClassVar[tuple[str, ...]] = ("pooler", "next_sentence", *FINE_TUNED)
    seeded: ClassVar[bool] = True  # the held-out documents and the pairs

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.dupe_factor <= 10_000, f"dupe_factor must lie in [1, 10000], not {self.dupe_factor}")
        require(0 < self.heldout <= 0.5, f"heldout must lie in (0, 0.5], not {self.heldout}")
        require(
            self.input_format == "segment_pair" or not self.next_sentence,
            f"input_format={self.input_format} has no pairs to predict: set task.next_sentence=false",
        )

    def paired(self, length: int) -> bool:
        """Whether examples of `length` tokens are pairs."""
        return self.input_format == "segment_pair" and length >= self.shortest_pair

    def predicted(self, length: int) -> int:
        return self.masking.predictions(length) if self.objective == "masked" else length - 1

    def open(self) -> Corpus:
        require(
            self.corpus != "",
            "pre-training needs a corpus: build one with scripts/build_corpus.py and name its directory with "
            "--config.task.corpus=DIR",
        )
        return Corpus.open(self.corpus)

    def tokenizer(self) -> Tokenizer:
        return self.open().tokenizer

    def corpora(self) -> tuple[str, ...]:
        return (self.corpus,)

    def source(self, split: str, length: int, context: Context) -> Source:
        passes = self.dupe_factor if split == "train" else 1
        return PairExamples(
            self.open(),
            length=length,
            passes=passes,
            seed=context.seed,
            split=split,
            heldout=self.heldout,
            paired=self.paired(length),
        )

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        return inputs(batch_size, length, next_sentence=((batch_size,), jnp.int32))

    def module(self, encoder: config.Encoder) -> nn.Module:
        require(
            (self.objective == "left_to_right") == (encoder.direction == "left_to_right"),
            f"task.objective={self.objective} does not go with encoder.direction={encoder.direction}: a left-to-right "
            "LM needs both to be left_to_right, a masked LM neither",
        )
        return heads.PreTraining(encoder, self.next_sentence)

    def corrupt(self, key: jax.Array, batch: Batch, tokenizer: Vocabulary) -> Batch:
        if self.objective == "left_to_right":  # each token predicts the next one, and all are what they are
            return {**batch, "targets": batch["tokens"][:, 1:], "weights": batch["mask"][:, 1:].astype(jnp.float32)}
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
        lm = "mlm" if self.objective == "masked" else "lm"
        words = (outputs[f"{lm}_logits"], batch["targets"], weights)
        parts = {f"{lm}_loss": losses.cross_entropy(*words)}
        figures = {f"{lm}_accuracy": losses.vocabulary_accuracy(*words)}
        if self.next_sentence:
            pairs = batch["weight"] * self.paired(batch["tokens"].shape[1])
            following = (outputs["nsp_logits"], batch["next_sentence"], pairs)
            parts["nsp_loss"] = losses.cross_entropy(*following)
            figures["nsp_accuracy"] = losses.accuracy(*following)
        return parts, figures

    def baselines(self, context: Context, length: int) -> dict[str, float]:
        """The held-out text's unigram entropy (nats: below it, the model reads context) and the larger NSP class."""
        corpus = self.open().fingerprint  # one that is built anew under the same name is read anew
        found = {"unigram_entropy": _unigram_entropy(self, corpus, context.seed)}
        if self.next_sentence and self.paired(length):
            found["nsp_majority"] = _nsp_majority(self, corpus, context.seed, length)
        return found


# A run asks for its baselines in each phase, and when it goes on; other runs on the same corpus ask again.
@functools.lru_cache
def _unigram_entropy(task: Pretrain, corpus: str, seed: int) -> float:
    return unigram_entropy(task.open(), "validation", task.heldout, seed)


@functools.lru_cache
def _nsp_majority(task: Pretrain, corpus: str, seed: int, length: int) -> float:
    """The larger class of next sentence prediction among the first examples that are held out."""
    pairs = PairExamples(task.open(), length=length, passes=1, seed=seed, split="validation", heldout=task.heldout)
    share = pairs.rows(np.arange(min(len(pairs), 10_000)))["is_random"].mean()
    return float(max(share, 1 - share))
