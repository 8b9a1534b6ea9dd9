"""The heads: parameter counts of the paper, tied embeddings, where the loss can look, and the loss at the start."""

import dataclasses
import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr, jaxprs_in_params

from bert_jax import config as knobs
from bert_jax.config import Encoder, Masking
from bert_jax.model.encoder import Bert
from bert_jax.model.heads import (
    BiLSTM,
    Classification,
    Classifier,
    FeatureTagging,
    MaskedLM,
    Mix,
    NextSentence,
    Pooler,
    PreTraining,
    Span,
    Tagging,
    module_of,
)
from bert_jax.model.losses import cross_entropy, mean
from bert_jax.model.masking import Vocabulary, corrupt
from bert_jax.training import sharding

TINY = Encoder(layers=2, hidden=32, heads=2, vocab_size=500, max_positions=16, dropout=0.0, attention_dropout=0.0)


@functools.cache
def start() -> dict:
    return jax.jit(PreTraining(TINY).init)(jax.random.key(0), make_batch())["params"]


@functools.cache
def make_batch(rows: int = 4, length: int = 16) -> dict[str, jax.Array]:
    tokens = np.random.default_rng(0).integers(5, 500, (rows, length)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 1, 2
    batch = {
        "tokens": jnp.array(tokens),
        "segments": jnp.zeros((rows, length), jnp.int32),
        "mask": jnp.ones((rows, length), bool),
        "id": jnp.arange(rows, dtype=jnp.int32),
    }
    vocabulary = Vocabulary(mask=3, cls=1, sep=2, size=500)
    return jax.jit(lambda batch: corrupt(jax.random.key(0), batch, Masking(), vocabulary))(batch)


def size_of(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("layers", "hidden", "encoder_and_pooler"),
    [
        (12, 768, 109_482_240),  # BERT-Base: the paper's 110M
        (24, 1024, 335_141_888),  # BERT-Large: the paper's 340M
        (2, 128, 4_385_920),  # Tiny, 4.4M, and so on: the miniatures
        (4, 256, 11_170_560),
        (4, 512, 28_763_648),
        (8, 512, 41_373_184),
    ],
)
def test_the_papers_parameter_counts(layers: int, hidden: int, encoder_and_pooler: int) -> None:
    config = Encoder(layers=layers, hidden=hidden, heads=hidden // 64)
    params = jax.eval_shape(PreTraining(config).init, jax.random.key(0), make_batch())["params"]
    assert size_of((params["encoder"], params["pooler"])) == encoder_and_pooler
    # The tied head: dense, LayerNorm, an output bias.
    assert size_of(params["masked_lm"]) == hidden * hidden + 3 * hidden + 30522
    assert size_of(params["next_sentence"]) == 2 * hidden + 2


def test_the_initial_loss_is_that_of_guessing() -> None:
    module, batch = PreTraining(TINY), make_batch(16)
    outputs = jax.jit(module.apply)({"params": start()}, batch)
    assert outputs["mlm_logits"].dtype == outputs["nsp_logits"].dtype == jnp.float32
    masked = mean(cross_entropy(outputs["mlm_logits"], batch["targets"], batch["weights"]))
    assert masked == pytest.approx(np.log(500), rel=0.02)
    following = mean(cross_entropy(outputs["nsp_logits"], jnp.zeros(16, int), jnp.ones(16)))
    assert following == pytest.approx(np.log(2), rel=0.05)


def test_the_output_is_tied_to_the_word_embeddings() -> None:
    """The logits are dense, GELU and LayerNorm of the hidden state, times each word's embedding, plus its bias."""
    hidden = jax.random.normal(jax.random.key(0), (2, 2, 32))
    table = jax.random.normal(jax.random.key(1), (500, 32))
    head = MaskedLM(TINY)
    params = head.init(jax.random.key(2), hidden, table)["params"]
    params["bias"] = jnp.arange(500.0)
    logits = np.array(head.apply({"params": params}, hidden, table))
    x = np.array(hidden)
    x = np.array(jax.nn.gelu(x @ np.array(params["dense"]["kernel"]), approximate=False))
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(logits, x @ np.array(table).T + np.arange(500)[None, None], rtol=1e-3, atol=1e-3)


def test_the_embeddings_learn_from_both_ends() -> None:
    """A word that is not in the input gets its gradient through the output alone; one that is there through both."""
    module, batch = PreTraining(TINY), make_batch()
    params = start()

    @functools.partial(jax.jit, static_argnums=1)
    @jax.grad
    def gradient(params: dict, name: str) -> jax.Array:
        outputs = module.apply({"params": params}, batch)
        return jnp.sin(outputs[name]).sum()

    absent = np.setdiff1d(np.arange(500), np.array(batch["tokens"]))
    through_mlm = np.array(gradient(params, "mlm_logits")["encoder"]["embeddings"]["word"])
    assert (np.abs(through_mlm[absent]).max(-1) > 0).all()
    through_nsp = np.array(gradient(params, "nsp_logits")["encoder"]["embeddings"]["word"])
    assert not through_nsp[absent].any()
    assert through_nsp[np.unique(np.array(batch["tokens"]))].any(-1).all()


def test_the_last_layer_is_read_at_the_predicted_positions_and_at_cls() -> None:
    """Asked for some positions alone, the encoder gives what it gives there when asked for all; gradients agree too."""
    module, batch, params = PreTraining(TINY), make_batch(), start()
    inputs = batch["tokens"], batch["segments"], batch["mask"]

    def whole(params: dict) -> dict:
        encoded = Bert(TINY).apply({"params": params["encoder"]}, *inputs)
        at = jnp.take_along_axis(encoded.hidden, batch["positions"][:, :, None], axis=1)
        pooled = Pooler(TINY).apply({"params": params["pooler"]}, encoded.hidden)
        return {
            "mlm_logits": MaskedLM(TINY).apply({"params": params["masked_lm"]}, at, encoded.table),
            "nsp_logits": NextSentence(TINY).apply({"params": params["next_sentence"]}, pooled),
        }

    def total(outputs: dict) -> jax.Array:
        return sum(jnp.sin(x).sum() for x in outputs.values())

    some = lambda params: module.apply({"params": params}, batch)  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.jit(some)(params), jax.jit(whole)(params)
    )
    gradients = [jax.jit(jax.grad(lambda p, f=f: total(f(p))))(params) for f in (some, whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3), *gradients)


def test_a_prediction_of_weight_0_teaches_nothing() -> None:
    module, batch = PreTraining(TINY), make_batch()
    params = start()

    @jax.jit
    @jax.grad
    def gradient(params: dict, batch: dict) -> jax.Array:
        logits = module.apply({"params": params}, batch)["mlm_logits"]
        return mean(cross_entropy(logits, batch["targets"], batch["weights"]))

    nothing = gradient(params, batch | {"weights": jnp.zeros_like(batch["weights"])})
    assert not any(np.array(leaf).any() for leaf in jax.tree.leaves(nothing))
    some = batch["weights"].at[:, -1].set(0.0)
    one, other = (
        gradient(params, batch | {"weights": some, "targets": batch["targets"].at[:, -1].set(word)}) for word in (7, 8)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_pre_training_without_a_next_sentence_head() -> None:
    """The masked LM is the same, and needs no pooler."""
    params, batch = start(), make_batch()
    alone = {name: params[name] for name in ("encoder", "masked_lm")}
    module = module_of(TINY, alone)
    outputs = jax.jit(module.apply)({"params": alone}, batch)
    assert set(outputs) == {"mlm_logits"}
    whole = jax.jit(PreTraining(TINY).apply)({"params": params}, batch)
    np.testing.assert_allclose(outputs["mlm_logits"], whole["mlm_logits"], rtol=1e-5, atol=1e-6)
    assert module_of(TINY, {name: params[name] for name in ("encoder", "pooler")}) is None


@pytest.mark.parametrize("classes", [1, 3])
def test_classification(classes: int) -> None:
    batch = make_batch()
    wet = Encoder(layers=1, hidden=32, heads=2, vocab_size=500, max_positions=32, dropout=0.5)
    module = Classification(wet, classes)
    init = jax.jit(module.init)
    params = init(jax.random.key(0), batch)
    apply = jax.jit(module.apply, static_argnames="train")
    logits = apply(params, batch)["logits"]
    assert logits.shape == (4, classes)
    assert logits.dtype == jnp.float32
    a, b = (apply(params, batch, train=True, rngs={"dropout": jax.random.key(k)})["logits"] for k in (0, 1))
    assert not np.allclose(a, b)
    shapes = jax.tree.map(jnp.shape, params["params"]["classifier"])
    assert shapes == {"dense": {"kernel": (32, classes), "bias": (classes,)}}


LSTM = BiLSTM(TINY, knobs.BiLSTM(layers=2, width=8, dropout=0.5))
RAGGED = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], bool)


@functools.cache
def lstm() -> tuple[jax.Array, dict]:
    """An input [3, 7, 5], and parameters that are not those of the start, where biases say nothing."""
    x = jax.random.normal(jax.random.key(0), (3, 7, 5))
    params = jax.jit(LSTM.init)(jax.random.key(1), x, jnp.array(RAGGED))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return x, jax.tree.unflatten(tree, noisy)


def flax_s_own(params: dict, x: jax.Array, lengths: np.ndarray) -> jax.Array:
    """One bidirectional layer by flax's cells, with our parameters."""

    def cell(direction: int) -> dict:
        gates = dict(zip("ifgo", np.split(np.array(params["kernel"][direction]), 4, axis=-1), strict=True))
        found = {f"i{gate}": {"kernel": kernel} for gate, kernel in gates.items()}
        recurrent = np.split(np.array(params["recurrent"][direction]), 4, axis=-1)
        bias = np.split(np.array(params["bias"][direction]), 4, axis=-1)
        for gate, kernel, row in zip("ifgo", recurrent, bias, strict=True):
            found[f"h{gate}"] = {"kernel": kernel, "bias": row}
        return found

    width = params["recurrent"].shape[1]
    layer = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(width)), nn.RNN(nn.OptimizedLSTMCell(width)))
    cells = {name: {"cell": cell(direction)} for direction, name in enumerate(("forward_rnn", "backward_rnn"))}
    return layer.apply({"params": cells}, x, seq_lengths=jnp.array(lengths))


def test_a_bilstm_is_flax_s_where_there_is_no_padding_and_where_there_is() -> None:
    x, params = lstm()
    found = LSTM.apply({"params": params}, x, jnp.array(RAGGED))
    assert found.shape == (3, 7, 16)
    lengths = RAGGED.sum(axis=1)
    wanted = flax_s_own(params["layer_1"], flax_s_own(params["layer_0"], x, lengths), lengths)
    np.testing.assert_allclose(np.array(found)[RAGGED], np.array(wanted)[RAGGED], atol=1e-6)


def test_padding_never_enters_a_bilstm() -> None:
    """What stands there changes nothing, nor how much of it there is, nor where it stands; and no gradient gets there.
    Without padding each place sees all others, in both directions."""
    x, params = lstm()
    apply = jax.jit(lambda x, mask: LSTM.apply({"params": params}, x, mask))
    clean, mask = apply(x, jnp.array(RAGGED)), jnp.array(RAGGED)
    other = apply(jnp.where(mask[..., None], x, 1e4), mask)
    np.testing.assert_array_equal(np.array(clean)[RAGGED], np.array(other)[RAGGED])
    assert np.isfinite(other).all()
    np.testing.assert_allclose(clean[1, :3], apply(x[1:2, :3], mask[1:2, :3])[0], atol=1e-6)
    apart = jnp.array([[0, 1, 0, 0, 1, 1, 0]], bool)
    spread = jnp.full((1, 7, 5), 9.0).at[0, np.array([1, 4, 5])].set(x[1, :3])
    np.testing.assert_allclose(apply(spread, apart)[0, np.array([1, 4, 5])], clean[1, :3], atol=1e-6)

    def reach(x: jax.Array, place: int, row: int) -> jax.Array:
        gradient = jax.jit(jax.grad(lambda x: jnp.sin(apply(x, mask)[row, place]).sum()))
        return jnp.abs(gradient(x)[row]).sum(axis=-1)

    assert [bool(size > 0) for size in reach(x, 1, 1)] == [True] * 3 + [False] * 4
    assert all(reach(x, 3, 0) > 0)


def test_a_bilstm_s_start() -> None:
    """LeCun's kernels, forget gates open; the two directions differ."""
    module = BiLSTM(TINY, knobs.BiLSTM(layers=1, width=64))
    params = module.init(jax.random.key(0), jnp.zeros((1, 2, 400)), jnp.ones((1, 2), bool))["params"]["layer_0"]
    for name, inputs in (("kernel", 400), ("recurrent", 64)):
        assert np.std(params[name]) == pytest.approx(inputs**-0.5, rel=0.02)
        assert not np.allclose(params[name][0], params[name][1])
    for side in params["bias"]:
        np.testing.assert_array_equal(side.reshape(4, 64), np.repeat([[0], [1], [0], [0]], 64, axis=1))


def test_a_bilstm_drops_out_between_its_layers_alone() -> None:
    x, params = lstm()
    mask = jnp.ones(x.shape[:2], bool)

    def train(module: BiLSTM, params: dict, key: int) -> jax.Array:
        return module.apply({"params": params}, x, mask, train=True, rngs={"dropout": jax.random.key(key)})

    assert not np.allclose(train(LSTM, params, 0), train(LSTM, params, 1))
    one, first = BiLSTM(TINY, knobs.BiLSTM(layers=1, width=8, dropout=0.5)), {"layer_0": params["layer_0"]}
    np.testing.assert_array_equal(train(one, first, 0), one.apply({"params": first}, x, mask))


MOVES = {"broadcast_in_dim", "concatenate", "convert_element_type", "copy", "gather", "iota", "name", "reshape"}
MOVES |= {"rev", "select_n", "slice", "split", "squeeze", "stack", "transpose", "unstack"}
HALF = dataclasses.replace(TINY, dtype="bfloat16", dropout=0.1, attention_dropout=0.1)


def computed(jaxpr: Jaxpr) -> Iterator[str]:
    """The primitives that give bfloat16 arrays, those that only move them left out."""
    for one in jaxpr.eqns:
        inner = list(jaxprs_in_params(one.params))
        for other in inner:
            yield from computed(other)
        if not inner and any(getattr(x.aval, "dtype", None) == jnp.bfloat16 for x in one.outvars):
            yield one.primitive.name


@pytest.mark.parametrize(("gelu", "rng"), [("erf", "hash"), ("tanh", "threefry")])
def test_in_bfloat16_there_are_products_and_sums_and_nothing_else(gelu: str, rng: str) -> None:
    """All other arithmetic is done in float32 and rounded once."""
    half = dataclasses.replace(HALF, gelu=gelu, dropout_rng=rng)
    bilstm = knobs.BiLSTM(layers=2, width=8)
    words = {"features": jnp.ones((3, 7, 4, 32)), "predicted": jnp.array(RAGGED)}
    for module, batch in (
        (PreTraining(half), make_batch()),
        (Classification(half, 3), make_batch()),
        (Classification(half, 3, bilstm), make_batch()),
        (FeatureTagging(half, 3, True, bilstm), words),
    ):
        params = jax.eval_shape(module.init, jax.random.key(0), batch)
        train = functools.partial(module.apply, train=True, rngs={"dropout": jax.random.key(0)})
        found = set(computed(jax.make_jaxpr(train)(params, batch).jaxpr))
        assert "dot_general" in found
        assert found - MOVES <= {"dot_general", "add"}, type(module).__name__


def test_the_logits_of_few_classes_are_float32_throughout() -> None:
    """A regression's value of 3 would else be known to 0.016 alone."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 32))).astype(jnp.bfloat16)
    dense = {"kernel": jnp.asarray(rng.normal(size=(32, 2)), jnp.float32), "bias": jnp.array([3.3, -7.1])}
    wanted = np.asarray(x, np.float64) @ np.asarray(dense["kernel"], np.float64) + np.array([3.3, -7.1])
    for head in (Classifier(HALF, 2), NextSentence(HALF), Span(HALF)):
        given = x[None] if isinstance(head, Span) else x
        found = head.apply({"params": {"dense": dense}}, given)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found.reshape(-1, 2), wanted, atol=1e-4)


def test_a_mix_of_bfloat16_layers_is_rounded_once() -> None:
    layers = jax.random.normal(jax.random.key(0), (2, 3, 4, 64)).astype(jnp.bfloat16)
    weights = np.array([0.3, -1.0, 0.7, 2.0], np.float32)
    shares = np.exp(weights.astype(np.float64)) / np.exp(weights.astype(np.float64)).sum()
    found = Mix().apply({"params": {"weights": jnp.asarray(weights)}}, layers)
    wanted = np.einsum("btsd,s->btd", np.asarray(layers, np.float64), shares)
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2**-8, atol=1e-6)


def test_a_mix_is_the_mean_at_first_and_its_weights_are_shares() -> None:
    layers = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    start = Mix().init(jax.random.key(0), layers)
    np.testing.assert_allclose(Mix().apply(start, layers), layers.mean(axis=2), atol=1e-6)
    one = {"params": {"weights": jnp.array([0.0, 30.0, 0.0, 0.0])}}
    np.testing.assert_allclose(Mix().apply(one, layers), layers[:, :, 1], atol=1e-5)


@pytest.mark.parametrize("summed", [True, False])
def test_a_tagger_on_features(summed: bool) -> None:
    """It holds no encoder; its weights see every layer; the table has a row for each of them."""
    module = FeatureTagging(TINY, 3, summed, knobs.BiLSTM(layers=3, width=8))
    features = jax.random.normal(jax.random.key(0), (3, 7, 4, 32))
    batch = {"features": features, "predicted": jnp.array(RAGGED)}
    params = jax.jit(module.init)(jax.random.key(1), batch)["params"]
    assert set(params) == {"bilstm", "tagger", *(["mix"] if summed else [])}
    assert params["bilstm"]["layer_0"]["kernel"].shape == (2, 32 if summed else 128, 32)
    sharding.parameter_specs(params)
    first = lambda x: module.apply({"params": params}, {**batch, "features": x})["logits"][0].sum()  # noqa: E731
    gradient = jax.jit(jax.grad(first))(features)
    assert (np.abs(gradient[0]).sum(axis=(0, 2)) > 0).all()


def test_a_bilstm_on_a_fine_tuned_encoder() -> None:
    """The module is known again by its parameters; padding tokens change nothing; the encoder gets a gradient."""
    module = Tagging(TINY, 3, knobs.BiLSTM(layers=1, width=8))
    batch = make_batch()
    params = jax.jit(module.init)(jax.random.key(0), batch)["params"]
    sharding.parameter_specs(params)
    again = module_of(TINY, params)
    mask = jnp.arange(16)[None] < jnp.array([[16], [9], [5], [2]])
    tokens = jnp.where(mask, batch["tokens"], 7)
    one, two = (
        jax.jit(again.apply)({"params": params}, batch | {"tokens": t, "mask": mask})["logits"]
        for t in (tokens, jnp.where(mask, tokens, 8))
    )
    np.testing.assert_allclose(np.array(one)[mask], np.array(two)[mask], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: module.apply({"params": p}, batch)["logits"].sum()))(params)
    assert np.abs(gradient["encoder"]["embeddings"]["word"]).sum() > 0


def test_which_layers_a_choice_reads() -> None:
    reads = {name: knobs.Features(layers=name).numbers(12) for name in (*knobs.FEATURES, "3")}
    assert reads == {
        "embeddings": (0,),
        "second_to_last": (11,),
        "last": (12,),
        "sum_last_four": (9, 10, 11, 12),
        "concat_last_four": (9, 10, 11, 12),
        "sum_all": tuple(range(1, 13)),
        "3": (3,),
    }
    assert [name for name in reads if knobs.Features(layers=name).summed] == ["sum_last_four", "sum_all"]
    assert knobs.Features(layers="concat_last_four").numbers(4) == (1, 2, 3, 4)
    for layers, choice in ((3, "concat_last_four"), (2, "3")):
        with pytest.raises(ValueError, match=f"the encoder has {layers} layers: features.layers={choice}"):
            knobs.Features(layers=choice).numbers(layers)
    with pytest.raises(ValueError, match="not 'sum_last_for': did you mean 'sum_last_four'"):
        knobs.Features(layers="sum_last_for")
