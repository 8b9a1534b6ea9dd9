"""Dropout: the statistics of its bits, that the backward pass draws the same ones, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.dropout import Dropout, dropout, hash_keep

SHAPE = (64, 12, 48, 48)

keep = jax.jit(hash_keep, static_argnums=(1, 2))


@pytest.mark.parametrize("rng", ["hash", "threefry"])
def test_what_a_bfloat16_is_scaled_by_is_no_bfloat16(rng: str) -> None:
    """1 / 0.9 would be 1.1094: what is left would be 0.16% too small everywhere."""
    x = jnp.linspace(1, 2, 2**12).astype(jnp.bfloat16)
    found = np.asarray(dropout(jax.random.key(0), x, 0.1, rng), np.float64)
    kept = found != 0
    np.testing.assert_allclose(found[kept], np.asarray(x, np.float64)[kept] / 0.9, rtol=2**-8)
    assert (found[kept] / np.asarray(x, np.float64)[kept]).mean() == pytest.approx(1 / 0.9, rel=3e-4)


def dropped(seed: int, shape: tuple[int, ...] = SHAPE, rate: float = 0.1) -> np.ndarray:
    return ~np.array(
        jax.jit(hash_keep, static_argnums=(1, 2))(jax.random.bits(jax.random.key(seed), (2,)), shape, rate)
    )


def z_score(found: float, of: int, share: float) -> float:
    return (found - of * share) / (of * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate(rate: float) -> None:
    bits = dropped(0, rate=rate)
    assert abs(z_score(bits.sum(), bits.size, rate)) < 4


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_no_row_or_column_stands_out(axis: int) -> None:
    """Chi-square over the sums along each axis, and along each pair of the other axes."""
    bits = dropped(1)
    for kept in {(axis,), tuple(sorted({axis, (axis + 1) % 4}))}:
        sums = bits.sum(axis=tuple(i for i in range(4) if i not in kept))
        each = bits.size // sums.size
        chi_square = ((sums - each * 0.1) ** 2 / (each * 0.1 * 0.9)).sum()
        assert abs(chi_square - sums.size) < 5 * (2 * sums.size) ** 0.5


def test_neighbours_are_independent() -> None:
    """Two elements a given step apart are dropped together as often as chance has it, for steps along every axis."""
    bits = dropped(2)
    for axis in range(4):
        for step in (1, 2, 3, 4, 8, 16, 32):
            if step < SHAPE[axis]:
                lower, upper = np.split(bits, [bits.shape[axis] - step], axis)[0], np.split(bits, [step], axis)[1]
                assert abs(z_score((lower & upper).sum(), lower.size, 0.01)) < 5, (axis, step)


@pytest.mark.parametrize("bit", [0, 1, 15, 31, 32, 47, 63])
def test_keys_that_differ_in_one_bit_share_nothing(bit: int) -> None:
    words = np.array([123456789, 987654321], np.uint32)
    flipped = words.copy()
    flipped[bit // 32] ^= np.uint32(1 << bit % 32)
    one, other = (~np.array(keep(jnp.array(w), SHAPE, 0.1)) for w in (words, flipped))
    assert abs(z_score((one & other).sum(), one.size, 0.01)) < 5


def test_steps_and_rows_are_independent() -> None:
    """200 masks of one row, as 200 steps draw them: every element's rate, and all pairs of steps."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(200))
    words = jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys)
    bits = ~np.array(jax.vmap(lambda w: hash_keep(w, (2, 2048), 0.1))(words))
    per_element = bits.sum(axis=0)
    chi_square = ((per_element - 20) ** 2 / 18).sum()
    assert abs(chi_square - per_element.size) < 5 * (2 * per_element.size) ** 0.5
    rows = (bits.reshape(400, 2048) - 0.1) / 0.3
    correlations = (rows @ rows.T)[np.triu_indices(400, 1)] / 2048**0.5
    assert abs(correlations.mean()) < 5 / len(correlations) ** 0.5
    assert abs(correlations.var() - 1) < 5 * (2 / len(correlations)) ** 0.5
    assert abs(correlations).max() < 6


def test_the_whole_word_is_well_mixed() -> None:
    """Thresholds at 2**-k test the upper bits: each rate holds, down to one in 2**16."""
    for k in range(1, 17):
        bits = dropped(4, rate=2.0**-k)
        assert abs(z_score(bits.sum(), bits.size, 2.0**-k)) < 5


@pytest.mark.parametrize("rng", ["hash", "threefry"])
def test_values_and_gradient(rng: str) -> None:
    """What is kept is scaled by 1 / (1 - rate); the gradient passes where the value did, in jit, vmap and scan too."""
    x = jnp.arange(1.0, 1001.0).reshape(4, 250)
    key = jax.random.key(0)
    y = dropout(key, x, 0.2, rng)
    kept = np.array(y != 0)
    assert 0.7 < kept.mean() < 0.9
    np.testing.assert_allclose(np.array(y)[kept], np.array(x)[kept] / 0.8, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: dropout(key, x, 0.2, rng).sum()))(x)
    np.testing.assert_allclose(gradient, kept / 0.8, rtol=1e-6)
    looped = jax.lax.map(lambda key: dropout(key, x, 0.2, rng), key[None])[0]
    np.testing.assert_array_equal(looped, y)
    np.testing.assert_array_equal(jax.vmap(lambda key: dropout(key, x, 0.2, rng))(key[None])[0], y)


def test_a_mesh_does_not_change_the_bits() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x, key = jnp.ones((8, 16, 32)), jax.random.key(0)
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", None, "model")))
    compiled = jax.jit(dropout, static_argnums=2)
    np.testing.assert_array_equal(compiled(key, spread, 0.3), compiled(key, x, 0.3))


@pytest.mark.parametrize(("shape", "longer"), [((2, 3, 16, 16), (2, 3, 48, 48)), ((2, 16, 128), (4, 48, 128))])
def test_padding_changes_nothing_for_what_stands_before_it(shape: tuple[int, ...], longer: tuple[int, ...]) -> None:
    words = jnp.array([123456789, 987654321], jnp.uint32)
    np.testing.assert_array_equal(keep(words, longer, 0.3)[tuple(map(slice, shape))], keep(words, shape, 0.3))


def test_nothing_of_the_bits_is_kept_for_the_backward_pass() -> None:
    _, vjp = jax.vjp(lambda x: dropout(jax.random.key(0), x, 0.1), jnp.ones((8, 512)))
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) <= 2


def test_edges() -> None:
    x = jnp.array([[1.0, jnp.inf, -2.0]])
    key = jax.random.key(0)
    np.testing.assert_array_equal(dropout(key, x, 0.0), x)
    np.testing.assert_array_equal(dropout(key, x, 1.0), jnp.zeros_like(x))
    assert dropout(key, jnp.float32(3.0), 0.5).shape == ()
    assert dropout(key, x.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16
    # Neither needs a key.
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


def test_more_elements_than_32_bits_can_count() -> None:
    """A batch whose elements number over 2**32: rows that a flat 32-bit index would confuse differ."""
    rows = jax.eval_shape(lambda w: hash_keep(w, (2**20, 2**13), 0.5), jax.ShapeDtypeStruct((2,), jnp.uint32))
    assert rows.shape == (2**20, 2**13)
    bits = dropped(5, (1025, 2**13), 0.5)
    assert 0.45 < (bits[0] == bits[1024]).mean() < 0.55
