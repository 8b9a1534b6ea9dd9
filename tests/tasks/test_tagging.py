"""Tags for words: the formats, each word predicted once, document context, figures, entities with their places."""

import dataclasses
import json
import lzma
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bert_jax
from bert_jax import config, experiment
from bert_jax.experiment import Experiment
from bert_jax.inference import predict
from bert_jax.model import features
from bert_jax.model.encoder import Bert
from bert_jax.model.features import Frozen
from bert_jax.tasks.base import Context, epoch_size
from bert_jax.tasks.tagging import CONLL2003, UPOS, Sentence, Sentences, Tag, Words
from bert_jax.text.tokenizer import WordPiece
from bert_jax.training import lane, metrics, planning, sharding, train
from bert_jax.training.program import Program
from bert_jax.weights import checkpoint, convert

LETTERS = [chr(ord("a") + n) for n in range(12)]
VOCABULARY = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "##x"], lower=True)
TASK = Tag(train="train.txt", dev=("dev.txt",), labels=("O", "B-X", "I-X"), label=2)
PLAIN = dataclasses.replace(TASK, document=False)


def sentences(*texts: str) -> list[Sentence]:
    """Words, all tagged O."""
    return [Sentence(tuple(text.split()), ("O",) * len(text.split())) for text in texts]


def rows(source: Sentences) -> list[tuple[str, list[str]]]:
    """Of each window its tokens, and those at which a word is predicted."""
    found = []
    for tokens, mask, predicted in zip(*(source.arrays[n] for n in ("tokens", "mask", "predicted")), strict=True):
        pieces = VOCABULARY.pieces(tokens.tolist())
        found.append((" ".join(np.array(pieces)[mask]), np.array(pieces)[predicted].tolist()))
    return found


def test_first_tokens_carry_the_tags() -> None:
    source = Sentences([sentences("a bxx c")], ("O",), 8, VOCABULARY, document=False)
    assert rows(source) == [("[CLS] a b ##x ##x c [SEP]", ["a", "b", "c"])]


def test_document_context_by_hand() -> None:
    """Room for four tokens: what the sentence leaves goes to both sides, or to the side that has some; no further than
    the document."""
    documents = [sentences("a b", "c d", "e f"), sentences("g")]
    source = Sentences(documents, ("O",), 6, VOCABULARY, document=True)
    assert rows(source) == [
        ("[CLS] a b c d [SEP]", ["a", "b"]),
        ("[CLS] b c d e [SEP]", ["c", "d"]),
        ("[CLS] c d e f [SEP]", ["e", "f"]),
        ("[CLS] g [SEP]", ["g"]),
    ]
    alone = Sentences(documents, ("O",), 6, VOCABULARY, document=False)
    assert [row[0] for row in rows(alone)] == ["[CLS] a b [SEP]", "[CLS] c d [SEP]", "[CLS] e f [SEP]", "[CLS] g [SEP]"]


def test_a_sentence_longer_than_the_limit_is_read_in_parts() -> None:
    """Parts of one size, each with the words around it; a word that is too long by itself is cut."""
    source = Sentences([sentences("a b c d e f")], ("O",), 6, VOCABULARY, document=False)
    assert rows(source) == [("[CLS] a b c d [SEP]", ["a", "b", "c"]), ("[CLS] c d e f [SEP]", ["d", "e", "f"])]
    few = Sentences([sentences("a b c d")], ("O",), 6, VOCABULARY, document=False, words=3)
    assert rows(few) == [("[CLS] a b c d [SEP]", ["a", "b"]), ("[CLS] a b c d [SEP]", ["c", "d"])]
    long = Sentences([sentences("axxxxx b")], ("O",), 5, VOCABULARY, document=False)
    assert [row[1] for row in rows(long)] == [["a"], ["b"]]


words = st.text(alphabet="abcx\u200b", min_size=1, max_size=9)


@pytest.mark.parametrize("document", [False, True])
def test_an_epoch_counts_sentences(document: bool) -> None:
    """Not the parts that they are read in."""
    source = Sentences([sentences("a b c d e", "a"), sentences("b c d")], ("O",), 4, VOCABULARY, document=document)
    assert (len(source), epoch_size(source)) == (6, 3)
    words = Words(source, [np.zeros((9, 2))], 2)
    assert (len(words), epoch_size(words)) == (6, 3)
    assert planning.steps_of(config.Phase(length=4, batch_size=2, epochs=3), words) == 4


@given(
    st.lists(st.lists(st.lists(words, min_size=1, max_size=12), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(3, 12),
    st.booleans(),
    st.integers(1, 12),
)
def test_every_word_is_predicted_exactly_once(documents: list, length: int, document: bool, most: int) -> None:
    """Each with its own tag, in order; a window is never longer than the limit, nor without what it is for, nor for
    more words than it may be."""
    count = 0
    given_ = []
    for texts in documents:
        given_.append([])
        for text in texts:
            tags = tuple(str((count + n) % 7) for n in range(len(text)))
            given_[-1].append(Sentence(tuple(text), tags))
            count += len(text)
    source = Sentences(given_, tuple("0123456"), length, VOCABULARY, document=document, words=most)
    assert source.arrays["predicted"].sum() == count
    assert source.arrays["predicted"].sum(axis=1).max() <= most
    assert source.tags(source.arrays["tags"]) == [list(s.tags) for texts in given_ for s in texts]
    assert source.arrays["tokens"].shape[1] == length
    assert source.arrays["predicted"].any(axis=1).all()
    assert not (source.arrays["predicted"] & ~source.arrays["mask"]).any()
    special = np.isin(source.arrays["tokens"], [VOCABULARY.cls, VOCABULARY.sep])
    assert not (source.arrays["predicted"] & special).any()


def write(folder: pathlib.Path, text: str, name: str = "f.txt") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_conll_columns(tmp_path: pathlib.Path) -> None:
    """Documents, an empty one among them; IOB1 becomes IOB2; several blank lines, none at the end; a word "#"."""
    text = "-DOCSTART- O\n\na I-X\nb I-X\nc B-X\n\n\n-DOCSTART- O\n\n-DOCSTART- O\n# O\ne I-X"
    found = TASK.read(write(tmp_path, text))
    assert found == [
        [Sentence(("a", "b", "c"), ("B-X", "I-X", "B-X"))],
        [Sentence(("#", "e"), ("O", "B-X"))],
    ]
    as_is = dataclasses.replace(TASK, scheme="as is")
    assert as_is.read(write(tmp_path, text))[0][0].tags == ("I-X", "I-X", "B-X")


def test_conllu(tmp_path: pathlib.Path) -> None:
    """Comments, multiword tokens and empty nodes are left out; a word may hold a space; .xz is read."""
    lines = [
        "# newdoc id = d",
        "1-2\tvámonos\t_\t_",
        "1\tva mos\t_\tVERB",
        "2\tnos\t_\tPRON",
        "2.1\tx\t_\tX",
        "",
        "# newdoc",
    ]
    task = Tag(train="", dev=("d",), labels=UPOS, word=2, label=4, scheme="as is", metrics=("accuracy",))
    wanted = [[Sentence(("va mos", "nos"), ("VERB", "PRON"))]]
    assert task.read(write(tmp_path, "\n".join(lines), "f.conllu")) == wanted
    (tmp_path / "g.conllu.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    assert task.read(str(tmp_path / "g.conllu.xz")) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a I-X\nb I-Y\n", r"f.txt:2: tag 'I-Y' of 'b', in IOB2 'B-Y', is none of O, B-X, I-X"),
        ("a O\nb X-X\n", r"f.txt:2: the tag 'X-X' is neither O nor a mark"),
        ("a O\nb PER\n", r"f.txt:2: the tag 'PER' is neither O nor a mark"),
        ("a O\nb B_X\n", r"f.txt:2: the tag 'B_X' is neither"),
        ("a O\nb B-\n", r"f.txt:2: the tag 'B-' is neither"),
        ("a\tO\n#b\n", r"f.txt:2: 2 columns expected, 1 found"),
        ("a\tO\nb c\t \n", r"f.txt:2: the tag '' is neither"),
        ("a O\nb\n", r"f.txt:2: 2 columns expected, 1 found, by white space: 'b'"),
        (
            "a O\n\nb O\nc B-Y\n",
            r"f.txt:4: tag 'B-Y' of 'c' is none of O, B-X, I-X; name all in task.labels",
        ),
        ("\n\n", r"f.txt: no sentences"),
        ("-DOCSTART- O\n", r"f.txt: no sentences"),
        ("a O\n", r"f.txt marks no documents .*task.document=false"),
    ],
)
def test_a_bad_file_is_said(text: str, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.read(write(tmp_path, text))
    if "marks no documents" in message:
        assert len(PLAIN.read(write(tmp_path, text))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("O",)}, "at least two labels"),
        ({"labels": ("O", "O")}, "named twice"),
        ({"dev": ()}, "dev must name a file"),
        ({"word": 0}, "counted from 1"),
        ({"metrics": ("mcc",)}, "not by 'mcc'"),
        ({"dev": ("a.txt", "b/c.txt", "d/c.txt")}, "two files have one name"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **change)


def test_figures_and_predictions_by_hand() -> None:
    given_ = [Sentence(("a", "b", "c"), ("B-X", "I-X", "O")), Sentence(("d",), ("B-X",))]
    source = Sentences([given_], TASK.labels, 6, VOCABULARY, document=False)
    classes = source.arrays["tags"].copy()
    classes[0, 2] = 0  # "b" is missed
    figures = TASK.score(source, {"tags": classes})
    assert figures == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 0.75, "majority": 0.5, "constant": 0.0}
    accuracy = dataclasses.replace(TASK, metrics=("accuracy",))
    assert accuracy.score(source, {"tags": np.zeros_like(classes)}) == {
        "accuracy": 0.25,
        "majority": 0.5,
        "constant": 1.0,
    }
    wanted = "a B-X B-X\nb I-X O\nc O O\n\nd B-X B-X\n\n"
    assert TASK.predictions("validation", source, {"tags": classes}, {}) == {"validation.txt": wanted}


# Words, sentences, documents.
CONLL = {
    "eng.train": (203_621, 14_041, 946),
    "eng.testa": (51_362, 3_250, 216),
    "eng.testb": (46_435, 3_453, 231),
}


@pytest.mark.parametrize("file", CONLL)
def test_conll2003_s_files(real_data: pathlib.Path, file: str) -> None:
    documents = Tag(train="", dev=("d",)).read(str(real_data / "conll2003" / file))
    sentences = [sentence for one in documents for sentence in one]
    assert (sum(len(s.words) for s in sentences), len(sentences), len(documents)) == CONLL[file]
    assert {tag for one in documents for s in one for tag in s.tags} == set(CONLL2003)


@pytest.mark.parametrize(
    ("split", "count"), [("train.conllu.xz", 12_544), ("dev.conllu", 2_001), ("test.conllu", 2_077)]
)
def test_the_english_web_treebank_s_files(real_data: pathlib.Path, split: str, count: int) -> None:
    task = Tag(train="", dev=("d",), labels=UPOS, word=2, label=4, scheme="as is", metrics=("accuracy",))
    documents = task.read(str(real_data / "ud_ewt" / f"en_ewt-ud-{split}"))
    assert sum(map(len, documents)) == count
    assert len(documents) > 300


@pytest.fixture
def uneven(tiny: Experiment, tmp_path: pathlib.Path) -> Experiment:
    """Sentences of 1 to 28 words, without dropout."""
    VOCABULARY.save(tmp_path / "vocab.txt")
    rng = np.random.default_rng(0)
    for name, count in (("train.txt", 300), ("dev.txt", 45)):
        texts = [rng.choice(["a", "b", "c", "d", "e", "f"], rng.integers(1, 29)) for _ in range(count)]
        lines = ["".join(f"{w} {'I-X' if w in 'ab' else 'O'}\n" for w in text) for text in texts]
        write(tmp_path, "\n".join(lines), name)
    return dataclasses.replace(
        tiny,
        encoder=config.Encoder(
            layers=2, hidden=16, heads=2, vocab_size=40, max_positions=32, dropout=0.0, attention_dropout=0.0
        ),
        vocab=str(tmp_path / "vocab.txt"),
        task=dataclasses.replace(TASK, dev=("dev.txt",), document=False),
        phases=(config.Phase(length=32, batch_size=8, epochs=2, lengths=4),),
        optimizer=config.Optimizer(learning_rate=5e-3, warmup=0.1),
        every=config.Every(log=100, evaluate=0, checkpoint=0),
    )


@pytest.mark.usefixtures("few_devices")
def test_groups_of_lengths_change_neither_the_expected_gradient_nor_an_evaluation(
    uneven: Experiment, tmp_path: pathlib.Path
) -> None:
    plain = config.override(uneven, {"phases.0.lengths": 1})
    mesh = sharding.make_mesh(uneven.mesh)
    place, context = sharding.batch_sharding(mesh), Context(VOCABULARY, str(tmp_path))
    (groups,), (same,) = (planning.stretches(exp, context, place) for exp in (uneven, plain))
    with jax.set_mesh(mesh):
        program = Program(uneven, VOCABULARY, 75, mesh)
        params = program.init().params
        tokens, most = (planning.tokens_and_flops(uneven, params, [one.lengths])[0] for one in (groups, same))
        assert (groups.stop, most) == (75, 75 * 8 * 32)
        assert tokens < 0.7 * most
        gradients = jax.jit(lambda batch: program._gradients(params, batch, jax.random.key(0))[0])
        each = [gradients(groups.batches[n]) for n in range(64)]
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
        pool = [same.batches.rows(n) for n in range(64)]
        whole = gradients({name: np.concatenate([rows[name] for rows in pool]) for name in pool[0]})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), mean, whole)
        found, expected = (program.evaluate(params, one.validation["validation"]) for one in (groups, same))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    predicted = same.validation["validation"].source.arrays["predicted"]
    np.testing.assert_array_equal(
        found[1]["tags"] * predicted[:, : found[1]["tags"].shape[1]],
        (expected[1]["tags"] * predicted)[:, : found[1]["tags"].shape[1]],
    )


@pytest.mark.usefixtures("few_devices")
def test_a_run_in_groups_of_lengths_stops_and_goes_on(uneven: Experiment, tmp_path: pathlib.Path) -> None:
    results = []
    for workdir, stops in ((tmp_path / "whole", ()), (tmp_path / "cut", (30, 70))):
        for stop in stops:
            train.run(uneven, str(workdir), data_dir=str(tmp_path), stop_at=stop, quiet=True)
        results.append(train.run(uneven, str(workdir), data_dir=str(tmp_path), quiet=True))
    whole, cut = (
        {k: v for k, v in one.items() if k not in ("seconds", "goodput", "began", "ended")} for one in results
    )
    assert whole == cut
    assert results[0]["f1"] > 0.4


@pytest.mark.usefixtures("few_devices")
@pytest.mark.slow
def test_seeds_in_one_program_and_in_groups_of_lengths_end_as_each_by_itself(
    uneven: Experiment, tmp_path: pathlib.Path
) -> None:
    """Batches of one number differ in length between seeds: the shorter are padded, and dropout does not see it."""
    changes = {"encoder.dropout": 0.1, "encoder.attention_dropout": 0.1, "phases.0.epochs": 1, "phases.0.lengths": 2}
    exps = [config.override(uneven, {**changes, "seed": seed}) for seed in (0, 1)]
    alone = [train.run(exp, str(tmp_path / f"a{exp.seed}"), data_dir=str(tmp_path), quiet=True) for exp in exps]
    workdirs = [str(tmp_path / f"b{exp.seed}") for exp in exps]
    together = train.run_together(exps, workdirs, data_dir=str(tmp_path), quiet=True)
    for one, other in zip(alone, together, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["tokens"] == one["tokens"]
    assert together[0]["loss"] != together[1]["loss"]


def write_data(folder: pathlib.Path) -> None:
    """A vocabulary and files of sentences in which "a b" is an X."""
    VOCABULARY.save(folder / "vocab.txt")
    rng = np.random.default_rng(0)
    for name, count in (("train.txt", 100), ("dev.txt", 30), ("more.txt", 10)):
        lines = []
        for number in range(count):
            lines += ["-DOCSTART- O", ""] if number % 5 == 0 else []
            text = " ".join(rng.choice(["a b", "c", "d", "e", "f"], 10)).split()[:10]
            tags = ["I-X" if word in ("a", "b") else "O" for word in text]
            lines += [*(f"{word} {tag}" for word, tag in zip(text, tags, strict=True)), ""]
        write(folder, "\n".join(lines), name)


@pytest.mark.usefixtures("few_devices")
def test_a_run_from_file_to_entities(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Trained to call "a b" an X; windows shorter than the sentences."""
    write_data(tmp_path)
    exp = dataclasses.replace(
        tiny,
        encoder=config.Encoder(layers=2, hidden=32, heads=2, vocab_size=40, max_positions=32, init_stddev=0.1),
        vocab=str(tmp_path / "vocab.txt"),
        task=dataclasses.replace(TASK, dev=("dev.txt", "more.txt")),
        phases=(config.Phase(length=9, batch_size=16, epochs=80),),
        optimizer=config.Optimizer(learning_rate=2e-3, warmup=0.1),
        every=config.Every(log=100, evaluate=0, checkpoint=0),
        predict=True,
    )
    result = train.run(exp, str(tmp_path / "run"), data_dir=str(tmp_path), quiet=True)
    assert (result["metric"], result["score"]) == ("f1", result["f1"])
    assert result["f1"] > 0.8
    assert {"f1_more", "recall_more"} <= result.keys()
    written = (tmp_path / "run" / "predictions" / "validation.txt").read_text().split()
    assert len(written) == 3 * 300
    assert np.mean(np.array(written[1::3]) == np.array(written[2::3])) == pytest.approx(result["accuracy"])
    model = bert_jax.load(str(tmp_path / "run"))
    (tagged,) = model.tag("c  A b, d")
    assert [word[:3] for word in tagged.words] == [("c", 0, 1), ("A", 3, 4), ("b", 5, 6), (",", 6, 7), ("d", 8, 9)]
    (tagged,) = model.tag("c  A b d")
    assert tagged.entities == [("A b", "X", 3, 6)]
    ask = [(1, "c a b"), (2, json.dumps({"text": ["c", "a"]}))]
    first, second = (json.loads(line) for line in predict.answers(model, ask))
    assert first["entities"] == [{"text": "a b", "kind": "X", "start": 2, "stop": 5}]
    assert second["tags"] == [["c", "O"], ["a", "B-X"]]
    every = ["c", "a b", "", "\u200b", " ", "b" * 9, *"cabd" * 10]  # more than a window, and some without a token
    for given_ in (every, ["a"]):
        assert [word.text for word in model.tag([given_])[0].words] == given_
    with pytest.raises(ValueError, match="answers no questions"):
        model.answer([("a", "b")])
    with pytest.raises(ValueError, match="a text has no words"):
        model.tag(["a", " "])


# A frozen encoder.

SMALL = config.Encoder(layers=4, hidden=16, heads=2, vocab_size=40, max_positions=32, init_stddev=0.3)


@pytest.fixture(scope="module")
def base(tiny: Experiment, few_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run on features; beside its `init_from`, an encoder as it was initialised, lie its data and its cache."""
    folder = tmp_path_factory.mktemp("frozen")
    write_data(folder)
    exp = dataclasses.replace(
        tiny,
        encoder=SMALL,
        task=dataclasses.replace(TASK, features=config.Features(words=6), bilstm=config.BiLSTM(layers=1, width=16)),
        phases=(config.Phase(length=9, batch_size=16, steps=200),),
        optimizer=config.Optimizer(learning_rate=2e-2, warmup=0.1),
        every=config.Every(log=1, evaluate=0, checkpoint=0),
    )
    source = folder / "source"
    source.mkdir()
    experiment.record(exp, str(source))
    VOCABULARY.save(source / "tokenizer")
    checkpoint.write_params(str(source), {"encoder": planning.frozen_encoder(dataclasses.replace(exp, seed=5)).params})
    return dataclasses.replace(exp, encoder=None, init_from=str(source))


def start(exp: Experiment, workdir: pathlib.Path, stop_at: int = 0) -> dict:
    folder = pathlib.Path(exp.init_from).parent
    folders = {"data_dir": str(folder), "cache_dir": str(folder / "cache")}
    return train.run(exp, str(workdir), **folders, stop_at=stop_at, quiet=True)


@pytest.fixture(scope="module")
def whole(base: Experiment, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """That run, never stopped, with its predictions."""
    workdir = tmp_path_factory.mktemp("whole")
    start(dataclasses.replace(base, predict=True), workdir)
    return workdir


def test_a_tagger_on_a_frozen_encoder_learns(whole: pathlib.Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert result["f1"] > 0.8
    assert result["tokens"] == 200 * 16 * 6, "words, of sentences"


def test_features_go_in_groups_of_lengths(base: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Short sentences take short batches; what is learned of them is as good, and what is said of each is the same."""
    longer = {"phases.0.length": 32, "task.features.words": 20, "phases.0.lengths": 3}
    exp = planning.resolve(config.override(base, longer))
    documents = [[Sentence(tuple("abcdef"[(n + k) % 6] for k in range(n)), ("O",) * n)] for n in range(1, 21)]
    windows = exp.task.sentences(documents, 32, VOCABULARY)
    mesh = sharding.make_mesh(exp.mesh)
    source, place = exp.task.words(windows, planning.frozen_encoder(exp)), sharding.batch_sharding(mesh)
    program = Program(exp, VOCABULARY, 60, mesh)
    params = {name: checkpoint.read_params(str(whole))[name] for name in ("bilstm", "tagger")}
    said, shapes = [], []
    for lengths in (1, 3):
        phase = dataclasses.replace(exp.phases[0], lengths=lengths)
        batches = planning.batches_of(source, exp, phase, place, shuffle=False)
        shapes.append({batches[n]["features"].shape[1] for n in range(len(batches))})
        said.append(source.tags(program.evaluate(params, batches)[1]["tags"]))
    assert shapes == [{20}, {16, 20}]
    assert said[0] == said[1]
    assert start(exp, tmp_path / "grouped")["f1"] > 0.8


def test_the_examples_are_the_encoder_s_hidden_states_at_first_tokens(base: Experiment) -> None:
    """The last four layers of the whole model, window by window; sentences of ten words are two rows of five."""
    exp = planning.resolve(base)
    folder = pathlib.Path(base.init_from).parent
    frozen = planning.frozen_encoder(exp)
    context = Context(VOCABULARY, str(folder), cache_dir=str(folder / "cache"), frozen=frozen)
    words = exp.task.source("validation", 9, context)
    windows = Sentences(exp.task.read(str(folder / "dev.txt")), TASK.labels, 9, VOCABULARY, document=True, words=6)
    assert len(words) == len(windows) == 60
    batch = words.batch(np.array([3, 59, 0]))
    assert {name: array.shape for name, array in batch.items()} == {
        "features": (3, 6, 4, 16),
        "predicted": (3, 6),
        "tags": (3, 6),
    }
    model = bert_jax.load(base.init_from)
    for row, number in enumerate((3, 59, 0)):
        given_ = {name: array[number : number + 1] for name, array in windows.arrays.items()}
        inputs = (jnp.asarray(given_[n]) for n in ("tokens", "segments", "mask"))
        output = Bert(model.config).apply({"params": model.params["encoder"]}, *inputs, all_layers=True)
        at = given_["predicted"][0]
        wanted = np.array(output.layers)[1:, 0, at].swapaxes(0, 1)
        np.testing.assert_allclose(batch["features"][row, : at.sum()], wanted, atol=2e-5)
        assert batch["predicted"][row].tolist() == [True] * at.sum() + [False] * (6 - at.sum())
        assert not batch["features"][row, at.sum() :].any()
        assert batch["tags"][row, : at.sum()].tolist() == given_["tags"][0, at].tolist()


def test_a_frozen_encoder_stays_and_is_not_in_the_optimizer(base: Experiment, whole: pathlib.Path) -> None:
    """Bit for bit what it was; checkpoints hold what is trained; the workdir stands by itself."""
    before = checkpoint.read_params(base.init_from)["encoder"]
    after = checkpoint.read_params(str(whole))
    assert set(after) == {"encoder", "bilstm", "tagger"}
    assert jax.tree.structure(before) == jax.tree.structure(after["encoder"])
    jax.tree.map(np.testing.assert_array_equal, before, after["encoder"])
    assert set(checkpoint._read(str(whole), None)) == {"bilstm", "tagger"}
    exp = planning.resolve(base)
    state = Program(exp, VOCABULARY, 60, sharding.make_mesh(exp.mesh)).abstract
    for tree in (state.params, state.optimizer.mu, state.optimizer.nu):
        assert set(tree) == {"bilstm", "tagger"}


def test_a_frozen_run_that_is_stopped_goes_on_as_if_it_were_not(
    base: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no run computes features again: not another one, nor one that goes on."""

    def never(*_: object) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(features, "_fill", never)
    exp = dataclasses.replace(base, predict=True)
    assert start(exp, tmp_path, stop_at=23) == {"step": 23, "done": False}
    start(exp, tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, *(checkpoint.read_params(str(workdir)) for workdir in (whole, tmp_path))
    )
    assert metrics.read(str(whole), "validation") == metrics.read(str(tmp_path), "validation")


@pytest.mark.parametrize("layers", ["sum_last_four", "embeddings", "2"])
def test_choices_of_layers_differ(base: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path, layers: str) -> None:
    exp = config.override(base, {"task.features.layers": layers, "task.bilstm": None, "phases.0.steps": 3})
    start(exp, tmp_path)
    params = checkpoint._read(str(tmp_path), None)
    assert ("mix" in params) == (layers == "sum_last_four")
    assert params["tagger"]["dense"]["kernel"].shape == (16, 3)
    if layers == "sum_last_four":
        assert np.abs(params["mix"]["weights"]).min() > 0, "every share learns"
    assert bert_jax.load(str(tmp_path)).tag("a b")[0].words[0].text == "a"


def test_a_frozen_model_is_used_as_any_other(base: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its own files are enough; it tags a file as the run did."""
    shutil.copytree(whole, tmp_path / "moved")
    model = bert_jax.load(str(tmp_path / "moved"))
    written = (whole / "predictions" / "validation.txt").read_text().split("\n\n")[:-1]
    given_ = [[line.split()[0] for line in text.splitlines()] for text in written]
    tagged = model.tag(given_)
    assert [[word.text for word in one.words] for one in tagged] == given_
    # The run read a sentence with the text around it, which `tag` does not have.
    pairs = zip(tagged, (text.splitlines() for text in written), strict=True)
    same = [word.tag == line.split()[2] for one, text in pairs for word, line in zip(one.words, text, strict=True)]
    assert np.mean(same) > 0.9
    assert model.tag("c  A b d")[0].entities == [("A b", "X", 3, 6)]
    answer = json.loads(next(predict.answers(model, [(1, "c a b")])))
    assert answer["entities"] == [{"text": "a b", "kind": "X", "start": 2, "stop": 5}]
    assert model.encode(["a b"], layers="all").layers.shape[0] == 5
    with pytest.raises(ValueError, match="holds what no published BERT has"):
        convert.convert(str(whole), str(tmp_path / "hf"))
    assert convert.convert(str(whole), str(tmp_path / "copy"), to="workdir") == "workdir"
    assert bert_jax.load(str(tmp_path / "copy")).tag(given_) == tagged


def test_a_frozen_workdir_is_a_start_for_others(base: Experiment, whole: pathlib.Path) -> None:
    fine = config.override(base, {"task.features": None, "task.bilstm": None, "init_from": str(whole)})
    state, said = lane.initial_state(
        planning.resolve(fine), Program(planning.resolve(fine), VOCABULARY, 1, sharding.make_mesh(fine.mesh)), None
    )
    assert said == f"starts from the weights of {whole}, tagger from random values; bilstm, tagger left out"
    jax.tree.map(
        np.testing.assert_array_equal, state.params["encoder"], checkpoint.read_params(base.init_from)["encoder"]
    )


def test_a_random_encoder_may_be_frozen_too(base: Experiment) -> None:
    """The control of a study: `random_init` takes the shape alone; a seed has its own."""
    exp = planning.resolve(dataclasses.replace(base, random_init=True))
    one, again, other = (planning.frozen_encoder(dataclasses.replace(exp, seed=seed)) for seed in (0, 0, 1))
    assert isinstance(one, Frozen)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert planning.frozen_encoder(planning.resolve(base)).fingerprint != one.fingerprint
    assert planning.frozen_encoder(config.override(exp, {"task.features": None})) is None


def test_too_few_layers_are_said(base: Experiment, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"the encoder has 4 layers: features\.layers=5 is not to be had of it"):
        start(config.override(base, {"task.features.layers": "5"}), tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "how", "wanted"),
    [
        ("germeval.tsv", "#\thttp://x.org/a [2010-01-01]\n1\tb\tO\tO\n2\ta b\tB-X\tO\n\n", (2, 3), "b/O a b/B-X"),
        ("f.conll", "#begin document (bc/x); part 000\na B-X\n\n#end document\n", (1, 2), "a/B-X"),
        ("f.conll", "# id 52-a\tdomain=en\na _ _ B-X\n", (1, 4), "a/B-X"),
        ("f.tsv", "#a\tB-X\n#\tO\n", (1, 2), "#a/B-X #/O"),
        ("f.txt", "# O\n#a B-X\n", (1, 2), "#/O #a/B-X"),
        ("f.txt", "-docstart- O\n\na B-X\n", (1, 2), "a/B-X"),
        ("f.txt", "-DOCSTART- (12) O\n\na B-X\n", (1, 2), "a/B-X"),
        ("f.tsv", " \tO\n\t \n\u00a0\tB-X\na b\tO \n", (1, 2), " /O \u00a0/B-X a b/O"),
        ("f.conll", "# text = vb\n1-2\tvb\t_\tB-X" + "\t_" * 6 + "\n1\ta\t_\tB-X" + "\t_" * 6, (2, 4), "a/B-X"),
        ("f.conllup", "# global.columns = ID FORM X\n1\ta\tB-X\n", (2, 3), "a/B-X"),
        ("f.txt", "a  U-X\nb U-X\nc B-X\nd L-X\n", (1, 2), "a/B-X b/B-X c/B-X d/I-X"),
    ],
)
def test_the_common_formats(tmp_path: pathlib.Path, name: str, text: str, how: tuple[int, int], wanted: str) -> None:
    task = dataclasses.replace(PLAIN, word=how[0], label=how[1])
    (tmp_path / name).write_bytes(text.encode())
    found = [pair for one in task.read(str(tmp_path / name)) for s in one for pair in zip(s.words, s.tags, strict=True)]
    assert " ".join(map("/".join, found)) == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.tsv", "words\ttags\na b\tB-X O\n"),
        ("f.csv", "words,id,tags\na b,7,B-X O\n"),
        ("f.jsonl", '{"words": ["a", "b"], "tags": ["B-X", "O"]}\n'),
        ("bare.tsv", "a b\tB-X O\n"),
    ],
)
def test_a_row_may_be_a_sentence(tmp_path: pathlib.Path, name: str, text: str) -> None:
    task = dataclasses.replace(PLAIN, rows=("words", "tags"), columns=("words", "tags") if name == "bare.tsv" else ())
    assert task.read(write(tmp_path, text, name)) == [[Sentence(("a", "b"), ("B-X", "O"))]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"w": ["a"], "t": ["B-X", "O"]}', r"f.jsonl:1: 1 words in 'w' and 2 tags in 't'"),
        ('{"w": ["a", null], "t": ["B-X", "O"]}', r"f.jsonl:1: w\[1\] must be a text, not null"),
        ('{"w": "a b", "t": [0, 1]}', r"f.jsonl:1: t\[0\] must be a text, not 0"),
        ('{"w": "a", "t": null}', r"f.jsonl:1: t must be a text, not null"),
        ('{"w": ["a", "b"], "t": ["O", "X-X"]}', r"f.jsonl:1, word 2: the tag 'X-X' is neither"),
    ],
)
def test_a_bad_row_is_said(tmp_path: pathlib.Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, rows=("w", "t")).read(write(tmp_path, row, "f.jsonl"))


def test_a_word_with_a_space_is_one_to_conlleval() -> None:
    source = Sentences([[Sentence(("a b", " ", ""), ("B-X", "O", "O"))]], TASK.labels, 8, VOCABULARY, document=False)
    written = PLAIN.predictions("validation", source, {"tags": source.arrays["tags"]}, {})["validation.txt"]
    assert written == "a_b B-X B-X\n_ O O\n_ O O\n\n"
