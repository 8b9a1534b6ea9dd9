"""The optimizer of the reference: clipping, Adam without bias correction, decoupled decay, warm-up and linear decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bert_jax import config

Tree = Any  # of arrays, as the parameters are


class State(NamedTuple):
    """How many updates were made, and Adam's moments, float32 and shaped as the parameters."""

    step: Int[Array, ""]
    mu: Tree
    nu: Tree


def schedule(
    optimizer: config.Optimizer, total_steps: int, learning_rate: Any = None
) -> Callable[[Any], Float[Array, ""]]:
    """The learning rate by step, counted from 0. `learning_rate`, if given, stands for the config's.

    `step / warmup * learning_rate` up to the warm-up's end (0 at step 0), then `(1 - step / total) * learning_rate`:
    that line starts at step 0, so the rate drops a little at the joint (reference behaviour). "constant" stays.
    """
    peak = optimizer.learning_rate if learning_rate is None else learning_rate
    warmup = int(total_steps * optimizer.warmup) if optimizer.warmup < 1 else optimizer.warmup

    def rate(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        after = jnp.asarray(peak, jnp.float32)
        if optimizer.schedule == "linear":
            after = peak * (1.0 - jnp.minimum(step, total_steps) / total_steps)
        return jnp.where(step < warmup, peak * step / max(warmup, 1), after)

    return rate


def clip(gradients: Tree, norm: float) -> Tree:
    """The gradients, scaled down to the global norm `norm` where they exceed it; with `norm` 0, as they are."""
    scale = clip_scale(gradients, norm)
    return jax.tree.map(lambda g: g * scale, gradients)


def clip_scale(gradients: Tree, norm: float) -> Float[Array, ""]:
    """The factor, at most 1, that brings the gradients' global norm down to `norm`; 1 for a norm of 0, no clipping."""
    return norm / jnp.maximum(optax.tree.norm(gradients), norm) if norm else jnp.ones(())


def decays(path: tuple[Any, ...]) -> bool:
    """Whether weight decay applies to the parameter at `path`: not to biases, LayerNorm's scales, or a mix of layers.

    The weights of a mix are logits of shares: decayed, they would be drawn to equal shares.
    """
    names = [entry.key for entry in path]
    return names[-1] not in ("bias", "scale") and "mix" not in names


def make(optimizer: config.Optimizer, total_steps: int, learning_rate: Any = None) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decay, learning rate: one pass over each parameter, once the norm is known.

    The update is `-rate * (mu / (sqrt(nu) + eps) + weight_decay * parameter)`; `bias_correction` divides the moments by
    `1 - b**count` first, as Kingma and Ba have it and the reference does not.
    """
    o = optimizer
    rate_of = schedule(o, total_steps, learning_rate)

    def init(params: Tree) -> State:
        zeros = lambda: jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)  # noqa: E731
        return State(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(gradients: Tree, state: State, params: Tree = None) -> tuple[Tree, State]:
        scale = clip_scale(gradients, o.clip_norm)
        rate, count = rate_of(state.step), state.step + 1
        mu = jax.tree.map(lambda g, m: o.b1 * m + (1 - o.b1) * (g * scale), gradients, state.mu)
        nu = jax.tree.map(lambda g, n: o.b2 * n + (1 - o.b2) * jnp.square(g * scale), gradients, state.nu)
        mu_scale = 1.0 / (1.0 - o.b1 ** count.astype(jnp.float32)) if o.bias_correction else 1.0
        nu_scale = 1.0 / (1.0 - o.b2 ** count.astype(jnp.float32)) if o.bias_correction else 1.0

        def step(path, p, m, n):
            direction = m * mu_scale / (jnp.sqrt(n * nu_scale) + o.eps)
            return -rate * (direction + o.weight_decay * p if decays(path) else direction)

        return jax.tree_util.tree_map_with_path(step, params, mu, nu), State(count, mu, nu)

    return optax.GradientTransformation(init, update)
