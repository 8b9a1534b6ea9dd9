"""Classification: official files, what is wrong with a file, fine-tuning from a pre-training and from nothing."""

import dataclasses
import pathlib

import numpy as np
import pytest

import bert_jax
from bert_jax import checkpoint, config, train
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tasks.classify import Classify, pack, read_tsv
from bert_jax.tasks.glue import glue
from bert_jax.tokenizer import WordPiece

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]


def test_packing_by_hand() -> None:
    """Longest first, from the end; a pair's second text is segment 1."""
    packed = pack([("a b c d", "a"), ("b",)], 7, WordPiece(PIECES, lower=True))
    np.testing.assert_array_equal(packed["tokens"], [[2, 5, 6, 7, 3, 5, 3], [2, 6, 3, 0, 0, 0, 0]])
    np.testing.assert_array_equal(packed["segments"], [[0, 0, 0, 0, 0, 1, 1], [0] * 7])
    np.testing.assert_array_equal(packed["mask"].sum(axis=1), [7, 3])


def write(folder: pathlib.Path, text: str | bytes) -> str:
    path = folder / "train.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(path: str) -> list:
    return read_tsv(path, ("sentence",), "label", ("0", "1"))


def test_a_file_is_read_as_it_is_published(tmp_path: pathlib.Path) -> None:
    """A byte order mark, Windows line ends, lone quotes, a line separator in a text."""
    path = write(tmp_path, '\ufeffsentence\tlabel\r\nan "odd quote\t1\r\nline\u2028break\t0\r\n')
    assert read(path) == [(('an "odd quote',), 1), (("line\u2028break",), 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tlabel\ngood\t1\nbad\n", r"train.tsv:3: 2 columns expected \(sentence, label\), 1 found: 'bad'"),
        ("sentence\tlabel\na\tb\t1\n", r"train.tsv:2: 2 columns expected .*, 3 found"),
        ("sentence\tlabel\nx\t2\n", r"train.tsv:2: label '2' is none of 0, 1"),
        ("sentense\tlabel\nx\t1\n", r"train.tsv:1: no column 'sentence': did you mean 'sentense'\?"),
        ("sentence\tlabel\n", "no rows after the header"),
        (b"sentence\tlabel\nx\xff\t1\n", "byte 16 is not UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: pathlib.Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, text))


def test_a_missing_file_asks_for_the_data_dir(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="--data_dir must name the folder"):
        read(str(tmp_path / "absent.tsv"))


def test_sst2_s_official_files(real_data: pathlib.Path) -> None:
    task = glue("sst2")
    counts = [
        len(read_tsv(str(real_data / "glue" / f), task.text, task.label, task.labels)) for f in (task.train, task.dev)
    ]
    assert counts == [67_349, 872]
    with pytest.raises(ValueError, match="did you mean 'sst2'"):
        glue("sst-2")


@pytest.fixture(scope="module")
def runs(few_devices: None, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """A pre-training run, and a fine-tuning from its weights and from random ones."""
    folder = tmp_path_factory.mktemp("runs")
    train.run(tiny, str(folder / "pretrained"), quiet=True)
    words = [p for p in bert_jax.load(str(folder / "pretrained")).tokenizer.pieces(range(5, 40)) if p.isalpha()]
    rows = [f"{words[n % 9]} {words[9 + n % 7]} {words[n % 2]}\t{n % 2}" for n in range(160)]
    for split, part in (("train", rows[:120]), ("dev", rows[120:])):
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n")
    tuning = dataclasses.replace(
        tiny,
        name="tuned",
        encoder=None,
        init_from=str(folder / "pretrained"),
        task=Classify(train="train.tsv", dev="dev.tsv", labels=("0", "1")),
        phases=(config.Phase(length=8, batch_size=16, epochs=12),),
        optimizer=config.Optimizer(learning_rate=5e-3, warmup=0.1),
        every=config.Every(log=50, evaluate=0, checkpoint=0),
    )
    train.run(tuning, str(folder / "tuned"), data_dir=str(folder), quiet=True)
    train.run(override(tuning, {"random_init": True}), str(folder / "control"), data_dir=str(folder), quiet=True)
    return {name: folder / name for name in ("pretrained", "tuned", "control")}


def test_a_fine_tuning_learns_and_says_so(runs: dict[str, pathlib.Path]) -> None:
    import json

    result = json.loads((runs["tuned"] / "result.json").read_text())
    assert result["accuracy"] > 0.9
    assert result["majority"] == 0.5
    assert result["step"] == 120 * 12 // 16


def test_it_starts_from_the_pre_trained_weights(runs: dict[str, pathlib.Path], tiny: Experiment) -> None:
    """After one step of warm-up (whose rate is 0) the encoder is still the source's; the control's is not."""
    source = checkpoint.read_params(str(runs["pretrained"]))["encoder"]["embeddings"]["word"]
    tuned, control = (bert_jax.load(str(runs[name])).experiment for name in ("tuned", "control"))
    for exp, same in ((tuned, True), (control, False)):
        mesh = train.sharding.make_mesh(exp.mesh)
        with train.jax.set_mesh(mesh):
            program = train.Program(exp, train.find_tokenizer(exp), 10, mesh)
            state, _ = train.initial_state(exp, program, None)
        assert np.array_equal(state.params["encoder"]["embeddings"]["word"], source) == same


def test_weights_that_do_not_fit_are_listed(runs: dict[str, pathlib.Path], tiny: Experiment) -> None:
    exp = bert_jax.load(str(runs["tuned"])).experiment
    source = checkpoint.read_params(str(runs["pretrained"]))
    source["encoder"]["embeddings"]["word"] = source["encoder"]["embeddings"]["word"][:-1]
    source["encoder"]["embeddings"]["place"] = source["encoder"]["embeddings"].pop("position")
    mesh = train.sharding.make_mesh(exp.mesh)
    with train.jax.set_mesh(mesh):
        params = train.Program(exp, train.find_tokenizer(exp), 10, mesh).init().params
    with pytest.raises(ValueError, match="RUN does not fit this experiment") as error:
        checkpoint.initialise(params, source, task=exp.task, name="RUN")
    for line in (
        "encoder/embeddings/word is (319, 16) there and (320, 16) here",
        "encoder/embeddings/position is missing there",
        "encoder/embeddings/place would be left over",
    ):
        assert line in str(error.value)


def test_a_loaded_model_encodes(runs: dict[str, pathlib.Path]) -> None:
    """The same hidden states alone and in a batch; pieces and mask agree; the embeddings come first."""
    model = bert_jax.load(str(runs["pretrained"]))
    words = [p for p in model.tokenizer.pieces(range(5, 40)) if p.isalpha()]
    texts = [" ".join(words[:3]), " ".join(words[3:10])]
    both, alone = model.encode(texts), model.encode(texts[0])
    count = int(alone.mask.sum())
    assert both.layers.shape == (3, 2, both.mask.shape[1], 16)
    assert both.pieces[0] == alone.pieces[0] == ["[CLS]", *words[:3], "[SEP]"]
    np.testing.assert_allclose(both.last[0, :count], alone.last[0, :count], atol=1e-5)
    np.testing.assert_array_equal(both.last, both.layers[-1])
    with pytest.raises(ValueError, match="there are no texts"):
        model.encode([])


def test_a_loaded_model_fills_and_classifies(runs: dict[str, pathlib.Path]) -> None:
    model, tuned = (bert_jax.load(str(runs[name])) for name in ("pretrained", "tuned"))
    word = next(p for p in model.tokenizer.pieces(range(5, 40)) if p.isalpha())
    fillings = model.fill_mask(f"{word} [MASK].", top=4)
    assert len(fillings) == 4
    assert all(word in one.text and one.token.removeprefix("##") in one.text for one in fillings)
    chances = [one.probability for one in fillings]
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1
    for text in ("no place", "[MASK] and [MASK]"):
        with pytest.raises(ValueError, match="exactly once"):
            model.fill_mask(text)
    with pytest.raises(ValueError, match="no classifier"):
        model.classify(word)
    with pytest.raises(ValueError, match="no masked LM head"):
        tuned.fill_mask("[MASK]")
    answers = tuned.classify([word] * 35 + [f"{word} {word}"])
    assert len(answers) == 36
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)
    assert answers[0].probabilities == pytest.approx(answers[34].probabilities)


def test_what_is_no_workdir_is_said(tmp_path: pathlib.Path, runs: dict[str, pathlib.Path]) -> None:
    with pytest.raises(ValueError, match="is no workdir of a run"):
        bert_jax.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged, it is no JSON"):
        bert_jax.load(str(tmp_path))
    (tmp_path / "config.json").write_text((runs["tuned"] / "config.json").read_text())
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.read_params(str(tmp_path))
