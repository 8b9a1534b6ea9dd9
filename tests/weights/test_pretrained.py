"""Weights as a start: from any form, with more or fewer positions, with a padded vocabulary."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.inference import model
from bert_jax.model import heads, losses
from bert_jax.tasks.classify import Classify
from bert_jax.training import planning, train
from bert_jax.weights import checkpoint, huggingface, pretrained
from tests.weights.test_weights import TINY, assert_equal, batch, directory, flat, random_params, vocabulary

pytestmark = pytest.mark.usefixtures("few_devices")


def positions(folder: pathlib.Path, size: config.Encoder, choice: experiment.Positions) -> np.ndarray:
    found = pretrained.open(str(folder)).params(size, choice, seed=3)
    assert found["encoder"]["embeddings"]["position"].shape == (size.max_positions, 16)
    return np.asarray(found["encoder"]["embeddings"]["position"])


def test_longer_and_shorter(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertModel")
    old = positions(folder, TINY, "same")
    longer, shorter = (override(TINY, {"max_positions": count}) for count in (30, 5))
    np.testing.assert_array_equal(positions(folder, shorter, "cut"), old[:5])
    np.testing.assert_array_equal(positions(folder, longer, "tile"), np.concatenate([old, old, old[:6]]))
    fresh = positions(folder, longer, "fresh")
    np.testing.assert_array_equal(fresh[:12], old)
    assert 0.01 < fresh[12:].std() < 0.03
    assert np.abs(fresh[12:]).max() < 0.06
    np.testing.assert_array_equal(fresh, positions(folder, longer, "fresh"))
    spread = positions(folder, override(TINY, {"max_positions": 23}), "interpolate")
    np.testing.assert_allclose(spread[::2], old, rtol=1e-6)
    np.testing.assert_allclose(spread[1::2], (old[1:] + old[:-1]) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("count", "choice", "said"),
    [
        (
            30,
            "same",
            "weights have 12 positions and encoder.max_positions is 30: set --config.init_positions=fresh, tile",
        ),
        (30, "cut", "init_positions=fresh, tile or interpolate, not 'cut'"),
        (5, "same", "init_positions=cut, not 'same'"),
        (5, "tile", "init_positions=cut, not 'tile'"),
    ],
)
def test_positions_that_do_not_fit(count: int, choice: experiment.Positions, said: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=said):
        positions(directory(tmp_path, "BertModel"), override(TINY, {"max_positions": count}), choice)


def padded(multiple: int) -> config.Encoder:
    return override(TINY, {"vocab_multiple": multiple, "dropout": 0.0, "attention_dropout": 0.0})


def test_the_rows_that_pad_the_vocabulary_are_out_of_it() -> None:
    """They weigh exactly 0 in every sum and their own gradient is exactly 0; the rest is as it is without them."""
    inputs = jax.tree.map(jnp.asarray, batch(3, 8, 40))
    targets, weights = inputs["tokens"], inputs["mask"].astype(jnp.float32)
    found = {}
    for multiple in (1, 64):
        size = padded(multiple)
        module = heads.PreTraining(size)
        params = jax.jit(module.init)(jax.random.key(0), inputs)["params"]
        params = jax.tree.map(lambda leaf: leaf * 5, params)  # logits that tell the words apart
        assert params["encoder"]["embeddings"]["word"].shape[0] == size.vocab_rows == (40 if multiple == 1 else 64)

        def figures(params: dict, module: heads.PreTraining = module) -> tuple:
            logits = module.apply({"params": params}, inputs)["mlm_logits"]
            hits = losses.vocabulary_accuracy(logits, targets, weights)[0]
            return losses.mean(losses.cross_entropy(logits, targets, weights)), (hits, logits)

        found[multiple] = (params, *jax.jit(jax.value_and_grad(figures, has_aux=True))(params))
    (params, (loss, (hits, logits)), gradients), (more, (loss2, (hits2, logits2)), gradients2) = found.values()
    # Up to the order in which a program of another shape sums.
    assert float(loss) == pytest.approx(float(loss2), rel=1e-6)
    assert hits == hits2
    np.testing.assert_allclose(logits, logits2[..., :40], rtol=0, atol=1e-5)
    assert (jnp.exp(logits2[..., 40:] - logits2.max(-1, keepdims=True)) == 0).all()
    for path, leaf in flat(gradients2).items():
        if path in ("encoder/embeddings/word", "masked_lm/bias"):
            assert not leaf[40:].any()
            assert not flat(more)[path][40:].any()
            leaf = leaf[:40]
        np.testing.assert_allclose(leaf, flat(gradients)[path], rtol=1e-5, atol=1e-6, err_msg=path)
        np.testing.assert_array_equal(flat(params)[path], flat(more)[path][: flat(params)[path].shape[0]])


def test_a_padded_vocabulary_is_padded_and_cut_on_the_way(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """A run on 320 words, padded to 384: pads stay 0, and are cut off or made more for another encoder."""
    first = tmp_path / "first"
    train.run(override(tiny, {"encoder.vocab_multiple": 128}), str(first), stop_at=1, quiet=True)
    params = checkpoint.read_params(str(first))
    word = params["encoder"]["embeddings"]["word"]
    assert word.shape[0] == 384
    assert not word[320:].any()
    assert not params["masked_lm"]["bias"][320:].any()
    assert tiny.encoder is not None
    found = pretrained.open(str(first))
    cut = found.params(tiny.encoder)
    np.testing.assert_array_equal(cut["encoder"]["embeddings"]["word"], word[:320])
    assert cut["masked_lm"]["bias"].shape == (320,)
    more = found.params(override(tiny.encoder, {"vocab_multiple": 100}))
    np.testing.assert_array_equal(np.asarray(more["encoder"]["embeddings"]["word"])[:320], word[:320])
    assert not np.asarray(more["encoder"]["embeddings"]["word"])[320:].any()
    assert more["masked_lm"]["bias"].shape == (400,)
    one = bert_jax.load(str(first))
    two = model.Model(tiny, jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, cut)), one.tokenizer)
    text = "a [MASK]"
    assert [filling.token for filling in one.fill_mask(text, 400)] == [f.token for f in two.fill_mask(text, 400)]


def test_a_workdir_whose_config_lies(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    train.run(tiny, str(tmp_path), stop_at=1, quiet=True)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    values["encoder"]["vocab_size"] = 310
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config.json says 310 embeddings, the checkpoint holds 320"):
        bert_jax.load(str(tmp_path))


def test_fine_tuning_starts_from_a_hugging_face_directory(tmp_path: pathlib.Path) -> None:
    """Encoder, vocabulary and weights come from it; a fresh classifier does not."""
    folder = directory(tmp_path / "hf", "BertForPreTraining")
    rows = "sentence\tlabel\n" + "the cat sat\t0\non w1 w2\t1\n" * 8
    (tmp_path / "train.tsv").write_text(rows)
    exp = Experiment(
        task=Classify(train="train.tsv", dev=("train.tsv",), labels=("0", "1")),
        optimizer=config.Optimizer(learning_rate=1e-30, warmup=0),
        phases=(config.Phase(length=8, batch_size=4, steps=1),),
        mesh=config.Mesh(data=1),
        init_from=str(folder),
    )
    train.run(exp, str(tmp_path / "run"), data_dir=str(tmp_path), quiet=True)
    found, wanted = checkpoint.read_params(str(tmp_path / "run")), random_params(TINY, ("pooler",))
    assert_equal({name: found[name] for name in wanted}, wanted)
    recorded = experiment.read_config(str(tmp_path / "run"))
    assert recorded.encoder == TINY
    assert bert_jax.load(str(tmp_path / "run")).tokenizer.fingerprint == vocabulary(40).fingerprint

    longer = dataclasses.replace(exp, encoder=override(TINY, {"max_positions": 20}))
    with pytest.raises(ValueError, match=r"max_positions: 12, and 20; --config.init_positions says what"):
        train.run(longer, str(tmp_path / "longer"), data_dir=str(tmp_path), quiet=True)
    train.run(
        override(longer, {"init_positions": "tile"}), str(tmp_path / "longer"), data_dir=str(tmp_path), quiet=True
    )
    table = checkpoint.read_params(str(tmp_path / "longer"))["encoder"]["embeddings"]["position"]
    np.testing.assert_array_equal(table[12:], table[:8])


def test_pre_training_goes_on_from_a_masked_lm(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """One without pooler and NSP, as `transformers` publishes many: what is missing starts anew."""
    words = planning.find_tokenizer(tiny)
    assert tiny.encoder is not None
    size = tiny.encoder
    huggingface.write(tmp_path, random_params(size, ("masked_lm",)), size, words, ())
    exp = override(tiny, {"init_from": str(tmp_path), "encoder": None})
    exp = override(exp, {"optimizer.warmup": 0, "optimizer.learning_rate": 1e-30})
    train.run(exp, str(tmp_path / "run"), stop_at=1, quiet=True)
    found = checkpoint.read_params(str(tmp_path / "run"))
    wanted = random_params(size, ("masked_lm",))
    assert_equal({name: found[name] for name in wanted}, wanted)
    assert {"pooler", "next_sentence"} <= set(found)


def test_a_published_masked_lm_fills_masks(tmp_path: pathlib.Path) -> None:
    one, two = (directory(tmp_path / kind, kind) for kind in ("BertForMaskedLM", "BertForPreTraining"))
    found = [bert_jax.load(str(folder)).fill_mask("the [MASK] sat.") for folder in (one, two)]
    assert [f.token for f in found[0]] == [f.token for f in found[1]]
    assert found[0][0].probability == pytest.approx(found[1][0].probability, rel=1e-5)


def test_a_published_classifier_classifies(tmp_path: pathlib.Path) -> None:
    model = bert_jax.load(str(directory(tmp_path, "BertForSequenceClassification")))
    answers = model.classify(["the cat sat", ("the cat", "sat")])
    assert all(set(answer.probabilities) == {"a", "b", "c"} for answer in answers)


def test_published_taggers_readers_and_choosers_are_used_as_our_own(tmp_path: pathlib.Path) -> None:
    tagger, reader, chooser = (
        bert_jax.load(str(directory(tmp_path / kind, f"BertFor{kind}")))
        for kind in ("TokenClassification", "QuestionAnswering", "MultipleChoice")
    )
    assert {word.tag for word in tagger.tag("the cat sat on w1 .")[0].words} <= {"a", "b", "c"}
    found = reader.answer([("w1 w2", "the cat sat on w3")])[0].candidates[0]
    assert found.text
    assert found.text in "the cat sat on w3"
    assert sum(chooser.choose([("the cat", ["sat", "on w1", "w2"])])[0].probabilities) == pytest.approx(1)


@pytest.mark.parametrize(
    "kind", ["QuestionAnswering", "TokenClassification", "MultipleChoice", "SequenceClassification"]
)
def test_another_task_s_head_is_left_behind(kind: str, tmp_path: pathlib.Path) -> None:
    source = pretrained.open(str(directory(tmp_path, f"BertFor{kind}"))).params()
    task = Classify(train="", dev=("",), labels=("0", "1"))
    params = jax.jit(task.module(TINY).init)(jax.random.key(0), batch(2, 8, 40))["params"]
    found, _ = checkpoint.initialise(params, source, task=task, name=kind)
    np.testing.assert_array_equal(found["encoder"]["embeddings"]["word"], source["encoder"]["embeddings"]["word"])
    np.testing.assert_array_equal(found["classifier"]["dense"]["kernel"], params["classifier"]["dense"]["kernel"])


def test_a_file_that_lies_beside_no_weights_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes\.txt is a file, and beside it there is neither config\.json nor"):
        pretrained.open(str(tmp_path / "notes.txt"))


def test_a_vocabulary_larger_than_the_embedding(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertModel")
    vocabulary(41).save(folder)
    with pytest.raises(ValueError, match="the vocabulary has 41 tokens, and the config says vocab_size=40"):
        pretrained.open(str(folder))
