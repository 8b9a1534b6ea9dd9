"""Experiments in files and workdirs: classes of one's own, what may change in a run, and config.json when it is damaged."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import bert_jax
from bert_jax import config, convert, experiment, planning, pretrained, train
from bert_jax.config import override
from bert_jax.experiment import Experiment, UnknownTask
from tests.conftest import REPOSITORY, environment

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
def own(few_devices: None, tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """An experiment file with classes of its own, and the workdir of its run after a step."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN.replace("{base!r}", repr(json.dumps(config.to_dict(tiny)))))
    exp = override(experiment.load(str(folder / "own.py")), {"task.extra.masking.rate": "0.3", "task.share": "0.25"})
    train.run(exp, str(folder / "run"), stop_at=1, quiet=True)
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
from bert_jax import convert, experiment, planning, pretrained, checkpoint
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
    assert f"OwnTask, which is not known here; {file} defines it: name that file with --config=FILE" in str(error), error
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


BASE_JSON = config.to_dict(Experiment(encoder=config.Encoder()))


def test_what_may_change_is_matched_by_whole_names() -> None:
    assert all(map(experiment.resumable, ("every", "every.log", "mesh.data", "predict", "encoder.scan")))
    assert not any(map(experiment.resumable, ("everything", "every_other.log", "predictor", "encoder.scanned", "encoder")))
