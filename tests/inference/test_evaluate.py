"""A model is scored on labelled files as it is, whatever wrote it: classes are matched by their names."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import bert_jax
from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.inference import evaluate
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.weights import huggingface, pretrained
from tests.conftest import REPOSITORY, environment
from tests.weights.test_weights import TINY, directory, random_params, vocabulary

pytestmark = pytest.mark.usefixtures("few_devices")

TEXTS = ["the cat sat", "on w1 w2", "w3 w4 .", "the the", "cats on w9", "w5 w6 w7"]


def classified(folder: pathlib.Path, *labels: str) -> pathlib.Path:
    """A published classifier that gives `TEXTS` several classes: its bias takes off what all of them have in common."""
    params = random_params(TINY, ("pooler", "classifier"), classes=len(labels))
    for _ in range(2):
        folder.mkdir(parents=True, exist_ok=True)
        huggingface.write(folder, params, TINY, vocabulary(40), labels)
        answers = [one.probabilities for one in bert_jax.load(str(folder)).classify(TEXTS)]
        params["classifier"]["dense"]["bias"] -= np.log([list(one.values()) for one in answers]).mean(axis=0)
    return folder


def experiment(task: Classify) -> Experiment:
    phase = config.Phase(length=8, batch_size=4, steps=1)
    return Experiment(task=task, encoder=TINY, phases=(phase,), mesh=config.Mesh(data=1))


def test_classes_are_matched_by_their_names(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(evaluate.logging, "warning", lambda text, *values: said.append(text % values))
    folder = str(classified(tmp_path / "model", "c", "A", "b"))
    own = [one.label for one in bert_jax.load(folder).classify(TEXTS)]
    rows = [f"{text}\t{label.lower()}" for text, label in zip(TEXTS, own, strict=True)]
    assert len(set(own)) > 1
    rows[-1] = f"{TEXTS[-1]}\t{'a' if own[-1] != 'A' else 'b'}"
    (tmp_path / "mine.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    (tmp_path / "test.tsv").write_text("\n".join(["sentence", *TEXTS]) + "\n")
    task = Classify(train="nothere.tsv", dev=("mine.tsv",), test=("test.tsv",), labels=("a", "b", "c"))
    found = evaluate.evaluate(
        folder, experiment(task), data_dir=str(tmp_path), output=str(tmp_path / "out"), cache_dir=str(tmp_path)
    )
    assert (found["metric"], found["score"], said) == ("accuracy", pytest.approx(5 / 6), [])
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == found
    for name in ("test.tsv", "validation.tsv"):
        lines = (tmp_path / "out" / "predictions" / name).read_text().splitlines()
        assert [line.split("\t")[1] for line in lines[1:]] == [label.lower() for label in own]
    # By what the file's spelling means, and where the model has no names by their order.
    numbered = dataclasses.replace(task, labels=("0", "1", "2"), label_names=("A", "b", "c"), test=())
    digits = [row.replace("\ta", "\t0").replace("\tb", "\t1").replace("\tc", "\t2") for row in rows]
    (tmp_path / "mine.tsv").write_text("\n".join(["sentence\tlabel", *digits]) + "\n")
    assert evaluate.evaluate(folder, experiment(numbered), data_dir=str(tmp_path))["score"] == pytest.approx(5 / 6)
    unnamed = str(classified(tmp_path / "unnamed", "LABEL_0", "LABEL_1", "LABEL_2"))
    evaluate.evaluate(unnamed, experiment(numbered), data_dir=str(tmp_path))
    assert [line for line in said if "no names for its classes: they are taken to be A, b, c" in line]
    with pytest.raises(ValueError, match="knows the classes c, A, b, the task x, y"):
        evaluate.evaluate(folder, experiment(dataclasses.replace(task, labels=("x", "y"))))
    with pytest.raises(ValueError, match="for single_label_classification of 3 outputs, the task for regression of 1"):
        evaluate.evaluate(folder, experiment(dataclasses.replace(task, labels=())))
    with pytest.raises(ValueError, match="is a model for Classify, and the experiment's task is Squad"):
        evaluate.evaluate(
            folder, Experiment(task=Squad(train="", dev="d"), encoder=TINY, phases=(config.Phase(8, 4, 1),))
        )
    with pytest.raises(ValueError, match="which file is to be scored"):
        evaluate.evaluate(folder)
    with pytest.raises(ValueError, match="is a model for no task: an encoder without a head"):
        evaluate.evaluate(str(directory(tmp_path / "bare", "BertModel")), experiment(task))


def test_tags_are_matched_by_their_names(tmp_path: pathlib.Path) -> None:
    folder = directory(tmp_path / "model", "BertForTokenClassification")
    words = ["the", "cat", "sat", "on", "w1"]
    own = [word.tag for word in bert_jax.load(str(folder)).tag([words])[0].words]
    (tmp_path / "dev.txt").write_text("".join(f"{word} {tag}\n" for word, tag in zip(words, own, strict=True)))
    task = Tag(train="", dev=("dev.txt",), labels=("c", "b", "a"), label=2, document=False, scheme="as is")
    task = dataclasses.replace(task, metrics=("accuracy",))
    exp = Experiment(task=task, encoder=TINY, phases=(config.Phase(8, 4, 1),), mesh=config.Mesh(data=1))
    assert evaluate.evaluate(str(folder), exp, data_dir=str(tmp_path))["accuracy"] == 1
    other = dataclasses.replace(exp, task=dataclasses.replace(task, labels=("O", "a")))
    with pytest.raises(ValueError, match="knows the tags a, b, c, the task O, a"):
        evaluate.evaluate(str(folder), other, data_dir=str(tmp_path))


def test_a_head_that_is_not_there_does_not_start_anew(tmp_path: pathlib.Path) -> None:
    """As fine-tuning would have it: here all that is scored must be the model's own."""
    folder = classified(tmp_path / "model", "a", "b")
    found = pretrained.open(str(folder))
    lacking = dataclasses.replace(found, read=lambda: {k: v for k, v in found.read().items() if k != "classifier"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.pretrained, "open", lambda _: lacking)
        (tmp_path / "dev.tsv").write_text("sentence\tlabel\nthe cat\ta\n")
        task = Classify(train="", dev=("dev.tsv",), labels=("a", "b"))
        with pytest.raises(ValueError, match="classifier/dense/bias is missing there"):
            evaluate.evaluate(str(folder), experiment(task), data_dir=str(tmp_path))


def test_the_script(tmp_path: pathlib.Path) -> None:
    folder = classified(tmp_path / "model", "a", "b")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\ta\n" for text in TEXTS))
    line = [sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"), f"--model={folder}"]
    for flag, code, said in (
        ("--config.task.dev=dev.tsv", 0, '"accuracy"'),
        ("--config.task.dve=dev.tsv", 1, "no field 'dve': did you mean 'dev'"),
    ):
        done = subprocess.run(
            [*line, flag, f"--data_dir={tmp_path}"], capture_output=True, text=True, check=False, env=environment()
        )
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
    shown = bert_jax.load(str(folder)).classify(TEXTS)
    assert np.mean([one.label == "a" for one in shown]) == pytest.approx(
        evaluate.evaluate(
            str(folder), experiment(Classify(train="", dev=("dev.tsv",), labels=("a", "b"))), data_dir=str(tmp_path)
        )["accuracy"]
    )
