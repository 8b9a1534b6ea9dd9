"""A loaded model: the lengths that it is used at, vectors in little memory, and what it refuses."""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import logging

import bert_jax
from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.inference import model, predict
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.weights import checkpoint, convert, huggingface, names, pretrained
from tests.weights.test_weights import TINY, directory, random_params, vocabulary

SIZE = override(TINY, {"max_positions": 64})
CAT = "the cat sat on"  # four tokens


def made(modules: tuple[str, ...], task: Any = None, size: config.Encoder = SIZE, length: int = 16) -> model.Model:
    """A model with random weights that was trained at `length`."""
    exp = Experiment(encoder=size, task=task or Pretrain(), phases=(config.Phase(length=length, steps=1),))
    params = jax.tree.map(jax.numpy.asarray, random_params(size, modules))
    return model.Model(exp, params, vocabulary(40))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda said, *values: found.append(said % values))
    return found


def tags(count: int) -> Tag:
    return Tag(train="", dev=("",), labels=("a", "b", "c")[:count])


CLASSES = Classify(train="", dev=("",), labels=("a", "b", "c"))


# Its length.


def recorded(folder: pathlib.Path, step: int, *lengths: int, **more: Any) -> str:
    """A workdir as far as its length goes: phases of 10 steps, and the name of a checkpoint."""
    phases = tuple(config.Phase(length=length, steps=10) for length in lengths)
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    experiment.record(Experiment(encoder=override(TINY, {"max_positions": 512}), phases=phases, **more), str(folder))
    return str(folder)


def test_a_run_s_length_is_that_of_its_phases_and_of_its_start(tmp_path: pathlib.Path) -> None:
    first = recorded(tmp_path / "first", 20, 128, 256)
    tuned = recorded(tmp_path / "tuned", 10, 64, init_from=first)
    again = recorded(tmp_path / "again", 10, 32, init_from=tuned)
    assert [pretrained.open(folder).length for folder in (first, tuned, again)] == [256, 256, 256]
    assert pretrained.open(recorded(tmp_path / "a", 10, 64, init_from=first, random_init=True)).length == 64
    early = recorded(tmp_path / "b", 10, 64, init_from=first, init_step=10)
    assert pretrained.open(early).length == 128, "of a checkpoint before the second phase"
    hf = directory(tmp_path / "hf", "BertModel", override(TINY, {"max_positions": 512}))
    assert pretrained.open(recorded(tmp_path / "c", 10, 64, init_from=str(hf))).length == 512
    (tmp_path / "first").rename(tmp_path / "gone")
    assert pretrained.open(again).length == 64, "what is known then: its own phases, and those of a start that is there"
    assert pretrained.open(recorded(tmp_path / "d", 10, 64, init_from=str(tmp_path / "d"))).length == 64


def test_a_phase_that_had_not_begun_does_not_count(tmp_path: pathlib.Path) -> None:
    for name, step, wanted in (("a", 10, 128), ("b", 11, 512), ("c", 0, 512)):
        assert pretrained.open(recorded(tmp_path / name, step, 128, 512)).length == wanted, name
    file = tmp_path / "a" / "config.json"
    values = json.loads(file.read_text())
    values["phases"][0] |= {"steps": 0, "epochs": 3}
    file.write_text(json.dumps(values))
    assert pretrained.open(str(tmp_path / "a")).length == 128, "when the epochs ended is not known"
    (tmp_path / "a" / "result.json").write_text('{"step": 10}')
    assert pretrained.open(str(tmp_path / "a")).length == 512, "the run is done"
    assert pretrained.open(str(tmp_path / "a"), 5).length == 128


def test_a_length_goes_along_with_published_weights(tmp_path: pathlib.Path) -> None:
    """It is written where `transformers` cuts by it, and holds again in the workdir that is made of that."""
    folder = directory(tmp_path / "hf", "BertForQuestionAnswering", SIZE)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text())
    assert (values["model_max_length"], pretrained.open(str(folder)).length) == (64, 64)
    for stated, wanted in ((int(1e30), 64), (None, 64), ("64", 64), (24, 24)):
        file.write_text(json.dumps(values | {"model_max_length": stated}))
        assert pretrained.open(str(folder)).length == wanted
    convert.convert(str(folder), str(tmp_path / "run"))
    convert.convert(str(tmp_path / "run"), str(tmp_path / "back"))
    convert.convert(str(tmp_path / "run"), str(tmp_path / "copy"), "workdir")
    assert [bert_jax.load(str(tmp_path / name)).length for name in ("hf", "run", "back", "copy")] == [24] * 4


def test_a_published_reader_has_the_reference_s_windows(tmp_path: pathlib.Path) -> None:
    for positions, windows in ((512, (384, 128, 64)), (384, (384, 128, 64)), (128, (128, 42, 42))):
        folder = directory(tmp_path, "BertForQuestionAnswering", override(TINY, {"max_positions": positions}))
        found = pretrained.open(str(folder))
        assert isinstance(found.task, Squad)
        assert (found.experiment.phases[-1].length, found.task.stride, found.task.question) == windows
        assert found.length == max(phase.length for phase in found.experiment.phases) == positions


def test_answers_across_the_borders_of_windows_are_found(tmp_path: pathlib.Path) -> None:
    """Wherever an answer lies in a context of three windows, by weights that know its first and its last word."""
    size = override(TINY, {"max_positions": 24})
    params = jax.tree.map(np.zeros_like, random_params(size, ("span",)))
    embeddings, layers = params["encoder"]["embeddings"], params["encoder"]["layers"]
    words = vocabulary(40)
    for number, word in enumerate(("w1", "w2")):
        embeddings["word"][words.encode(word)[0], number] = 1.0
        params["span"]["dense"]["kernel"][number, number] = 10.0
    for norm in (embeddings["norm"], layers["attention_norm"], layers["outer_norm"]):
        norm["scale"][...] = 1.0
    huggingface.write(tmp_path, params, size, words, ())
    filler = ["sat"] * 46
    contexts = [" ".join([*filler[:place], "w1 on the w2", *filler[place:]]) for place in range(47)]
    answers = bert_jax.load(str(tmp_path)).answer([("cat the", context) for context in contexts])
    assert [answer.best_text for answer in answers] == ["w1 on the w2"] * 47


def test_what_is_too_long_is_cut_and_counted_or_refused(warnings: list[str]) -> None:
    """Tokens beyond the trained length change nothing; each call says once how many texts it cut."""
    long, cut = " ".join([CAT] * 8), " ".join([CAT] * 4).removesuffix(" sat on")  # 32 tokens, and the 14 that fit
    said = "1 of 2 texts were cut to 16 tokens, the most that this model was trained on"
    encoder, classifier = made(()), made(("pooler", "classifier"), CLASSES)
    assert encoder.length == 16
    hidden = encoder.encode([CAT, long])
    assert (hidden.last.shape, hidden.mask.sum(axis=1).tolist(), warnings) == ((2, 16, 16), [6, 16], [said])
    np.testing.assert_allclose(hidden.last[1], encoder.encode(cut).last[0], atol=1e-5)
    np.testing.assert_allclose(encoder.embed([long, CAT])[0], encoder.embed(cut)[0], atol=1e-5)
    answers = classifier.classify([long, CAT])
    assert answers[0].probabilities == pytest.approx(classifier.classify(cut)[0].probabilities, abs=1e-5)
    assert warnings == [said] * 3
    warnings.clear()

    chooser = made(("pooler", "choice"), Choose(train=""))
    chooser.choose([(CAT, [CAT, long]), (CAT, ["cat", "the"])])
    assert warnings == ["1 of 4 endings with their contexts " + said.partition("texts ")[2]]
    warnings.clear()
    reader = made(("span",), Squad(train="", dev="", question=4))
    assert len(reader.answer([(long, long)])) == 1, "read in windows"
    assert warnings == ["1 of 1 questions were cut to 4 tokens, the most that this model was trained on"]
    tagger = made(("tagger",), tags(3))
    assert len(tagger.tag(long)[0].words) == 32, "read in windows"
    filler = made(("masked_lm",))
    filler.fill_mask(f"{cut.removesuffix(' cat')} [MASK]")
    with pytest.raises(ValueError, match="35 tokens are too many for this model: it was trained on 16 at most"):
        filler.fill_mask(f"[MASK] {long}")
    rows = {name: np.ones((1, 17), np.int32) for name in ("tokens", "segments")}
    with pytest.raises(ValueError, match="sequences have more than 16 tokens"):
        classifier.outputs({**rows, "mask": np.ones((1, 17), bool)})


@pytest.mark.parametrize(
    ("modules", "task", "ask"),
    [
        ((), None, lambda one: one.encode([("the cat", "sat")])),
        ((), None, lambda one: one.embed([("the cat", "sat")])),
        (("pooler", "classifier"), CLASSES, lambda one: one.classify([("the cat", "sat")])),
        (("span",), Squad(train="", dev=""), lambda one: one.answer([("the cat", "sat")])),
        (("pooler", "choice"), Choose(train=""), lambda one: one.choose([("the cat", ["sat", "on"])])),
    ],
    ids=["encode", "embed", "classify", "answer", "choose"],
)
def test_pairs_are_refused_by_a_model_of_one_segment_type(
    modules: tuple[str, ...], task: Any, ask: Callable[[model.Model], Any]
) -> None:
    one = made(modules, task, override(SIZE, {"segments": 1}))
    with pytest.raises(ValueError, match=r"segments from 0 to 1 are given .* its segments tell no pairs"):
        ask(one)
    assert one.encode("the cat").last.shape == (1, 4, 16)


# Its vectors.


def test_embed_is_the_mean_over_a_text_s_own_tokens() -> None:
    """In the order of the texts, whatever else is in the batch; `encode` gives the layers that it is asked for."""
    one = made((), length=64)
    texts = [CAT, "cat", ("the cat", "sat on"), " ".join([CAT] * 12), "the", " ".join([CAT] * 9)]
    every = one.encode(texts, 2, layers="all")
    assert every.layers is not None
    assert every.layers.shape == (3, 6, 50, 16)
    assert [len(pieces) for pieces in every.pieces] == every.mask.sum(axis=1).tolist() == [6, 3, 7, 50, 3, 38]
    assert not every.last[~every.mask].any()
    np.testing.assert_array_equal(every.last, every.layers[-1])
    for layer in (0, 1, -1):
        means = [states[mask].mean(axis=0) for states, mask in zip(every.layers[layer], every.mask, strict=True)]
        for size in (1, 4, 32):
            found = one.embed(texts, layer=layer, batch_size=size)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, means, atol=1e-5)
        np.testing.assert_allclose(one.embed(texts, "cls", layer), every.layers[layer][:, 0], atol=1e-5)
    some = one.encode(texts, layers=[-2, 0])
    assert some.layers is not None
    np.testing.assert_allclose(some.layers, every.layers[[1, 0]], atol=1e-5)
    np.testing.assert_allclose(some.last, every.last, atol=1e-5)
    assert one.encode(texts).layers is None
    for call, said in (
        (lambda: one.embed(texts, "meen"), "no pooling 'meen': did you mean 'mean'"),
        (lambda: one.embed(texts, layer=3), r"there is no layer 3: 0 \(the embeddings\) to 2"),
        (lambda: one.encode(texts, layers=[-4]), "there is no layer -4"),
        (lambda: one.embed([]), "there are no texts"),
        (lambda: one.embed(texts, batch_size=0), "batch_size must be above 0, not 0"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_sentence_transformers_directory_is_embedded_as_it_says(tmp_path: pathlib.Path) -> None:
    """Its length, its pooling and whether vectors are scaled; what is not done here is said where it would matter."""
    folder = directory(tmp_path / "st", "BertModel", override(TINY, {"max_positions": 64}))
    plain = bert_jax.load(str(folder))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode_max_tokens": True}))
    model = bert_jax.load(str(folder))
    long, cut = " ".join([CAT] * 4), f"{CAT} the cat"
    assert model.length == 8
    states = plain.encode(cut)
    wanted = states.last[0][states.mask[0]].max(axis=0)
    np.testing.assert_allclose(model.embed(long)[0], wanted / np.linalg.norm(wanted), atol=1e-5)
    np.testing.assert_allclose(model.embed(long, "mean", normalize=False), plain.embed(cut), atol=1e-5)
    pooling.write_text(json.dumps({"pooling_mode_lasttoken": True}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    other = bert_jax.load(str(folder))
    with pytest.raises(ValueError, match=r"name a pooling: .*pooling by pooling_mode_lasttoken, default_prompt_name"):
        other.embed(cut)
    assert other.embed(cut, "cls", normalize=False).shape == (1, 16)
    (folder / "modules.json").write_text(json.dumps([*modules, modules[1] | {"path": "../elsewhere"}]))
    with pytest.raises(ValueError, match=r"'\.\./elsewhere' is not the name of a folder there"):
        bert_jax.load(str(folder))


def test_a_model_says_what_it_is_and_can_do() -> None:
    said = repr(made(("pooler", "classifier"), CLASSES))
    assert "2 layers, hidden size 16, 2 heads, 40 tokens" in said
    assert "Classify (a, b, c); reads up to 16 tokens; can encode, embed, classify>" in said
    abilities = {
        ("masked_lm",): (Pretrain(), "fill_mask"),
        ("tagger",): (tags(3), "tag"),
        ("span",): (Squad(train="", dev=""), "answer"),
        ("pooler", "choice"): (Choose(train=""), "choose"),
    }
    for modules, (task, ability) in abilities.items():
        assert made(modules, task).abilities == ("encode", "embed", ability)
    assert repr(made(())).endswith("no head; reads up to 16 tokens; can encode, embed>")


def test_several_masks_are_filled_as_one_by_one() -> None:
    one = made(("masked_lm",), length=64)
    texts = ["the [MASK] sat", " ".join([CAT] * 9) + " [MASK]", "[MASK]", "the [MASK] on w1 w2"]
    for size in (1, 3, 32):
        for alone, found in zip(texts, one.fill_mask(texts, 3, size), strict=True):
            wanted = one.fill_mask(alone, 3)
            assert [fill.text for fill in found] == [fill.text for fill in wanted]
            np.testing.assert_allclose([f.probability for f in found], [f.probability for f in wanted], rtol=1e-4)
    for asked, said in (([], "there are no texts"), (["[MASK]", "none"], "exactly once, not 0 times: 'none'")):
        with pytest.raises(ValueError, match=said):
            one.fill_mask(asked)


@pytest.mark.parametrize("kind", ["tag", "answer", "choose"])
def test_rows_are_padded_to_their_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the longest of all, and what comes of it is what comes of each by itself."""
    short, long = "the cat", " ".join([CAT] * 14)
    if kind == "tag":
        one, asked = made(("tagger",), tags(3), length=64), [long, short, short, short]
    elif kind == "answer":
        one = made(("span",), Squad(train="", dev=""), length=64)
        asked = [(short, text) for text in (long, short, "the", "cat")]
    else:
        one, asked = made(("pooler", "choice"), Choose(train=""), length=64), [(t, [t, "on"]) for t in (long, short)]
    alone = [getattr(one, kind)([text])[0] for text in asked]
    shapes = []
    kept = one._kept_of
    monkeypatch.setattr(one, "_kept_of", lambda batch: shapes.append(batch["mask"].shape[-1]) or kept(batch))
    found = getattr(one, kind)(asked, batch_size=1)
    assert (shapes[0], shapes[-1], shapes) == (32, 64, sorted(shapes))
    if kind == "tag":
        assert found == alone
    elif kind == "answer":
        for first, second in zip(found, alone, strict=True):
            assert first.best_text == second.best_text
            assert first.null_odds == pytest.approx(second.null_odds, abs=1e-4)
    else:
        for first, second in zip(found, alone, strict=True):
            assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)


def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(model, "MANY", 4)
    one = made(())
    one.embed(["cat"] * 8, batch_size=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    one.embed(["cat"] * 8, batch_size=2)
    assert "8 texts" in capsys.readouterr().err


def test_a_head_that_is_not_asked_is_named(tmp_path: pathlib.Path, warnings: list[str]) -> None:
    """At load, where a file has two; on the way out, where the class has no place; at the start of a run."""
    both = random_params(TINY, ("pooler", "classifier", "masked_lm"))
    tensors = dict(names.arrays(both, "huggingface", TINY))
    folder = directory(tmp_path / "both", "BertForSequenceClassification")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    one = bert_jax.load(str(folder))
    assert warnings == [f"of {folder}: masked_lm left out, the model is asked by its classifier"]
    assert one.abilities == ("encode", "embed", "classify")
    with pytest.raises(ValueError, match="this model has no masked LM head"):
        one.fill_mask("[MASK]")
    warnings.clear()
    (tmp_path / "out").mkdir()
    written = huggingface.write(tmp_path / "out", both, TINY, vocabulary(40), ("a", "b", "c"))
    assert written == "BertForSequenceClassification"
    assert warnings == ["a BertForSequenceClassification has no place for masked_lm: left out"]
    warnings.clear()
    module = CLASSES.module(TINY)
    rows = {name: np.zeros((1, 4), np.int32) for name in ("tokens", "segments")} | {"mask": np.ones((1, 4), bool)}
    params = module.init(jax.random.key(0), jax.tree.map(jax.numpy.asarray, rows))["params"]
    _, heads = checkpoint.initialise(params, both, task=CLASSES, name="RUN")
    assert heads == "classifier from random values; classifier, masked_lm left out"


def test_a_published_reader_says_no_answer_where_it_is_told_when(tmp_path: pathlib.Path) -> None:
    one = bert_jax.load(str(directory(tmp_path, "BertForQuestionAnswering")))
    line = [(1, "cat the\tthe cat sat on w3")]
    answers = [json.loads(next(predict.answers(one, line, null_threshold=limit))) for limit in (None, -1e9, 1e9)]
    assert [bool(answer["answer"]) for answer in answers] == [True, False, True]
    assert ["null_odds" in answer for answer in answers] == [False, True, True]


def test_vectors_take_the_memory_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of the host or of a device holds all texts' tokens, and each batch is as long as its longest text."""
    one = made((), length=64)
    shapes = []
    pooled = one._pooled
    monkeypatch.setattr(
        one, "_pooled", lambda *args, **more: shapes.append(more["tokens"].shape) or pooled(*args, **more)
    )
    one.embed(["cat", " ".join([CAT] * 12)] * 6, batch_size=4)
