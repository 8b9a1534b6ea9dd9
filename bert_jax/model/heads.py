"""What stands on the encoder: the pre-training heads (paper, 3.1), and those of fine-tuning (4.1 to 4.4 and 5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax import config
from bert_jax.model.dropout import Dropout
from bert_jax.model.encoder import Bert, LayerNorm, dense, gelu, wide


class Pooler(nn.Module):
    """Dense and tanh on the first hidden state given, that of `pooled_position`: what NSP and classifiers read."""

    config: config.Encoder

    @nn.compact
    def __call__(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        pooled = dense(self.config, self.config.hidden, "dense")(hidden[:, 0])
        return jnp.tanh(wide(pooled)).astype(pooled.dtype)


class MaskedLM(nn.Module):
    """Dense, GELU, LayerNorm, then the word embeddings and an output bias: float32 logits, only where predicted.

    A left-to-right LM has the same head: nothing but its direction shall set it apart.
    """

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
        return dense(self.config, 2, "dense", "float32")(pooled)


class Classifier(nn.Module):
    """Dropout and one dense layer: float32 logits of C classes (of one, a regression's value)."""

    config: config.Encoder
    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"], *, train: bool = False) -> Float[Array, "*rows C"]:
        c = self.config
        x = Dropout(c.dropout, c.dropout_rng, name="dropout")(x, train=train)
        return dense(c, self.classes, "dense", "float32")(x)


class Span(nn.Module):
    """One dense layer, without dropout as in the reference: float32 logits of an answer's start and end."""

    config: config.Encoder

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T 2"]:
        return dense(self.config, 2, "dense", "float32")(hidden)


class BiLSTM(nn.Module):
    """Layers of LSTMs that read a sequence in both directions (paper, sections 5.1 and 5.3).

    Padding may stand anywhere: it changes nothing elsewhere, and what comes out there means nothing. Kernels start by
    LeCun's normal distribution, of standard deviation 1 / sqrt(inputs), biases at 0 but for 1 at the forget gates.
    """

    config: config.Encoder
    bilstm: config.BiLSTM

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], *, train: bool = False
    ) -> Float[Array, "B T N"]:
        """The last layer's states, those of the forward direction first: N is twice the width."""
        c = self.config
        for n in range(self.bilstm.layers):
            if n > 0:
                x = Dropout(self.bilstm.dropout, c.dropout_rng, name=f"dropout_{n}")(x, train=train)
            x = BidirectionalLSTM(self.bilstm.width, c.dtype, name=f"layer_{n}")(x, mask)
        return x


class BidirectionalLSTM(nn.Module):
    """An LSTM from left to right and one from right to left, in one loop; parameters are stacked over the two.

    The products with the inputs are made before the loop, of all steps at once, which flax's cells cannot. The gates
    lie in the order input, forget, cell, output; states are float32.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T N"]:
        wide = 4 * self.width
        # Not orthogonal, as is usual for the recurrent ones: XLA's CPU client (jaxlib 0.10.2, two threads) hangs at
        # two batched QR decompositions in one program.
        by_input = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        kernel = self.param("kernel", by_input, (2, x.shape[-1], wide))
        recurrent = self.param("recurrent", by_input, (2, self.width, wide)).astype(self.dtype)
        bias = self.param("bias", _remember, (2, wide))

        def both(x: Array) -> Array:
            """[T, 2, B, ...]: as it is, and back to front."""
            return jnp.moveaxis(jnp.stack([x, jnp.flip(x, axis=1)]), 2, 0)

        inputs = jnp.einsum("tsbd,sdg->tsbg", both(x.astype(self.dtype)), kernel.astype(self.dtype))
        inputs = inputs.astype(jnp.float32) + bias[None, :, None]

        def step(states: tuple[Array, Array], here: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            cell, hidden = states
            inputs, keep = here
            product = jnp.einsum("sbh,shg->sbg", hidden.astype(self.dtype), recurrent)
            i, f, g, o = jnp.split(inputs + product.astype(jnp.float32), 4, axis=-1)
            new = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            cell, hidden = (
                jnp.where(keep, here, before)  # padding leaves the states as they are
                for here, before in ((new, cell), (jax.nn.sigmoid(o) * jnp.tanh(new), hidden))
            )
            return (cell, hidden), hidden

        start = jnp.zeros((2, x.shape[0], self.width))
        _, hidden = jax.lax.scan(step, (start, start), (inputs, both(mask)[..., None]))
        forward, backward = hidden[:, 0], jnp.flip(hidden[:, 1], axis=0)
        return jnp.concatenate([forward, backward], axis=-1).swapaxes(0, 1).astype(self.dtype)


def _remember(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "S N"]:
    """0, and 1 at the forget gates: an LSTM that starts by forgetting half of everything learns slowly."""
    return jnp.zeros((shape[0], 4, shape[1] // 4)).at[:, 1].set(1.0).reshape(shape)


class Mix(nn.Module):
    """A weighted sum of layers. The weights are shares, a softmax of learned numbers, equal at the start.

    The paper says "weighted sum" and no more. As shares they keep the scale of a layer, can be read, and are what ELMo,
    which Table 7 stands beside, learns too.
    """

    @nn.compact
    def __call__(self, layers: Float[Array, "*rows S D"]) -> Float[Array, "*rows D"]:
        weights = self.param("weights", nn.initializers.zeros, layers.shape[-2:-1])
        shares = jax.nn.softmax(weights).reshape((1,) * (layers.ndim - 2) + (-1, 1))
        return (wide(layers) * shares).sum(axis=-2).astype(layers.dtype)


def pooled_position(config: config.Encoder, mask: Bool[Array, "B T"]) -> Int[Array, "B 1"]:
    """Where the token stands whose hidden state stands for the whole: see `Encoder.classify_from`."""
    if config.classify_from == "first":
        return jnp.zeros((mask.shape[0], 1), jnp.int32)
    return jnp.maximum(mask.sum(axis=1, dtype=jnp.int32) - 1, 0)[:, None]  # a row that is all padding has none


class PreTraining(nn.Module):
    """Encoder, LM and next sentence. The LM follows the encoder's direction: masked, or from left to right.

    A masked LM takes a batch that `masking.corrupt` went through; from left to right each token predicts the next.
    """

    config: config.Encoder
    next_sentence: bool = True  # some published models have no such head, and no pooler

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`mlm_logits` [B, M, V] or `lm_logits` [B, T - 1, V] and, with `next_sentence`, `nsp_logits` [B, 2]."""
        c = self.config
        tokens, segments, mask = (batch[name] for name in ("tokens", "segments", "mask"))
        encoder, lm, position = Bert(c, name="encoder"), MaskedLM(c, name="masked_lm"), pooled_position(c, mask)
        if c.direction == "both":
            read = jnp.concatenate([position, batch["positions"]], axis=1)
            encoded = encoder(tokens, segments, mask, train=train, at=read)
            outputs = {"mlm_logits": lm(encoded.hidden[:, 1:], encoded.table)}
            first = encoded.hidden[:, :1]
        else:
            encoded = encoder(tokens, segments, mask, train=train)
            outputs = {"lm_logits": lm(encoded.hidden[:, :-1], encoded.table)}
            first = jnp.take_along_axis(encoded.hidden, position[:, :, None], axis=1)
        if self.next_sentence:
            outputs["nsp_logits"] = NextSentence(c, name="next_sentence")(Pooler(c, name="pooler")(first))
        return outputs


def sentence_vector(
    config: config.Encoder,
    bilstm: config.BiLSTM | None,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    train: bool,
) -> Float[Array, "B N"]:
    """One vector for each row, in the module that calls it: of encoder and pooler, as in the paper, [B, D].

    With `bilstm`, of encoder and BiLSTM, [B, 2 width]: the states in which its two directions end, the forward one
    after the last token, the backward one after the first. Each has seen all, so no pooler need bring them together.
    """
    encoder = Bert(config, name="encoder")
    if bilstm is None:
        encoded = encoder(tokens, segments, mask, train=train, at=pooled_position(config, mask))
        return Pooler(config, name="pooler")(encoded.hidden)
    hidden = encoder(tokens, segments, mask, train=train).hidden
    states = BiLSTM(config, bilstm, name="bilstm")(hidden, mask, train=train)
    forward, backward = jnp.split(states, 2, axis=-1)
    return jnp.concatenate([forward[:, -1], backward[:, 0]], axis=-1)  # padding leaves a state as it is


class Classification(nn.Module):
    """Encoder, pooler (or BiLSTM) and classifier: a label for each sentence or pair of sentences."""

    config: config.Encoder
    classes: int
    bilstm: config.BiLSTM | None = None

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, C]."""
        read = (batch[name] for name in ("tokens", "segments", "mask"))
        vector = sentence_vector(self.config, self.bilstm, *read, train=train)
        return {"logits": Classifier(self.config, self.classes, name="classifier")(vector, train=train)}


class Tagging(nn.Module):
    """Encoder, perhaps a BiLSTM, and a classifier on every token: named entities, parts of speech (paper, 5.3)."""

    config: config.Encoder
    classes: int
    bilstm: config.BiLSTM | None = None

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, T, C]."""
        c = self.config
        x = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train).hidden
        if self.bilstm is not None:
            x = BiLSTM(c, self.bilstm, name="bilstm")(x, batch["mask"], train=train)
        return {"logits": Classifier(c, self.classes, name="tagger")(x, train=train)}


class FeatureTagging(nn.Module):
    """Perhaps a BiLSTM, and a classifier, on S layers of a frozen encoder, which is no part of it (paper, 5.3).

    With `summed` the layers are mixed into one, else put side by side.
    """

    config: config.Encoder
    classes: int
    summed: bool
    bilstm: config.BiLSTM | None = None

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, T, C], from features [B, T, S, D] of words, and predicted [B, T], False on padding."""
        c = self.config
        x = batch["features"].astype(c.dtype)
        x = Mix(name="mix")(x) if self.summed else x.reshape(*x.shape[:2], -1)
        if self.bilstm is not None:
            x = BiLSTM(c, self.bilstm, name="bilstm")(x, batch["predicted"], train=train)
        return {"logits": Classifier(c, self.classes, name="tagger")(x, train=train)}


class SpanPrediction(nn.Module):
    """Encoder and two logits of every token: that the answer starts, that it ends there (paper, section 4.2)."""

    config: config.Encoder
    bilstm: config.BiLSTM | None = None

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`start_logits` and `end_logits` [B, T], float32, on padding too: decoding leaves it out."""
        c = self.config
        x = Bert(c, name="encoder")(batch["tokens"], batch["segments"], batch["mask"], train=train).hidden
        if self.bilstm is not None:
            x = BiLSTM(c, self.bilstm, name="bilstm")(x, batch["mask"], train=train)
        logits = Span(c, name="span")(x)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


class MultipleChoice(nn.Module):
    """Encoder, pooler (or BiLSTM) and a score for each of N choices, each read by itself (paper, section 4.4)."""

    config: config.Encoder
    bilstm: config.BiLSTM | None = None

    @nn.compact
    def __call__(self, batch: dict[str, Array], *, train: bool = False) -> dict[str, Array]:
        """`logits` [B, N], from tokens, segments and mask [B, N, T]."""
        c = self.config
        flat = [batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "segments", "mask")]
        vector = sentence_vector(c, self.bilstm, *flat, train=train)
        scores = Classifier(c, 1, name="choice")(vector, train=train)
        return {"logits": scores.reshape(batch["tokens"].shape[:2])}


def module_of(config: config.Encoder, params: Mapping[str, Any]) -> nn.Module | None:
    """The module that these parameters belong to, by the names of its heads; None for an encoder without a head.

    What reads a frozen encoder is not told by its names: ask the task of its run.
    """
    classes = {
        name: head["dense"]["bias"].shape[0] for name, head in params.items() if name in ("classifier", "tagger")
    }
    bilstm = _bilstm_of(params)
    if "classifier" in params:
        return Classification(config, classes["classifier"], bilstm)
    if "tagger" in params:
        return Tagging(config, classes["tagger"], bilstm)
    if "span" in params:
        return SpanPrediction(config, bilstm)
    if "choice" in params:
        return MultipleChoice(config, bilstm)
    if "masked_lm" in params:
        return PreTraining(config, next_sentence="next_sentence" in params)
    return None


def _bilstm_of(params: Mapping[str, Any]) -> config.BiLSTM | None:
    """The BiLSTM among these parameters, by their shapes."""
    if "bilstm" not in params:
        return None
    layers = params["bilstm"]
    return config.BiLSTM(layers=len(layers), width=layers["layer_0"]["recurrent"].shape[1])
