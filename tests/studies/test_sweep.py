"""Grids and seeds: which runs there are, what is run again, and what is said of them."""

import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.studies import sweep
from bert_jax.tasks.classify import Classify
from bert_jax.training import planning, train
from tests.conftest import REPOSITORY, command, environment

GRID = {"optimizer.learning_rate": (1e-3, 1e-4), "phases.0.batch_size": (8, 16)}


class Trainer:
    """Stands in for `train.run_together`: writes results, and keeps account of what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.broken: set[float] = set()  # learning rates at which the loss is NaN or infinite

    def __call__(self, exps: Sequence[Experiment], workdirs: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        self.calls.append([pathlib.Path(w).parent.name + "/" + pathlib.Path(w).name for w in workdirs])
        if self.broken & {exp.optimizer.learning_rate for exp in exps}:
            raise FloatingPointError("the loss is NaN or infinite")
        found = []
        for exp, workdir in zip(exps, workdirs, strict=True):
            folder = pathlib.Path(workdir)
            (folder / "checkpoints" / "1").mkdir(parents=True)
            experiment.record(exp, workdir)
            rate, rows = exp.optimizer.learning_rate, exp.phases[0].batch_size
            score = rate * 100 + rows / 100 + exp.seed / 1000
            constant = float(rate == 1e-4 and exp.seed == 1)
            result = {"metric": "accuracy", "score": score, "constant": constant, "majority": 0.5, "loss": -score}
            (folder / "result.json").write_text(json.dumps(result))
            found.append(result)
        return found


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(train, "run_together", trainer)
    return trainer


EXP = Experiment(encoder=config.Encoder(layers=1, hidden=16, heads=1), phases=(config.Phase(steps=1),))


def test_every_point_is_run_with_every_seed_and_the_best_is_kept(trainer: Trainer, tmp_path: pathlib.Path) -> None:
    summary = sweep.sweep(EXP, str(tmp_path), grid=GRID, seeds=3)
    assert len(trainer.calls) == 12
    assert trainer.calls[0] == ["learning_rate=0.001,batch_size=8/seed=0"]
    best = summary.points[0]
    assert best.changes == {"optimizer.learning_rate": 1e-3, "phases.0.batch_size": 16}
    assert best.mean == pytest.approx(0.1 + 0.16 + 0.001)
    assert best.deviation == pytest.approx(0.001)
    assert [round(p.mean, 3) for p in summary.points] == [0.261, 0.181, 0.171, 0.091]
    assert [p.collapsed for p in summary.points] == [(), (), (1,), (1,)]
    assert summary.best_run() == str(tmp_path / "learning_rate=0.001,batch_size=16" / "seed=2")
    assert [str(p.parent) for p in tmp_path.glob("*/*/checkpoints")] == [summary.best_run()]
    assert "| learning_rate=0.001,batch_size=16 | 0.2610 | 0.0010 | 3 | 0.2620 | 0.2600 |  |" in summary.table()
    assert "1 collapsed to one answer: seeds 1" in summary.table()
    assert sweep.CURE in summary.table()
    well = dataclasses.replace(summary, points=summary.points[:2])
    assert sweep.CURE not in well.table()
    assert summary.table().endswith("\n\nAlways the largest class: 0.5000")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["best_run"] == summary.best_run()
    assert (written["majority"], len(written["points"])) == (0.5, 4)
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith(f"{summary.table()}\n\nWritten ")


def test_what_is_done_is_read_and_what_is_missing_is_run(trainer: Trainer, tmp_path: pathlib.Path) -> None:
    first = sweep.sweep(EXP, str(tmp_path), seeds=2)
    trainer.calls.clear()
    again = sweep.sweep(EXP, str(tmp_path), seeds=3)
    assert trainer.calls == [[f"{tmp_path.name}/seed=2"]]
    assert again.points[0].values[:2] == first.points[0].values
    with pytest.raises(ValueError, match=r"holds a run of another experiment[^!]*optimizer.weight_decay"):
        sweep.sweep(config.override(EXP, {"optimizer.weight_decay": 0.0}), str(tmp_path), seeds=3)


def test_runs_that_fit_in_one_program_go_together(trainer: Trainer, tmp_path: pathlib.Path) -> None:
    together = sweep.sweep(EXP, str(tmp_path / "a"), grid=GRID, seeds=3, together=4, keep="all")
    assert sorted(map(len, trainer.calls)) == [2, 2, 4, 4]
    for call in trainer.calls:
        assert len({name.split("batch_size=")[1].split("/")[0] for name in call}) == 1
    assert len(list((tmp_path / "a").glob("*/*/checkpoints"))) == 12
    alone = sweep.sweep(EXP, str(tmp_path / "b"), grid=GRID, seeds=3)
    assert together.table() == alone.table()


def test_a_run_whose_loss_is_no_number_takes_no_other_with_it(trainer: Trainer, tmp_path: pathlib.Path) -> None:
    trainer.broken = {1e-3}
    grid = {"optimizer.learning_rate": (1e-3, 1e-4)}
    summary = sweep.sweep(EXP, str(tmp_path), grid=grid, seeds=2, together=4)
    assert list(map(len, trainer.calls)) == [4, 1, 1, 1, 1]
    assert [p.values.count(None) for p in summary.points] == [0, 2]
    assert "| learning_rate=0.001 | - | - | 0 | - | - | NaN or infinite: seeds 0, 1 |" in summary.table()
    trainer.broken = {1e-3, 1e-4}
    with pytest.raises(ValueError, match="no run of the sweep came to its end"):
        sweep.sweep(EXP, str(tmp_path / "other"), grid=grid)


def test_without_a_metric_the_loss_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    losses = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(train, "run_together", lambda exps, _, **__: [{"loss": next(losses)} for _ in exps])
    (tmp_path / "sweep").mkdir()
    summary = sweep.sweep(EXP, str(tmp_path / "sweep"), grid={"optimizer.learning_rate": (1e-3, 1e-4, 1e-5)})
    assert [p.mean for p in summary.points] == [2.0, 3.0, 4.0]
    assert summary.best_run().endswith("learning_rate=0.0001/seed=0")


@pytest.mark.parametrize(
    ("grid", "seeds", "message"),
    [
        ({"optimizer.rate": (1, 2)}, 1, "has no field 'rate'"),
        ({"optimizer.learning_rate": (1e-3, "fast")}, 1, "fast"),
        ({"optimizer.learning_rate": (-1.0,)}, 1, "must be above 0"),
        ({"seed": (1, 2)}, 1, "--seeds"),
        ({"optimizer.learning_rate": (1e-3, 1e-3)}, 1, "two points of the grid are the same"),
        ({}, 0, "seeds must be above 0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(grid: dict, seeds: int, message: str, trainer: Trainer) -> None:
    with pytest.raises(ValueError, match=message):
        sweep.sweep(EXP, "nowhere", grid=grid, seeds=seeds)
    assert not trainer.calls


@pytest.fixture
def real(tiny: Experiment, tmp_path: pathlib.Path, few_devices: None) -> Experiment:
    """A fine-tuning of seconds on rows.tsv, with the encoder and the vocabulary of a run that lies beside it."""
    (tmp_path / "before").mkdir()
    experiment.record(tiny, str(tmp_path / "before"))
    tiny.task.tokenizer().save(str(tmp_path / "before" / "tokenizer"))
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "ba be bi\t0\nbo bu ba\t1\n" * 8)
    return Experiment(
        name="tuned",
        task=Classify(train="rows.tsv", dev=("rows.tsv",), labels=("0", "1"), malformed="skip"),
        phases=(config.Phase(length=16, batch_size=8, steps=3),),
        mesh=config.Mesh(data=1),
        every=config.Every(log=1, evaluate=0),
        init_from=str(tmp_path / "before"),
        random_init=True,
    )


def test_a_grid_over_the_encoder_starts_from_that_of_init_from(real: Experiment, tmp_path: pathlib.Path) -> None:
    """As the command does: a value of the encoder is a change of the one that the weights have."""
    grid = {"encoder.dropout": (0.3,)}
    summary = sweep.sweep(real, str(tmp_path / "sweep"), grid, data_dir=str(tmp_path), quiet=True)
    start = experiment.read_config(real.init_from).encoder
    for point in summary.points:
        rate = point.changes["encoder.dropout"]
        (workdir,) = point.workdirs
        assert experiment.read_config(workdir).encoder == override(start, {"dropout": rate})
        asked = planning.configured(real, {"encoder.dropout": str(rate)}, workdir)
        assert config.to_dict(asked) == config.to_dict(experiment.read_config(workdir))


def test_a_run_that_failed_is_named_and_tried_again(real: Experiment, tmp_path: pathlib.Path) -> None:
    grid = {"optimizer.learning_rate": (1e-3, 1e30)}
    where = {"data_dir": str(tmp_path), "quiet": True}
    for _ in range(2):
        summary = sweep.sweep(real, str(tmp_path / "sweep"), grid, **where)
        assert [len(point.done) for point in summary.points] == [1, 0]
        assert list(summary.failed) == list(summary.points[1].workdirs)
        assert all("the loss is NaN or infinite at step" in why for why in summary.failed.values())
        assert json.loads((tmp_path / "sweep" / "summary.json").read_text())["failed"] == summary.failed
        assert "tried again by the same command" in (tmp_path / "sweep" / "summary.md").read_text()
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "be ba bi\t0\nbo bu ba\t1\n" * 8)
    with pytest.raises(ValueError, match=r"of other data than lie there now(.|\n)*task\.train: rows\.tsv"):
        sweep.sweep(real, str(tmp_path / "sweep"), grid, **where)


def test_the_command_says_what_it_skips_and_what_failed(real: Experiment, tmp_path: pathlib.Path) -> None:
    with (tmp_path / "rows.tsv").open("a") as file:
        file.write("a row of one cell\n")
    (tmp_path / "grid.py").write_text("GRID = {'optimizer.learning_rate': (1e-3, 1e30)}")
    flags = (f"--grid={tmp_path / 'grid.py'}", f"--data_dir={tmp_path}")
    done = subprocess.run(
        command(real, tmp_path, tmp_path / "sweep", *flags), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "1 malformed rows skipped, the first in line 18" in done.stderr
    assert "failed: " in done.stderr.splitlines()[-1]
    assert "learning_rate=1e+30/seed=0: the loss is NaN or infinite at step" in done.stderr.splitlines()[-1]
    assert "| learning_rate=0.001 | " in done.stdout


def test_a_result_that_is_no_number_is_a_failure(trainer: Trainer, tmp_path: pathlib.Path) -> None:
    first = sweep.sweep(EXP, str(tmp_path), seeds=2)
    (file,) = tmp_path.glob("**/seed=1/result.json")
    file.write_text('{"metric": "accuracy", "score": 0.5, "loss": NaN}')
    again = sweep.sweep(EXP, str(tmp_path), seeds=2)
    assert again.points[0].values == (first.points[0].values[0], None)
    assert again.failed == {str(file.parent): "its loss is NaN or infinite"}


@pytest.mark.parametrize(
    "content", [b"", b'{"score": 0.', b"\xff\xfe\x00", b"[1]", b"{}", b'{"metric": "f1", "score": null}']
)
def test_a_damaged_result_is_named_with_its_cure(content: bytes, trainer: Trainer, tmp_path: pathlib.Path) -> None:
    sweep.sweep(EXP, str(tmp_path))
    (file,) = tmp_path.glob("**/seed=0/result.json")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"seed=0/result\.json is (damaged|empty).*; delete that file and run the"):
        sweep.sweep(EXP, str(tmp_path))


def test_grid_files(tmp_path: pathlib.Path) -> None:
    sizes = {}
    for file in sorted((REPOSITORY / "experiments" / "grids").glob("*.py")):
        exp = experiment.load(str(REPOSITORY / "experiments" / "mrpc.py"))
        exp = dataclasses.replace(exp, encoder=config.Encoder())
        sizes[file.stem] = len(sweep.runs(exp, "x", sweep.load_grid(str(file)), 1))
    assert sizes == {"glue": 4, "miniatures": 20, "paper": 18}
    (tmp_path / "bad.py").write_text("GRID = {'a': 3}")
    for path, message in ((tmp_path / "none.py", "there is no file"), (tmp_path / "bad.py", "must define GRID")):
        with pytest.raises(ValueError, match=message):
            sweep.load_grid(str(path))
