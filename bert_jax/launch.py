"""A run on a Cloud TPU: the gcloud lines that make a slice, fill it, start, watch, fetch and delete. No TPU in here.

Each action gives shell lines that may be run again: what is there already is left alone.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import subprocess
import time
from collections.abc import Callable

from bert_jax.config import nearest, require

# By the name of a topology: the accelerator type's prefix, how it counts a chip, and the runtime's image.
KINDS = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}

GONE = ("SUSPENDED", "FAILED", "PREEMPTED", "NOT_FOUND")  # states after which a slice must be made anew
STOPPED = "143"  # the exit status of a run that SIGTERM ended, its state saved
TRIES = 5  # lost hosts end a run too, so one failure says little


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice, and the run on it."""

    name: str
    zone: str
    topology: str  # as preflight takes it: v5e:4x4
    project: str = ""  # "": gcloud's own default
    spot: bool = False  # cheaper, and may be taken away at any time
    source: str = "."  # the checkout that is copied to the workers
    corpus: str = ""  # gs://..., copied to each worker's disk as ~/corpus
    command: str = ""  # the flags of python -m bert_jax: --config=... --workdir=gs://...

    def __post_init__(self) -> None:
        kind, _, shape = self.topology.partition(":")
        require(kind in KINDS, f"no TPU is called {kind!r}: {nearest(kind, KINDS)}")
        require(all(part.isdigit() for part in shape.split("x")), f"a topology is like v5e:4x4, not {self.topology!r}")
        require(self.name != "" and self.zone != "", "a slice needs --name and --zone")

    @property
    def accelerator(self) -> str:
        """The accelerator type: v5litepod-16, or v4-32, which counts a chip's two cores."""
        kind, _, shape = self.topology.partition(":")
        prefix, cores, _ = KINDS[kind]
        return f"{prefix}-{cores * math.prod(map(int, shape.split('x')))}"

    @property
    def where(self) -> str:
        return f"--zone={self.zone}" + (f" --project={self.project}" if self.project else "")


def state(slice: Slice) -> list[str]:
    """Prints the state of the request: ACTIVE once the slice is there."""
    return [
        f"gcloud compute tpus queued-resources describe {slice.name} {slice.where} --format='value(state.state)'",
    ]


def create(slice: Slice) -> list[str]:
    """Queues a request for the slice, unless there is one."""
    runtime = KINDS[slice.topology.partition(":")[0]][2]
    return [
        f"gcloud compute tpus queued-resources describe {slice.name} {slice.where} >/dev/null 2>&1 || "
        f"gcloud compute tpus queued-resources create {slice.name} --node-id={slice.name} {slice.where} "
        f"--accelerator-type={slice.accelerator} --runtime-version={runtime}" + (" --spot" if slice.spot else "")
    ]


def on_workers(slice: Slice, command: str, worker: str = "all") -> str:
    """A command in the shell of one worker, or of all."""
    return (
        f"gcloud compute tpus tpu-vm ssh {slice.name} {slice.where} --worker={worker} --command={shlex.quote(command)}"
    )


def install(slice: Slice) -> list[str]:
    """Copies the checkout to all workers and installs the pinned environment there; pip skips what it has."""
    archive = f"/tmp/{slice.name}.tar.gz"
    commands = [
        "mkdir -p ~/bert_jax && tar -xzf ~/bert_jax.tar.gz -C ~/bert_jax",
        "cd ~/bert_jax && (test -x .venv/bin/python || python3 -m venv .venv)",
        "cd ~/bert_jax && .venv/bin/pip install --quiet --constraint constraints.txt --editable '.[tpu]'",
    ]
    return [
        f"git -C {shlex.quote(slice.source)} archive --format=tar.gz --output={archive} HEAD",
        f"gcloud compute tpus tpu-vm scp {archive} {slice.name}:bert_jax.tar.gz {slice.where} --worker=all",
        *(on_workers(slice, command) for command in commands),
    ]


def copy_corpus(slice: Slice) -> list[str]:
    """Copies the corpus from its bucket to each worker's disk; files that are there already are not read again."""
    if not slice.corpus:
        return []
    return [on_workers(slice, f"mkdir -p ~/corpus && gcloud storage rsync --recursive {slice.corpus} ~/corpus")]


def start(slice: Slice) -> list[str]:
    """Starts the run on all workers, unless it is running; the same command goes on where an earlier one stopped."""
    require(slice.command != "", "what shall run? --command='--config=... --workdir=gs://...'")
    corpus = " --config.task.corpus=$HOME/corpus" if slice.corpus else ""
    run = (
        f"(trap '' HUP; .venv/bin/python -m bert_jax --multihost {slice.command}{corpus}; echo $? >run.status) "
        ">>run.log 2>&1 </dev/null & echo $! >run.pid"
    )
    return [on_workers(slice, f"cd ~/bert_jax && (kill -0 $(cat run.pid) 2>/dev/null || (rm -f run.status; {run}))")]


def logs(slice: Slice) -> list[str]:
    """Follows the log of worker 0."""
    return [on_workers(slice, "tail -n 50 -f ~/bert_jax/run.log", worker="0")]


def stop(slice: Slice) -> list[str]:
    """SIGTERM to the run on all workers: they write a checkpoint at a common step, and end."""
    return [on_workers(slice, "pkill -TERM --parent $(cat ~/bert_jax/run.pid) || true")]


def collect(slice: Slice) -> list[str]:
    """Copies the log of worker 0 here; the workdir lies in its bucket."""
    return [f"gcloud compute tpus tpu-vm scp {slice.name}:bert_jax/run.log {slice.name}.log {slice.where} --worker=0"]


def delete(slice: Slice) -> list[str]:
    """Deletes the slice and its request, if there are any."""
    return [
        f"! gcloud compute tpus queued-resources describe {slice.name} {slice.where} >/dev/null 2>&1 || "
        f"gcloud compute tpus queued-resources delete {slice.name} {slice.where} --force --quiet"
    ]


ACTIONS: dict[str, Callable[[Slice], list[str]]] = {
    "create": create,
    "state": state,
    "install": install,
    "corpus": copy_corpus,
    "start": start,
    "logs": logs,
    "stop": stop,
    "collect": collect,
    "delete": delete,
}


def run(lines: list[str]) -> None:
    """Runs shell lines one after the other.

    Raises:
      subprocess.CalledProcessError: at the first that fails.
    """
    for line in lines:
        subprocess.run(line, shell=True, check=True)


def read(line: str) -> str:
    """What a shell line prints."""
    return subprocess.run(line, shell=True, capture_output=True, text=True).stdout.strip()


def supervise(
    slice: Slice,
    *,
    seconds: float = 60.0,
    run: Callable[[list[str]], None] = run,
    read: Callable[[str], str] = read,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Keeps the run going until it is done: after a preemption the slice is made anew, filled and started again.

    The run itself resumes from its last checkpoint; it is done once worker 0's process has ended with success.

    Raises:
      RuntimeError: the run failed `TRIES` times on one slice; the slice is left as it is.
    """
    fresh = True  # what is on the workers is not known yet
    failed = 0
    while True:
        found = read(state(slice)[0]) or "NOT_FOUND"
        if found in GONE:
            run([*delete(slice), *create(slice)])
            fresh = True
        elif found == "ACTIVE":
            if fresh:
                run([*install(slice), *copy_corpus(slice)])
                failed = 0
            else:
                status = read(on_workers(slice, "cat ~/bert_jax/run.status 2>/dev/null", worker="0"))
                if status == "0":
                    return
                failed += status not in ("", STOPPED)
                if failed == TRIES:
                    raise RuntimeError(
                        f"the run ended with status {status}, the {failed}th failure on this slice, which is still "
                        "there: read its log (logs, collect), then supervise or delete"
                    )
            run(start(slice))
            fresh = False
        sleep(seconds)
