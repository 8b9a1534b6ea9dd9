"""Real processes joined by jax.distributed: one run, stopped at one step, and no host left waiting for a lost one."""

import dataclasses
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from bert_jax import config
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.training import metrics, train
from bert_jax.weights import checkpoint
from tests.conftest import command, environment

pytestmark = pytest.mark.usefixtures("few_devices")

# Steps of 0.1 seconds, so that a signal comes in their midst.
SLOWLY = """
import time
from bert_jax.training import data
read = data.Batches.__getitem__
def slowly(self, n):
    time.sleep(0.1)
    return read(self, n)
data.Batches.__getitem__ = slowly
"""

# Host 1 hangs in the midst, at the tenth call of a function.
HANGING = """
import time
import jax
from bert_jax.training import data, hosts, train
function, calls = {function}, []
def hanging(*given):
    calls.append(given)
    time.sleep(3600 if jax.process_index() == 1 and len(calls) == 10 else 0)
    return function(*given)
{function} = hanging
hosts.OWN, hosts.SHARED, hosts.PATIENT = 3.0, 10.0, 120.0
"""


def start(exp: Experiment, folder: pathlib.Path, more: str = "") -> list[subprocess.Popen[str]]:
    """Two hosts, each with one device, on the workdir folder/run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    exp = dataclasses.replace(exp, mesh=config.Mesh(data=2))
    joined = ("--multihost", f"--coordinator=localhost:{port}", "--processes=2")
    lines = [command(exp, folder, folder / "run", *joined, f"--process={n}", more=more) for n in range(2)]
    return [
        subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in lines
    ]


def wait_for(workdir: pathlib.Path, hosts: list[subprocess.Popen[str]], step: int) -> None:
    """Until the run has written a line of that step."""
    while not any(line["step"] >= step for line in metrics.read(str(workdir), "train")):
        assert all(host.poll() is None for host in hosts), [host.communicate() for host in hosts]
        time.sleep(0.02)


def finish(hosts: list[subprocess.Popen[str]]) -> list[str]:
    """What each said, once all have ended; none of them by itself would be a hang."""
    try:
        return [host.communicate(timeout=240)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()


@pytest.fixture
def long(tiny: Experiment) -> Experiment:
    """The tiny run with forty steps and a line for each."""
    return override(tiny, {"phases.0.steps": 20, "phases.1.steps": 20, "every": config.Every(log=1, evaluate=0)})


def test_two_hosts_are_one(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    train.run(tiny, str(tmp_path / "alone"), quiet=True)
    hosts = start(tiny, tmp_path)
    said = finish(hosts)
    assert [host.returncode for host in hosts] == [0, 0], said
    for split in ("train", "validation"):
        alone, together = (metrics.read(str(tmp_path / name), split) for name in ("alone", "run"))
        assert [line["step"] for line in alone] == [line["step"] for line in together]
        for one, two in zip(alone, together, strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_a_signal_to_one_host_stops_both_at_one_step(long: Experiment, tmp_path: pathlib.Path) -> None:
    """And on a single host the run goes on as if it had never stopped."""
    hosts = start(long, tmp_path, SLOWLY)
    wait_for(tmp_path / "run", hosts, 1)
    hosts[1].send_signal(signal.SIGTERM)
    said = finish(hosts)
    assert [host.returncode for host in hosts] == [128 + signal.SIGTERM] * 2, said
    saved = checkpoint.Checkpoints(str(tmp_path / "run")).latest()
    assert saved is not None
    assert 1 < saved < 40
    for text in said:
        assert f"stopped by SIGTERM at step {saved}" in text
    train.run(long, str(tmp_path / "run"), quiet=True)
    train.run(long, str(tmp_path / "alone"), quiet=True)
    one, two = (metrics.read(str(tmp_path / name), "train") for name in ("run", "alone"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 41))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)


def test_the_loss_of_the_first_host_ends_the_other(long: Experiment, tmp_path: pathlib.Path) -> None:
    hosts = start(override(long, {"every.checkpoint": 3}), tmp_path, SLOWLY)
    wait_for(tmp_path / "run", hosts, 9)
    hosts[0].kill()
    said = finish(hosts)
    assert hosts[1].returncode not in (0, None)
    found = re.search(r"as a host was lost .*the same command on all hosts goes on from .* step (\d+)\n$", said[1])
    assert found, said[1]
    assert int(found[1]) in (3, 6, 9)
    assert (tmp_path / "run" / "checkpoints" / found[1]).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_another_host_ends_the_first(
    long: Experiment, tmp_path: pathlib.Path, signum: signal.Signals
) -> None:
    """Killed, or so frozen that it sends no heartbeat; JAX finds out which it is, in `hosts.HEARTBEAT` seconds."""
    hosts = start(long, tmp_path, SLOWLY)
    wait_for(tmp_path / "run", hosts, 3)
    hosts[1].send_signal(signum)
    said = finish(hosts[:1])[0]
    hosts[1].kill()
    hosts[1].wait()
    assert hosts[0].returncode not in (0, None)
    assert "unhealthy (stopped sending heartbeats):\n1\n" in said
    assert "as a host was lost" in said
    assert "goes on from the checkpoint of step 0" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "host", "said"),
    [
        ("data.Batches.__getitem__", 1, r"Timeout \(0:00:03\)!(.|\n)* in oldest\n"),
        ("jax.block_until_ready", 1, r"Timeout \(0:00:10\)!(.|\n)* in hanging\n(.|\n)* in flush\n"),
        ("train._Loop.count", 0, r"Timeout \(0:00:10\)!(.|\n)* in flush\n"),  # the other one finds out
    ],
    ids=["data", "device", "elsewhere"],
)
def test_a_host_that_hangs_ends_with_the_other(
    long: Experiment, tmp_path: pathlib.Path, function: str, host: int, said: str
) -> None:
    """In reading data, in waiting for a device, and at something that has no limit of its own."""
    hosts = start(long, tmp_path, HANGING.format(function=function))
    each = finish(hosts)
    assert all(host.returncode not in (0, None) for host in hosts), each
    assert re.search(said, each[host]), each[host]
    for text in each:
        assert re.search(r"as a host was lost .*the same command on all hosts goes on from .* step 0\n$", text), text


def test_what_hangs_ends_and_says_where() -> None:
    program = """
import time
from bert_jax.training import hosts
hosts._last_words.append(hosts._LastWords())
hosts.if_lost("this is how it goes on")
with hosts.within(0.5):
    pass
time.sleep(1)
print("so far", flush=True)
with hosts.within(1):
    time.sleep(3600)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (1, "so far\n")
    assert ended.stderr.startswith("Timeout (0:00:01)!\n")
    assert "line 11 in <module>" in ended.stderr
    assert ended.stderr.endswith("this is how it goes on\n")
