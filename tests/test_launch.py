"""The gcloud lines, as text; and a supervisor that lives through a preemption."""

import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable

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
    where, _, command = line.partition(" --command=")
    assert where == "gcloud compute tpus tpu-vm ssh bert --zone=us-west4-a --worker=all"
    assert shlex.split(command) == [
        "cd ~/bert_jax && (kill -0 $(cat run.pid) 2>/dev/null || (rm -f run.status; (trap '' HUP; .venv/bin/python "
        "-m bert_jax --multihost --config=e.py --workdir=gs://b/run --config.task.corpus=$HOME/corpus; "
        "echo $? >run.status) >>run.log 2>&1 </dev/null & echo $! >run.pid))"
    ]
    with pytest.raises(ValueError, match="what shall run"):
        launch.start(launch.Slice("a", "z", "v5e:4x4"))


@pytest.mark.parametrize("action", [*launch.ACTIONS])
def test_every_line_is_shell(action: str) -> None:
    for line in launch.ACTIONS[action](SLICE):
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_what_starts_is_started_once_and_leaves_its_status(tmp_path: pathlib.Path) -> None:
    """The worker's half of `start` and `stop`, run here: a second start finds the process and leaves it alone."""
    home = tmp_path / "bert_jax"
    (home / ".venv" / "bin").mkdir(parents=True)
    python = home / ".venv" / "bin" / "python"
    python.write_text("#!/bin/bash\ntrap 'exit 143' TERM\necho started\nsleep 30 & wait\n")
    python.chmod(0o755)

    def on_worker(action: Callable[[launch.Slice], list[str]]) -> None:
        (line,) = action(SLICE)
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        command = line.partition("--command=")[2]
        subprocess.run(["bash", "-c", f"eval {command}"], env=environment, check=True, timeout=10)

    def wait_for(name: str) -> str:
        subprocess.run(["bash", "-c", f"for i in {{1..100}}; do [ -s {name} ] && break; sleep 0.1; done"], cwd=home)
        return (home / name).read_text()

    on_worker(launch.start)
    assert wait_for("run.log") == "started\n"
    on_worker(launch.start)
    assert not (home / "run.status").exists()
    on_worker(launch.stop)
    assert wait_for("run.status") == "143\n"
    assert wait_for("run.log") == "started\n"
    subprocess.run(["bash", "-c", "while kill -0 $(cat run.pid) 2>/dev/null; do sleep 0.1; done"], cwd=home, timeout=10)
    on_worker(launch.start)
    assert not (home / "run.status").exists()  # of the earlier run
    on_worker(launch.stop)


def supervised(*seen: tuple[str, str]) -> list[str]:
    """The actions of a supervisor that sees these states, each with the run's exit status where it looks for it."""
    left_to_see, end = iter(seen), ""
    did: list[str] = []

    def run(lines: list[str]) -> None:
        names = {tuple(action(SLICE)): name for name, action in launch.ACTIONS.items()}
        left = list(lines)
        while left:
            size = next(n for n in range(1, len(left) + 1) if tuple(left[:n]) in names)
            did.append(names[tuple(left[:size])])
            del left[:size]

    def read(line: str) -> str:
        nonlocal end
        if "queued-resources" in line:
            state, end = next(left_to_see)
            return state
        assert did[-1] == "start"
        assert "run.status" in line
        return end

    launch.supervise(SLICE, run=run, read=read, sleep=lambda _: None)
    return did


def test_a_preempted_slice_is_made_anew_and_filled() -> None:
    first = [("NOT_FOUND", ""), ("WAITING_FOR_RESOURCES", ""), ("ACTIVE", ""), ("ACTIVE", "143")]
    filled = ["delete", "create", "install", "corpus", "start"]
    found = supervised(*first, ("SUSPENDED", ""), ("ACTIVE", ""), ("ACTIVE", "0"))
    assert found == [*filled, "start", *filled]


def test_the_status_of_an_earlier_run_ends_nothing() -> None:
    assert supervised(("ACTIVE", "0"), ("ACTIVE", "0")) == ["install", "corpus", "start"]


def test_a_run_that_fails_again_and_again_is_given_up() -> None:
    with pytest.raises(RuntimeError, match="ended with status 1, the 5th failure"):
        supervised(*[("ACTIVE", ""), ("ACTIVE", "1"), ("ACTIVE", "143")] * 5)


def test_dry_run_prints_the_lines() -> None:
    flags = ["--name=bert", "--zone=us-west4-a", "--topology=v5e:4x4", "--spot", "--dry_run"]
    command = [sys.executable, "scripts/tpu/launch.py", "create", *flags]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == launch.create(SLICE)
