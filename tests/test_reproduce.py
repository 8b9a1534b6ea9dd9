"""Running a study: what is missing runs once, cuts leave no trace, others are waited for, failures stay in a cell."""

import dataclasses
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable

import pytest
import rich.console

from bert_jax import claims, config, reproduce, study, train
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.study import Base, Study
from bert_jax.tasks.classify import Classify

pytestmark = pytest.mark.usefixtures("few_devices")


def write(file: pathlib.Path, exp: Experiment, more: str = "") -> str:
    file.write_text(
        "import json\nfrom bert_jax import config, experiment\nfrom bert_jax.study import Column, Row, Study\n"
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
        "from bert_jax.study import Column, Row, Study\n"
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

    estimates, basis = reproduce.estimates(study.plan(*opened(folder, 1), str(folder / "work")))
    assert all(one.done for one in estimates)
    assert "runs that are done" in basis or "no run is done yet" in basis
    before, _ = reproduce.estimates(study.plan(*opened(folder, 1), str(folder / "none")), str(folder / "data"))
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
    cells = study.plan(*opened(folder), str(folder / "work"))
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
    monkeypatch.setattr("bert_jax.report.draw", lambda *_: None)  # pyplot is not for threads
    monkeypatch.setattr("bert_jax.report.page", lambda *_: "")
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
            raise FloatingPointError("the loss is no number at step 1")
        return _pretend(exp, workdir)

    monkeypatch.setattr(train, "run_together", one_by_one(failing))
    assert [one.n for one in run(folder)] == [2, 1, 0, 0]
    assert "| no nsp | - | - |" in (folder / "work" / "small" / "table.md").read_text()


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
            raise FloatingPointError("the loss is no number")
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
    rows = (study.Row("half", at=0.5), study.Row("whole"))
    plan = dataclasses.replace(plan, rows=rows, columns=plan.columns[:1], seeds=1, checkpoints=2)
    half, whole = reproduce.reproduce(plan, base, str(folder / "work"), data_dir=str(folder / "data"), quiet=True)
    runs = [one.cell.runs[0, 0] for one in (half, whole)]
    assert [run.experiment.init_step for run in runs] == [1, None]
    assert runs[0].after.workdir == runs[1].after.workdir
    lines = [train.metrics.read(run.workdir, "validation")[0]["loss"] for run in runs]
    assert lines[0] != lines[1], "both began with the same weights"


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
