"""The gcloud commands, as text; and a supervisor of a simulated cloud, asked through a fake `gcloud` on the PATH."""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable

import pytest
from packaging.requirements import Requirement

from bert_jax.tpu import launch
from tests.conftest import REPOSITORY

SLICE = launch.Slice(
    "bert", "us-west4-a", "v5e:4x4", spot=True, corpus="gs://b/corpus", command="--config=e.py --workdir=gs://b/run"
)


def change(**changes: object) -> launch.Slice:
    return dataclasses.replace(SLICE, **changes)


def test_what_cannot_be_launched_is_refused() -> None:
    wrong = {
        "no TPU is called 'v5': did you mean": {"topology": "v5:4x4"},
        r"nobody sells v5e:3x5: the nearest are v5e:4x4 \(v5litepod-16\)": {"topology": "v5e:3x5"},
        r"nobody sells v4:4x4: the nearest are v4:2x2x4": {"topology": "v4:4x4"},
        "tpu7x is not on the TPU API.*Compute Engine or GKE": {"topology": "tpu7x:2x2x1"},
        "needs --name and --zone": {"zone": ""},
        "begins with a-z: not 'a; rm'": {"name": "a; rm"},
        "choose one of --spot": {"reserved": True},
        "v4 is not sold with --flex_start": {"topology": "v4:2x2x1", "spot": False, "flex_start": "4h"},
        "--data=gs://BUCKET/FOLDER, not 'glue'": {"data": "glue"},
        "--env=NAME=VALUE, not 'XLA_FLAGS'": {"env": ("XLA_FLAGS",)},
        "--node_count is the number of slices, not 0": {"node_count": 0},
    }
    for message, changes in wrong.items():
        with pytest.raises(ValueError, match=message):
            change(**changes)


@pytest.mark.parametrize("workdir", ["--workdir=run", "--workdir ~/run", "--workdir=", ""])
def test_a_workdir_that_the_workers_do_not_share_is_refused(workdir: str) -> None:
    with pytest.raises(ValueError, match="all workers write to the workdir"):
        launch.start(change(command=f"--config=a.py {workdir}"))
    for shared in ("--workdir=gs://bucket/run", "--workdir gs://bucket/run", "--workdir='/nfs/a b'"):
        assert shared in launch.start(change(command=f"--config=a.py {shared}"))[0].replace("'\"'\"'", "'")


def test_a_slice_is_asked_for() -> None:
    begins = "gcloud compute tpus queued-resources create bert"
    assert launch.create(SLICE) == [
        f"{begins} --node-id=bert --zone=us-west4-a --quiet --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot"
    ]
    several = change(node_count=2, topology="v5litepod-16", spot=False, reserved=True, internal_ips=True, labels="a=b")
    network = {"network": "n", "subnetwork": "s", "service_account": "x@y", "create_flags": ("--tags=a b",)}
    assert launch.create(dataclasses.replace(several, **network)) == [
        f"{begins} --node-count=2 --node-prefix=bert --zone=us-west4-a --quiet --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --reserved --network=n --subnetwork=s --internal-ips "
        "--service-account=x@y --labels=a=b '--tags=a b'"
    ]
    (line,) = launch.create(change(spot=False, flex_start="4h"))
    assert line.startswith("gcloud alpha compute tpus queued-resources create bert ")
    assert line.endswith(" --provisioning-model=flex-start --max-run-duration=4h")


def test_a_shape_is_asked_for_exactly() -> None:
    """Both are v4-512."""
    for shape in ("4x4x16", "4x8x8"):
        (line,) = launch.create(change(topology=f"v4:{shape}"))
        assert f" --type=v4 --topology={shape} " in line
        assert "accelerator-type" not in line


def test_workers_are_reached_without_questions() -> None:
    """At first contact too, and through whatever lies between; what hangs ends."""
    for action in ("install", "start", "status", "logs", "stop", "collect"):
        for command in launch.ACTIONS[action](change(iap=True, ssh_flags=("--ssh-key-file=k",))):
            words = shlex.split(command)
            if words[4:5] in (["ssh"], ["scp"]):
                wanted = {"--quiet", "--strict-host-key-checking=no", "--tunnel-through-iap", "--ssh-key-file=k"}
                assert wanted <= set(words)
                assert {"--node=all", "--worker=all"} <= set(words)
                assert f"--{words[4]}-flag=-o ServerAliveInterval=30" in words
    assert "--internal-ip " in launch.status(change(internal_ips=True))[0]
    assert "--worker=3 " in launch.logs(change(worker="3"))[0]


def remote(command: str) -> str:
    """What a command runs on the workers."""
    (text,) = [word.removeprefix("--command=") for word in shlex.split(command) if word.startswith("--command=")]
    return text


def test_the_run_starts_on_all_workers_unless_it_runs() -> None:
    (line,) = launch.start(SLICE)
    assert remote(line) == (
        "cd ~/bert_jax && (grep -qs bert_jax /proc/$(cat run.pid 2>/dev/null)/cmdline || (rm -f run.status; "
        "(trap '' HUP; env .venv/bin/python -m bert_jax --multihost --config=e.py --workdir=gs://b/run "
        "--config.task.corpus=$HOME/corpus; echo $? >run.status) >>run.log 2>&1 </dev/null & echo $! >run.pid))"
    )
    with pytest.raises(ValueError, match="what shall run"):
        launch.start(change(command=""))
    text = remote(launch.start(change(env=("LIBTPU_INIT_ARGS=--a --b=c",), data="gs://b/glue", node_count=2))[0])
    assert "env 'LIBTPU_INIT_ARGS=--a --b=c' .venv/bin/python" in text
    assert " --data_dir=$HOME/data " in text
    assert " --config.mesh.slices=2;" in text
    slices = change(node_count=2, command="--config=e.py --workdir=gs://b/run --config.mesh.slices=4")
    assert "mesh.slices=2" not in launch.start(slices)[0]


def test_corpus_and_data_are_copied() -> None:
    assert [remote(line) for line in launch.copy_data(change(data="gs://b/my glue"))] == [
        "mkdir -p ~/corpus && gcloud storage rsync --recursive --quiet gs://b/corpus ~/corpus",
        "mkdir -p ~/data && gcloud storage rsync --recursive --quiet 'gs://b/my glue' ~/data",
    ]
    assert launch.copy_data(change(corpus="")) == []


def test_the_environment_has_a_python_that_the_package_takes() -> None:
    """The machines' python3 is 3.10; it may run pip and uv. The environment is uv's, of a version that we support."""
    project = (REPOSITORY / "pyproject.toml").read_text()
    (lowest,) = re.findall(r'requires-python = ">=3\.(\d+)', project)
    text = "\n".join(remote(line) for line in launch.install(SLICE) if "--command" in line)
    assert set(re.findall(r"(?<![/\w])python3 -m (\w+ ?\w*)", text)) == {"pip install", "uv venv", "uv pip"}
    assert "python3 -m pip install --user --quiet uv\n" in text
    (version,) = re.findall(r"uv venv .*--python 3\.(\d+) \.venv", text)
    assert int(version) >= int(lowest)
    assert f"version_info < (3, {version})" in text  # an environment of another Python is made anew
    assert "--python .venv/bin/python --constraint constraints.txt --editable '.[tpu]'" in text


@pytest.mark.parametrize("action", [*launch.ACTIONS])
def test_every_command_is_one_and_shell(action: str) -> None:
    """It runs without a shell here; what runs on the workers is a shell's."""
    for line in launch.ACTIONS[action](change(data="gs://b/glue", env=("A=b c",))):
        words = shlex.split(line)
        assert words[0] in ("gcloud", "git", "mkdir")
        if any(word.startswith("--command=") for word in words):
            subprocess.run(["bash", "-n", "-c", remote(line)], check=True)


def test_uncommitted_changes_are_said(tmp_path: pathlib.Path) -> None:
    def git(*words: str) -> None:
        me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *me, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "a")
    assert launch.uncommitted(change(source=str(tmp_path))) == ""
    (tmp_path / "a.py").write_text("2\n")
    assert "uncommitted changes, which are not copied to the workers: a.py" in launch.uncommitted(
        change(source=str(tmp_path))
    )


def test_what_starts_is_started_once_and_leaves_its_status(tmp_path: pathlib.Path) -> None:
    """The workers' half of start, status, failures, stop, run here: a second start leaves the first process alone."""
    home = tmp_path / "bert_jax"
    python = home / ".venv" / "bin" / "python"

    def on_worker(action: Callable[[launch.Slice], list[str]]) -> str:
        (line,) = action(SLICE)
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        command = ["bash", "-c", remote(line)]
        done = subprocess.run(command, env=environment, check=True, timeout=20, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    def wait_for(name: str) -> str:
        subprocess.run(["bash", "-c", f"for i in {{1..200}}; do [ -s {name} ] && break; sleep 0.1; done"], cwd=home)
        return (home / name).read_text()

    def wait_for_the_end() -> None:
        for _ in range(200):
            if on_worker(launch.status) != "running":
                return
            subprocess.run(["sleep", "0.1"], check=True)

    assert on_worker(launch.status) == "missing"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\ntrap 'exit 143' TERM\necho started\n[ -e fail ] && exit 1\nsleep 30 & wait\n")
    python.chmod(0o755)
    assert on_worker(launch.status) == "none"
    on_worker(launch.start)
    assert wait_for("run.log") == "started\n"
    on_worker(launch.start)
    assert not (home / "run.status").exists()
    assert on_worker(launch.status) == "running"
    on_worker(launch.stop)
    assert wait_for("run.status") == "143\n"
    assert wait_for("run.log") == "started\n"
    wait_for_the_end()
    assert on_worker(launch.status) == "143"
    assert on_worker(launch.failures) == ""
    (home / "fail").touch()
    on_worker(launch.start)
    assert wait_for("run.status") == "1\n"  # and not of the earlier run
    wait_for_the_end()
    assert on_worker(launch.failures).endswith(": started")
    # After a restart of the machine the number may be another process's: that is not the run, and is not stopped.
    other = subprocess.Popen(["sleep", "30"])
    (home / "run.pid").write_text(f"{os.getpid()}\n")
    (home / "run.status").unlink()
    assert on_worker(launch.status) == "none"
    on_worker(launch.stop)
    assert other.poll() is None
    other.kill()


# A cloud whose projects are folders: `truth` is the request's state, `fault` what goes wrong with questions on it,
# `ssh` how many connections go well, `run` the workers' status. Texts and exit statuses are those of the real one.
GCLOUD = """#!/bin/sh
for word; do case $word in
describe|create|delete|ssh|scp) verb=${verb:-$word};;
--project=*) cd "$CLOUD/${word#*=}" || exit 9;;
esac; done
read -r truth < truth
error() { echo "ERROR: (gcloud.compute.tpus.queued-resources.$verb) $1" >&2; exit 1; }
me=projects/p/locations/us-west4-a/queuedResources/bert
missing() {
    echo "ERROR: (gcloud.compute.tpus.queued-resources.$verb) NOT_FOUND: Resource '$1' was not found. This command is \\
authenticated as me@example.org which is the active account specified by the [core/account] property" >&2
    echo "- '@type': type.googleapis.com/google.rpc.ResourceInfo" >&2
    echo "  resourceName: $1" >&2
    exit 1
}
case $verb in
describe)
    read -r fault < fault
    case $fault in
    none) [ "$truth" = NONE ] && missing $me; printf '%s\\t%s\\n' "$truth" "";;
    crash) echo "ERROR: gcloud crashed (TransportError): HTTPSConnectionPool(host='tpu.googleapis.com', port=443)" >&2
        exit 1;;
    login) echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) There was a problem refreshing your current \\
auth tokens: Unable to find the server at oauth2.googleapis.com" >&2; exit 1;;
    zone) missing projects/p/locations/us-west4-a;;
    empty) ;;
    killed) exit 137;;
    lost) missing $me;;
    UNAVAILABLE) error "UNAVAILABLE: The service is currently unavailable.";;
    PERMISSION_DENIED) error "PERMISSION_DENIED: Permission 'tpu.queuedResources.get' denied on '$me'";;
    *) printf '%s\\t%s\\n' "$fault" "";;
    esac;;
create)
    echo "create $truth" >> calls
    [ "$truth" = NONE ] || error "ALREADY_EXISTS: Resource '$me' already exists."
    [ -e refuse ] && error "INVALID_ARGUMENT: Cloud TPU received an invalid argument."
    echo ACCEPTED > truth; echo missing > run;;
delete)
    echo "delete $truth" >> calls
    [ "$truth" = NONE ] && missing $me
    echo DELETING > truth;;
ssh|scp)
    [ "$truth" = ACTIVE ] || missing projects/p/locations/us-west4-a/nodes/bert
    read -r left < ssh
    [ "$left" = 0 ] && { echo "ERROR: (gcloud.compute.tpus.queued-resources.$verb) [/usr/bin/$verb] exited with \\
return code [255]." >&2; exit 255; }
    echo $((left - 1)) > ssh
    case "$*" in
    *"echo missing"*) while read -r line; do echo "$line"; done < run;;
    *"uv pip install"*) echo install >> calls
        [ -e broken ] && { echo "ResolutionImpossible" >&2; exit 1; }
        echo none > run;;
    *"-m bert_jax"*) echo start >> calls; read -r end < next; echo "$end" > run;;
    *"tail -n 20"*) echo "w-0: ValueError: the corpus is empty";;
    esac;;
esac
"""


@dataclasses.dataclass
class Cloud:
    """A project of the cloud: its folder, and a slice in it."""

    folder: pathlib.Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        for name, text in {"truth": "NONE", "fault": "none", "ssh": "-1", "run": "missing", "next": "running"}.items():
            self.set(name, text)
        self.set("calls", "")

    @property
    def slice(self) -> launch.Slice:
        return change(project=self.folder.name)

    def get(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    def set(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text + "\n")

    @property
    def calls(self) -> list[str]:
        return self.get("calls").splitlines()


@pytest.fixture
def projects(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of all projects, with the fake gcloud (and a git that does nothing) first on the PATH."""
    for name, text in {"gcloud": GCLOUD, "git": "#!/bin/sh\n"}.items():
        program = tmp_path / name
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("CLOUD", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def cloud(projects: pathlib.Path) -> Cloud:
    return Cloud(projects / "p")


def supervised(cloud: Cloud, *rounds: dict[str, str]) -> list[str]:
    """What a supervisor says while the cloud's files change so, round after round."""
    left, said = iter(rounds), []

    def sleep(_: float) -> None:
        for name, text in next(left).items():
            cloud.set(name, text)

    launch.supervise(cloud.slice, sleep=sleep, say=said.append)
    return said


ARRIVES = ({}, {}, {"truth": "WAITING_FOR_RESOURCES"}, {"truth": "PROVISIONING"}, {"truth": "ACTIVE"})


def test_a_preempted_slice_is_made_anew_and_filled(cloud: Cloud) -> None:
    preempted = ({}, {"truth": "SUSPENDING"}, {"truth": "SUSPENDED", "run": "missing"}, {}, {})
    anew = ({"truth": "NONE"}, *ARRIVES)
    said = supervised(cloud, *ARRIVES, *preempted, *anew, {}, {"run": "0\n0"})
    filled = ["install", "start"]
    assert cloud.calls == ["create NONE", *filled, "delete SUSPENDED", "create DELETING", "create NONE", *filled]
    assert [re.sub(r"^[\d: -]+|bert: ", "", line) for line in said] == [
        *("NOT_FOUND", "requested", "WAITING_FOR_RESOURCES", "PROVISIONING", "installing", "started", "running"),
        *("SUSPENDING", "SUSPENDED", "requested", "NOT_FOUND", "requested", "WAITING_FOR_RESOURCES", "PROVISIONING"),
        *("installing", "started", "running", "done"),
    ]


def test_the_status_of_an_earlier_run_ends_nothing(cloud: Cloud) -> None:
    cloud.set("truth", "ACTIVE")
    cloud.set("run", "0")
    supervised(cloud, {"run": "0"})
    assert cloud.calls == ["install", "start"]


def test_a_run_that_runs_is_left_alone(cloud: Cloud) -> None:
    """The supervisor itself may be started anew."""
    cloud.set("truth", "ACTIVE")
    cloud.set("run", "running\nrunning")
    supervised(cloud, {}, {"run": "0\n0"})
    assert cloud.calls == []


def test_a_run_that_fails_shows_its_log_and_is_given_up(cloud: Cloud) -> None:
    for name, text in {"truth": "ACTIVE", "next": "1"}.items():
        cloud.set(name, text)
    said: list[str] = []
    with pytest.raises(RuntimeError, match=r"ended with status 1: the 5th failure on this slice, which is still there"):
        launch.supervise(cloud.slice, sleep=lambda _: None, say=said.append)
    assert "the run ended with status 1 (failure 1 of 5)\nw-0: ValueError: the corpus is empty" in "\n".join(said)
    assert cloud.calls == ["install", *["start"] * 5]


def test_failures_of_a_steady_run_are_forgotten(cloud: Cloud) -> None:
    """Lost hosts end a run too: over days that happens more often than a run that cannot work is tried."""
    cloud.set("truth", "ACTIVE")
    lost = ({"run": "1"}, *[{}] * launch.STEADY)
    supervised(cloud, *lost * 7, {"run": "0"})
    assert cloud.calls == ["install", *["start"] * 8]


def test_an_installation_that_fails_is_given_up(cloud: Cloud) -> None:
    cloud.set("truth", "ACTIVE")
    cloud.set("broken", "")
    said: list[str] = []
    with pytest.raises(RuntimeError, match="failed with status 1: ResolutionImpossible: the 5th failure"):
        launch.supervise(cloud.slice, sleep=lambda _: None, say=said.append)


def test_a_request_that_is_refused_ends_it(cloud: Cloud) -> None:
    cloud.set("refuse", "")
    with pytest.raises(RuntimeError, match="INVALID_ARGUMENT: Cloud TPU received an invalid argument"):
        launch.supervise(cloud.slice, sleep=lambda _: None, say=lambda _: None)
    assert cloud.calls == ["create NONE"]


def test_waiting_is_said_with_its_time(cloud: Cloud) -> None:
    cloud.set("truth", "WAITING_FOR_RESOURCES")
    said: list[str] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 3600:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        launch.supervise(cloud.slice, sleep=sleep, say=said.append, clock=lambda: now)
    assert len(said) == 7  # at once, and every ten minutes
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d bert: WAITING_FOR_RESOURCES for 60 minutes", said[-1])


@pytest.mark.parametrize("what", ["delete", "create", "state"])
def test_actions_that_were_done_are_fine_and_failures_are_said(cloud: Cloud, what: str) -> None:
    """`delete` after a failed question for the slice would leave it there, to be paid for."""
    flags = ["--name=bert", "--zone=us-west4-a", "--topology=v5e:4x4", "--spot", "--project=p"]

    def action() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "scripts/tpu/launch.py", what, *flags]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    if what == "state":
        cloud.set("fault", "crash")
        said = action()
        assert (said.returncode, "gcloud crashed" in said.stderr) == (1, True)
        return
    cloud.set("truth", "ACTIVE")
    cloud.set("fault", "crash")
    assert action().returncode == 0
    assert cloud.get("truth") == {"delete": "DELETING", "create": "ACTIVE"}[what]
    cloud.set("truth", "NONE")
    assert action().returncode == 0


def life(cloud: Cloud, seed: int) -> Callable[[float], None]:
    """The `sleep` of a supervisor in whose sleep the cloud lives on: random changes, errors and wrong answers."""
    rng = random.Random(seed)
    errors = ["crash", "login", "zone", "empty", "killed", "UNAVAILABLE", "PERMISSION_DENIED"]
    wrong = ["lost", "SUSPENDED", "FAILED", "SUSPENDING", "PROVISIONING", "STATE_UNSPECIFIED"]
    path = {
        "ACCEPTED": ["WAITING_FOR_RESOURCES"],
        "WAITING_FOR_RESOURCES": ["PROVISIONING", "FAILED"],
        "PROVISIONING": ["ACTIVE", "ACTIVE", "FAILED"],
        "SUSPENDING": ["SUSPENDED"],
        "DELETING": ["NONE"],
    }
    turns, lies = 0, 0
    cloud.set("truth", rng.choice([*path, "NONE", "ACTIVE", "SUSPENDED", "FAILED"]))

    def sleep(_: float) -> None:
        nonlocal turns, lies
        turns += 1
        truth, calm = cloud.get("truth"), turns > 7  # then all goes well, so that each life has an end
        if truth in path:
            cloud.set("truth", path[truth][0] if calm else rng.choice(path[truth]))
        elif truth == "ACTIVE" and not calm and rng.random() < 0.15:
            cloud.set("truth", "SUSPENDING")
        elif truth == "ACTIVE" and "running" in cloud.get("run") and (calm or rng.random() < 0.3):
            cloud.set(
                "run", "0" if calm else rng.choice(["0\n0", "1", "143", "none", "running\n1", "missing\nrunning"])
            )
        fault = "none" if calm or rng.random() < 0.4 else rng.choice([*errors, *wrong])
        lies = lies + 1 if fault in wrong else 0
        if lies == 3:  # more wrong answers in a row than anybody could tell from right ones
            fault, lies = "UNAVAILABLE", 0
        cloud.set("fault", fault)
        cloud.set("ssh", "-1" if calm or rng.random() < 0.6 else str(rng.randrange(8)))

    return sleep


def test_no_random_answers_delete_a_healthy_slice(projects: pathlib.Path) -> None:
    """200 random sequences of answers of gcloud and ssh: what is deleted is dead, and every run comes to its end."""

    def live(seed: int) -> list[str]:
        cloud = Cloud(projects / f"life-{seed}")
        launch.supervise(cloud.slice, sleep=life(cloud, seed), say=lambda _: None)
        assert cloud.get("truth") == "ACTIVE"
        return cloud.calls

    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # which wait for processes
        calls = collections.Counter(call for calls in pool.map(live, range(200)) for call in calls)
    assert {call for call in calls if call.startswith("delete")} == {"delete SUSPENDED", "delete FAILED"}
    assert calls["create NONE"] > 50


def test_dry_run_prints_the_commands() -> None:
    flags = ["--name=bert", "--zone=us-west4-a", "--topology=v5litepod-16", "--dry_run", "--env=A=b", "--env=C=d"]
    more = ["--corpus=gs://b/corpus", "--command=--config=e.py --workdir=gs://b/run", "--spot"]
    command = [sys.executable, "scripts/tpu/launch.py", "supervise", *flags, *more]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    wanted = change(env=("A=b", "C=d"))
    steps = (launch.create, launch.install, launch.copy_data, launch.start)
    assert said.stdout.splitlines() == [line for step in steps for line in step(wanted)]


def test_the_image_holds_what_it_names() -> None:
    """No Docker here: its file as text, against the checkout, pyproject.toml and constraints.txt."""
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(kept)
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert set(copied) <= {line.split("/")[0] for line in tracked.splitlines()}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "constraints.txt", project["readme"], "bert_jax"} <= set(copied)
    (version,) = (line.removeprefix("FROM python:").removesuffix("-slim") for line in lines if line.startswith("FROM"))
    assert f"--python {version} " in "".join(launch.install(SLICE))  # the Python of all TPU machines
    (extra,) = (line.removeprefix("ARG EXTRA=") for line in lines if line.startswith("ARG"))
    assert extra in project["optional-dependencies"]
    assert 'ENTRYPOINT ["python", "-m", "bert_jax"]' in lines


def test_pins_agree_with_bounds() -> None:
    """On each Python that is supported: what constraints.txt pins is what pyproject.toml allows, once each."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    pins = [Requirement(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines()]
    for python in ("3.11", "3.12", "3.13"):
        here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        versions = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in here}
        assert len(versions) == len(here)
        for need in map(Requirement, needs):
            if need.name.lower() in versions:
                assert need.specifier.contains(versions[need.name.lower()]), (python, need)
        assert {"jax", "jaxlib", "flax", "libtpu", "gcsfs", "google-cloud-storage"} <= versions.keys()
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        (need,) = (need for need in map(Requirement, project["dependencies"]) if need.name == name)
        assert any(one.operator == "<" for one in need.specifier), f"{name} has no upper bound"
