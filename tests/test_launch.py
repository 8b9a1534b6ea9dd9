"""The gcloud lines, as text; and a supervisor that lives through a preemption."""

import pathlib
import subprocess
import sys

import pytest

from bert_jax import launch
from tests.conftest import REPOSITORY

SLICE = launch.Slice(
    "bert", "us-west4-a", "v5e:4x4", spot=True, corpus="gs://b/corpus", command="--config=e.py --workdir=gs://b/run"
)


def test_accelerator_types() -> None:
    names = {"v5e:4x4": "v5litepod-16", "v4:2x2x4": "v4-32", "v5p:2x2x2": "v5p-16", "v6e:8x8": "v6e-64"}
    for topology, name in names.items():
        assert launch.Slice("a", "z", topology).accelerator == name
    with pytest.raises(ValueError, match="no TPU is called 'v5': did you mean"):
        launch.Slice("a", "z", "v5:4x4")
    with pytest.raises(ValueError, match="needs --name and --zone"):
        launch.Slice("a", "", "v5e:4x4")


def test_a_slice_is_asked_for_once() -> None:
    assert launch.create(SLICE) == [
        "gcloud compute tpus queued-resources describe bert --zone=us-west4-a >/dev/null 2>&1 || "
        "gcloud compute tpus queued-resources create bert --node-id=bert --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    ]


def test_the_run_starts_on_all_workers_unless_it_runs() -> None:
    (line,) = launch.start(SLICE)
    assert line == (
        "gcloud compute tpus tpu-vm ssh bert --zone=us-west4-a --worker=all --command="
        "'cd ~/bert_jax && (kill -0 $(cat run.pid) 2>/dev/null || (nohup .venv/bin/python -m bert_jax --multihost "
        "--config=e.py --workdir=gs://b/run --config.task.corpus=$HOME/corpus >>run.log 2>&1 & echo $! >run.pid))'"
    )
    with pytest.raises(ValueError, match="what shall run"):
        launch.start(launch.Slice("a", "z", "v5e:4x4"))


@pytest.mark.parametrize("action", [*launch.ACTIONS])
def test_every_line_is_shell(action: str) -> None:
    for line in launch.ACTIONS[action](SLICE):
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_what_starts_is_started_once(tmp_path: pathlib.Path) -> None:
    """The worker's half of `start`, run here: a second one finds the process and leaves it alone."""
    home = tmp_path / "bert_jax"
    (home / ".venv" / "bin").mkdir(parents=True)
    python = home / ".venv" / "bin" / "python"
    python.write_text("#!/bin/bash\necho started\nsleep 30\n")
    python.chmod(0o755)
    command = launch.start(SLICE)[0].partition("--command=")[2]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", f"eval {command}"], env=environment, check=True)
    try:
        subprocess.run(["bash", "-c", "for i in {1..50}; do [ -s run.log ] && break; sleep 0.1; done"], cwd=home)
        assert (home / "run.log").read_text() == "started\n"
    finally:
        subprocess.run(["bash", "-c", "kill $(cat run.pid)"], cwd=home)


def supervised(*seen: tuple[str, str]) -> list[str]:
    """The actions of a supervisor that sees these states, each with worker 0's log where it looks for it."""
    states, logs = iter([state for state, _ in seen]), iter([log for state, log in seen if state == "ACTIVE"])
    did: list[str] = []

    def run(lines: list[str]) -> None:
        names = {tuple(action(SLICE)): name for name, action in launch.ACTIONS.items()}
        left = list(lines)
        while left:
            size = next(n for n in range(1, len(left) + 1) if tuple(left[:n]) in names)
            did.append(names[tuple(left[:size])])
            del left[:size]

    def read(line: str) -> str:
        return next(states) if "queued-resources" in line else next(logs)

    launch.supervise(SLICE, run=run, read=read, sleep=lambda _: None)
    return did


def test_a_preempted_slice_is_made_anew_and_filled() -> None:
    first = [("NOT_FOUND", ""), ("WAITING_FOR_RESOURCES", ""), ("ACTIVE", ""), ("ACTIVE", "step 10")]
    filled = ["delete", "create", "install", "corpus", "start"]
    found = supervised(*first, ("SUSPENDED", ""), ("ACTIVE", ""), ("ACTIVE", '"done": true'))
    assert found == [*filled, "start", *filled]


def test_the_log_of_an_earlier_run_ends_nothing() -> None:
    assert supervised(("ACTIVE", '"done": true'), ("ACTIVE", '"done": true')) == ["install", "corpus", "start"]


def test_dry_run_prints_the_lines() -> None:
    flags = ["--name=bert", "--zone=us-west4-a", "--topology=v5e:4x4", "--spot", "--dry_run"]
    command = [sys.executable, "scripts/tpu/launch.py", "create", *flags]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == launch.create(SLICE)
