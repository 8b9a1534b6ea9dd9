"""metrics.jsonl: one object a line, no step twice after a resume, no line lost to a cut one."""

import json
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from bert_jax.experiment import Experiment
from bert_jax.training import metrics, train


def test_lines_past_the_resumed_step_are_dropped(tmp_path: pathlib.Path) -> None:
    writer = metrics.Writer(str(tmp_path))
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1 / step})
    writer.write(3, "validation", {"loss": float("nan")})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    metrics.Writer(str(tmp_path), step=2).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "split": "train", "loss": 1.0}, {"step": 2, "split": "train", "loss": 0.5}]


def test_a_nan_is_null_and_splits_are_told_apart(tmp_path: pathlib.Path) -> None:
    writer = metrics.Writer(str(tmp_path))
    writer.write(1, "train", {"loss": 1.0})
    writer.write(1, "validation", {"loss": float("nan")})
    writer.close()
    assert metrics.read(str(tmp_path), "validation") == [{"step": 1, "split": "validation", "loss": None}]
    assert metrics.read(str(tmp_path / "absent")) == []


def test_tensorboard_events_are_written(tmp_path: pathlib.Path) -> None:
    writer = metrics.Writer(str(tmp_path))
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"train/loss" in events.read_bytes()


def test_each_second_belongs_to_one_place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call from 1000 to 1031 that is killed after its checkpoint at 1025, and one that goes on at 1125."""
    clock = [1000.0]
    monkeypatch.setattr(metrics.time, "time", lambda: clock[0])

    def batches() -> Iterator[int]:
        for n in range(2):
            clock[0] += 3
            yield n

    goodput = metrics.Goodput(990.0)
    goodput.enter("steps")
    for _ in goodput.waits("data", batches()):
        clock[0] += 4
        with goodput.at("evaluation"):
            clock[0] += 1
            with goodput.at("compile"):
                clock[0] += 2
    with goodput.at("checkpoints"):
        clock[0] += 5
        writer = metrics.Writer(str(tmp_path))
        writer.write(7, "goodput", goodput.seconds({}), time=clock[0])
    writer.close()
    first = {"steps": 8, "data": 6, "compile": 4, "evaluation": 2, "checkpoints": 5, "start": 10, "restarts": 0}
    assert goodput.seconds({}) == first
    clock[0] = 1126.0
    earlier = metrics.Goodput.earlier(str(tmp_path), 7, 1125.0)
    assert earlier == {**first, "restarts": 100}
    second = metrics.Goodput(1125.0)
    assert second.seconds(earlier) == {**first, "restarts": 100, "start": 11}
    shares = metrics.Goodput.shares(second.seconds(earlier))
    assert shares["seconds"] == 136
    assert shares["restarts"] == round(100 / 136, 4)
    assert sum(shares.values()) - 136 == pytest.approx(1, abs=1e-3)
    assert metrics.Goodput.earlier(str(tmp_path), 6, 1125.0) == {}


def test_the_time_left_is_that_of_steps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 100 seconds of compiling before the first step, 50 before the third, and 2 seconds a step, the steps."""
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    progress = metrics.Progress(40, 10)
    clock[0] += 100
    progress.advance(11, 100.0)
    assert progress.left(10) == "-:--"
    clock[0] += 2
    progress.advance(12, 100.0)
    progress.log(11, {"loss": 1.0})
    clock[0] += 2 + 50
    progress.advance(13, 150.0)
    progress.log(12, {"loss": 1.0})
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("left ")[2] for line in said] == ["0:58", "0:56"]


def lines_of(workdir: pathlib.Path) -> list[tuple[int, str]]:
    return [(line["step"], line["split"]) for line in metrics.read(str(workdir))]


@pytest.mark.usefixtures("few_devices")
def test_a_hook_is_told_each_line_once_and_ends_no_run(
    tiny: Experiment, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Across a stop, and a kill that loses what came after the last checkpoint; whatever it does to the line."""
    told: list[tuple[int, str]] = []

    def hook(workdir: str, line: dict[str, Any]) -> None:
        assert workdir == str(tmp_path)
        assert (line["step"], line["split"]) == lines_of(tmp_path)[-1], "it is written before it is told"
        told.append((line["step"], line["split"]))
        line.clear()
        raise SystemExit(1) if len(told) == 2 else RuntimeError("no network")

    def killed(workdir: str, line: dict[str, Any]) -> None:
        hook(workdir, line) if (line["step"], line["split"]) != (8, "train") else None
        if line["step"] == 8:
            raise KeyboardInterrupt

    with caplog.at_level("WARNING"):
        train.run(tiny, str(tmp_path), stop_at=4, on_metrics=hook, quiet=True)
        assert len(caplog.records) == 1, "it is said once"
        assert "the run goes on: RuntimeError('no network')" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            train.run(tiny, str(tmp_path), on_metrics=killed, quiet=True)
        assert train.run(tiny, str(tmp_path), on_metrics=hook, quiet=True)["done"]
    assert len(told) == len(set(told))
    assert set(told) == {one for one in lines_of(tmp_path) if one != (8, "train")}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package of that name, which keeps what it is asked: a list of runs, each of `init`'s arguments and its logs."""
    runs: list[Any] = []

    class Run:
        def __init__(self, given: dict[str, Any]) -> None:
            self.given, self.logged = given, list[dict[str, Any]]()
            runs.append(self)

        def log(self, values: dict[str, Any]) -> None:
            self.logged.append(values)

        def define_metric(self, name: str, step_metric: str | None = None, hidden: bool = False) -> None:
            assert (name, step_metric) in (("step", None), ("*", "step"))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: Run(given)))
    return runs


@pytest.mark.usefixtures("few_devices")
def test_weights_and_biases_get_a_run_for_each_workdir(
    tiny: Experiment, tmp_path: pathlib.Path, wandb: list[Any]
) -> None:
    train.run(tiny, str(tmp_path), stop_at=4, on_metrics=metrics.HOOKS["wandb"](), quiet=True)
    train.run(tiny, str(tmp_path), on_metrics=metrics.HOOKS["wandb"](), quiet=True)
    first, second = wandb
    assert first.given == second.given
    assert (first.given["resume"], first.given["name"]) == ("allow", "tiny, seed 0")
    assert first.given["config"]["encoder"]["layers"] == 2
    logged = [*first.logged, *second.logged]
    written = [line for line in metrics.read(str(tmp_path)) if line["split"] != "since_log"]
    assert [line["step"] for line in logged] == [line["step"] for line in written]
    assert logged[0]["train/loss"] == written[0]["loss"]
    assert {"validation/mlm_loss", "goodput/steps"} <= {name for line in logged for name in line}
    assert all(isinstance(value, (int, float)) for line in logged for value in line.values())


def test_weights_and_biases_that_cannot_begin_are_asked_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def init(**given: Any) -> None:
        asked.append(given)
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (tmp_path / "config.json").write_text('{"name": "a"}')
    writer = metrics.Writer(str(tmp_path), hook=metrics.WeightsAndBiases())
    writer.write(1, "train", {"loss": 1.0})
    writer.write(2, "train", {"loss": 1.0})
    writer.close()
    assert len(asked) == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'bert_jax\[wandb\]'"):
        metrics.WeightsAndBiases()
