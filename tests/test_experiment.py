"""Experiments in files and workdirs: classes of one's own, what may change in a run, and damaged config.json."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment, UnknownTask
from bert_jax.tasks.classify import Classify
from bert_jax.weights import checkpoint, pretrained
from tests.conftest import REPOSITORY, environment
from tests.weights.test_weights import random_params

OWN = """
from __future__ import annotations
import dataclasses, json
from bert_jax import config, experiment
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

@dataclasses.dataclass(frozen=True)
class Extra:
    names: tuple[str, ...] = ("a", "b")
    masking: config.Masking | None = config.Masking(rate=0.2)

@dataclasses.dataclass(frozen=True)
class OwnTask(Pretrain):
    extra: Extra = Extra()
    share: float = 0.5

BASE = config.from_dict(json.loads({base!r}), experiment.kinds())
EXPERIMENT = dataclasses.replace(BASE, task=OwnTask(**vars(BASE.task)))
"""


@pytest.fixture(scope="module")
def own(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """An experiment file with classes of its own, and a workdir of it, with random weights."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN.replace("{base!r}", repr(json.dumps(config.to_dict(tiny)))))
    exp = override(experiment.load(str(folder / "own.py")), {"task.extra.masking.rate": "0.3", "task.share": "0.25"})
    assert exp.encoder is not None
    checkpoint.write_params(str(folder / "run"), random_params(exp.encoder, ("pooler", "masked_lm", "next_sentence")))
    experiment.record(exp, str(folder / "run"))
    vocabulary = exp.task.tokenizer()
    assert vocabulary is not None
    vocabulary.save(str(folder / "run" / "tokenizer"))
    return folder / "own.py", folder / "run"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else []), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )


def test_a_run_of_a_class_of_one_s_own_goes_on(own: tuple[pathlib.Path, pathlib.Path]) -> None:
    """Where the file is run anew, its classes are other objects of the same names."""
    file, workdir = own
    exp = override(experiment.load(str(file)), {"task.extra.masking.rate": 0.3, "task.share": 0.25})
    experiment.record(override(exp, {"every.log": 7}), str(workdir))
    assert experiment.read_config(str(workdir)).every.log == 7
    with pytest.raises(ValueError, match=r"task\.extra\.masking\.rate: 0\.3, and 0\.1"):
        experiment.record(override(exp, {"task.extra.masking.rate": 0.1}), str(workdir))
    with pytest.raises(ValueError, match="task: share must be float, not 'x'"):
        override(exp, {"task.share": "x"})
    assert json.loads((workdir / "config.json").read_text())["classes"] == {"OwnTask": str(file), "Extra": str(file)}


READ = """
import sys, tempfile
import bert_jax
from bert_jax import experiment
from bert_jax.training import planning
from bert_jax.weights import checkpoint, convert, pretrained
file, workdir, folder = sys.argv[1:]
model = bert_jax.load(workdir)
assert len(model.fill_mask("bab [MASK] kel.")) == 5 and model.encode("bab").last.shape[-1] == 16
assert model.experiment.task.share == 0.25 and model.experiment.task.extra["names"] == ["a", "b"]
assert convert.convert(workdir, folder + "/hf") == "huggingface"
assert "OwnTask" in open(folder + "/hf/README.md").read()
start = experiment.Experiment(init_from=workdir, phases=model.experiment.phases)
assert planning.resolve(start).encoder == model.config
assert set(pretrained.open(workdir).params()) == set(model.params)
try:
    model.experiment.task.module(model.config)
except ValueError as error:
    assert f"OwnTask, which is not known here; {file} defines it: name that file with --config=" in str(error), error
else:
    raise AssertionError
experiment.load(file)
assert type(bert_jax.load(workdir).experiment.task).__name__ == "OwnTask"
"""


def test_another_process_reads_the_weights_of_a_run_whose_class_it_lacks(
    own: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    done = python(READ, str(own[0]), str(own[1]), str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_class_of_nobody_knows_where_is_named_with_the_nearest() -> None:
    said = str(UnknownTask({"is": "Classfy"}, "").lacking())
    assert "class Classfy, which is not known here; import it first (did you mean 'Classify'?" in said


def test_no_code_of_a_workdir_is_run(tmp_path: pathlib.Path, tiny: Experiment) -> None:
    """Its config.json may name a file, or a module: neither is run."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    for origin in (str(tmp_path / "evil.py"), "evil", "os"):
        values = {**config.to_dict(tiny), "task": {"is": "Evil"}, "classes": {"Evil": origin}}
        (tmp_path / "config.json").write_text(json.dumps(values))
        sys.path.insert(0, str(tmp_path))
        task = experiment.read_config(str(tmp_path)).task
        sys.path.remove(str(tmp_path))
        assert isinstance(task, UnknownTask)
    assert not (tmp_path / "executed").exists()


def test_a_class_of_one_s_own_has_a_name_of_its_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "e.py").write_text(OWN.replace("OwnTask", "Tag").replace("{base!r}", repr(json.dumps(BASE_JSON))))
    exp = experiment.load(str(tmp_path / "e.py"))
    with pytest.raises(ValueError, match="two config classes are called Tag"):
        experiment.record(exp, str(tmp_path))


def test_predict_runs_the_file_that_it_is_given(own: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    (tmp_path / "lines.txt").write_text("bab [MASK] kel.\n")
    (tmp_path / "other.py").write_text("import does_not_exist")
    ask = ["scripts/predict.py", f"--model={own[1]}", f"--input={tmp_path / 'lines.txt'}", "--top=1"]
    done = python("", *ask, f"--config={own[0]}")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["fill"]) == 1


def test_only_a_task_is_of_a_class_of_one_s_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "e.py").write_text(
        "from bert_jax import config\nfrom bert_jax.experiment import Experiment\n"
        "class Own(config.Optimizer): pass\nEXPERIMENT = Experiment(optimizer=Own())"
    )
    with pytest.raises(ValueError, match=r"optimizer is of class \['Own'\]: only a task may be"):
        experiment.load(str(tmp_path / "e.py"))


def test_a_type_that_a_file_does_not_know_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / "e.py").write_text(
        OWN.replace("config.Masking | None", "Nothing").replace("{base!r}", repr(json.dumps(BASE_JSON)))
    )
    with pytest.raises(ValueError, match="Extra: name 'Nothing' is not defined; import what the fields' types"):
        experiment.load(str(tmp_path / "e.py"))


BASE_JSON = config.to_dict(Experiment(encoder=config.Encoder()))
RECORDED = config.to_dict(
    Experiment(
        encoder=config.Encoder(layers=2, hidden=16, heads=2),
        task=Classify(train="a.tsv", dev=("b.tsv",), labels=("0", "1"), bilstm=config.BiLSTM()),
    )
)
MISSING = object()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder", "x", "encoder must be Encoder, not 'x'"),
        ("encoder", 3, "encoder must be Encoder, not 3"),
        ("encoder", [], "encoder must be Encoder, not ()"),
        ("encoder", {}, "encoder: no config class None"),
        ("encoder", {"is": "Mesh"}, "encoder must be Encoder, not Mesh("),
        ("encoder.is", "Encodr", "encoder: no config class 'Encodr': did you mean 'Encoder'?"),
        ("encoder.is", ["Encoder"], "encoder: no config class ['Encoder']"),
        ("encoder.is", {"a": 1}, "encoder: no config class {'a': 1}"),
        ("encoder.layers", "2", "encoder: layers must be int, not '2': write 2, without quotation marks"),
        ("encoder.layers", 2.0, "encoder: layers must be int, not 2.0: write 2"),
        ("encoder.layers", None, "encoder: layers must be int, not None"),
        ("encoder.layers", True, "encoder: layers must be int, not True"),
        ("encoder.layers", [2], "encoder: layers must be int, not (2,)"),
        ("encoder.layers", 0, "encoder: layers must be above 0"),
        ("encoder.layers", -2, "encoder: layers must be above 0"),
        ("encoder.layers", 10**9, "bytes of float32"),
        ("encoder.layers", 10**30, "encoder: layers must fit into 32 bits"),
        ("encoder.layer", 2, "encoder: Encoder has no field 'layer': did you mean 'layers'?"),
        ("encoder.dropout", "0.1", "encoder: dropout must be float, not '0.1': write 0.1"),
        ("encoder.dropout", float("nan"), "encoder: dropout must be a finite number, not nan"),
        ("encoder.dropout", False, "encoder: dropout must be float, not False"),
        ("encoder.dropout", {"is": "Mesh"}, "encoder: dropout must be float, not Mesh("),
        ("encoder.gelu", "erff", "encoder: gelu must be one of 'erf', 'tanh', not 'erff' (did you mean 'erf'?"),
        ("encoder.gelu", 1, "encoder: gelu must be one of 'erf', 'tanh', not 1"),
        ("encoder.scan", 1, "encoder: scan must be bool, not 1"),
        ("encoder.scan", "yes", "encoder: scan must be bool, not 'yes'"),
        ("optimizer", None, "optimizer must be Optimizer, not None"),
        ("optimizer.learning_rate", float("inf"), "optimizer: learning_rate must be a finite number, not inf"),
        ("optimizer.learning_rate", "1e-4", "optimizer: learning_rate must be float, not '1e-4': write 0.0001"),
        ("optimizer.learning_rate", [1e-4], "optimizer: learning_rate must be float, not (0.0001,)"),
        ("optimizer.warmup", "x", "optimizer: warmup must be float | int, not 'x'"),
        ("phases", None, "phases must be a tuple"),
        ("phases", 3, "phases must be a tuple"),
        ("phases", {}, "phases: no config class None"),
        ("phases", [3], "phases.0 must be Phase, not 3"),
        ("phases", [[]], "phases.0 must be Phase, not ()"),
        ("phases", [], "an experiment needs at least one phase"),
        ("phases.0.steps", "10", "phases: steps must be int, not '10': write 10"),
        ("phases.0.batch_size", 10**9, "phases: batch_size=1000000000 of length=128 are 128,000,000,000 tokens"),
        ("task", None, "task must be Task, not None"),
        ("task", "Classify", "task must be Task, not 'Classify'"),
        ("task", {"is": "Mesh"}, "task must be Task, not Mesh("),
        ("task.train", MISSING, "task: Classify lacks a value of train"),
        ("task.train", 5, "task: train must be str, not 5"),
        ("task.dev", "b.tsv", "task: dev must be a tuple, with a comma after a single item, not 'b.tsv'"),
        ("task.dev", [1], "task: dev.0 must be str, not 1"),
        ("task.labels", {"0": 1}, "task: labels: no config class None"),
        ("task.bilstm", [], "task: bilstm must be BiLSTM, not ()"),
        ("task.bilstm.width", "768", "task: bilstm: width must be int, not '768'"),
        ("mesh.data", 0.5, "mesh: data must be int, not 0.5"),
        ("every.keep", None, "every: keep must be int, not None"),
        ("seed", "0", "seed must be int, not '0': write 0"),
        ("seed", -1, "seed must lie in"),
        ("init_step", "last", "init_step must be int, not 'last'"),
        ("name", None, "name must be str, not None"),
        ("predict", "false", "predict must be bool, not 'false': write False"),
        ("init_positions", "sam", "init_positions must be one of 'same', 'cut'"),
        ("classes", [], "classes must be an object"),
        ("nonsense", 1, "Experiment has no field 'nonsense'"),
    ],
)
def test_a_config_json_with_what_does_not_belong(field: str, value: Any, message: str, tmp_path: pathlib.Path) -> None:
    """Said with file, field and cure."""
    values = json.loads(json.dumps(RECORDED))
    *path, last = field.split(".")
    node = values
    for part in path:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    if value is MISSING:
        del node[last]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json") as raised:
        experiment.read_config(str(tmp_path))
    assert f"{tmp_path / 'config.json'}: " in str(raised.value)
    assert message in str(raised.value)
    assert "delete that file and run the training's command again" in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000, b'{"is": 1e999, }', b"9" * 5000]
)
def test_a_config_json_that_is_none(content: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is damaged.*; delete that file and run the training's command"):
        experiment.read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no JSON"),
        ('{"step": 5, "sc', "no JSON"),
        ("[1]", "a JSON object is expected"),
        ('{"score": "0.9"}', "score must be a number, not '0.9'"),
        ('{"best_f1_threshold": [1]}', "best_f1_threshold must be a number"),
    ],
)
def test_a_damaged_result_json(own: tuple[pathlib.Path, pathlib.Path], content: str, message: str) -> None:
    assert pretrained.open(str(own[1])).scores == {}
    (own[1] / "result.json").write_text(content)
    try:
        with pytest.raises(ValueError, match=r"result\.json is damaged.*; delete that file and run the") as raised:
            pretrained.open(str(own[1])).scores  # noqa: B018
        assert message in str(raised.value)
    finally:
        (own[1] / "result.json").unlink()


def test_a_config_json_of_an_earlier_version(tmp_path: pathlib.Path) -> None:
    """Without what became a field since then, and with integers where floats may stand."""
    values = json.loads(json.dumps(RECORDED))
    del values["encoder"]["classify_from"], values["random_init"]
    values["encoder"]["dropout"] = 0
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = experiment.read_config(str(tmp_path))
    assert found.encoder == config.Encoder(layers=2, hidden=16, heads=2, dropout=0.0)


def test_what_may_change_is_matched_by_whole_names() -> None:
    assert all(map(experiment.resumable, ("every", "every.log", "mesh.data", "predict", "encoder.scan")))
    assert not any(
        map(experiment.resumable, ("everything", "every_other.log", "predictor", "encoder.scanned", "encoder"))
    )
