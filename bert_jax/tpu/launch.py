"""A run on a Cloud TPU: the gcloud commands that make a slice, fill it, start, watch, fetch and delete. No TPU in here.

Each action gives commands that may be run again: what is there already is left alone. `supervise` keeps a run going
through preemptions.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

from bert_jax.config import require
from bert_jax.tpu import topologies

# What becomes of a queued request by itself. Anything else is waited for: CREATING, ACCEPTED, WAITING_FOR_RESOURCES,
# PROVISIONING and SUSPENDING, DELETING go on to another state; and so do states that are unknown here.
READY = "ACTIVE"
DEAD = ("SUSPENDED", "FAILED")  # the slice is gone or never came, and the request does nothing any more
GONE = "NOT_FOUND"  # as gcloud says that there is no request

STOPPED = "143"  # the exit status of a run that SIGTERM ended, its state saved
AGREE = 3  # so many answers in a row before a request is deleted or made: one may be wrong
TRIES = 5  # lost hosts end a run too, so one failure says little
STEADY = 10  # looks at a running run, after which its earlier failures are forgotten
SHOWN = 60  # lines of logs that a failure shows

# Whether the run's shell lives: after a restart of the machine its number may be another process's.
_ALIVE = "grep -qs bert_jax /proc/$(cat run.pid 2>/dev/null)/cmdline"

# Connections that hang end within minutes; host keys of new machines are taken; nobody is asked anything.
_SSH = ("ConnectTimeout=30", "ServerAliveInterval=30", "ServerAliveCountMax=4")

# Errors of a `create` that no repetition mends.
_REFUSED = re.compile(r"\b(INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED|FAILED_PRECONDITION|UNIMPLEMENTED):")
# An error of gcloud's own, here: what runs on the workers may print others.
_ERROR = re.compile(r"^ERROR: \(gcloud\.(?:\w+\.)?compute\.[^)]*\) *(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice, or several alike that run together, and the run on them."""

    name: str
    zone: str
    topology: str  # as preflight takes it: v5e:4x4, v5litepod-16
    project: str = ""  # "": gcloud's own default
    node_count: int = 1  # slices, which the data center's network connects
    spot: bool = False  # cheaper, and may be taken away at any time
    reserved: bool = False  # from the project's reservation
    flex_start: str = ""  # for so long at most, such as 4h; seven days at most
    network: str = ""
    subnetwork: str = ""
    internal_ips: bool = False  # no external addresses; ssh from inside the network, or through IAP
    iap: bool = False  # ssh goes through the Identity-Aware Proxy's tunnel
    service_account: str = ""
    labels: str = ""  # key=value,key=value
    create_flags: tuple[str, ...] = ()  # further flags of gcloud's create
    ssh_flags: tuple[str, ...] = ()  # further flags of gcloud's ssh and scp
    source: str = "."  # the checkout that is copied to the workers
    corpus: str = ""  # gs://..., copied to each worker's disk as ~/corpus
    data: str = ""  # gs://..., the tasks' files, copied to each worker's disk as ~/data
    env: tuple[str, ...] = ()  # NAME=VALUE of the run: XLA_FLAGS, LIBTPU_INIT_ARGS
    command: str = ""  # the flags of python -m bert_jax: --config=... --workdir=gs://...
    worker: str = "all"  # whose log `logs` follows

    def __post_init__(self) -> None:
        require(self.zone, "a slice needs --name and --zone")
        name = r"[a-z]([-a-z0-9]{0,60}[a-z0-9])?"
        require(re.fullmatch(name, self.name), f"--name is of a-z, 0-9 and -, and begins with a-z: not {self.name!r}")
        generation = topologies.parse(self.topology).generation
        require(
            generation.runtime,
            f"{generation.name} is not on the TPU API, which this launcher uses: take Compute Engine or GKE, as "
            "scripts/tpu/README.md says",
        )
        require(self.node_count > 0, f"--node_count is the number of slices, not {self.node_count}")
        kinds = [self.spot, self.reserved, bool(self.flex_start)]
        require(kinds.count(True) <= 1, "choose one of --spot, --reserved and --flex_start")
        require(not self.flex_start or generation.flex_start, f"{generation.name} is not sold with --flex_start")
        for folder, flag in ((self.corpus, "--corpus"), (self.data, "--data")):
            require(not folder or folder.startswith("gs://"), f"{flag}=gs://BUCKET/FOLDER, not {folder!r}")
        for pair in self.env:
            require(re.match(r"[A-Za-z_]\w*=", pair), f"--env=NAME=VALUE, not {pair!r}")
        require(re.fullmatch(r"all|\d+", self.worker), f"--worker is a number or all, not {self.worker!r}")

    @property
    def where(self) -> str:
        """The flags that every command has."""
        return f"--zone={shlex.quote(self.zone)} --quiet" + _flag("--project", self.project)


def _flag(name: str, value: str) -> str:
    """A flag with a space before it, or nothing."""
    return f" {name}={shlex.quote(value)}" if value else ""


def state(slice: Slice) -> list[str]:
    """Prints the state of the request, ACTIVE once the slice is there, and why it failed if it did."""
    fields = "value(state.state,state.failedData.error.message)"
    return [f"gcloud compute tpus queued-resources describe {slice.name} {slice.where} --format='{fields}'"]


def create(slice: Slice) -> list[str]:
    """Queues a request for the slice; that there is one already (ALREADY_EXISTS) is no failure."""
    pod = topologies.parse(slice.topology)
    track = "alpha " if slice.flex_start else ""  # the other tracks have no provisioning model
    kind = f"--accelerator-type={pod.accelerator}"
    if not pod.exact:
        kind = f"--type={pod.generation.prefix} --topology={str(pod).partition(':')[2]}"
    nodes = f"--node-id={slice.name}"
    if slice.node_count > 1:
        nodes = f"--node-count={slice.node_count} --node-prefix={slice.name}"
    line = (
        f"gcloud {track}compute tpus queued-resources create {slice.name} {nodes} {slice.where} {kind} "
        f"--runtime-version={pod.generation.runtime}"
    )
    line += " --spot" if slice.spot else ""
    line += " --reserved" if slice.reserved else ""
    if slice.flex_start:
        line += " --provisioning-model=flex-start" + _flag("--max-run-duration", slice.flex_start)
    line += _flag("--network", slice.network) + _flag("--subnetwork", slice.subnetwork)
    line += " --internal-ips" if slice.internal_ips else ""
    line += _flag("--service-account", slice.service_account) + _flag("--labels", slice.labels)
    return [line + "".join(f" {shlex.quote(flag)}" for flag in slice.create_flags)]


def _reach(slice: Slice, kind: str) -> str:
    """How ssh or scp, the kind, reach the workers."""
    line = f"{slice.where} --strict-host-key-checking=no"
    line += "".join(f" --{kind}-flag={shlex.quote('-o ' + option)}" for option in _SSH)
    if slice.iap:
        line += " --tunnel-through-iap"
    elif slice.internal_ips:
        line += " --internal-ip"
    return line + "".join(f" {shlex.quote(flag)}" for flag in slice.ssh_flags)


def on_workers(slice: Slice, command: str, node: str = "all", worker: str = "all") -> str:
    """A command in the shell of one worker, or of all workers of all slices."""
    return (
        f"gcloud compute tpus queued-resources ssh {slice.name} --node={node} --worker={worker} "
        f"{_reach(slice, 'ssh')} --command={shlex.quote(command)}"
    )


def install(slice: Slice) -> list[str]:
    """Copies the checkout's last commit to all workers and installs the pinned environment there.

    The machines' own Python is 3.10, too old for this package: uv brings another, and skips what is there.
    """
    archive = f"/tmp/{slice.name}.tar.gz"
    python = ".venv/bin/python"
    recent = f"{python} -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null"
    commands = [
        "mkdir -p ~/bert_jax && tar -xzf ~/bert_jax.tar.gz -C ~/bert_jax",
        "python3 -m pip install --user --quiet uv",
        f"cd ~/bert_jax && ({recent} || python3 -m uv venv --quiet --clear --python 3.12 .venv)",
        f"cd ~/bert_jax && python3 -m uv pip install --quiet --python {python} --constraint constraints.txt "
        "--editable '.[tpu]'",
    ]
    return [
        f"git -C {shlex.quote(slice.source)} archive --format=tar.gz --output={archive} HEAD",
        f"gcloud compute tpus queued-resources scp {archive} {slice.name}:bert_jax.tar.gz --node=all --worker=all "
        f"{_reach(slice, 'scp')}",
        *(on_workers(slice, command) for command in commands),
    ]


def uncommitted(slice: Slice) -> str:
    """A warning where the checkout holds what its last commit does not, which is not copied; else ""."""
    status = ["git", "-C", slice.source, "status", "--porcelain"]
    changes = subprocess.run(status, capture_output=True, text=True).stdout.splitlines()
    if not changes:
        return ""
    names = ", ".join(line[3:] for line in changes[:5]) + (", ..." if len(changes) > 5 else "")
    return f"warning: {slice.source} has uncommitted changes, which are not copied to the workers: {names}"


def copy_data(slice: Slice) -> list[str]:
    """Copies corpus and data from their buckets to each worker's disk; files that are there are not read again."""
    folders = [(slice.corpus, "~/corpus"), (slice.data, "~/data")]
    rsync = "gcloud storage rsync --recursive --quiet"
    return [
        on_workers(slice, f"mkdir -p {to} && {rsync} {shlex.quote(bucket)} {to}") for bucket, to in folders if bucket
    ]


def start(slice: Slice) -> list[str]:
    """Starts the run on all workers, unless it is running; the same command goes on where an earlier one stopped."""
    require(slice.command, "what shall run? --command='--config=... --workdir=gs://...'")
    named = re.search(r"(?:^|\s)--?workdir[= ]['\"]?(\S*)", slice.command)
    require(
        named is not None and named[1].startswith(("gs://", "/")),
        f"--workdir={named[1] if named else ''}: all workers write to the workdir, and a slice that was taken away "
        "comes back empty: name one in a bucket, gs://..., or the absolute path of a file system that they share",
    )
    flags = slice.command
    flags += " --config.task.corpus=$HOME/corpus" if slice.corpus else ""
    flags += " --data_dir=$HOME/data" if slice.data else ""
    if slice.node_count > 1 and "mesh.slices" not in slice.command:
        flags += f" --config.mesh.slices={slice.node_count}"
    environment = "".join(f"{shlex.quote(pair)} " for pair in slice.env)
    run = (
        f"(trap '' HUP; env {environment}.venv/bin/python -m bert_jax --multihost {flags}; echo $? >run.status) "
        ">>run.log 2>&1 </dev/null & echo $! >run.pid"
    )
    return [on_workers(slice, f"cd ~/bert_jax && ({_ALIVE} || (rm -f run.status; {run}))")]


def status(slice: Slice) -> list[str]:
    """Prints a word for each worker: running, the run's exit status, none (no run), missing (nothing is installed)."""
    word = (
        "cd ~/bert_jax 2>/dev/null && test -x .venv/bin/python || { echo missing; exit 0; }; "
        f"if {_ALIVE}; then echo running; elif test -s run.status; then cat run.status; else echo none; fi"
    )
    return [on_workers(slice, word)]


def logs(slice: Slice) -> list[str]:
    """Follows the logs of all workers, or of the one that is asked for, each line after its machine's name."""
    follow = 'tail -n 50 -F ~/bert_jax/run.log | sed -u "s/^/$(hostname): /"'
    return [on_workers(slice, follow, worker=slice.worker)]


def failures(slice: Slice) -> list[str]:
    """Prints the end of the logs of the workers whose run failed."""
    tail = (
        "cd ~/bert_jax && s=$(cat run.status 2>/dev/null || echo 0) && case $s in 0|143) ;; "
        '*) tail -n 20 run.log | sed "s/^/$(hostname): /";; esac'
    )
    return [on_workers(slice, tail)]


def stop(slice: Slice) -> list[str]:
    """SIGTERM to the run on all workers: they write a checkpoint at a common step, and end."""
    return [on_workers(slice, f"cd ~/bert_jax && {_ALIVE} && pkill -TERM --parent $(cat run.pid) || true")]


def collect(slice: Slice) -> list[str]:
    """Copies the logs of all workers into a folder here, NAME-logs; the workdir lies in its bucket."""
    folder = f"{slice.name}-logs"
    return [
        f"mkdir -p {folder}",
        f"{on_workers(slice, 'cat ~/bert_jax/run.log')} --output-directory={folder}",
    ]


def delete(slice: Slice) -> list[str]:
    """Deletes the slice and its request; that there are none (NOT_FOUND) is no failure."""
    return [f"gcloud compute tpus queued-resources delete {slice.name} {slice.where} --force"]


ACTIONS: dict[str, Callable[[Slice], list[str]]] = {
    "create": create,
    "state": state,
    "install": install,
    "data": copy_data,
    "start": start,
    "status": status,
    "logs": logs,
    "failures": failures,
    "stop": stop,
    "collect": collect,
    "delete": delete,
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command said."""

    command: str
    status: int
    out: str = ""
    err: str = ""

    @property
    def code(self) -> str:
        """The code of gcloud's own error, such as NOT_FOUND or UNAVAILABLE; "" where it named none."""
        for message in _ERROR.findall(self.err):
            match = re.match(r"([A-Z_]+):", message)
            if match:
                return match[1]
        return ""

    @property
    def fine(self) -> bool:
        """Whether it did what it should, or that was done already."""
        done = {"create": "ALREADY_EXISTS", "delete": GONE}
        action = re.match(r"gcloud (?:alpha )?compute tpus queued-resources (\w+)", self.command)
        return self.status == 0 or bool(action and done.get(action[1]) == self.code != "")

    @property
    def unreachable(self) -> bool:
        """Whether gcloud or ssh failed, which says nothing on what was to be done."""
        own = _ERROR.search(self.err) or "ERROR: gcloud crashed" in self.err
        return self.status == 255 or (self.status != 0 and bool(own))

    @property
    def reason(self) -> str:
        """A line on why it failed."""
        lines = _ERROR.findall(self.err) or self.err.split("\n")
        said = next((line.strip() for line in lines if line.strip()), "it said nothing")
        return f"{_short(self.command)} failed with status {self.status}: {said}"


def _short(command: str) -> str:
    """The beginning of a command, for a line."""
    words = [word for word in command.split() if not word.startswith("-")]
    return " ".join(words[:5])


def run(command: str, *, quiet: bool = True) -> Answer:
    """Runs a command. Its output is shown as it comes, but for what is `quiet`."""
    process = subprocess.Popen(
        shlex.split(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    out, err = process.communicate()
    if not quiet:
        sys.stderr.write(err)
    return Answer(command, process.returncode, out or "", err)


def run_all(commands: list[str], *, quiet: bool = False) -> Answer:
    """Runs commands up to the first that fails, and gives the last one's answer.

    Raises:
      OSError: where there is no gcloud.
    """
    answer = Answer("", 0)
    for command in commands:
        answer = run(command, quiet=quiet)
        if not answer.fine:
            break
    return answer


def request(slice: Slice) -> tuple[str, str]:
    """The state of the request, and what is to be said on it. "" where gcloud failed, which says nothing on the slice.

    NOT_FOUND counts only where it is the request that was not found: a zone or a project that has a typing error, or an
    account without its rights, is told by the same code.
    """
    answer = run(state(slice)[0])
    if answer.status == 0:
        words = answer.out.split(maxsplit=1)
        return (words[0], words[1].strip() if len(words) > 1 else "") if words else ("", "gcloud printed no state")
    resource = re.search(r"[Rr]esource '([^']*)'", answer.err)
    mine = resource is None or resource[1].endswith(f"/queuedResources/{slice.name}")
    return (GONE, "") if answer.code == GONE and mine else ("", answer.reason)


class _Teller:
    """Says a line with the time when something new is to be said, and what stays so every ten minutes."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._say, self._clock = say, clock
        self._text, self._since, self._said = "", clock(), clock()

    def __call__(self, text: str) -> None:
        now = self._clock()
        if text != self._text:
            self._text, self._since = text, now
        elif now - self._said < 600:
            return
        self._said = now
        minutes = (now - self._since) / 60
        lasting = f" for {minutes:.0f} minutes" if minutes >= 1 else ""
        self._say(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}{lasting}")


def supervise(
    slice: Slice,
    *,
    seconds: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Keeps the run going until it is done: after a preemption the slice is made anew, filled and started again.

    A request is deleted only after `AGREE` answers in a row that it is dead, and made only after as many that there is
    none; an answer that is missing or garbled, and an ssh that fails, are waited out. The run itself resumes from its
    last checkpoint; it is done once it has ended with success on all workers.

    Raises:
      RuntimeError: the run or its installation failed `TRIES` times on one slice, which is left as it is; or the
        request was refused, or failed as often.
    """
    tell = _Teller(say, clock)
    warning = uncommitted(slice)
    if warning:
        say(warning)
    last, agreeing = "", 0  # the request's state, and how often in a row it was answered
    filled = False  # what is on the workers is not known yet
    failed = 0  # of the run and its installation, since the slice was made or the run was steady
    refused = 0  # requests that FAILED one after the other
    steady = 0  # looks in a row at which the run was running

    def failure(what: str, lines: list[str]) -> None:
        nonlocal failed
        failed += 1
        tell("\n".join([f"{slice.name}: {what} (failure {failed} of {TRIES})", *lines[-SHOWN:]]))
        if failed == TRIES:
            raise RuntimeError(
                f"{what}: the {failed}th failure on this slice, which is still there: read the logs (failures, logs, "
                "collect), then supervise or delete"
            )

    def attempt(commands: list[str]) -> bool:
        answer = run_all(commands, quiet=True)
        if not answer.fine and answer.unreachable:
            tell(f"{slice.name}: {answer.reason}")
        elif not answer.fine:
            failure(answer.reason, (answer.out + answer.err).splitlines())
        return answer.fine

    while True:
        found, note = request(slice)
        last, agreeing = found, agreeing + 1 if found == last else 1
        if found != READY:
            tell(f"{slice.name}: {found or 'state unknown'}" + (f" ({note})" if note else ""))
        if found in (*DEAD, GONE) and agreeing >= AGREE:
            refused += found == "FAILED"
            if refused >= TRIES:
                raise RuntimeError(f"{slice.name}: the request FAILED {refused} times: {note or 'no reason is given'}")
            answer = run_all([*(delete(slice) if found in DEAD else []), *create(slice)], quiet=True)
            if not answer.fine and (answer.status == 2 or _REFUSED.search(answer.err)):
                raise RuntimeError(f"{slice.name}: {answer.reason}")
            tell(f"{slice.name}: {'requested' if answer.fine else answer.reason}")
            filled, failed, steady, agreeing = False, 0, 0, 0
        elif found == READY:
            refused = 0
            answer = run(status(slice)[0])
            words = set(answer.out.split())
            if answer.status != 0 or not words:
                tell(f"{slice.name}: {answer.reason}")
            elif "running" in words:
                # Others may have ended already, which this one follows within minutes (hosts.py), or not have begun.
                steady += 1
                failed = 0 if steady >= STEADY else failed
                filled = filled or words == {"running"}
                others = " ".join(sorted(words - {"running"}))
                tell(f"{slice.name}: running" + (f" (other workers: {others})" if others else ""))
                if filled and "none" in words:
                    attempt(start(slice))
            elif filled and words == {"0"}:
                tell(f"{slice.name}: done")
                return
            else:
                steady = 0
                bad = sorted(words - {"0", STOPPED, "none", "missing"})
                if filled and bad:
                    failure(f"the run ended with status {', '.join(bad)}", run(failures(slice)[0]).out.splitlines())
                if not filled or "missing" in words:
                    tell(f"{slice.name}: installing")
                    filled = attempt([*install(slice), *copy_data(slice)])
                if filled and attempt(start(slice)):
                    tell(f"{slice.name}: started")
        # Where an answer is to be confirmed, it is asked for again soon.
        sleep(seconds / 4 if found in (*DEAD, GONE) and agreeing > 0 else seconds)
