"""metrics.jsonl: one object a line, no step twice after a resume, no line lost to a cut one."""

import json
import pathlib

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
