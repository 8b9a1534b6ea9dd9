"""Classification: official files, what is wrong with a file, fine-tuning from a pre-training and from nothing."""

import dataclasses
import json
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module

import bert_jax
from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.inference import evaluate
from bert_jax.tasks.base import Context, pack
from bert_jax.tasks.classify import Classify, Example, Examples
from bert_jax.tasks.glue import glue
from bert_jax.text.tokenizer import WordPiece
from bert_jax.training import lane, planning, train
from bert_jax.training.program import Program
from bert_jax.weights import checkpoint
from tests.training.test_train import command, environment

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
TASK = Classify(train="train.tsv", dev=("dev.tsv",), labels=("0", "1"))
VALUE = Classify(train="train.tsv", dev=("dev.tsv",))


def test_packing_by_hand() -> None:
    """Longest first, from the end, of equals the second; a pair's second text is segment 1."""
    assert pack([([5, 6], [7, 8])], 6, WordPiece(PIECES, lower=True))["tokens"].tolist() == [[2, 5, 6, 3, 7, 3]]
    packed = pack([([5, 6, 7, 8], [5]), ([6],)], 7, WordPiece(PIECES, lower=True))
    np.testing.assert_array_equal(packed["tokens"], [[2, 5, 6, 7, 3, 5, 3], [2, 6, 3, 0, 0, 0, 0]])
    np.testing.assert_array_equal(packed["segments"], [[0, 0, 0, 0, 0, 1, 1], [0] * 7])
    np.testing.assert_array_equal(packed["mask"].sum(axis=1), [7, 3])


def write(folder: pathlib.Path, text: str) -> str:
    (folder / "f.tsv").write_text(text)
    return str(folder / "f.tsv")


def test_rows_of_classes_and_of_values(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "sentence\tlabel\nx\t1\ny\t0\n")
    assert TASK.read(path) == [Example(("x",), 1, "0"), Example(("y",), 0, "1")]
    assert VALUE.read(path) == [Example(("x",), 1.0, "0"), Example(("y",), 0.0, "1")]
    pair = dataclasses.replace(TASK, text=("b", "a"))
    assert pair.read(write(tmp_path, "index\ta\tb\n7\tx\ty\n"), labelled=False) == [Example(("y", "x"), 0, "7")]


@pytest.mark.parametrize(
    ("task", "cell", "message"),
    [
        (TASK, "2", r"f.tsv:3: label '2' is none of 0, 1; name all in task.labels"),
        (TASK, "", r"f.tsv:3: label '' is none of 0, 1"),
        (VALUE, "x", r"f.tsv:3: label must be a number, not 'x'"),
        (VALUE, "nan", r"f.tsv:3: label must be a number, not 'nan'"),
    ],
)
def test_a_bad_label_is_named_with_its_line(task: Classify, cell: str, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=message):
        task.read(write(tmp_path, f"sentence\tlabel\nx\t1\ny\t{cell}\n"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("0",)}, "at least two labels"),
        ({"labels": ("0", "0")}, "a label is named twice"),
        ({"text": ()}, "one column or two"),
        ({"dev": ()}, "dev must name a file"),
        ({"metrics": ("pearson",)}, r"classes cannot be scored by 'pearson': .*there is: accuracy, f1, macro_f1, mcc"),
        ({"labels": (), "metrics": ("f1",)}, "a regression cannot be scored by 'f1'"),
        ({"test": ("t.tsv",), "submissions": ("a", "b")}, "submissions must be 1 names or none, not 2"),
        ({"dev": ("dev.tsv", "more/test.tsv"), "test": ("test.tsv",)}, "two files have one name"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **change)


def source(labels: list[float]) -> Examples:
    """Rows of one text and those labels, with indices from 10 on."""
    rows = [Example(("a",), label, str(10 + n)) for n, label in enumerate(labels)]
    return Examples(rows, 8, WordPiece(PIECES, lower=True), np.float32)


def test_scores_of_classes_by_hand() -> None:
    task = dataclasses.replace(TASK, metrics=("f1", "accuracy", "mcc"))
    outputs = {"logits": np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])}
    figures = task.score(source([0, 1, 1, 0]), outputs)
    assert figures == {
        "f1": pytest.approx(0.8),
        "accuracy": 0.75,
        "mcc": pytest.approx(1 / np.sqrt(3)),
        "constant": 0.0,
        "majority": 0.5,
    }
    assert task.metric == "f1"
    assert TASK.metric == "accuracy"
    assert task.score(source([1, 1, 0]), {"logits": np.zeros((3, 2))})["constant"] == 1.0


def test_scores_of_values_by_hand() -> None:
    task = dataclasses.replace(VALUE, metrics=("spearman", "pearson"))
    figures = task.score(source([1, 2, 3]), {"logits": np.array([[1.0], [4.0], [9.0]])})
    wanted = np.corrcoef([1, 2, 3], [1, 4, 9])[0, 1]
    assert figures == {"spearman": pytest.approx(1), "pearson": pytest.approx(wanted), "constant": 0}
    assert VALUE.metric == "spearman"


def test_predictions_are_what_the_leaderboard_wants() -> None:
    task = dataclasses.replace(TASK, test=("test.tsv",), submissions=("SST-2.tsv",))
    outputs = {"logits": np.array([[1.0, 0.0], [0.0, 1.0]])}
    wanted = "index\tprediction\n10\t0\n11\t1\n"
    assert task.predictions("test", source([0, 0]), outputs, {}) == {"SST-2.tsv": wanted}
    assert task.predictions("validation", source([0, 0]), outputs, {}) == {"validation.tsv": wanted}
    spelled = dataclasses.replace(task, spelled=("no", "yes"))
    assert spelled.predictions("test", source([0, 0]), outputs, {})["SST-2.tsv"].splitlines()[1:] == [
        "10\tno",
        "11\tyes",
    ]
    values = {"logits": np.array([[1.23456], [4.0]])}
    assert VALUE.predictions("test", source([0, 0]), values, {})["test.tsv"].splitlines()[1:] == [
        "10\t1.235",
        "11\t4.000",
    ]


def prepared(folder: pathlib.Path, rows: list[tuple[str, int, int]]) -> str:
    """A prepared TFDS data set of (sentence, label, idx), split "train", made without TensorFlow."""

    def field(number: int, content: bytes) -> bytes:  # of a protocol buffer; sizes below 128
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    def integer(value: int) -> bytes:
        value, digits = value % 2**64, []
        while value >= 128:
            digits.append(value % 128 | 128)
            value //= 128
        return field(3, field(1, bytes([*digits, value])))

    folder.mkdir(parents=True)
    writer = array_record_module.ArrayRecordWriter(
        str(folder / "mini-train.array_record-00000-of-00001"), "group_size:1"
    )
    for sentence, label, index in rows:  # tf.train.Example: features { feature { key, value } ... }
        values = {"sentence": field(1, field(1, sentence.encode())), "label": integer(label), "idx": integer(index)}
        entries = [field(1, field(1, name.encode()) + field(2, value)) for name, value in values.items()]
        writer.write(field(1, b"".join(entries)))
    writer.close()
    kind = "tensorflow_datasets.core.features."
    number = {"pythonClassName": kind + "scalar.Scalar", "tensor": {"shape": {}, "dtype": "int32", "encoding": "none"}}
    inner = {
        "sentence": {"pythonClassName": kind + "text_feature.Text", "text": {}},
        "label": {"pythonClassName": kind + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "2"}},
        "idx": number,
    }
    features = {"pythonClassName": kind + "features_dict.FeaturesDict", "featuresDict": {"features": inner}}
    split = {
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(len(rows))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": "mini", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("negative\npositive\n")
    return str(folder)


def test_rows_of_a_tfds_data_set(tmp_path: pathlib.Path) -> None:
    """A class is the name of its number; a hidden one, as GLUE's test splits have it, is not read."""
    folder = prepared(tmp_path / "mini" / "1.0.0", [("a b", 1, 7), ("c é", -1, 3)])
    task = dataclasses.replace(glue("sst2", tfds=True), train=f"tfds:{folder}:train")
    rows = task.read(task.train, labelled=False)
    assert rows == [Example(("a b",), 0, "7"), Example(("c é",), 0, "3")]
    with pytest.raises(ValueError, match=r"train:1: label '' is none of negative, positive"):
        task.read(task.train)
    assert task.read(f"tfds:{prepared(tmp_path / 'one', [('a', 1, 0)])}") == [Example(("a",), 1, "0")]
    assert "tensorflow" not in sys.modules


@pytest.fixture(scope="module")
def runs(few_devices: None, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """A pre-training run, and a fine-tuning from its weights and from random ones."""
    folder = tmp_path_factory.mktemp("runs")
    train.run(tiny, str(folder / "pretrained"), quiet=True)
    words = [p for p in bert_jax.load(str(folder / "pretrained")).tokenizer.pieces(range(5, 40)) if p.isalpha()]
    rows = [f"{words[n % 9]} {words[9 + n % 7]} {words[n % 2]}\t{n % 2}" for n in range(160)]
    for split, part in (("train", rows[:120]), ("dev", rows[120:]), ("more", rows[130:]), ("test", rows[7:10])):
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n")
    tuning = dataclasses.replace(
        tiny,
        name="tuned",
        encoder=None,
        init_from=str(folder / "pretrained"),
        task=dataclasses.replace(TASK, dev=("dev.tsv", "more.tsv"), test=("test.tsv",)),
        phases=(config.Phase(length=8, batch_size=16, epochs=12),),
        optimizer=config.Optimizer(learning_rate=5e-3, warmup=0.1),
        every=config.Every(log=50, evaluate=0, checkpoint=0),
        predict=True,
    )
    train.run(tuning, str(folder / "tuned"), data_dir=str(folder), quiet=True)
    train.run(override(tuning, {"random_init": True}), str(folder / "control"), data_dir=str(folder), quiet=True)
    return {name: folder / name for name in ("pretrained", "tuned", "control")}


def test_a_fine_tuning_learns_and_says_so(runs: dict[str, pathlib.Path]) -> None:
    result = json.loads((runs["tuned"] / "result.json").read_text())
    assert result["accuracy"] > 0.9
    assert result["majority"] == 0.5
    assert result["step"] == 120 * 12 // 16
    assert (result["metric"], result["score"]) == ("accuracy", result["accuracy"])


def test_a_run_is_scored_again_as_it_scored_itself(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """Without training, without its training file: the same figures, the same files of predictions."""
    wanted = json.loads((runs["tuned"] / "result.json").read_text())
    for name in ("dev", "more", "test"):
        (tmp_path / f"{name}.tsv").write_text((runs["tuned"].parent / f"{name}.tsv").read_text())
    found = evaluate.evaluate(str(runs["tuned"]), output=str(tmp_path / "out"), data_dir=str(tmp_path))
    for name, value in found.items():
        if name not in ("model", "predictions"):
            assert value == wanted[name] if isinstance(value, str) else value == pytest.approx(wanted[name], rel=1e-5)
    assert found["predictions"] == wanted["predictions"]
    for name in wanted["predictions"]:
        there, here = (folder / "predictions" / name for folder in (runs["tuned"], tmp_path / "out"))
        assert here.read_bytes() == there.read_bytes()


def test_predictions_are_of_every_row_once_and_in_order(runs: dict[str, pathlib.Path]) -> None:
    """40 rows in batches of 16, the last filled up; the figures of the second set are those of its rows."""
    result = json.loads((runs["tuned"] / "result.json").read_text())
    written = {}
    for name in ("validation", "more", "test"):
        lines = (runs["tuned"] / "predictions" / f"{name}.tsv").read_text().splitlines()[1:]
        index, written[name] = zip(*(line.split("\t") for line in lines), strict=True)
        assert index == tuple(map(str, range(len(lines))))
    assert {name: len(rows) for name, rows in written.items()} == {"validation": 40, "more": 30, "test": 3}
    assert written["more"] == written["validation"][10:]
    right = [row == str(n % 2) for n, row in enumerate(written["validation"])]
    assert result["accuracy"] == pytest.approx(np.mean(right))
    assert result["accuracy_more"] == pytest.approx(np.mean(right[10:]))


def test_a_finished_run_can_be_asked_for_predictions(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "again"
    shutil.copytree(runs["tuned"], workdir)
    shutil.rmtree(workdir / "predictions")
    exp = experiment.read_config(str(workdir))
    before = json.loads((workdir / "result.json").read_text())
    train.run(override(exp, {"predict": False}), str(workdir), data_dir=str(runs["tuned"].parent), quiet=True)
    assert not (workdir / "predictions").exists()
    train.run(exp, str(workdir), data_dir=str(runs["tuned"].parent), quiet=True)
    after = json.loads((workdir / "result.json").read_text())
    assert after | {name: before[name] for name in ("goodput", "ended")} == before, (
        "it took more time, and nothing else"
    )
    for file in (runs["tuned"] / "predictions").iterdir():
        assert (workdir / "predictions" / file.name).read_text() == file.read_text()


def test_two_hosts_score_and_predict_as_one(runs: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    """The outputs of both are brought together in the examples' order; one of them writes."""
    exp = dataclasses.replace(experiment.read_config(str(runs["tuned"])), mesh=config.Mesh(data=2))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = (f"--data_dir={runs['tuned'].parent}", "--multihost", f"--coordinator=localhost:{port}", "--processes=2")
    lines = [command(exp, tmp_path, tmp_path / "run", *flags, f"--process={number}") for number in range(2)]
    processes = [subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True) for line in lines]
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for file in (runs["tuned"] / "predictions").iterdir():
        assert (tmp_path / "run" / "predictions" / file.name).read_text() == file.read_text()


def test_it_starts_from_the_pre_trained_weights(runs: dict[str, pathlib.Path], tiny: Experiment) -> None:
    """After one step of warm-up (whose rate is 0) the encoder is still the source's; the control's is not."""
    source = checkpoint.read_params(str(runs["pretrained"]))["encoder"]["embeddings"]["word"]
    tuned, control = (bert_jax.load(str(runs[name])).experiment for name in ("tuned", "control"))
    for exp, same in ((tuned, True), (control, False)):
        mesh = train.sharding.make_mesh(exp.mesh)
        with train.jax.set_mesh(mesh):
            program = Program(exp, planning.find_tokenizer(exp), 10, mesh)
            state, _ = lane.initial_state(exp, program, None)
        assert np.array_equal(state.params["encoder"]["embeddings"]["word"], source) == same


def test_weights_that_do_not_fit_are_listed(runs: dict[str, pathlib.Path], tiny: Experiment) -> None:
    exp = bert_jax.load(str(runs["tuned"])).experiment
    source = checkpoint.read_params(str(runs["pretrained"]))
    source["encoder"]["embeddings"]["word"] = source["encoder"]["embeddings"]["word"][:-1]
    source["encoder"]["embeddings"]["place"] = source["encoder"]["embeddings"].pop("position")
    mesh = train.sharding.make_mesh(exp.mesh)
    with train.jax.set_mesh(mesh):
        params = Program(exp, planning.find_tokenizer(exp), 10, mesh).init().params
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
    both, alone = model.encode(texts, layers="all"), model.encode(texts[0])
    count = int(alone.mask.sum())
    assert alone.layers is None
    assert both.layers is not None
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


def test_f1_is_of_two_classes() -> None:
    with pytest.raises(ValueError, match=r"f1 is that of the second of two labels, not of 3: .*macro_f1"):
        dataclasses.replace(TASK, labels=("a", "b", "c"), metrics=("f1",))
    three = dataclasses.replace(TASK, labels=("a", "b", "c"), metrics=("macro_f1",))
    source = Examples([Example(("a",), one, "") for one in (0, 0, 1, 2, 2, 2)], 8, WordPiece(PIECES, True), np.int32)
    found = three.score(source, {"logits": np.eye(3)[[0, 0, 0, 2, 2, 2]]})
    assert found["macro_f1"] == pytest.approx(0.6)


def test_a_submission_stays_within_its_bounds() -> None:
    source = Examples([Example(("a",), 1.0, str(n)) for n in range(3)], 8, WordPiece(PIECES, True), np.float32)
    logits = np.array([[-0.2], [2.5], [5.3]])
    (found,) = glue("stsb").predictions("test", source, {"logits": logits}, {}).values()
    assert found == "index\tprediction\n0\t0.000\n1\t2.500\n2\t5.000\n"
    with pytest.raises(ValueError, match="bounds must be the lowest and the highest value"):
        dataclasses.replace(VALUE, bounds=(1.0,))


def test_a_dev_set_of_one_value_has_no_correlation(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na\t3\nb\t3.0\n")
    context = Context(WordPiece(PIECES, True), str(tmp_path))
    with pytest.raises(ValueError, match=r"dev.tsv: all rows have the value 3.0: correlations .* not defined"):
        VALUE.source("validation", 8, context)
    assert len(dataclasses.replace(TASK, labels=("3", "3.0")).source("validation", 8, context)) == 2


def test_mnli_s_rows_without_a_gold_label_are_left_out(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "gold_label\tsentence1\tsentence2\n-\ta\tb\nneutral\tc\td\n")
    assert glue("mnli").read(path) == [Example(("c", "d"), 2, "1")]
