"""metrics.jsonl: one object a line, no step twice after a resume, no line lost to a cut one."""

import json
import pathlib
from collections.abc import Iterator

import pytest

from bert_jax import metrics


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
