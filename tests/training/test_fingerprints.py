"""What a run's data are: known by content, wherever they lie; a run goes on with the same alone."""

import json
import lzma
import os
import pathlib
import shutil

import pytest

from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tasks.classify import Classify
from bert_jax.training import fingerprints, train
from bert_jax.weights import checkpoint

ROWS = "sentence\tlabel\n" + "ba be bi\t0\nbo bu ba\t1\n" * 8
OTHER = ROWS.replace("ba be", "be ba")  # as many bytes


@pytest.fixture
def data(tmp_path: pathlib.Path, corpus: str) -> pathlib.Path:
    """A folder with a corpus, two files of rows and a vocabulary."""
    folder = tmp_path / "data"
    shutil.copytree(corpus, folder / "corpus")
    shutil.copy(folder / "corpus" / "vocab.txt", folder / "vocab.txt")
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(ROWS)
    return folder


def tuned(**fields: object) -> Experiment:
    task = Classify(train="train.tsv", dev=("dev.tsv",), labels=("0", "1"))
    phase = config.Phase(length=16, batch_size=8, steps=2)
    return Experiment(task=task, phases=(phase,), mesh=config.Mesh(data=1), every=config.Every(evaluate=0), **fields)


def test_a_corpus_is_its_content(data: pathlib.Path, tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    (data / "link").symlink_to(data / "corpus")
    shutil.copytree("corpus", "elsewhere/copy")

    def found(name: str) -> str:
        return fingerprints.of(override(tiny, {"task.corpus": name}))["task.corpus"]

    before = found("corpus")
    assert {found(name) for name in ("./corpus", str(data / "corpus"), "link", "elsewhere/copy")} == {before}
    manifest = json.loads((data / "corpus" / "manifest.json").read_text())
    manifest["sources"][0]["sha256"] = "0" * 64
    (data / "corpus" / "manifest.json").write_text(json.dumps(manifest))
    assert found("corpus") != before
    assert fingerprints.of(override(tiny, {"task.corpus": "absent"})) == {}


def test_a_file_is_its_content_and_name(data: pathlib.Path) -> None:
    before = fingerprints.of(tuned(), str(data))
    assert set(before) == {"task.train", "task.dev.0"}
    assert before["task.train"].startswith("train.tsv:")
    assert before["task.train"].split(":")[1] == before["task.dev.0"].split(":")[1]
    (data / "train.tsv.xz").write_bytes(lzma.compress(ROWS.encode()))
    (data / "train.tsv").unlink()
    os.rename(data, data.with_name("moved"))
    assert fingerprints.of(tuned(), str(data.with_name("moved"))) == before
    (data.with_name("moved") / "dev.tsv").write_text(OTHER)
    after = fingerprints.of(tuned(), str(data.with_name("moved")))
    assert after["task.train"] == before["task.train"]
    assert after["task.dev.0"] != before["task.dev.0"]
    assert fingerprints.of(tuned(), "nowhere") == {}


def test_a_vocabulary_is_its_pieces(data: pathlib.Path) -> None:
    before = fingerprints.of(tuned(vocab=str(data / "vocab.txt")))["vocab"]
    assert fingerprints.of(tuned(vocab=str(data / "corpus")))["vocab"] == before
    with (data / "vocab.txt").open("a") as file:
        file.write("more\n")
    assert fingerprints.of(tuned(vocab=str(data / "vocab.txt")))["vocab"] != before


def test_a_tfds_set_is_its_name_and_version(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_tfds", lambda source: f"glue/mnli/2.0.0:{source.split(':')[-1]}")
    found = fingerprints.of(override(tuned(), {"task.train": "tfds:/here/mnli/2.0.0:train"}), str(data))
    assert found["task.train"] == "glue/mnli/2.0.0:train"


def test_weights_are_their_files_encoder_and_vocabulary(tmp_path: pathlib.Path, tiny: Experiment) -> None:
    def workdir(name: str, value: float, **changes: object) -> str:
        folder = tmp_path / name
        folder.mkdir()
        experiment.record(override(tiny, changes), str(folder))
        for step in (1, 2):
            checkpoint.write_params(str(folder), {"encoder": {"kernel": [value * step] * 8}}, step)
        return str(folder)

    def found(name: str, **fields: object) -> str | None:
        return fingerprints.of(tuned(init_from=name, **fields)).get("init_from")

    first = workdir("first", 1.0)
    shutil.copytree(first, tmp_path / "copy")
    assert found(first) == found(str(tmp_path / "copy")) == found(first, init_step=2) != found(first, init_step=1)
    assert found(first, init_step=3) is None
    assert found(first) != found(workdir("scaled", 2.0))
    plain = found(first, random_init=True)  # of which the weights do not count, but what they are made for does
    assert plain == found(str(tmp_path / "scaled"), random_init=True) != found(first)
    assert plain == found(workdir("unrolled", 1.0, **{"encoder.scan": False}), random_init=True)
    assert plain != found(workdir("other", 1.0, **{"encoder.gelu": "tanh"}), random_init=True)


@pytest.mark.usefixtures("few_devices")
def test_a_run_goes_on_with_the_same_data_alone(data: pathlib.Path, tiny: Experiment, tmp_path: pathlib.Path) -> None:
    exp = tuned(encoder=tiny.encoder, vocab=str(data / "vocab.txt"))
    where = {"workdir": str(tmp_path / "run"), "quiet": True}
    train.run(exp, **where, data_dir=str(data), stop_at=1)
    file = tmp_path / "run" / "config.json"
    recorded = json.loads(file.read_text())["data"]
    assert set(recorded) == {"task.train", "task.dev.0", "vocab"}
    assert experiment.read_config(where["workdir"]) == exp
    (data / "train.tsv").write_text(OTHER)
    with pytest.raises(ValueError, match=r"run of other data than lie there now(.|\n)*\n  task\.train: train\.tsv$"):
        train.run(exp, **where, data_dir=str(data))
    (data / "train.tsv").write_text(ROWS)
    os.rename(data, data.with_name("moved"))
    moved = override(exp, {"vocab": str(data.with_name("moved") / "vocab.txt")})
    assert train.run(moved, **where, data_dir=str(data.with_name("moved")))["data"] == recorded
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"] == recorded


def test_what_is_recorded_of_data_is_held_to(tmp_path: pathlib.Path) -> None:
    exp, folder = tuned(init_from="weights"), str(tmp_path)
    known = {"task.train": "a", "init_from": "b", "init_step": "b"}
    assert experiment.record(exp, folder) == {}  # as an earlier version did: not known, not checked
    assert experiment.record(exp, folder, known) == known
    assert experiment.record(exp, folder, {"task.train": "a"}) == known  # what is not there now was known
    with pytest.raises(ValueError, match=r"init_step names an earlier checkpoint(.|\n)*\n  init_from: weights\n"):
        experiment.record(exp, folder, {**known, "init_from": "c", "init_step": "c"})  # they were trained on since
    moved = override(exp, {"init_from": "elsewhere", "init_step": 7, "task.train": "other.tsv"})
    with pytest.raises(ValueError, match=r"of another experiment(.|\n)*task\.train: 'train\.tsv', and 'other\.tsv'$"):
        experiment.record(moved, folder, {**known, "task.train": "c"})
    assert experiment.record(moved, folder, known) == known
    assert experiment.read_config(folder) == moved
