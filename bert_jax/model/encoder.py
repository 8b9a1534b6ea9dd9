"""The encoder: embeddings, attention, feed-forward, layer upon layer (paper, section 3; post-norm)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax import config
from bert_jax.config import require
from bert_jax.model.dropout import Dropout

# What a layer keeps for its backward pass besides its input, by `config.Encoder.remat`.
KEPT = {
    "elementwise": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # what the four kernels give
        jax.checkpoint_policies.save_only_these_names("attention"),  # the probabilities, and what they mix
    ),
    "attention": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layer": jax.checkpoint_policies.nothing_saveable,
}


# Added to the scores of tokens that are not attended to, as in the reference. In float32 it leaves them a weight of
# exactly 0 beside any other, and a row that is all padding (it fills up a last batch) stays finite.
HIDDEN = -10_000.0


class Encoded(NamedTuple):
    """What the encoder gives its heads."""

    hidden: Float[Array, "B T D"]  # or [B, M, D], at M positions
    table: Float[Array, "V D"]  # the word embeddings, to which the masked LM's output is tied
    layers: Float[Array, "N B T D"] | None = None  # the embeddings' output and each layer's, N = L + 1


def check_inputs(config: config.Encoder, batch: Mapping[str, Any]) -> None:
    """Checks that the tables have a row for each id in a batch on the host: in "tokens" and "segments" [..., T].

    A program does not: there, a segment outside the table adds nothing, and a token outside it gives NaN.

    Raises:
      ValueError: that names the ids, and says what a model without a second segment cannot read.
    """
    for name, size, field in (("tokens", config.vocab_size, "vocab_size"), ("segments", config.segments, "segments")):
        ids = np.asarray(batch.get(name, 0))
        if ids.size and not 0 <= ids.min() <= ids.max() < size:
            pairs = ": its segments tell no pairs of texts apart, so give it single texts" if name == "segments" else ""
            raise ValueError(
                f"{name} from {ids.min()} to {ids.max()} are given to a model of encoder.{field}={size}{pairs}"
            )


class Bert(nn.Module):
    """The encoder. Its layers' parameters are stacked along a leading axis L, whether the loop is scanned or not."""

    config: config.Encoder

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        train: bool = False,
        all_layers: bool = False,
        at: Int[Array, "B M"] | None = None,
    ) -> Encoded:
        """Hidden states. `mask` is False on padding; `train` turns dropout on; `all_layers` keeps each layer's output.

        `at` asks for the hidden states at those positions alone, [B, M, D]: the last layer then computes no others,
        whose output would meet no loss.

        Raises:
          ValueError: the sequence is longer than the positions the model has, or `at` comes with `all_layers`.
        """
        require(at is None or not all_layers, "all layers are given at all positions: leave out `at`")
        length, room = tokens.shape[1], self.config.max_positions
        require(length <= room, f"a sequence of {length} tokens exceeds the model's {room} positions (max_positions)")
        x, table = Embeddings(self.config, name="embeddings")(tokens, segments, train=train)
        bias = jnp.where(mask, 0.0, HIDDEN)[:, None, None, :]
        layers = self.config.layers
        layer = Layer(self.config, train, parent=None)
        stacked = self.param("layers", self._init_layers, x, bias)
        keys = jax.random.split(self.make_rng("dropout"), layers) if train else None

        def one(x, params, key, at=None):
            rngs = None if key is None else {"dropout": key}
            return layer.apply({"params": params}, x, bias, at, rngs=rngs)

        if self.config.remat != "none":  # a scan's body cannot be merged with its backward pass
            one = jax.checkpoint(one, prevent_cse=not self.config.scan, policy=KEPT[self.config.remat])

        def loop(x, params, keys, count):
            def body(x, inputs):
                x = one(x, *inputs)
                return x, x if all_layers else None

            return jax.lax.scan(body, x, (params, keys), count, unroll=1 if self.config.scan else max(1, count))

        if at is None:
            hidden, outputs = loop(x, stacked, keys, layers)
        else:
            # Cut by jnp.split, not by slices, whose gradients would be sums of padded arrays.
            cut = jax.tree.map(lambda leaf: tuple(jnp.split(leaf, [layers - 1])), (stacked, keys))
            first, last = jax.tree.transpose(jax.tree.structure((stacked, keys)), None, cut)
            hidden, outputs = loop(x, first[0], first[1], layers - 1)
            params, key = jax.tree.map(lambda leaf: leaf[0], last)
            hidden = one(hidden, params, key, at)
        return Encoded(hidden, table, None if outputs is None else jnp.concatenate([x[None], outputs]))

    def _init_layers(self, key: Key[Array, ""], x: Float[Array, "B T D"], bias: Float[Array, "B 1 1 T"]) -> Any:
        """The parameters of all layers, stacked along a leading axis."""
        layer = Layer(self.config, train=False, parent=None)
        keys = jax.random.split(key, self.config.layers)
        return jax.vmap(lambda key: layer.init(key, x, bias)["params"])(keys)


class Embeddings(nn.Module):
    """Word + position + segment, LayerNorm, dropout. Gives [B, T, D], and the word table [V, D]."""

    config: config.Encoder

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], segments: Int[Array, "B T"], *, train: bool
    ) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
        c = self.config
        word = self.param("word", word_init(c), (c.vocab_rows, c.hidden))
        position = self.param("position", kernel_init(c), (c.max_positions, c.hidden))
        segment = self.param("segment", kernel_init(c), (c.segments, c.hidden))
        # A product with one-hot rows: its gradient is a product too, where a look-up's scatters all B*T rows onto two.
        x = jnp.take(word, tokens, axis=0) + jax.nn.one_hot(segments, c.segments) @ segment
        x = x + position[None, : tokens.shape[1]]
        x = LayerNorm(c, name="norm")(x)
        return Dropout(c.dropout, c.dropout_rng, name="dropout")(x, train=train), word


class Layer(nn.Module):
    """Attention and feed-forward, each: dropout, residual sum, LayerNorm. With `at`, at those positions alone."""

    config: config.Encoder
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], bias: Float[Array, "B 1 1 T"], at: Int[Array, "B M"] | None = None
    ) -> Float[Array, "B N D"]:
        c = self.config
        drop = functools.partial(Dropout, c.dropout, c.dropout_rng)
        y = Attention(c, name="attention")(x, bias, at, train=self.train)
        x = x if at is None else jnp.take_along_axis(x, at[:, :, None], axis=1)
        x = LayerNorm(c, name="attention_norm")(x + drop(name="attention_dropout")(y, train=self.train))
        y = dense(c, c.feed_forward, "inner")(x)
        y = dense(c, c.hidden, "outer")(gelu(c, y))
        return LayerNorm(c, name="outer_norm")(x + drop(name="outer_dropout")(y, train=self.train))


class Attention(nn.Module):
    """Multi-head self-attention, dropout on its probabilities; with `direction` left_to_right, to what lies behind."""

    config: config.Encoder

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: Float[Array, "B 1 1 T"],
        at: Int[Array, "B M"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B N D"]:
        c = self.config
        size = c.hidden // c.heads
        query, key, value = Projections(c, name="qkv")(x)
        query = query if at is None else jnp.take_along_axis(query, at[:, :, None, None], axis=1)
        query = (wide(query) * size**-0.5).astype(query.dtype)  # the factor itself may be no bfloat16
        scores = jnp.einsum("bqhk,bthk->bhqt", query, key, preferred_element_type=jnp.float32)
        if c.direction == "left_to_right":
            places = jnp.arange(x.shape[1])
            own = places[None] if at is None else at
            scores = jnp.where(places[None, None, None] <= own[:, None, :, None], scores, HIDDEN)
        probabilities = softmax(scores + bias, x.dtype)
        probabilities = Dropout(c.attention_dropout, c.dropout_rng, name="dropout")(probabilities, train=train)
        mixed = checkpoint_name(jnp.einsum("bhqt,bthk->bqhk", probabilities, value), "attention")
        return dense(c, c.hidden, "out")(mixed.reshape(*mixed.shape[:2], c.hidden))


class Projections(nn.Module):
    """Query, key and value, [B, T, H, K] each.

    One kernel [D, H * 3 * K] holds those of each head side by side, so that a cut across heads, as model parallelism
    makes it, never parts them.
    """

    config: config.Encoder

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T H K"], ...]:
        c = self.config
        kernel = self.param("kernel", kernel_init(c), (c.hidden, 3 * c.hidden)).astype(c.dtype)
        bias = self.param("bias", nn.initializers.zeros, (3 * c.hidden,)).astype(c.dtype)
        products = project(x, kernel.reshape(c.hidden, c.heads, 3, -1))
        biases = jnp.split(bias.reshape(1, 1, c.heads, 3, -1), 3, axis=3)
        return tuple(product + bias.squeeze(3) for product, bias in zip(products, biases, strict=True))


@jax.custom_vjp
def project(x: Float[Array, "B T D"], kernel: Float[Array, "D H 3 K"]) -> tuple[Float[Array, "B T H K"], ...]:
    """The products of `x` with the kernel's three parts.

    Three products forward: the parts of one would lie interleaved, and a TPU copies them apart. One product backward:
    where `model` splits the heads, the gradient of `x` is then summed over devices once, not three times.
    """
    return _products(x, kernel)


def _products(x, kernel):
    return tuple(jnp.einsum("btd,dhk->bthk", x, part.squeeze(2)) for part in jnp.split(kernel, 3, axis=2))


def _project_forward(x, kernel):
    return _products(x, kernel), (x, kernel)  # not `project`, into which no policy of remat looks


def _project_backward(saved, gradients):
    x, kernel = saved
    gradient = jnp.stack(gradients, axis=3)
    return jnp.einsum("bthnk,dhnk->btd", gradient, kernel), jnp.einsum("btd,bthnk->dhnk", x, gradient)


project.defvjp(_project_forward, _project_backward)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32, given in the activations' type."""

    config: config.Encoder

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return (x * scale + bias).astype(self.config.dtype)


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32: for what is computed from it and rounded once, at the end."""
    return x.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(scores: Float[Array, "*rows T"], dtype: Any) -> Float[Array, "*rows T"]:
    """Softmax over the last axis, computed in float32 and given as `dtype`, which alone is kept for the backward pass.

    Its derivative needs nothing but the probabilities. Left to itself, JAX keeps them (or XLA the scores) in float32:
    of all that a layer keeps, the most.
    """
    return jax.nn.softmax(scores).astype(dtype)


def _softmax_forward(scores, dtype):
    probabilities = checkpoint_name(softmax(scores, dtype), "attention")
    return probabilities, probabilities


def _softmax_backward(dtype, probabilities, gradient):
    p, g = probabilities.astype(jnp.float32), gradient.astype(jnp.float32)
    return (p * (g - (p * g).sum(-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


def gelu(config: config.Encoder, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x times the normal distribution's CDF at x, exact ("erf") or by the tanh approximation; computed in float32.

    In bfloat16, 0.5 + 0.5 erf(x) cancels: at -3 what comes out is wrong by half.
    """
    return _gelu(x, config.gelu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x: Float[Array, "*shape"], kind: str) -> Float[Array, "*shape"]:
    """`gelu`. Its derivative is computed from `x`: of the float32 in between, a scan would keep three arrays."""
    return _wide_gelu(x, kind)


def _wide_gelu(x: Float[Array, "*shape"], kind: str) -> Float[Array, "*shape"]:
    y = wide(x)
    if kind == "tanh":
        return jax.nn.gelu(y, approximate=True).astype(x.dtype)
    # As the reference; jax.nn.gelu's erfc takes three times as long.
    return (y * (0.5 + 0.5 * jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def _gelu_forward(x: Any, kind: str) -> tuple[Any, Any]:
    return _wide_gelu(x, kind), x


def _gelu_backward(kind: str, x: Any, gradient: Any) -> tuple[Any]:
    return jax.vjp(lambda x: _wide_gelu(x, kind), x)[1](gradient)


_gelu.defvjp(_gelu_forward, _gelu_backward)


def dense(config: config.Encoder, features: int, name: str, dtype: str = "") -> nn.Dense:
    """A dense layer as BERT starts it: kernel [inputs, features] from `kernel_init`, bias zero.

    It computes in the activations' type unless it is given a `dtype`.
    """
    return nn.Dense(features, dtype=dtype or config.dtype, kernel_init=kernel_init(config), name=name)


def kernel_init(config: config.Encoder) -> jax.nn.initializers.Initializer:
    """A normal distribution of standard deviation `init_stddev`, cut at two sigma (what is left has 0.88 of it)."""
    return nn.initializers.truncated_normal(config.init_stddev)


def word_init(config: config.Encoder) -> Callable[..., Float[Array, "V D"]]:
    """`kernel_init` for the words, the same whatever `vocab_multiple` is; the rows that pad the table are 0."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "V D"]:
        words = kernel_init(config)(key, (config.vocab_size, shape[1]), dtype)
        return jnp.pad(words, ((0, shape[0] - config.vocab_size), (0, 0)))

    return init
