"""The masked LM's corruption of its input, on the device and as a pure function of the example (paper, 3.1, C.2)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from bert_jax import config
from bert_jax.config import require


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What masking must know of a tokenizer: the ids of three pieces, the size V, and which pieces continue a word."""

    mask: int
    cls: int
    sep: int
    size: int
    continuation: Bool[np.ndarray, " V"] | None = None  # only for whole words


def corrupt(
    key: Key[Array, ""], batch: dict[str, Array], masking: config.Masking, vocabulary: Vocabulary
) -> dict[str, Array]:
    """The batch with positions chosen, their tokens corrupted and their original tokens as targets.

    An example's masks depend on `key` and its `id` alone, not on its place in the batch; with `masking.dynamic` also on
    its `visit`. `min(M, max(1, round(rate * n)))` positions are predicted, n counting [CLS] and [SEP], which are never
    chosen themselves (reference behaviour). Whole words are visited in random order, and one that would overflow the
    count is skipped. A word begins anew after [CLS] and [SEP]: where a segment B was cut within a word, its first
    pieces are a word by themselves, which the reference glues to the last word of A.

    Args:
      key: the same throughout a run.
      batch: `tokens` [B, T], `mask` [B, T] (False on padding), `id` [B] and, for dynamic masks, `visit` [B]; whatever
        else it holds is passed on.
      masking: the recipe.
      vocabulary: the ids of [MASK], [CLS] and [SEP], and the size.

    Returns:
      The batch with `tokens` [B, T] corrupted, and `positions`, `targets` (int32) and `weights` (float32), all [B, M]:
      positions in rising order, padded with 0 at weight 0.

    Raises:
      ValueError: whole words are asked for, and the vocabulary does not say which pieces continue one.
    """
    require(
        not masking.whole_word or vocabulary.continuation is not None,
        "whole_word needs a vocabulary that knows which pieces continue a word",
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])
    if masking.dynamic:
        keys = jax.vmap(jax.random.fold_in)(keys, batch["visit"])
    example = jax.vmap(lambda key, tokens, mask: _corrupt_example(key, tokens, mask, masking, vocabulary))
    return batch | example(keys, batch["tokens"], batch["mask"])


def counts(masking: config.Masking, length: int) -> Int[np.ndarray, " N"]:
    """How many positions a sequence of n tokens predicts, for n from 0 to `length`.

    A table made on the host: Python rounds in float64 and half to even, which float32 on the device need not reproduce.
    """
    most = masking.predictions(length)
    return np.array([0] + [min(most, max(1, round(masking.rate * n))) for n in range(1, length + 1)], np.int32)


def _corrupt_example(
    key: Key[Array, ""],
    tokens: Int[Array, " T"],
    mask: Bool[Array, " T"],
    masking: config.Masking,
    vocabulary: Vocabulary,
) -> dict[str, Array]:
    length = tokens.shape[0]
    order_key, action_key, word_key = jax.random.split(key, 3)
    maskable = mask & (tokens != vocabulary.cls) & (tokens != vocabulary.sep)
    count = jnp.asarray(counts(masking, length))[mask.sum()]
    scores = jax.random.uniform(order_key, (length,))
    if vocabulary.continuation is not None and masking.whole_word:
        starts = maskable & ~(jnp.asarray(vocabulary.continuation)[tokens] & jnp.roll(maskable, 1).at[0].set(False))
        chosen = _choose_words(scores, maskable, starts, count)
    else:
        chosen = _choose_pieces(scores, maskable, count)

    # Chosen positions in rising order; `length`, which lies outside, stands for none.
    slots = masking.predictions(length)
    positions = jnp.sort(jnp.where(chosen, jnp.arange(length), length))[:slots]
    positions = jnp.pad(positions, (0, slots - positions.shape[0]), constant_values=length)
    targets = tokens.at[positions].get(mode="fill", fill_value=0)
    action = jax.random.uniform(action_key, (slots,))
    word = jax.random.randint(word_key, (slots,), 0, vocabulary.size, jnp.int32)
    replaced = jnp.where(action < masking.mask + masking.random, word, targets)
    replaced = jnp.where(action < masking.mask, vocabulary.mask, replaced)
    return {
        "tokens": tokens.at[positions].set(replaced, mode="drop"),
        "positions": jnp.where(positions < length, positions, 0),
        "targets": targets,
        "weights": (positions < length).astype(jnp.float32),
    }


def _choose_pieces(scores, maskable, count) -> Bool[Array, " T"]:
    """The `count` maskable positions of least score."""
    rank = jnp.argsort(jnp.argsort(jnp.where(maskable, scores, 2.0)))
    return maskable & (rank < count)


def _choose_words(scores, maskable, starts, count) -> Bool[Array, " T"]:
    """Whole words in the order of their scores, as long as they fit into what is left of `count`."""
    length = scores.shape[0]
    word = jnp.where(maskable, jnp.cumsum(starts) - 1, length)  # which word a position belongs to; `length`: none
    size = jnp.zeros(length, jnp.int32).at[word].add(1, mode="drop")

    def visit(left, size):
        fits = (size > 0) & (size <= left)
        return left - jnp.where(fits, size, 0), fits

    order = jnp.argsort(scores)
    _, fits = jax.lax.scan(visit, count, size[order], unroll=8)
    return jnp.zeros(length, bool).at[order].set(fits).at[word].get(mode="fill", fill_value=False)
