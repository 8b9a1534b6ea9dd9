"""Losses and metrics as (sum, weight) pairs, by hand, and at weight 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.losses import accuracy, cross_entropy, mean, pick, squared_error, vocabulary_accuracy

LOGITS = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])) + 5.0  # a constant changes nothing
TARGETS = jnp.array([0, 0, 2])
WEIGHTS = jnp.array([1.0, 0.5, 0.0])


def test_cross_entropy_by_hand() -> None:
    total, weight = cross_entropy(LOGITS, TARGETS, WEIGHTS)
    assert weight == 1.5
    assert total == pytest.approx(-np.log(0.7) - 0.5 * np.log(0.25), rel=1e-6)


def test_accuracy_by_hand() -> None:
    assert accuracy(LOGITS, TARGETS, WEIGHTS) == (1.0, 1.5)


def test_squared_error_by_hand() -> None:
    assert squared_error(jnp.array([1.0, 2.0, 9.0]), jnp.array([0.0, 4.0, 0.0]), WEIGHTS) == (3.0, 1.5)


def test_its_gradient_is_the_softmax_less_the_target() -> None:
    gradient = jax.grad(lambda x: cross_entropy(x, TARGETS, WEIGHTS)[0])(LOGITS)
    expected = (jax.nn.softmax(LOGITS) - jax.nn.one_hot(TARGETS, 3)) * WEIGHTS[:, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_far_logits_stay_finite_and_bfloat16_is_computed_in_float32() -> None:
    total, _ = cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]), jnp.ones(1))
    assert total == 2e4
    many = jnp.zeros((1, 30522), jnp.bfloat16)
    total, _ = cross_entropy(many, jnp.array([7]), jnp.ones(1))
    assert total.dtype == jnp.float32
    assert total == pytest.approx(np.log(30522), rel=1e-6)


def test_no_weight_is_a_mean_of_0_with_a_gradient_of_0() -> None:
    def loss(logits: jax.Array) -> jax.Array:
        return mean(cross_entropy(logits, TARGETS, jnp.zeros(3)))

    value, gradient = jax.value_and_grad(loss)(LOGITS)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, jnp.zeros((3, 3)))


def test_pairs_add_over_parts_of_a_batch() -> None:
    whole = cross_entropy(LOGITS, TARGETS, WEIGHTS)
    parts = [cross_entropy(LOGITS[s], TARGETS[s], WEIGHTS[s]) for s in (slice(0, 1), slice(1, 3))]
    assert mean(jax.tree.map(lambda *x: sum(x), *parts)) == pytest.approx(float(mean(whole)), rel=1e-6)


def test_accuracy_over_a_vocabulary_is_accuracy() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 5, 50)), jnp.float32)
    targets = jnp.where(jnp.asarray(rng.random((4, 5)) < 0.5), logits.argmax(-1), 7)
    weights = jnp.asarray(rng.random((4, 5)), jnp.float32)
    wanted = accuracy(logits, targets, weights)
    np.testing.assert_allclose(vocabulary_accuracy(logits, targets, weights), wanted, rtol=1e-6)
    assert 0 < wanted[0] < wanted[1]


def test_the_gradient_of_a_picked_logit_is_one_hot() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    targets = jnp.asarray([4, 0, 2])
    gradient = jax.grad(lambda x: (pick(x, targets) * jnp.asarray([1.0, 2.0, 3.0])).sum())(logits)
    np.testing.assert_array_equal(gradient, np.eye(5)[[4, 0, 2]] * [[1], [2], [3]])
