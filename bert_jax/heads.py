"""What stands on the encoder: the pre-training heads (paper, 3.1) and the classifier (4.1)."""

from __future__ import annotations

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
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
        logits = jnp.einsum("bmd,vd->bmv", x, table.astype(c.dtype), preferred_element_type=jnp.float32)
        return logits + bias[None, None, :]


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
    def __call__(self, pooled: Float[Array, "B D"], *, train: bool = False) -> Float[Array, "B C"]:
        c = self.config
        pooled = Dropout(c.dropout, c.dropout_rng, name="dropout")(pooled, train=train)
        return dense(c, self.classes, "dense")(pooled).astype(jnp.float32)


class PreTraining(nn.Module):
    """Encoder, masked LM and next sentence, on a batch that `masking.corrupt` went through."""

    config: config.Encoder

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`mlm_logits` [B, M, V] and `nsp_logits` [B, 2]."""
        c = self.config
        read = jnp.pad(batch["positions"], ((0, 0), (1, 0)))  # [CLS], which stands at 0, and the predicted ones
        encoded = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train, at=read)
        pooled = Pooler(c, name="pooler")(encoded.hidden)
        return {
            "mlm_logits": MaskedLM(c, name="masked_lm")(encoded.hidden[:, 1:], encoded.table),
            "nsp_logits": NextSentence(c, name="next_sentence")(pooled),
        }


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
