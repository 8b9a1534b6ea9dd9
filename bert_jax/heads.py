"""What stands on the encoder: the pre-training heads (paper, 3.1), and those of fine-tuning (4.1 to 4.4 and 5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax import config
from bert_jax.dropout import Dropout
from bert_jax.encoder import Bert, LayerNorm, dense, gelu


class Pooler(nn.Module):
    """Dense and tanh on the hidden state of [CLS]: what NSP and classifiers read."""

    config: config.Encoder

    @nn.compact
    def __call__(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        return jnp.tanh(dense(self.config, self.config.hidden, "dense")(hidden[:, 0]))


class MaskedLM(nn.Module):
    """Dense, GELU, LayerNorm, then the word embeddings and an output bias: float32 logits, only where predicted."""

    config: config.Encoder

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"], table: Float[Array, "V D"]) -> Float[Array, "B M V"]:
        c = self.config
        x = LayerNorm(c, name="norm")(gelu(c, dense(c, c.hidden, "dense")(hidden)))
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_rows,))
        logits = jnp.einsum("bmd,vd->bmv", x, table.astype(c.dtype), preferred_element_type=jnp.float32)
        logits = logits + bias[None, None, :]
        if c.vocab_rows == c.vocab_size:
            return logits
        # Rows that pad the table are no words: so low a logit is never the greatest, and its exponential is exactly 0.
        return jnp.where(jnp.arange(c.vocab_rows)[None, None, :] < c.vocab_size, logits, -1e9)


class NextSentence(nn.Module):
    """Float32 logits of "B follows A" (0) and "B is random" (1)."""

    config: config.Encoder

    @nn.compact
    def __call__(self, pooled: Float[Array, "B D"]) -> Float[Array, "B 2"]:
        return dense(self.config, 2, "dense")(pooled).astype(jnp.float32)


class Classifier(nn.Module):
    """Dropout and one dense layer: float32 logits of C classes (of one, a regression's value)."""

    config: config.Encoder
    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"], *, train: bool = False) -> Float[Array, "*rows C"]:
        c = self.config
        x = Dropout(c.dropout, c.dropout_rng, name="dropout")(x, train=train)
        return dense(c, self.classes, "dense")(x).astype(jnp.float32)


class Span(nn.Module):
    """One dense layer, without dropout as in the reference: float32 logits of an answer's start and end."""

    config: config.Encoder

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T 2"]:
        return dense(self.config, 2, "dense")(hidden).astype(jnp.float32)


class PreTraining(nn.Module):
    """Encoder, masked LM and next sentence, on a batch that `masking.corrupt` went through."""

    config: config.Encoder
    next_sentence: bool = True  # some published models have no such head, and no pooler

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`mlm_logits` [B, M, V] and, with `next_sentence`, `nsp_logits` [B, 2]."""
        c = self.config
        read = jnp.pad(batch["positions"], ((0, 0), (1, 0)))  # [CLS], which stands at 0, and the predicted ones
        encoded = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train, at=read)
        outputs = {"mlm_logits": MaskedLM(c, name="masked_lm")(encoded.hidden[:, 1:], encoded.table)}
        if self.next_sentence:
            outputs["nsp_logits"] = NextSentence(c, name="next_sentence")(Pooler(c, name="pooler")(encoded.hidden))
        return outputs


class Classification(nn.Module):
    """Encoder, pooler and classifier: a label for each sentence or pair of sentences."""

    config: config.Encoder
    classes: int

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, C]."""
        c = self.config
        read = jnp.zeros((batch["tokens"].shape[0], 1), jnp.int32)  # [CLS]
        encoded = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train, at=read)
        pooled = Pooler(c, name="pooler")(encoded.hidden)
        return {"logits": Classifier(c, self.classes, name="classifier")(pooled, train=train)}


class Tagging(nn.Module):
    """Encoder and a classifier on every token: named entities, parts of speech (paper, section 5.3)."""

    config: config.Encoder
    classes: int

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, T, C]."""
        c = self.config
        encoded = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train)
        return {"logits": Classifier(c, self.classes, name="tagger")(encoded.hidden, train=train)}


class SpanPrediction(nn.Module):
    """Encoder and two logits of every token: that the answer starts, that it ends there (paper, section 4.2)."""

    config: config.Encoder

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`start_logits` and `end_logits` [B, T], float32, on padding too: decoding leaves it out."""
        c = self.config
        encoded = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train)
        logits = Span(c, name="span")(encoded.hidden)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


class MultipleChoice(nn.Module):
    """Encoder, pooler and a score for each of N choices, each read by itself (paper, section 4.4)."""

    config: config.Encoder

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, N], from tokens, segments and mask [B, N, T]."""
        c = self.config
        flat = [batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "segments", "mask")]
        read = jnp.zeros((flat[0].shape[0], 1), jnp.int32)  # [CLS]
        pooled = Pooler(c, name="pooler")(Bert(c, name="encoder")(*flat, train=train, at=read).hidden)
        scores = Classifier(c, 1, name="choice")(pooled, train=train)
        return {"logits": scores.reshape(batch["tokens"].shape[:2])}


def module_of(config: config.Encoder, params: Mapping[str, Any]) -> nn.Module | None:
    """The module that these parameters belong to, by the names of its heads; None for an encoder without a head."""
    classes = {
        name: head["dense"]["bias"].shape[0] for name, head in params.items() if name in ("classifier", "tagger")
    }
    if "classifier" in params:
        return Classification(config, classes["classifier"])
    if "tagger" in params:
        return Tagging(config, classes["tagger"])
    if "span" in params:
        return SpanPrediction(config)
    if "choice" in params:
        return MultipleChoice(config)
    if "masked_lm" in params:
        return PreTraining(config, next_sentence="next_sentence" in params)
    return None
