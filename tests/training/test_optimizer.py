"""The optimizer against the same arithmetic in plain NumPy, and the schedule's numbers by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import Encoder, Optimizer, override
from bert_jax.model.heads import FeatureTagging, PreTraining
from bert_jax.training.optimizer import clip, decays, make, schedule


def test_the_schedule_by_hand() -> None:
    rate = schedule(Optimizer(learning_rate=1e-4, warmup=10), total_steps=100)
    by_hand = {0: 0.0, 1: 1e-5, 9: 9e-5, 10: 9e-5, 11: 8.9e-5, 50: 5e-5, 100: 0.0, 101: 0.0}  # a drop at the joint
    for step, expected in by_hand.items():
        assert rate(step) == pytest.approx(expected, rel=1e-5, abs=1e-12), step


def test_warmup_as_a_share_of_all_steps() -> None:
    share, steps = (schedule(Optimizer(warmup=w), total_steps=205) for w in (0.1, 20))
    np.testing.assert_array_equal([share(i) for i in range(206)], [steps(i) for i in range(206)])


def test_no_warmup_starts_at_the_peak() -> None:
    assert schedule(Optimizer(warmup=0), total_steps=10)(0) == pytest.approx(1e-4)


def test_constant_stays() -> None:
    rate = schedule(Optimizer(warmup=4, schedule="constant"), total_steps=10)
    np.testing.assert_allclose([rate(i) for i in (0, 2, 4, 10, 99)], [0, 5e-5, 1e-4, 1e-4, 1e-4], rtol=1e-6)


def parameters() -> dict:
    keys = iter(jax.random.split(jax.random.key(0), 5))
    draw = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    return {
        "embeddings": {"word": draw(7, 3)},
        "inner": {"kernel": draw(3, 4), "bias": draw(4)},
        "norm": {"scale": draw(4), "bias": draw(4)},
    }


def restated(gradients: list[dict], params: dict, o: Optimizer, total: int) -> dict:
    """Clip, Adam, decay, rate: in float64, leaf by leaf and step by step."""
    p = {path: np.array(leaf, np.float64) for path, leaf in flat(params).items()}
    m = {path: np.zeros_like(leaf) for path, leaf in p.items()}
    v = {path: np.zeros_like(leaf) for path, leaf in p.items()}
    for t, tree in enumerate(gradients):
        g = {path: np.array(leaf, np.float64) for path, leaf in flat(tree).items()}
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        factor = o.clip_norm / norm if 0 < o.clip_norm < norm else 1.0
        rate = o.learning_rate * (t / o.warmup if t < o.warmup else 1 - t / total)
        for path in p:
            m[path] = o.b1 * m[path] + (1 - o.b1) * factor * g[path]
            v[path] = o.b2 * v[path] + (1 - o.b2) * (factor * g[path]) ** 2
            first, second = m[path], v[path]
            if o.bias_correction:
                first, second = first / (1 - o.b1 ** (t + 1)), second / (1 - o.b2 ** (t + 1))
            update = first / (np.sqrt(second) + o.eps)
            if path in ("embeddings/word", "inner/kernel"):
                update = update + o.weight_decay * p[path]
            p[path] = p[path] - rate * update
    return p


def flat(tree: dict) -> dict[str, jax.Array]:
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_twenty_steps_are_those_of_numpy(bias_correction: bool, clip_norm: float) -> None:
    o = Optimizer(learning_rate=0.05, warmup=5, weight_decay=0.1, bias_correction=bias_correction, clip_norm=clip_norm)
    params = start = parameters()
    transformation = make(o, total_steps=30)
    state = transformation.init(params)
    scales = [0.01, 3.0, 0.3, 10.0]  # gradients that are clipped, and gradients that are not
    gradients = [jax.tree.map(lambda p, i=i: scales[i % 4] * jnp.sin(p * (i + 1)), start) for i in range(20)]
    update = jax.jit(transformation.update)
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    expected = restated(gradients, start, o, 30)
    for path, leaf in flat(params).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)
    assert state.step == 20


def test_decay_is_excluded_by_name() -> None:
    """With no gradient at all, only what decays moves."""
    params = parameters()
    transformation = make(Optimizer(warmup=0, clip_norm=0.0), total_steps=10)
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, params), transformation.init(params), params)
    for path, update in flat(updates).items():
        assert bool(np.any(np.array(update) != 0)) == (path in ("embeddings/word", "inner/kernel")), path


def test_the_weights_of_a_mix_of_layers_do_not_decay() -> None:
    """Drawn to 0, they would be equal shares."""
    shapes = jax.eval_shape(FeatureTagging(Encoder(layers=2, hidden=8, heads=2), 3, summed=True).init, *MIXED)["params"]
    decaying = {path for path in flat(shapes) if decays(tuple(map(jax.tree_util.DictKey, path.split("/"))))}
    assert "mix/weights" in flat(shapes)
    assert decaying == {"tagger/dense/kernel"}


MIXED = jax.random.key(0), {"features": jnp.zeros((1, 4, 2, 8)), "predicted": jnp.ones((1, 4), bool)}


def test_every_parameter_of_bert_is_named_so() -> None:

    batch = {name: jnp.zeros((1, 4), int) for name in ("tokens", "segments", "positions")} | {
        "mask": jnp.ones((1, 4), bool)
    }
    module = PreTraining(Encoder(layers=2, hidden=8, heads=2, vocab_size=11, max_positions=4))
    shapes = jax.eval_shape(module.init, jax.random.key(0), batch)["params"]
    decaying = {path for path in flat(shapes) if decays(tuple(map(jax.tree_util.DictKey, path.split("/"))))}
    kernels = {path for path in flat(shapes) if path.endswith("kernel")}
    assert decaying == kernels | {f"encoder/embeddings/{table}" for table in ("word", "position", "segment")}


def test_step_0_changes_nothing() -> None:
    params = parameters()
    transformation = make(Optimizer(warmup=10), total_steps=100)
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert not any(np.any(np.array(u)) for u in jax.tree.leaves(updates))


def test_clip() -> None:
    tree = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    np.testing.assert_allclose(clip(tree, 1.0)["b"], [[0.8]], rtol=1e-6)
    np.testing.assert_array_equal(clip(tree, 5.0)["a"], tree["a"])
    np.testing.assert_array_equal(clip(tree, 0.0)["a"], tree["a"])  # no clipping: so of each shard by itself
    np.testing.assert_array_equal(clip(jax.tree.map(jnp.zeros_like, tree), 1.0)["a"], [0.0])


def test_moments_are_float32_and_the_update_compiles_once() -> None:
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), parameters())
    transformation = make(override(Optimizer(), {"warmup": 2}), total_steps=10)
    state = transformation.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype("float32")}
    update = jax.jit(functools.partial(transformation.update))
    for _ in range(3):
        _, state = update(params, state, params)
    assert update._cache_size() == 1
