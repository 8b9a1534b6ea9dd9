"""Runs and exports of earlier versions open in this one: tests/golden/write_workdirs.py made them."""

from __future__ import annotations

import json
import pathlib
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import bert_jax
from bert_jax import experiment
from bert_jax.weights import convert, pretrained
from tests.conftest import REPOSITORY

TEXT = "the cat sat on the mat."


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("earlier")
    with zipfile.ZipFile(REPOSITORY / "tests" / "golden" / "workdirs.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def answers(earlier: pathlib.Path) -> dict:
    return json.loads((earlier / "answers.json").read_text())


def test_an_earlier_pre_training_says_the_same(earlier: pathlib.Path, answers: dict) -> None:
    model = bert_jax.load(str(earlier / "pretrained"))
    np.testing.assert_allclose(model.encode([TEXT]).last[0, 0], answers["embedding"], atol=1e-6)
    assert [model.fill_mask("the cat [MASK] on the mat.")[0].token] == answers["pretrained"]


@pytest.mark.parametrize("name", ["classifier", "exported"])
def test_an_earlier_classifier_says_the_same(name: str, earlier: pathlib.Path, answers: dict) -> None:
    (found,) = bert_jax.load(str(earlier / name)).classify([TEXT])
    assert found.probabilities == pytest.approx(answers[name], abs=1e-6)


def test_an_earlier_tagger_says_the_same(earlier: pathlib.Path, answers: dict) -> None:
    (found,) = bert_jax.load(str(earlier / "tagger")).tag([TEXT])
    assert [word.tag for word in found.words] == answers["tagger"]


def test_an_earlier_run_is_exported_as_it_was(earlier: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Tensor by tensor, bit for bit."""
    convert.convert(str(earlier / "classifier"), str(tmp_path / "now"))
    then = safetensors.numpy.load_file(earlier / "exported" / "model.safetensors")
    now = safetensors.numpy.load_file(tmp_path / "now" / "model.safetensors")
    assert sorted(now) == sorted(then)
    for name, values in then.items():
        np.testing.assert_array_equal(now[name], values, err_msg=name)


@pytest.mark.parametrize("name", ["pretrained", "classifier", "tagger"])
def test_what_an_earlier_run_recorded_is_read(name: str, earlier: pathlib.Path) -> None:
    result = experiment.read_result(str(earlier / name))
    assert result is not None
    assert result["step"] == 4
    assert pretrained.open(str(earlier / name)).length == 16
    assert experiment.read_config(str(earlier / name)).phases[0].steps == 4
