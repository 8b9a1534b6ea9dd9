"""Running a study: what is missing runs once, cuts leave no trace, others are waited for, failures stay in a cell."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import rich.console

from bert_jax import claims, config
from bert_jax.config import override
from bert_jax.experiment import Experiment, record
from bert_jax.studies import reproduce, study
from bert_jax.studies.study import Base, Study
from bert_jax.tasks.classify import Classify
from bert_jax.training import train
from tests.conftest import REPOSITORY, environment

pytestmark = pytest.mark.usefixtures("few_devices")


def write(file: pathlib.Path, exp: Experiment, more: str = "") -> str:
    file.write_text(
        "import json\nfrom bert_jax import config, experiment\nfrom bert_jax.studies.study import Column, Row, Study\n"
        f"EXPERIMENT = config.from_dict(json.loads({json.dumps(config.to_dict(exp))!r}), experiment.kinds())\n{more}"
    )
    return str(file)


@pytest.fixture
def folder(tmp_path: pathlib.Path, tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A study with its base, its column and its data: two rows, a fine-tuning and a perplexity, two seeds."""
    phases = (config.Phase(length=16, batch_size=8, steps=2),)
    write(tmp_path / "base.py", dataclasses.replace(tiny, phases=phases, every=config.Every(log=1, evaluate=0)))
    task = Classify(train="rows.tsv", dev=("rows.tsv",), labels=("0", "1"))
    tuned = Experiment(name="tuned", task=task, phases=phases, mesh=config.Mesh(data=1))
    write(tmp_path / "column.py", tuned)
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "data" / "below" / "rows.tsv").write_text("sentence\tlabel\n" + "ba be bi\t0\nbo bu ba\t1\n" * 8)
    (tmp_path / "study.py").write_text(
        "from bert_jax.studies.study import Column, Row, Study\n"
        "STUDY = Study('small', 'A small study', (Row('plain'), Row('no nsp', {'task.next_sentence': False})),\n"
        "    (Column('rows', 'column.py', folder='below'), Column('perplexity', figure='mlm_perplexity', scale=1)),\n"
        "    base='base.py', seeds=2)\n"
    )
    monkeypatch.setattr("jax.clear_caches", lambda: None)  # here all runs have the same few programs
    return tmp_path


def opened(folder: pathlib.Path, seeds: int = 0) -> tuple[Study, Base]:
    plan = study.select(study.load(str(folder / "study.py")), seeds=seeds)
    return plan, study.load_base(plan.base, {}, {})


def run(folder: pathlib.Path, name: str = "work", seeds: int = 0) -> list:
    where = {"data_dir": str(folder / "data"), "quiet": True}
    return reproduce.reproduce(*opened(folder, seeds), str(folder / name), **where)


def values(folder: pathlib.Path, name: str = "work") -> list:
    """The table's figures, without what depends on where and when it was made."""
    cells = json.loads((folder / name / "small" / "table.json").read_text())["cells"]
    return [{key: cell[key] for key in ("row", "column", "values", "against_first_row", "n")} for cell in cells]


def test_a_study_from_text_to_table(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each run and in the midst of some, it ends in the table of one that never stopped; and what is done
    is not done again."""
    found = run(folder, seeds=1)
    names = [(one.row.name, one.column.name) for one in found]
    assert names == [(row, column) for row in ("plain", "no nsp") for column in ("rows", "perplexity")]
    assert [one.n for one in found] == [1] * 4
    assert not list(folder.glob("work/**/*.claim"))

    whole, calls = train.run_together, []

    def cut(exps: list[Experiment], workdirs: list[str], **how: object) -> list[dict]:
        calls.append(workdirs)
        if len(calls) in (1, 3):  # a pre-training and a fine-tuning
            whole(exps, workdirs, stop_at=1, **how)
            raise train.Stopped(15, 1)
        return whole(exps, workdirs, **how)

    monkeypatch.setattr(train, "run_together", cut)
    for _ in range(20):
        try:
            run(folder, "cut", seeds=1)
            break
        except train.Stopped:
            continue
    assert len(calls) == 6
    assert values(folder, "cut") == values(folder)
    run(folder, "cut", seeds=1)
    assert len(calls) == 6

    estimates, basis = reproduce.estimates(study.plan(*opened(folder, 1), str(folder / "work"), str(folder / "data")))
    assert all(one.done for one in estimates)
    assert "runs that are done" in basis or "no run is done yet" in basis
    before, _ = reproduce.estimates(
        study.plan(*opened(folder, 1), str(folder / "none"), str(folder / "data")), str(folder / "data")
    )
    for one, other in zip(before, estimates, strict=True):
        assert (one.steps, one.tokens) == (other.steps, other.tokens)
        assert one.flops == pytest.approx(other.flops)
    console = rich.console.Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    reproduce.show(before, basis, console)
    assert "4 runs, 4 left" in console.export_text()


def test_a_run_that_another_machine_works_on_is_waited_for(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "WAIT", 0.01)
    monkeypatch.setattr(train, "run_together", one_by_one(_pretend))
    tables: list[object] = []
    monkeypatch.setattr(reproduce.report, "write", lambda *given: tables.append(given))
    cells = study.plan(*opened(folder), str(folder / "work"), str(folder / "data"))
    first = study.runs(cells)[0]
    claim = pathlib.Path(f"{first.workdir}.claim")
    claim.parent.mkdir(parents=True)
    claim.write_text(json.dumps({"host": "elsewhere", "process": 1, "id": "theirs"}))
    worker = threading.Thread(target=run, args=(folder,))
    worker.start()
    for _ in range(3000):
        if sum(run.result() is not None for run in study.runs(cells)) == 3:  # the other row, which needs nothing of it
            break
        time.sleep(0.01)
    time.sleep(0.2)
    assert first.result() is None
    assert len(tables) <= 1 + 3, "at the start and after each run, and not while it waits"
    assert worker.is_alive()
    _pretend(first.experiment, first.workdir)  # the other machine comes to its end
    claim.unlink()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert all(run.result() for run in study.runs(cells))


def one_by_one(run: Callable[..., dict]) -> Callable[..., list[dict]]:
    """What runs one experiment, made to run several."""
    return lambda exps, workdirs, **how: [run(e, w, **how) for e, w in zip(exps, workdirs, strict=True)]


def _pretend(exp: Experiment, workdir: str, **_: object) -> dict:
    """A run that takes no time."""
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    result = {"score": 0.5 + 0.1 * exp.seed, "mlm_perplexity": 9.0, "step": 2, "tokens": 3}
    written = pathlib.Path(workdir) / "result.json.new"
    written.write_text(json.dumps(result))
    written.replace(written.with_suffix(""))  # at once, as a run does it: others look for it meanwhile
    return result


def test_several_workers_share_the_runs_out(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "WAIT", 0.01)
    monkeypatch.setattr("bert_jax.studies.report.draw", lambda *_: None)  # pyplot is not for threads
    monkeypatch.setattr("bert_jax.studies.report.page", lambda *_: "")
    made = []

    def slow(exp: Experiment, workdir: str, **_: object) -> dict:
        made.append(workdir)
        time.sleep(0.05)
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(slow))
    workers = [threading.Thread(target=run, args=(folder,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == len(set(made)) == 6


def test_a_loss_that_is_no_number_leaves_its_cells_empty(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(exp: Experiment, workdir: str, **how: object) -> dict:
        if not getattr(exp.task, "next_sentence", True):
            raise FloatingPointError("the loss is NaN or infinite at step 1")
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(failing))
    found = run(folder)
    assert [one.n for one in found] == [2, 1, 0, 0]
    assert [len(one.failed) for one in found] == [0, 0, 2, 1]
    written = (folder / "work" / "small" / "table.md").read_text()
    assert "| no nsp | failed | failed |" in written
    assert written.count(", which it starts from, failed: the loss is NaN or infinite at step 1") == 2
    states = [one.run.state() for one in reproduce.estimates([one.cell for one in found])[0]]
    assert states == ["done"] * 3 + ["failed"] * 3


def test_the_next_call_tries_again_what_failed(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    broken = {"no nsp"}

    def failing(exp: Experiment, workdir: str, **_: object) -> dict:
        made.append(workdir)
        if broken and not getattr(exp.task, "next_sentence", True):
            raise FloatingPointError("the loss is NaN or infinite at step 1")
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(failing))
    run(folder)
    assert len(made) == 4, "two pre-trainings and the fine-tunings of one"
    found = run(folder)
    assert len(made) == 5, "the one that failed, once"
    assert sum(len(one.failed) for one in found) == 3
    broken.clear()
    found = run(folder)
    assert len(made) == 8
    assert [(one.n, dict(one.failed)) for one in found] == [(2, {}), (1, {})] * 2
    assert not list(folder.glob("work/*/*/failed.json"))


def test_what_fails_elsewhere_meanwhile_is_not_tried_here(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    cells = study.plan(*opened(folder), str(folder / "work"), str(folder / "data"))
    (other,) = {
        run.after.workdir for cell in cells for run in cell.runs.values() if run.after and "no" in cell.row.name
    }
    pathlib.Path(other).mkdir(parents=True)
    (pathlib.Path(other) / "failed.json").write_text('{"error": "of an earlier call", "time": 1.0}')

    def look(exp: Experiment, workdir: str, **_: object) -> dict:
        made.append(workdir)
        (pathlib.Path(other) / "failed.json").write_text('{"error": "of another machine", "time": 2.0}')
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(look))
    assert [one.n for one in run(folder)] == [2, 1, 0, 0]
    assert other not in made


def test_the_command_says_what_failed(folder: pathlib.Path, tiny: Experiment) -> None:
    """A real fine-tuning, of a file with a row too short, whose last step makes weights of which there is a score, but
    no loss."""
    (folder / "weights").mkdir()
    record(tiny, str(folder / "weights"))
    tiny.task.tokenizer().save(str(folder / "weights" / "tokenizer"))
    text = (folder / "study.py").read_text().replace("'column.py', ", "'column.py', {'task.malformed': 'skip'}, ")
    (folder / "study.py").write_text(text)
    with (folder / "data" / "below" / "rows.tsv").open("a") as file:
        file.write("a row of one cell\n")
    flags = ["--seeds=1", "--rows=plain", "--tuning.optimizer.learning_rate=1e30", "--tuning.random_init=true"]
    flags += [f"--study={folder / 'study.py'}", f"--workdir={folder / 'w'}", f"--data_dir={folder / 'data'}"]
    script = [sys.executable, str(REPOSITORY / "scripts" / "reproduce.py"), f"--base={folder / 'weights'}"]
    done = subprocess.run([*script, *flags], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "1 malformed rows skipped, the first in line 18" in done.stderr
    assert "0 of 1 runs are done, 1 failed: " in done.stderr
    assert "/seed=0: the loss on validation data is NaN or infinite at step 2. " in done.stderr.splitlines()[-1]
    assert "| plain | failed | " in done.stdout


def test_a_damaged_result_is_named(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "run_together", one_by_one(_pretend))
    run(folder)
    next(folder.glob("work/tuned*/seed=0/result.json")).write_text('{"score": ')
    with pytest.raises(ValueError, match=r"tuned-\w+/seed=0/result\.json is damaged.* delete that file"):
        run(folder)


def test_seeds_of_a_fine_tuning_go_through_one_program(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []

    def look(exps: list[Experiment], workdirs: list[str], **how: object) -> list[dict]:
        groups.append([exp.name for exp in exps])
        return one_by_one(_pretend)(exps, workdirs)

    monkeypatch.setattr(train, "run_together", look)
    plan, base = opened(folder)
    more = dataclasses.replace(plan, seeds=3)
    reproduce.reproduce(more, base, str(folder / "w"), together=2, data_dir=str(folder / "data"), quiet=True)
    assert groups == [["tiny"], ["tuned"] * 2, ["tuned"], ["tiny"], ["tuned"] * 2, ["tuned"]]


def test_of_a_group_the_run_that_fails_fails_alone(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(exp: Experiment, workdir: str, **_: object) -> dict:
        if exp.name == "tuned" and exp.seed == 1:
            raise FloatingPointError("the loss is NaN or infinite")
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(failing))
    plan, base = opened(folder)
    where = {"data_dir": str(folder / "data"), "quiet": True}
    assert [one.n for one in reproduce.reproduce(plan, base, str(folder / "w"), together=2, **where)] == [1, 1, 1, 1]


def test_missing_data_is_said_before_anything_runs(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "data" / "below" / "rows.tsv").unlink()
    monkeypatch.setattr(train, "run_together", one_by_one(_pretend))
    with pytest.raises(ValueError, match=r"these files are not there(.|\n)*below/rows\.tsv \(column rows\)"):
        run(folder)
    assert not (folder / "work").exists()


def test_a_row_from_the_midst_of_a_pre_training(folder: pathlib.Path) -> None:
    plan, base = opened(folder)
    base = dataclasses.replace(base, experiment=override(base.experiment, {"every.keep": 1}))
    rows = (study.Row("half", at=0.5), study.Row("whole"))
    plan = dataclasses.replace(plan, rows=rows[1:], columns=plan.columns[:1], seeds=1, checkpoints=2)
    where = {"data_dir": str(folder / "data"), "quiet": True}
    reproduce.reproduce(plan, base, str(folder / "work"), **where)  # a study that needs the end alone comes first
    plan = dataclasses.replace(plan, rows=rows)
    half, whole = reproduce.reproduce(plan, base, str(folder / "work"), **where)
    runs = [one.cell.runs[0, 0] for one in (half, whole)]
    assert [run.experiment.init_step for run in runs] == [1, None]
    assert runs[0].after.workdir == runs[1].after.workdir
    lines = [train.metrics.read(run.workdir, "validation")[0]["loss"] for run in runs]
    assert lines[0] != lines[1], "both began with the same weights"


@pytest.mark.parametrize(
    ("there", "done", "lost"),
    [
        ([], False, []),  # not begun
        ([100], False, []),  # on its way
        ([200, 400, 500], False, []),
        ([450, 500], False, ["half", "third"]),  # begun without keeping them
        ([200, 500], False, ["half"]),
        ([200, 400, 1000], True, []),
        ([200, 900, 1000], True, ["half"]),
        ([200, 400], True, ["whole"]),
        ([], True, ["half", "third", "whole"]),
    ],
)
def test_checkpoints_that_are_gone_are_said_before_anything_runs(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, there: list[int], done: bool, lost: list[str]
) -> None:
    monkeypatch.setattr(train, "run_together", one_by_one(_pretend))
    plan, base = opened(folder)
    base = dataclasses.replace(base, experiment=override(base.experiment, {"phases.0.steps": 1000}))
    rows = (study.Row("third", at=0.2), study.Row("half", at=0.4), study.Row("whole"))
    plan = dataclasses.replace(plan, rows=rows, columns=plan.columns[:1], seeds=1)
    before = study.runs(study.plan(plan, base, str(folder / "work"), str(folder / "data")))[0]
    for step in there:
        (pathlib.Path(before.workdir) / "checkpoints" / str(step)).mkdir(parents=True)
    if done:
        _pretend(before.experiment, before.workdir)
        (pathlib.Path(before.workdir) / "result.json").write_text('{"step": 1000, "tokens": 3, "loss": 1.0}')
    where = {"data_dir": str(folder / "data"), "quiet": True}
    if not lost:
        assert [one.n for one in reproduce.reproduce(plan, base, str(folder / "work"), **where)] == [1] * 3
        return
    with pytest.raises(ValueError, match="were not kept when their pre-training passed them") as raised:
        reproduce.reproduce(plan, base, str(folder / "work"), **where)
    assert sorted(re.findall(r"\(row (\w+)\)", str(raised.value))) == lost


def test_a_pre_training_under_its_earlier_name_is_said(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "run_together", one_by_one(_pretend))
    plan, base = opened(folder)
    plain, _ = (run for run in study.runs(study.plan(plan, base, str(folder / "work"))) if not run.after)
    former = pathlib.Path(plain.formerly)
    assert former.name == "seed=0"
    former.mkdir(parents=True)
    (former / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"rename their folders(.|\n)*{former.parent} to {plain.name.split('/')[0]}$"):
        run(folder)
    former.parent.rename(pathlib.Path(plain.workdir).parent)
    assert [one.n for one in run(folder)] == [2, 1, 2, 1]


def test_a_base_of_weights(folder: pathlib.Path) -> None:
    plan, base = opened(folder)
    weights = str(folder / "weights")
    train.run(base.experiment, weights, quiet=True)
    plan = dataclasses.replace(plan, rows=plan.rows[:1], seeds=1)
    given = study.load_base(weights, {}, {"phases.0.steps": "1"})
    tuned, perplexity = reproduce.reproduce(plan, given, str(folder / "w"), data_dir=str(folder / "data"), quiet=True)
    assert (tuned.n, perplexity.n) == (1, 0)
    assert override(tuned.cell.runs[0, 0].experiment, {}).phases[0].steps == 1


def test_claims_lie_beside_the_runs(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def look(exp: Experiment, workdir: str, **_: object) -> dict:
        held.append(claims.holder(f"{workdir}.claim"))
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(look))
    run(folder)
    assert len(held) == 6
    assert all(str(os.getpid()) in one for one in held)
