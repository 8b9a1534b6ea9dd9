"""Pre-training's variants: what each changes, and that it changes nothing else (paper, section 5.1)."""

import itertools
import json
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import config
from bert_jax.config import override
from bert_jax.corpus.pairing import unigram_entropy
from bert_jax.corpus.store import Corpus
from bert_jax.experiment import Experiment
from bert_jax.model import flops
from bert_jax.tasks import pretrain
from bert_jax.tasks.base import Arrays, Context, Task
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.training import metrics, planning, sharding, train
from bert_jax.training.program import Program, step_flops
from bert_jax.weights import checkpoint

pytestmark = pytest.mark.usefixtures("few_devices")

NO_NSP = {"task.next_sentence": False}
DOCUMENTS = {**NO_NSP, "task.input_format": "doc_sentences"}
LEFT = {
    **NO_NSP,
    "task.objective": "left_to_right",
    "encoder.direction": "left_to_right",
    "encoder.classify_from": "last",
}
DRY = {"encoder.dropout": 0.0, "encoder.attention_dropout": 0.0}
ENCODER = config.Encoder(layers=2, hidden=16, heads=2, vocab_size=50, max_positions=12)
LEFT_ENCODER = override(ENCODER, {"direction": "left_to_right", "classify_from": "last"})


def program(exp: Experiment) -> Program:
    return Program(exp, planning.find_tokenizer(exp), 10, sharding.make_mesh(exp.mesh))


def first_batch(exp: Experiment) -> dict[str, jax.Array]:
    context = Context(planning.find_tokenizer(exp))
    source = exp.task.source("train", 32, context)
    rows = source.batch(np.arange(8))
    return {name: jnp.asarray(array) for name, array in rows.items()} | {
        "id": jnp.arange(8, dtype=jnp.int32),
        "visit": jnp.zeros(8, jnp.int32),
        "weight": jnp.ones(8),
    }


def step(exp: Experiment, batch: dict[str, jax.Array]) -> tuple[dict, dict[str, float]]:
    """Initial parameters by path, and the figures of one step."""
    made = program(exp)
    with jax.set_mesh(made.mesh):
        state = made.init()
        names = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
        params = jax.device_get(names)
        _, figures = made.step(state, batch, made.knobs)
    return params, {name: float(total / weight) for name, (total, weight) in jax.device_get(figures).items()}


def test_without_the_nsp_loss_all_else_is_the_same(tiny: Experiment) -> None:
    """The same pairs, masks and masked LM loss, to the bit; the heads and figures of NSP are gone, and nothing else."""
    batch = first_batch(tiny)
    without = override(tiny, NO_NSP)
    np.testing.assert_equal(jax.device_get(first_batch(without)), jax.device_get(batch))
    params, figures = step(tiny, batch)
    fewer, left = step(without, batch)
    assert {path for path in params if path not in fewer} == {
        f"['{module}']['dense']['{leaf}']" for module in ("pooler", "next_sentence") for leaf in ("kernel", "bias")
    }
    assert fewer.keys() <= params.keys()
    for path, leaf in fewer.items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)
    assert figures.keys() - left.keys() == {"nsp_loss", "nsp_accuracy"}
    assert left["mlm_loss"] == pytest.approx(figures["mlm_loss"], rel=1e-6)
    changed = config.differences(config.to_dict(tiny), config.to_dict(without))
    assert changed == ["task.next_sentence: True, and False"]


def test_sentences_of_a_document_in_place_of_pairs(tiny: Experiment) -> None:
    """The second reading differs from the first in the input alone."""
    exp = override(tiny, DOCUMENTS)
    batch = first_batch(exp)
    assert not batch["segments"].any()
    ends = (batch["tokens"] == planning.find_tokenizer(exp).sep).sum(axis=1)
    assert (ends == 1).all()
    paths, figures = step(exp, batch)
    same_paths, same_figures = step(override(tiny, NO_NSP), first_batch(tiny))
    assert paths.keys() == same_paths.keys()
    assert figures.keys() == same_figures.keys()
    changed = config.differences(config.to_dict(override(tiny, NO_NSP)), config.to_dict(exp))
    assert changed == ["task.input_format: 'segment_pair', and 'doc_sentences'"]


@pytest.mark.parametrize("lengths", [1, 2])
def test_pairs_are_refused_by_a_model_of_one_segment_type(
    tiny: Experiment, tmp_path: pathlib.Path, lengths: int
) -> None:
    """Before anything is compiled or written; what has no pairs trains."""
    single = override(tiny, {"encoder.segments": 1})
    with pytest.raises(ValueError, match=r"encoder\.segments=1: its segments tell no pairs of texts apart"):
        train.run(single, str(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()
    context, place = Context(planning.find_tokenizer(tiny)), sharding.batch_sharding(sharding.make_mesh(tiny.mesh))
    alone = override(single, DOCUMENTS)
    assert [stretch.batches[0]["segments"].any() for stretch in planning.stretches(alone, context, place)] == [0, 0]

    rows = np.zeros((8, 16), np.int32)  # examples of which a later one is a pair
    late = Arrays(tokens=rows, segments=rows + np.arange(8)[:, None] // 7, mask=rows == 0)
    phase = config.Phase(length=16, batch_size=8, steps=1, lengths=lengths)
    batches = planning.batches_of(late, single, phase, place, seed=0, steps=1)
    with pytest.raises(ValueError, match=r"encoder\.segments=1"):
        batches[0]


def test_baselines_are_counted_once_for_each_split(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a run's phases ask for them: at the end of pre-training, minutes of reading."""
    counted = []

    def count(corpus: Corpus, *split: object) -> float:
        counted.append(corpus.fingerprint)
        return unigram_entropy(corpus, *split)  # type: ignore[arg-type]

    monkeypatch.setattr(pretrain, "unigram_entropy", count)
    shutil.copytree(tiny.task.corpus, tmp_path / "corpus", ignore=shutil.ignore_patterns("index"))
    task = override(tiny.task, {"corpus": str(tmp_path / "corpus")})
    contexts = [Context(planning.find_tokenizer(tiny), seed=seed) for seed in (0, 0, 1)]
    found = [task.baselines(context, length) for context in contexts for length in (16, 32)]
    assert len(counted) == 2, "one for each seed"
    assert found[0] == found[2]
    validation = task.source("validation", 32, contexts[0])
    share = validation.batch(np.arange(len(validation)))["next_sentence"].mean()
    assert found[1]["nsp_majority"] == pytest.approx(max(share, 1 - share))
    manifest = tmp_path / "corpus" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sources": []}))
    task.baselines(contexts[0], 16)
    assert len(counted) == 3, "another corpus under the same name"


def test_the_flops_of_a_step_are_counted_once_for_each_shape(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    of_step = flops.of_step
    monkeypatch.setattr(flops, "of_step", lambda *args: counted.append(args) or of_step(*args))
    made = program(tiny)
    found = [made.step_flops(length, 8) for length in (16, 32, 16, 32)]
    assert len(counted) == 2
    assert found[:2] == found[2:]
    assert found[1] == step_flops(tiny, made.abstract.params, 32, 8) > 2 * found[0]


def test_sentences_of_a_document_cannot_be_paired(tiny: Experiment) -> None:
    with pytest.raises(ValueError, match=r"set task\.next_sentence=false"):
        override(tiny, {"task.input_format": "doc_sentences"})


def test_short_phases_can_do_without_pairs(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Below `shortest_pair` the input is a stretch of one document; NSP has neither loss nor figure nor gradient."""
    short = {"task.shortest_pair": 20, "phases.0.steps": 2, "phases.1.steps": 2}
    exp = override(tiny, {**short, "every.log": 1, "every.evaluate": 1, "every.checkpoint": 1, "every.keep": 4})
    train.run(exp, str(tmp_path), quiet=True)
    there = {
        line["step"]: sorted(name for name in line if "nsp" in name) for line in metrics.read(str(tmp_path), "train")
    }
    assert there == {1: [], 2: [], 3: ["nsp_accuracy", "nsp_loss"], 4: ["nsp_accuracy", "nsp_loss"]}
    scored = {line["step"]: "nsp_majority" in line for line in metrics.read(str(tmp_path), "validation")}
    assert scored == {0: False, 1: False, 2: False, 3: True, 4: True}
    kernels = [checkpoint.read_params(str(tmp_path), step)["next_sentence"]["dense"]["kernel"] for step in (1, 2, 4)]
    moved = [np.abs(after - before).max() for before, after in itertools.pairwise(kernels)]
    assert moved[0] < 1e-6 < 1e-4 < moved[1], "weight decay alone, then gradients"
    context = Context(planning.find_tokenizer(exp))
    halves = [exp.task.source("train", length, context).batch(np.arange(8))["segments"].any() for length in (16, 32)]
    assert halves == [False, True]


@pytest.mark.parametrize("changes", [{"task.objective": "left_to_right"}, {"encoder.direction": "left_to_right"}])
def test_objective_and_direction_go_together(tiny: Experiment, changes: dict[str, str]) -> None:
    exp = override(tiny, {**changes, "encoder.classify_from": "last"})
    with pytest.raises(ValueError, match=r"does not go with encoder\.direction"):
        program(exp)


def test_left_to_right_each_token_predicts_the_next_and_none_is_masked(tiny: Experiment) -> None:
    exp = override(tiny, {**LEFT, **DRY})
    batch = first_batch(exp)
    vocabulary = planning.find_tokenizer(exp)
    seen = exp.task.corrupt(jax.random.key(0), batch, vocabulary)
    np.testing.assert_array_equal(seen["tokens"], batch["tokens"])
    assert not (seen["tokens"] == vocabulary.mask).any()
    made = program(exp)
    with jax.set_mesh(made.mesh):
        params = made.init().params
        logits = made.module.apply({"params": params}, seen)["lm_logits"]
        _, figures = made.step(made.init(), batch, made.knobs)
    chances = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = [
        -chances[row, place, batch["tokens"][row, place + 1]]
        for row in range(8)
        for place in range(31)
        if batch["mask"][row, place + 1]
    ]
    total, weight = jax.device_get(figures["lm_loss"])
    assert weight == len(expected)
    assert total / weight == pytest.approx(np.mean(expected), rel=1e-4)


def test_left_to_right_pre_training_gradients_vanish_ahead(tiny: Experiment) -> None:
    """The loss at a place moves with no word that comes after the one it predicts, and the words before all count."""
    exp = override(tiny, {**LEFT, **DRY})
    module = exp.task.module(exp.encoder)
    batch = first_batch(exp)
    row = {name: batch[name][:1] for name in ("segments", "mask")} | {"tokens": jnp.arange(32)[None]}
    params = jax.jit(module.init)(jax.random.key(0), row)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.2, 0.3, p.shape), jnp.float32), params)

    def loss(words: jax.Array, place: int) -> jax.Array:
        embeddings = {**params["encoder"]["embeddings"], "word": words}
        own = {**params, "encoder": {**params["encoder"], "embeddings": embeddings}}
        hidden = module.apply({"params": own}, row, mutable="intermediates", capture_intermediates=True)[1]
        return jnp.square(hidden["intermediates"]["encoder"]["__call__"][0].hidden[0, place]).sum()

    words = params["encoder"]["embeddings"]["word"]
    size = jnp.abs(jax.grad(loss)(words, 9))[:32].sum(axis=1)
    assert (size[:10] > 0).all()
    assert (size[10:] == 0).all()


TASKS: dict[str, tuple[Task, str]] = {
    "tag": (Tag(train="", dev=("",), labels=("a", "b")), "logits"),
    "span": (Squad(train="", dev=""), "start_logits"),
}


@pytest.mark.parametrize("name", TASKS)
def test_left_to_right_fine_tuning_gradients_vanish_ahead(name: str) -> None:
    task, output = TASKS[name]
    size = np.abs(_influence(task.module(LEFT_ENCODER), lambda outputs: outputs[output][0, 5].sum()))
    assert (size[:6] > 0).all()
    assert (size[6:] == 0).all()


@pytest.mark.parametrize("name", TASKS)
def test_the_bilstm_on_top_looks_ahead(name: str) -> None:
    task, output = TASKS[name]
    task = override(task, {"bilstm.layers": 1, "bilstm.width": 8})
    size = np.abs(_influence(task.module(LEFT_ENCODER), lambda outputs: outputs[output][0, 5].sum()))
    assert (size[:9] > 0).all()
    assert (size[9:] == 0).all(), "padding"


@pytest.mark.parametrize("bilstm", [False, True])
@pytest.mark.parametrize(
    "task",
    [Classify(train="", dev=("",), labels=("a", "b")), Choose(train="", endings=("a", "b"))],
    ids=["one", "many"],
)
def test_left_to_right_the_last_token_classifies_and_has_seen_all(task: Task, bilstm: bool) -> None:
    task = override(task, {"bilstm.layers": 1, "bilstm.width": 8} if bilstm else {})
    size = np.abs(
        _influence(task.module(LEFT_ENCODER), lambda outputs: outputs["logits"][0, 0], isinstance(task, Choose))
    )
    assert (size[:9] > 0).all()
    assert (size[9:] == 0).all(), "padding"


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_both_directions_of_the_bilstm_have_seen_all_where_they_are_read(half: str) -> None:
    task = Classify(train="", dev=("",), labels=("a", "b"), bilstm=config.BiLSTM(layers=1, width=8))
    size = _influence(task.module(LEFT_ENCODER), lambda outputs: outputs["logits"][0, 0], silent=half)
    assert (size[:9] > 0).all()


def _influence(module: nn.Module, figure, several: bool = False, silent: str = "") -> np.ndarray:
    """How far `figure` of the outputs moves with each of twelve tokens, of which the last three are padding.

    The classifier does not hear the half of its input that is `silent`.
    """
    place = jnp.arange(12)
    row = {"tokens": place[None], "segments": jnp.zeros((1, 12), jnp.int32), "mask": place[None] < 9}
    row = {name: jnp.stack([array, array], axis=1) for name, array in row.items()} if several else row
    params = jax.jit(module.init)(jax.random.key(0), row)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.2, 0.3, p.shape), jnp.float32), params)

    if silent:
        kernel = params["classifier"]["dense"]["kernel"]
        deaf = slice(8) if silent == "forward" else slice(8, 16)
        params["classifier"]["dense"]["kernel"] = kernel.at[deaf].set(0.0)

    @jax.jit
    def moved(words: jax.Array) -> jax.Array:
        embeddings = {**params["encoder"]["embeddings"], "word": words}
        own = {**params, "encoder": {**params["encoder"], "embeddings": embeddings}}
        return figure(module.apply({"params": own}, row))

    gradient = jax.grad(moved)(params["encoder"]["embeddings"]["word"])
    return np.asarray(jnp.abs(gradient[:12]).sum(axis=1))


def test_the_bilstm_s_ends_are_what_a_shorter_row_gives() -> None:
    """The sentence's vector is read at its own ends, wherever its padding stops."""
    task = Classify(train="", dev=("",), labels=("a", "b"), bilstm=config.BiLSTM(layers=2, width=8))
    module = task.module(ENCODER)
    tokens = jnp.arange(12)[None]
    row = {"tokens": tokens, "segments": jnp.zeros((1, 12), jnp.int32), "mask": tokens < 7}
    params = jax.jit(module.init)(jax.random.key(1), row)["params"]
    short = {name: array[:, :7] for name, array in row.items()}
    long, cut = (module.apply({"params": params}, one)["logits"] for one in (row, short))
    np.testing.assert_allclose(long, cut, rtol=1e-5, atol=1e-6)
    assert "pooler" not in params


def test_left_to_right_from_pre_training_to_use(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """The direction goes with the weights: into fine-tuning, with a BiLSTM on top, and into use."""
    workdir = str(tmp_path / "pretrained")
    short = {"phases": (config.Phase(length=16, batch_size=8, steps=2),)}
    result = train.run(override(tiny, {**LEFT, **short}), workdir, quiet=True)
    assert result["lm_perplexity"] == pytest.approx(np.exp(result["lm_loss"]), rel=1e-5)
    assert {"nsp_loss", "nsp_majority"}.isdisjoint(result)
    model = bert_jax.load(workdir)
    with pytest.raises(ValueError, match="ask for its next_token"):
        model.fill_mask("a [MASK]")
    found = model.next_token("ba be bi", top=3)
    ids = [model.tokenizer.cls, *model.tokenizer.encode("ba be bi")]
    row = {"tokens": np.asarray([[*ids, 7]], np.int32), "mask": np.ones((1, len(ids) + 1), bool)}
    logits = model.outputs({**row, "segments": np.zeros_like(row["tokens"])})["lm_logits"][
        0, -1, : model.tokenizer.vocab_size
    ]
    chances = np.exp(logits) / np.exp(logits).sum()
    assert [one.probability for one in found] == pytest.approx(sorted(chances, reverse=True)[:3], rel=1e-4)
    assert found[0].token == model.tokenizer.pieces([int(logits.argmax())])[0]
    assert found[0].text.startswith(model.tokenizer.decode(ids[1:]))
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "ba be bi\t0\nbo bu ba\t1\n" * 8)
    task = Classify(train="rows.tsv", dev=("rows.tsv",), labels=("0", "1"), bilstm=config.BiLSTM(layers=1, width=8))
    exp = override(Experiment(task=task, init_from=workdir, mesh=config.Mesh(data=1)), short)
    with pytest.raises(ValueError, match="direction"):
        planning.resolve(override(exp, {"encoder": config.Encoder(direction="both")}))
    assert train.run(exp, str(tmp_path / "tuned"), data_dir=str(tmp_path), quiet=True)["done"]
    loaded = bert_jax.load(str(tmp_path / "tuned"))
    assert loaded.config.direction == "left_to_right"
    assert loaded.classify(["ba be"])[0].label in ("0", "1")


def test_flops_of_a_left_to_right_model_count_every_place() -> None:
    assert Pretrain(objective="left_to_right").predicted(128) == 127
    assert Pretrain().predicted(128) == 20
