"""Losses and metrics as pairs (sum, weight): pairs add, over positions, batches, devices and steps, and divide last."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Pair: TypeAlias = tuple[Float[Array, ""], Float[Array, ""]]  # sum, weight


def cross_entropy(
    logits: Float[Array, "*rows N"], targets: Int[Array, "*rows"], weights: Float[Array, "*rows"]
) -> Pair:
    """The weighted negative log-likelihood, in nats, of the target classes, computed in float32."""
    logits = logits.astype(jnp.float32)
    return ((jax.nn.logsumexp(logits, axis=-1) - pick(logits, targets)) * weights).sum(), weights.sum()


@jax.custom_vjp
def pick(logits: Float[Array, "*rows N"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """The targets' logits. Looked up; but the gradient is made by comparison, which fuses where a scatter would not."""
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _pick_forward(logits, targets):
    return pick(logits, targets), (targets, logits.shape[-1])


def _pick_backward(saved, gradient):
    targets, size = saved
    places = jax.lax.broadcasted_iota(targets.dtype, (*targets.shape, size), targets.ndim)
    return jnp.where(places == targets[..., None], gradient[..., None], 0.0), None


pick.defvjp(_pick_forward, _pick_backward)


def accuracy(logits: Float[Array, "*rows N"], targets: Int[Array, "*rows"], weights: Float[Array, "*rows"]) -> Pair:
    """The weight of the rows whose greatest logit is the target's."""
    hit = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return (hit * weights).sum(), weights.sum()


def vocabulary_accuracy(
    logits: Float[Array, "*rows V"], targets: Int[Array, "*rows"], weights: Float[Array, "*rows"]
) -> Pair:
    """`accuracy` at the price of nothing: the maximum over a vocabulary is a part of its loss, where argmax is one more
    run over all of it. A tie counts as a hit, which float32 logits of a vocabulary do not come to."""
    hit = (pick(logits, targets) >= logits.max(axis=-1)).astype(jnp.float32)
    return (hit * weights).sum(), weights.sum()


def squared_error(
    values: Float[Array, "*rows"], targets: Float[Array, "*rows"], weights: Float[Array, "*rows"]
) -> Pair:
    """The weighted squared difference, for regression."""
    return (jnp.square(values.astype(jnp.float32) - targets) * weights).sum(), weights.sum()


def mean(pair: Pair) -> Float[Array, ""]:
    """Sum over weight; of a pair of weight 0 the mean is 0, and so is its gradient."""
    total, weight = pair
    return total / jnp.where(weight > 0, weight, 1.0)
