"""From form to form: bit for bit, whole or not at all."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

import bert_jax
from bert_jax import experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tasks.glue import BINARY, GLUE, glue
from bert_jax.training import train
from bert_jax.weights import checkpoint, convert, huggingface, pretrained, storage
from tests.conftest import REPOSITORY
from tests.weights.test_weights import HEADS, TINY, assert_equal, directory, random_params

pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.fixture(scope="module")
def run(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a run that is done, with a padded vocabulary."""
    workdir = tmp_path_factory.mktemp("run")
    short = override(tiny, {"encoder.vocab_multiple": 128, "phases.0.steps": 1, "phases.1.steps": 1})
    train.run(short, str(workdir), quiet=True)
    return workdir


def test_a_run_to_hugging_face_and_back(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert convert.convert(str(run), str(tmp_path / "hf")) == "huggingface"
    assert convert.convert(str(tmp_path / "hf"), str(tmp_path / "back")) == "workdir"
    unpadded = override(pretrained.open(str(run)).encoder, {"vocab_multiple": 1})
    wanted = pretrained.open(str(run)).params(unpadded)
    assert_equal(checkpoint.read_params(str(tmp_path / "back")), wanted)
    assert_equal(pretrained.open(str(tmp_path / "hf")).params(), wanted)
    assert experiment.read_config(str(tmp_path / "back")).encoder == unpadded
    modes = {path.stat().st_mode for path in (tmp_path / "hf").iterdir()}
    assert len(modes) == 1
    models = [bert_jax.load(str(folder)) for folder in (run, tmp_path / "hf", tmp_path / "back")]
    assert len({model.tokenizer.fingerprint for model in models}) == 1
    assert len({model.fill_mask("a [MASK]")[0].token for model in models}) == 1


def test_to_tf1_and_back(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorflow")
    assert convert.convert(str(run), str(tmp_path / "tf1"), "tf1") == "tf1"
    assert sorted(path.name for path in (tmp_path / "tf1").iterdir()) == [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    convert.convert(str(tmp_path / "tf1"), str(tmp_path / "hf"), "huggingface")
    convert.convert(str(run), str(tmp_path / "direct"))
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (
        tmp_path / "direct" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_becomes_a_workdir_and_comes_back(kind: str, tmp_path: pathlib.Path) -> None:
    first = directory(tmp_path / "first", kind)
    convert.convert(str(first), str(tmp_path / "run"), "workdir")
    convert.convert(str(tmp_path / "run"), str(tmp_path / "second"))
    for name in ("model.safetensors", "tokenizer.json", "vocab.txt", "config.json"):
        assert (first / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert bert_jax.load(str(tmp_path / "run")).config == bert_jax.load(str(first)).config


def test_the_model_card(run: pathlib.Path, tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """What the run was, what it was trained on, what it scored, and the commands."""
    convert.convert(str(run), str(tmp_path / "hf"))
    card = (tmp_path / "hf" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    assert f"- mlm_loss: {result['mlm_loss']}" in card
    assert f"- corpus: `{tiny.task.corpus}`" in card
    assert "- documents: 120" in card
    assert '"learning_rate": 0.001' in card
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    assert 'pipeline("fill-mask", model="DIRECTORY")' in card
    assert "python -m bert_jax --config=" in card
    assert "2 layers, hidden size 16, 2 heads and 320 embeddings" in card


@pytest.mark.parametrize(
    ("kind", "pipeline", "said"),
    [
        ("BertForTokenClassification", "token-classification", 'model="DIRECTORY", aggregation_strategy="first")'),
        ("BertForSequenceClassification", "text-classification", 'ask("a text")'),
        ("BertForQuestionAnswering", "question-answering", 'ask(question="Who wrote it?"'),
        ("BertForMultipleChoice", None, "BertForMultipleChoice.from_pretrained"),
    ],
)
def test_a_card_s_front_matter_and_usage(kind: str, pipeline: str | None, said: str, tmp_path: pathlib.Path) -> None:
    yaml = pytest.importorskip("yaml")
    card = convert.card(pretrained.open(str(directory(tmp_path, kind))), kind)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert (front.get("pipeline_tag"), front["license"], front["tags"]) == (pipeline, "unknown", ["bert", "bert_jax"])
    assert said in card


def test_glue_s_labels_have_names_in_exports_and_answers(tmp_path: pathlib.Path) -> None:
    """The files spell "0" and "1"; what is submitted stays so."""
    source = pretrained.open(str(directory(tmp_path / "source", "BertForSequenceClassification")))
    params = source.params()
    params["classifier"]["dense"] = random_params(TINY, ("classifier",), classes=2)["classifier"]["dense"]
    exp = dataclasses.replace(source.experiment, task=glue("sst2"))
    found = dataclasses.replace(source, task=exp.task, read=lambda: params)
    assert found.tokenizer is not None
    (tmp_path / "hf").mkdir()
    convert._write(found, found.tokenizer, tmp_path / "hf", "huggingface")
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["id2label"] == {"0": "negative", "1": "positive"}
    assert values["problem_type"] == "single_label_classification"
    model = bert_jax.load(str(tmp_path / "hf"))
    assert list(model.classify("the cat")[0].probabilities) == ["negative", "positive"]
    names = {name: task.names for name, task in GLUE.items() if task.labels}
    assert all(not name.isdigit() for labels in names.values() for name in labels)
    assert all(task.labels == BINARY for task in GLUE.values() if task.label_names), "as the files have them"
    tfds = glue("mrpc", tfds=True)
    assert (tfds.names, tfds.spelled) == (("not_equivalent", "equivalent"), BINARY)


def test_what_exists_is_left_alone(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists: name a new directory"):
        convert.convert(str(run), str(tmp_path / "there"))
    with pytest.raises(ValueError, match="no form 'pytorch'"):
        convert.convert(str(run), str(tmp_path / "new"), "pytorch")


@pytest.mark.parametrize("late", [False, True])
def test_nothing_is_left_half_written(
    late: bool, run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if late:  # the last thing that is written fails

        def full(*_: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(huggingface, "_write_tokenizer", full)
        source = run
    else:  # a tensor that fails when it is read, after the config was written
        source = directory(tmp_path / "source", "BertForMaskedLM")
        monkeypatch.setattr(storage._Safetensors, "read", lambda *_: 1 / 0)
    with pytest.raises((OSError, ZeroDivisionError)):
        convert.convert(str(source), str(tmp_path / "new" / "model"), "huggingface" if late else "workdir")
    assert not list((tmp_path / "new").iterdir())


def test_the_script(tmp_path: pathlib.Path) -> None:
    source = directory(tmp_path / "source", "BertForQuestionAnswering")
    line = [sys.executable, str(REPOSITORY / "scripts" / "convert.py"), str(source), str(tmp_path / "run")]
    for code, said in ((0, "run: workdir"), (1, "exists: name a new directory")):
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
    assert "span" in checkpoint.read_params(str(tmp_path / "run"))
