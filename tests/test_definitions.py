"""Files that define experiments, studies and grids: found from everywhere, and their mistakes said with the line."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from bert_jax import definitions, experiment
from bert_jax.studies import study, sweep
from tests.conftest import REPOSITORY, environment

HEAD = """
from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

"""
WRONG = [
    ("EXPERIMENT = Experiment(optimizer=config.Optimizer(schedule='cosine'))", "did you mean 'linear'"),
    ("EXPERIMENT = Experiment(encoder=config.Encoder(gelu='tahn'))", "did you mean 'tanh'"),
    ("EXPERIMENT = Experiment(optimizer=config.Optimizer(bias_correction='false'))", "write False, without quotation"),
    ("EXPERIMENT = Experiment(encoder=config.Encoder(layers='2'))", "layers must be int, not '2': write 2"),
    ("EXPERIMENT = Experiment(encoder=config.Encoder(layer=2))", "Encoder has no field 'layer': did you mean 'layers'"),
    ("EXPERIMENT = Experiment(optimiser=config.Optimizer())", "Experiment has no field 'optimiser': did you mean 'opt"),
    ("EXPERIMENT = Experiment(task=Pretrain(objective='ltr'))", "objective must be one of 'masked', 'left_to_right'"),
    ("EXPERIMENT = Experiment(task=Pretrain(masking=config.Masking(rate='0.4')))", "rate must be float, not '0.4'"),
    ("EXPERIMENT = Experiment(phases=config.Phase(steps=1))", "phases must be a tuple, with a comma"),
    ("EXPERIMENT = Experiment(phases=(config.Phase(step=1),))", "Phase has no field 'step': did you mean 'steps'"),
    ("EXPERIMENT = Experiment(mesh=config.Mesh(data=2.0))", "data must be int, not 2.0: write 2"),
    ("EXPERIMENT = Experiment(every=config.Every(log=0))", "log must be above 0"),
    ("EXPERIMENT = Experiment(seed='0')", "seed must be int, not '0': write 0"),
    ("EXPERIMENT = Experiment(predict='yes')", "predict must be bool, not 'yes'"),
    ("EXPERIMENT = Experiment(encoder=config.Encoder(hidden=100, heads=3))", "hidden must be a multiple of heads"),
    ("EXPERIMENT = Experiment(encoder=Encoder())", "NameError: name 'Encoder' is not defined"),
    ("EXPERIMENT = Experiment(encoder=config.Encoder(layers=2)", "this is not Python: '(' was never closed"),
    ("import experimentz", "No module named 'experimentz'"),
    ("from experiments.sst import EXPERIMENT", "No module named 'experiments.sst'; there is: ax, "),
    ("from experiments.bert_base import BASE", "cannot import name 'BASE'"),
    ("EXPERIMENT = config.override(Experiment(), {'optimizer.learning_rat': 1})", "did you mean 'learning_rate'"),
]


STUDIES = [
    (
        "STUDY = Study('s', 't', (Row('a', {'x': 1}, tuning={}),), (LM,))",
        "Row has no field 'tuning': did you mean 'fine_",
    ),
    ("STUDY = Study('s', 't', (Row('a', 'task.masking.rate'),), (LM,))", "row 'a': pretraining must be "),
    ("STUDY = Study('s', 't', (Row('a', at='half'),), (LM,))", "row 'a': at must be "),
    ("STUDY = Study('s', 't', (Row('a', paper={'LN': 3}),), (LM,))", "the paper's figure of 'LN': did you mean 'LM'"),
    ("STUDY = Study('s', 't', (Row('a'),), (Column('b', scale='1'),))", "column 'b': scale must be "),
    ("STUDY = Study('s', 't', (Row('a'),), LM)", "columns must be a tuple"),
    ("STUDY = Study('s', 't', (Row('a'),), (LM,), seeds=0)", "seeds must be above 0"),
    ("STUDY = Study('s', 't', (Row('a'),), (LM,), seeds='3')", "seeds must be int, not '3': write 3"),
]


STUDY = "from bert_jax.studies.study import Column, Row, Study\n\nLM = Column('LM', figure='mlm_loss')\n\n\n"
# In a process of its own: the suite checks annotations before a dataclass can.
LOAD = """
import sys
from bert_jax import experiment
from bert_jax.studies import study
for file in sys.argv[1:]:
    try:
        (study if "study" in file else experiment).load(file)
    except ValueError as error:
        print(str(error).replace("\\n", " "))
    else:
        print("taken")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each file of `WRONG` and `STUDIES`, by its line."""
    folder, files = tmp_path_factory.mktemp("wrong"), []
    for kind, head, lines in (("experiment", HEAD, WRONG), ("study", STUDY, STUDIES)):
        for number, (line, _) in enumerate(lines):
            files.append(f"{kind}_{number}.py")
            (folder / files[-1]).write_text(head + line)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *files], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    every = zip([*WRONG, *STUDIES], files, done.stdout.splitlines(), strict=True)
    return {line: answer.removeprefix(file) for (line, _), file, answer in every}


@pytest.mark.parametrize(("line", "expected"), [*WRONG, *STUDIES])
def test_a_mistake_is_said_with_its_line(line: str, expected: str, said: dict[str, str]) -> None:
    assert said[line].startswith(", line 6: ")
    assert expected in said[line]


@pytest.mark.parametrize(
    ("recipes", "said"),
    [
        ("{'squda': {}}", "FINE_TUNING has 'squda': did you mean 'squad'"),
        ("{'squad': 3}", "FINE_TUNING must be changes by recipe"),
        ("[]", "FINE_TUNING must be changes by recipe"),
    ],
)
def test_what_a_base_asks_of_no_recipe_is_said(recipes: str, said: str, tmp_path: pathlib.Path) -> None:
    """A misspelt recipe would be passed over."""
    line = "EXPERIMENT = Experiment(encoder=config.Encoder(layers=1), phases=(config.Phase(steps=1),))"
    (tmp_path / "mine.py").write_text(f"{HEAD}{line}\nFINE_TUNING = {recipes}")
    with pytest.raises(ValueError, match=said):
        study.load_base(str(tmp_path / "mine.py"), {}, {})


def test_a_mistake_in_what_a_file_imports_is_said_where_it_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "parent.py").write_text(HEAD + "EXPERIMENT = Experiment(seed=-1)\n")
    (tmp_path / "mine.py").write_text("from parent import EXPERIMENT\n")
    with pytest.raises(ValueError, match=r"parent\.py, line 6: seed must lie in"):
        experiment.load(str(tmp_path / "mine.py"))


def test_the_whole_traceback_is_kept_for_who_asks(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(ValueError, match="line 1: ZeroDivisionError: division by zero") as caught:
        definitions.defined(str(tmp_path / "mine.py"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_experiments_are_imported_from_every_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ours, from the file's own folder by both names, and where that folder is called experiments, too."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "own_parent.py").write_text("from experiments.sst2 import EXPERIMENT as SST2\n")
    (folder / "own.py").write_text(
        "import dataclasses\nfrom own_parent import SST2\nfrom experiments.own_parent import SST2 as SAME\n"
        "from experiments.mrpc import EXPERIMENT as MRPC\n"
        "EXPERIMENT = dataclasses.replace(SST2, name='own', phases=SAME.phases)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert experiment.load("experiments/own.py").name == "own"
    assert experiment.load("experiments/own.py").task == experiment.load("sst2").task


def test_ours_are_had_by_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = REPOSITORY / "experiments" / "sst2.py"
    for name in ("sst2", "sst2.py", "experiments/sst2.py", "experiments/sst2"):
        assert definitions.find(name) == ours
    assert sweep.load_grid("experiments/grids/paper.py") == sweep.load_grid("grids/paper")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder is a folder: name a Python file in it"):
        definitions.find("folder")
    (tmp_path / "sst2.py").write_text("")
    assert definitions.find("sst2.py") == tmp_path / "sst2.py"
    for absent in ("sst", "experiments/sst.py", "elsewhere/sst2.py", str(tmp_path / "sst.py")):
        with pytest.raises(ValueError, match=r"there is no file .*did you mean 'sst2'"):
            definitions.find(absent)


def test_a_study_of_one_s_own_names_our_experiments(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnli.py").write_text("from experiments.mnli import EXPERIMENT\n")
    (tmp_path / "mine.py").write_text(
        "from bert_jax.studies.study import Row, Study\nfrom experiments.table5 import MNLI, QNLI\n"
        "STUDY = Study('mine', 'Mine', (Row('a'), Row('b', {'task.masking.rate': 0.4})), (MNLI, QNLI))\n"
    )
    found = study.load("mine.py")
    assert [column.experiment for column in found.columns] == ["mnli.py", "experiments/qnli.py"]
    assert found.base == "experiments/bert_base.py"
    assert study.load("table5").base == "experiments/bert_base.py"
