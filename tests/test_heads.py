"""The heads: parameter counts of the paper, tied embeddings, where the loss can look, and the loss at the start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import Encoder, Masking
from bert_jax.encoder import Bert
from bert_jax.heads import Classification, MaskedLM, NextSentence, Pooler, PreTraining, module_of
from bert_jax.losses import cross_entropy, mean
from bert_jax.masking import Vocabulary, corrupt

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
