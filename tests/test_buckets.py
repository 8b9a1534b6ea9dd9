"""A project that lies in a bucket: pre-training, a stop, fine-tuning from it, use, and exchange of weights."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import bert_jax
from bert_jax import config, files
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tasks.classify import Classify
from bert_jax.training import metrics, train
from bert_jax.weights import checkpoint, convert
from tests import fake_bucket
from tests.conftest import REPOSITORY, environment
from tests.training.test_train import assert_same, params

pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.fixture(scope="module")
def pretrained(
    served: fake_bucket.Bucket, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, pathlib.Path]:
    """The tiny run in a bucket, stopped and resumed, and on a disk, never stopped."""
    workdir = f"gs://{fake_bucket.NAME}/pretrained"
    exp = override(tiny, {"every.log": 1})
    assert train.run(exp, workdir, stop_at=4, quiet=True) == {"step": 4, "done": False}
    train.run(exp, workdir, quiet=True)
    alone = tmp_path_factory.mktemp("alone")
    train.run(exp, str(alone), quiet=True)
    return workdir, alone


def test_a_run_in_a_bucket_is_that_on_a_disk(
    pretrained: tuple[str, pathlib.Path], tmp_path: pathlib.Path, served: fake_bucket.Bucket
) -> None:
    workdir, alone = pretrained
    assert not (pathlib.Path.cwd() / "gs:").exists(), "a bucket's name became that of a folder"
    for path, leaf in params(workdir).items():
        np.testing.assert_array_equal(leaf, params(alone)[path])
    copy = tmp_path / "copy"
    for name in ("metrics.jsonl", "result.json"):
        files.write(copy / name, (files.path(workdir) / name).read_bytes())
    checkpoint.write_params(str(copy), checkpoint.read_params(workdir), 10)
    assert_same(alone, copy)
    names = {one.name for one in files.path(workdir).iterdir()}
    assert names == {"config.json", "tokenizer", "metrics.jsonl", "checkpoints", "tensorboard", "result.json"}
    events = [one.name for one in (files.path(workdir) / "tensorboard").iterdir()]
    assert len(events) == 2  # of two calls
    assert all(name.startswith("events") for name in events)


def test_the_log_is_not_written_anew_with_each_line(tiny: Experiment, bucket: str, served: fake_bucket.Bucket) -> None:
    """It is joined at checkpoints: of forty lines the file is written a few times, not forty."""
    changes = {"every.log": 1, "every.checkpoint": 10, "phases.0.steps": 20, "phases.1.steps": 20}
    served.writes.clear()
    train.run(override(tiny, changes), bucket, quiet=True)
    assert len(metrics.read(bucket, "train")) == 40
    log = next(name for name in served.writes if name.endswith("metrics.jsonl"))
    assert served.writes[log] <= 10


def test_fine_tuning_loading_and_predicting(
    pretrained: tuple[str, pathlib.Path], bucket: str, tmp_path: pathlib.Path
) -> None:
    workdir, _ = pretrained
    rows = [("label\ttext"), *(f"{n % 2}\t{'bal' if n % 2 else 'cem'} dob" for n in range(16))]
    for name in ("train.tsv", "dev.tsv"):
        files.write(f"{bucket}/data/{name}", "\n".join(rows) + "\n")
    exp = Experiment(
        name="tuned",
        task=Classify(train="train.tsv", dev=("dev.tsv",), text=("text",), label="label", labels=("0", "1")),
        phases=(config.Phase(length=16, batch_size=8, steps=2),),
        optimizer=config.Optimizer(learning_rate=1e-3, warmup=1),
        mesh=config.Mesh(data=1),
        every=config.Every(log=1, evaluate=0, checkpoint=0),
        init_from=workdir,
        predict=True,
    )
    result = train.run(exp, f"{bucket}/tuned", data_dir=f"{bucket}/data", cache_dir=str(tmp_path), quiet=True)
    assert result["done"]
    assert (files.path(bucket) / "tuned" / "predictions" / result["predictions"][0]).exists()
    model = bert_jax.load(f"{bucket}/tuned")
    (wanted,) = model.classify(["bal dob"])
    line = [sys.executable, str(REPOSITORY / "scripts" / "predict.py"), f"--model={bucket}/tuned"]
    ended = subprocess.run(line, input="bal dob\n", capture_output=True, text=True, env=environment(), check=True)
    assert json.loads(ended.stdout)["label"] == wanted.label
    # Weights go there and come back in the forms of others.
    assert convert.convert(f"{bucket}/tuned", f"{bucket}/published") == "huggingface"
    (same,) = bert_jax.load(f"{bucket}/published").classify(["bal dob"])
    np.testing.assert_allclose(
        list(same.probabilities.values()), list(wanted.probabilities.values()), rtol=1e-5, atol=1e-6
    )
    assert convert.convert(f"{bucket}/published", f"{bucket}/back") == "workdir"
    again = dataclasses.replace(exp, init_from=f"{bucket}/back", predict=False)
    assert train.run(again, f"{bucket}/again", data_dir=f"{bucket}/data", cache_dir=str(tmp_path), quiet=True)["done"]
    with pytest.raises(ValueError, match="exists"):
        convert.convert(f"{bucket}/tuned", f"{bucket}/published")
