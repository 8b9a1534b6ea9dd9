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
    # Picked by comparison, not by index: its gradient is no scatter, and fuses with that of the softmax.
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.where(hit, logits, 0.0).sum(-1)
    return (loss * weights).sum(), weights.sum()


def accuracy(logits: Float[Array, "*rows N"], targets: Int[Array, "*rows"], weights: Float[Array, "*rows"]) -> Pair:
    """The weight of the rows whose greatest logit is the target's."""
    hit = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
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
