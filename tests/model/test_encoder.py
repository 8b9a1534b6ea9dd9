"""The encoder: numbers by hand, and the properties that make it BERT on every path through it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bert_jax.config import Encoder, override
from bert_jax.model.encoder import Attention, Bert, Embeddings, Encoded, Layer, LayerNorm, check_inputs, gelu

TINY = Encoder(layers=2, hidden=16, heads=2, vocab_size=50, max_positions=12, scan=False)
DRY = override(TINY, {"dropout": 0.0, "attention_dropout": 0.0})
LEFT = override(TINY, {"direction": "left_to_right", "classify_from": "last"})


def inputs(rows: int = 2, length: int = 12, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    tokens = jnp.array(rng.integers(0, 50, (rows, length)), jnp.int32)
    segments = jnp.array(rng.integers(0, 2, (rows, length)), jnp.int32)
    return tokens, segments, jnp.ones((rows, length), bool)


@functools.partial(jax.jit, static_argnums=0)
def initial(config: Encoder) -> dict:
    return Bert(config).init(jax.random.key(0), *inputs())["params"]


@functools.cache
def weights() -> dict:
    """Random weights for TINY, large enough that each has its say: biases and norms are not left at 0 and 1."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(initial, TINY))
    return jax.tree.map(lambda p: jnp.array(rng.normal(0.5, 0.3, p.shape), jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=0, static_argnames="all_layers")
def run(config: Encoder, params: dict, args: tuple, key: jax.Array | None, all_layers: bool = False) -> Encoded:
    """The encoder's output, in training where there is a key."""
    rngs = {} if key is None else {"dropout": key}
    return Bert(config).apply({"params": params}, *args, train=key is not None, all_layers=all_layers, rngs=rngs)


def encode(config: Encoder, *args: jax.Array, params: dict | None = None, key: int | None = None) -> jax.Array:
    """The hidden states, with `weights()` unless others are given."""
    return run(
        config, weights() if params is None else params, args, None if key is None else jax.random.key(key)
    ).hidden


def test_padding_cannot_change_real_rows() -> None:
    tokens, segments, mask = inputs()
    mask = mask.at[0, 7:].set(False).at[1, 3:].set(False)
    here = encode(TINY, tokens, segments, mask)
    there = encode(TINY, jnp.where(mask, tokens, 49 - tokens), jnp.where(mask, segments, 1 - segments), mask)
    np.testing.assert_array_equal(here[0, :7], there[0, :7])
    np.testing.assert_array_equal(here[1, :3], there[1, :3])
    assert np.abs(np.array(here - there))[0, 7:].min(axis=1).max() > 0, "the padding did change"


def test_a_sequence_is_the_same_in_a_longer_room() -> None:
    tokens, segments, mask = inputs()
    short = encode(TINY, tokens[:, :8], segments[:, :8], mask[:, :8])
    long = encode(TINY, tokens, segments, mask.at[:, 8:].set(False))
    np.testing.assert_allclose(long[:, :8], short, rtol=1e-5, atol=1e-5)


def test_rows_are_independent_and_one_of_padding_is_finite() -> None:
    tokens, segments, mask = inputs(rows=3)
    together = encode(TINY, tokens, segments, mask.at[1].set(False))
    assert np.isfinite(np.array(together)).all()
    alone = encode(TINY, tokens[2:], segments[2:], mask[2:])
    np.testing.assert_allclose(together[2:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_from_left_to_right_gradients_vanish_ahead(scan: bool, train: bool) -> None:
    """What stands at a place depends on all words up to there and on none beyond, with and without `at`."""
    config = override(LEFT, {"scan": scan})
    _, segments, mask = inputs(rows=1)
    params = weights()
    words = params["embeddings"]["word"]
    rows = jnp.arange(12)  # each place has a row of the table of its own

    def hidden(table: jax.Array, at: jax.Array | None) -> jax.Array:
        own = {**params, "embeddings": {**params["embeddings"], "word": table}}
        rngs = {"dropout": jax.random.key(0)} if train else {}
        return Bert(config).apply({"params": own}, rows[None], segments, mask, train=train, at=at, rngs=rngs).hidden

    for at in (None, jnp.array([[5]])):
        place = 5 if at is None else 0
        gradient = jax.grad(lambda table: jnp.square(hidden(table, at)[0, place]).sum())(words)  # noqa: B023
        size = jnp.abs(gradient[:12]).sum(axis=1)
        assert (size[:6] > 0).all()
        assert (size[6:] == 0).all()


def test_left_to_right_at_some_places_is_what_it_is_there() -> None:
    args, at = inputs(), jnp.array([[5, 2], [0, 11]])
    apply = jax.jit(functools.partial(Bert(LEFT).apply, {"params": weights()}))
    some = apply(*args, at=at).hidden
    np.testing.assert_allclose(some, jnp.take_along_axis(apply(*args).hidden, at[:, :, None], axis=1), atol=1e-5)


def test_left_to_right_ends_where_both_directions_do() -> None:
    """The first layer's last token sees all tokens in both."""
    one = {"layers": 1}
    params = jax.tree.map(lambda p: p, weights()) | {"layers": jax.tree.map(lambda p: p[:1], weights()["layers"])}
    both = encode(override(DRY, one), *inputs(), params=params)
    left = encode(override(LEFT, {**one, "dropout": 0.0, "attention_dropout": 0.0}), *inputs(), params=params)
    np.testing.assert_allclose(left[:, -1], both[:, -1], rtol=1e-5, atol=1e-5)
    assert np.abs(np.array(left - both))[:, :-1].max(axis=-1).min() > 0


def test_a_left_to_right_model_cannot_classify_from_cls() -> None:
    with pytest.raises(ValueError, match=r"set encoder\.classify_from=last too"):
        Encoder(direction="left_to_right")


def test_each_real_token_reaches_each_other() -> None:
    """Attention looks both ways: the gradient of any output in any real input is not 0, in padding it is exactly 0."""
    mask = jnp.array([[True] * 5 + [False]])
    bias = jnp.where(mask, 0.0, -10_000.0)[:, None, None, :]
    params = jax.tree.map(lambda p: p[0], weights()["layers"])
    x = jax.random.normal(jax.random.key(0), (1, 6, 16))

    def output(x: jax.Array) -> jax.Array:
        return Layer(DRY, train=False).apply({"params": params}, x, bias)[0].sum(-1)

    jacobian = jax.jit(jax.jacobian(output))(x)[:, 0]
    reach = np.abs(np.array(jacobian)).max(-1)
    assert (reach[:5, :5] > 0).all()
    assert (reach[:5, 5] == 0).all()


def loss(params: dict, scan: bool, remat: str) -> jax.Array:
    """Something to differentiate, dropout on."""
    config = override(TINY, {"scan": scan, "remat": remat})
    return jnp.sin(encode(config, *inputs(), params=params, key=5)).sum()


@functools.cache
def loss_and_gradient(scan: bool, remat: str) -> tuple[jax.Array, dict]:
    return jax.jit(jax.value_and_grad(loss), static_argnums=(1, 2))(weights(), scan, remat)


def program(scan: bool, remat: str) -> str:
    return str(jax.make_jaxpr(jax.grad(loss), static_argnums=(1, 2))(weights(), scan, remat))


def assert_same(one: tuple[jax.Array, dict], other: tuple[jax.Array, dict]) -> None:
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), one[1], other[1])


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_scanned_is_unrolled(remat: str) -> None:
    """The same parameters, the same dropout, the same loss, the same gradients; and one of them does loop."""
    assert_same(loss_and_gradient(True, remat), loss_and_gradient(False, remat))
    shapes = [jax.eval_shape(functools.partial(initial, override(TINY, {"scan": scan}))) for scan in (True, False)]
    assert shapes[0] == shapes[1]
    assert "unroll=1" in program(True, remat)
    assert "unroll=1" not in program(False, remat)


@pytest.mark.parametrize("remat", ["elementwise", "attention", "layer"])
@pytest.mark.parametrize("scan", [True, False])
def test_remat_changes_memory_and_nothing_else(scan: bool, remat: str) -> None:
    assert_same(loss_and_gradient(scan, "none"), loss_and_gradient(scan, remat))
    # It is really on: the program says so.
    assert "remat2[" in program(scan, remat)
    assert "remat2[" not in program(scan, "none")


@pytest.mark.parametrize("scan", [True, False])
def test_what_each_remat_keeps(scan: bool) -> None:
    """From the forward pass for the backward one, counted in a layer's own numbers, weights apart."""

    def kept(remat: str) -> int:
        vjp = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, scan, remat), p)[1], weights())
        return sum(leaf.size for leaf in jax.tree.leaves(vjp)) - sum(leaf.size for leaf in jax.tree.leaves(weights()))

    rows, length, layers = 2, 12, TINY.layers
    elements = rows * length * TINY.hidden
    probabilities = rows * TINY.heads * length * length
    # The products with the kernels (qkv 3, out, inner 4, outer), and what the probabilities mix.
    assert kept("attention") - kept("layer") == pytest.approx(layers * 9 * elements, rel=0.02)
    assert kept("elementwise") - kept("attention") == pytest.approx(layers * (elements + probabilities), rel=0.02)
    assert kept("elementwise") < 0.6 * kept("none")


def test_dropout_follows_its_key() -> None:
    args = inputs()
    same = [np.array(encode(TINY, *args, key=3)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.allclose(same[0], encode(TINY, *args, key=4))
    assert not np.allclose(same[0], encode(TINY, *args))
    np.testing.assert_array_equal(encode(DRY, *args, key=3), encode(DRY, *args))


@pytest.mark.parametrize("where", ["dropout", "attention_dropout"])
@pytest.mark.parametrize("rng", ["hash", "threefry"])
def test_each_dropout_is_there(where: str, rng: str) -> None:
    config = override(DRY, {where: 0.5, "dropout_rng": rng, "scan": True})
    assert not np.allclose(encode(config, *inputs(), key=3), encode(DRY, *inputs()))


def test_every_layer_and_every_place_drops_something_else() -> None:
    """No two of the masks that one step draws are alike, nor are two layers'."""
    seen: list[np.ndarray] = []

    def watch(next_fun, args, kwargs, context):  # flax calls it around every method of every module
        out = next_fun(*args, **kwargs)
        if type(context.module).__name__ == "Dropout":
            jax.debug.callback(lambda y: seen.append(np.array(y).ravel()[:300] == 0), out, ordered=True)
        return out

    with nn.intercept_methods(watch):
        Bert(override(TINY, {"dropout": 0.5, "attention_dropout": 0.5})).apply(
            {"params": weights()}, *inputs(), train=True, rngs={"dropout": jax.random.key(1)}
        )
    jax.effects_barrier()
    assert len(seen) == 1 + 3 * TINY.layers
    agreement = [(a == b).mean() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(agreement) > 0.35
    assert max(agreement) < 0.65


def test_attention_by_hand() -> None:
    """One head of width 2: queries and keys are the inputs, values their double, the output is what was mixed."""
    config = Encoder(layers=1, hidden=2, heads=1, vocab_size=5, max_positions=4)
    eye = jnp.eye(2)
    params = {
        "qkv": {"kernel": jnp.concatenate([eye, eye, 2 * eye], 1), "bias": jnp.zeros(6)},
        "out": {"kernel": eye, "bias": jnp.array([10.0, 20.0])},
    }
    x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    near = np.exp(1 / np.sqrt(2)) / (np.exp(1 / np.sqrt(2)) + 1)  # weight of itself: score 1 / sqrt(2) against 0
    expected = np.array([[[2 * near + 10, 2 * (1 - near) + 20], [2 * (1 - near) + 10, 2 * near + 20]]])
    found = Attention(config).apply({"params": params}, x, jnp.zeros((1, 1, 1, 2)), train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # With the second token masked, all attention is on the first.
    found = Attention(config).apply({"params": params}, x, jnp.array([[[[0.0, -10_000.0]]]]), train=False)
    np.testing.assert_allclose(found, [[[12.0, 20.0], [12.0, 20.0]]], rtol=1e-6)


def test_heads_do_not_mix() -> None:
    """A head's columns of the fused kernel lie side by side: query, key, value of head 0, then those of head 1."""
    config = Encoder(layers=1, hidden=4, heads=2, vocab_size=5, max_positions=4)
    x = jax.random.normal(jax.random.key(0), (1, 3, 4))
    params = {
        "qkv": {"kernel": jax.random.normal(jax.random.key(1), (4, 12)), "bias": jnp.zeros(12)},
        "out": {"kernel": jnp.eye(4), "bias": jnp.zeros(4)},
    }
    changed = jax.tree.map(lambda p: p, params)
    changed["qkv"]["kernel"] = params["qkv"]["kernel"].at[:, 6:].add(1.0)
    a, b = (
        np.array(Attention(config).apply({"params": p}, x, jnp.zeros((1, 1, 1, 3)), train=False))
        for p in (params, changed)
    )
    np.testing.assert_array_equal(a[..., :2], b[..., :2])
    assert (np.abs(a - b)[..., 2:] > 1e-3).all()


def test_layer_norm_by_hand() -> None:
    params = {"scale": jnp.array([1.0, 2.0, 1.0, 1.0]), "bias": jnp.array([0.0, 0.0, 5.0, 0.0])}
    found = LayerNorm(TINY).apply({"params": params}, jnp.array([[2.0, 4.0, 6.0, 8.0]]))
    unit = np.array([-3, -1, 1, 3]) / np.sqrt(5)
    np.testing.assert_allclose(found, [[unit[0], 2 * unit[1], unit[2] + 5, unit[3]]], rtol=1e-6)


def test_layer_norm_survives_a_large_mean() -> None:
    """The variance is that of the centred values: a mean square less a squared mean would cancel."""
    x = jnp.array([[2.0, 4.0, 6.0, 8.0]]) + 4096.0
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    np.testing.assert_allclose(
        LayerNorm(TINY).apply({"params": params}, x), [np.array([-3, -1, 1, 3]) / np.sqrt(5)], rtol=1e-5
    )


def test_both_gelus_by_hand() -> None:
    x = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(gelu(TINY, x), [0.8413447, -0.0455003], rtol=1e-5)
    np.testing.assert_allclose(gelu(override(TINY, {"gelu": "tanh"}), x), [0.8411920, -0.0454023], rtol=1e-5)


@pytest.mark.parametrize("kind", ["erf", "tanh"])
def test_gelu_of_a_bfloat16_is_rounded_once(kind: str) -> None:
    """And so is its gradient; beyond the rounding there is what float32 loses where the tail cancels, 1e-5."""
    half = override(TINY, {"dtype": "bfloat16", "gelu": kind})
    x = jnp.linspace(-8, 8, 4001).astype(jnp.bfloat16)
    y = np.asarray(x, np.float64)
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(functools.partial(gelu, half))))(x)
    assert found.dtype == slope.dtype == jnp.bfloat16
    if kind == "erf":
        cdf, density = scipy.stats.norm.cdf(y), scipy.stats.norm.pdf(y)
    else:
        inner = np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
        cdf = 0.5 * (1 + np.tanh(inner))
        density = 0.5 / np.cosh(inner) ** 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * y**2)
    np.testing.assert_allclose(np.asarray(found, np.float64), y * cdf, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(np.asarray(slope, np.float64), cdf + y * density, rtol=2**-8, atol=1e-5)
    three = gelu(half, jnp.asarray([-3.0], jnp.bfloat16))
    assert float(three[0]) == pytest.approx({"erf": -0.00405, "tanh": -0.00364}[kind], rel=2**-8)


def test_embeddings_by_hand() -> None:
    config = Encoder(layers=1, hidden=3, heads=1, vocab_size=3, max_positions=4)
    params = {
        "word": jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [5.0, 0.0, 0.0]]),
        "position": jnp.array([[0.0, 0.0, 0.0], [0.0, 2.0, 4.0], [9.0, 9.0, 0.0], [9.0, 9.0, 0.0]]),
        "segment": jnp.array([[0.0, 3.0, 2.0], [1.0, 0.0, 0.0]]),
        "norm": {"scale": jnp.full(3, 10.0), "bias": jnp.array([0.0, 0.0, 7.0])},
    }
    tokens, segments = jnp.array([[1, 2]]), jnp.array([[0, 1]])  # sums: (1, 3, 2) and (6, 2, 4)
    x, table = Embeddings(config).apply({"params": params}, tokens, segments, train=False)
    unit = 10 * 1.5**0.5
    np.testing.assert_allclose(x, [[[-unit, unit, 7.0], [unit, -unit, 7.0]]], rtol=1e-5)
    assert table is params["word"]


def test_all_layers() -> None:
    args = inputs()
    encoded = run(override(TINY, {"scan": True}), weights(), args, None, all_layers=True)
    assert encoded.layers.shape == (3, 2, 12, 16)
    np.testing.assert_array_equal(encoded.layers[-1], encoded.hidden)
    embeddings, _ = Embeddings(TINY).apply({"params": weights()["embeddings"]}, *args[:2], train=False)
    np.testing.assert_allclose(encoded.layers[0], embeddings, rtol=1e-5, atol=1e-5)
    assert run(TINY, weights(), args, None).layers is None


def test_the_initial_weights() -> None:
    config = Encoder(layers=2, hidden=64, heads=2, vocab_size=1000, max_positions=64)
    params = initial(config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, values = path[-1].key, np.array(leaf)
        if name in ("scale", "bias"):
            assert (values == (name == "scale")).all(), path
            continue
        assert np.abs(values).max() <= 0.04, path
        if values.size > 4000:
            # A normal distribution of 0.02 cut at two sigma has 0.88 of that deviation left.
            assert values.std() == pytest.approx(0.0176, rel=0.05), path
    kernel = np.array(params["layers"]["inner"]["kernel"])
    assert not np.allclose(kernel[0], kernel[1]), "each layer starts elsewhere"


def test_a_sequence_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 tokens exceeds the model's 12 positions"):
        encode(TINY, *inputs(length=13))


def test_ids_outside_the_tables_are_refused_on_the_host() -> None:
    single = override(TINY, {"segments": 1})
    tokens, segments, mask = map(np.asarray, inputs())
    check_inputs(TINY, {"tokens": tokens, "segments": segments, "mask": mask})
    check_inputs(single, {"tokens": tokens, "segments": np.zeros_like(segments)})
    check_inputs(single, {"features": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"segments from 0 to 1 are given to a model of encoder.segments=1: .* pairs"):
        check_inputs(single, {"tokens": tokens, "segments": segments})
    for bad in (50, -1):
        with pytest.raises(ValueError, match=r"tokens from .* are given to a model of encoder.vocab_size=50"):
            check_inputs(TINY, {"tokens": np.where(tokens == tokens[0, 0], bad, tokens)})


def test_bfloat16_activations_are_near_and_parameters_stay_float32() -> None:
    half = override(TINY, {"dtype": "bfloat16"})
    assert {p.dtype for p in jax.tree.leaves(initial(half))} == {jnp.dtype("float32")}
    found = encode(half, *inputs())
    assert found.dtype == jnp.bfloat16
    assert np.abs(np.array(found, np.float32) - np.array(encode(TINY, *inputs()))).mean() < 0.05
