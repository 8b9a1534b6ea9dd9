"""The command line: overrides as flags, errors in one line, exit codes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from bert_jax import experiment
from bert_jax.config import override, split_flags
from bert_jax.experiment import Experiment
from bert_jax.startup import use_huge_pages
from tests.conftest import REPOSITORY


def test_overrides_are_taken_out_of_the_command_line() -> None:
    rest, changes = split_flags(
        ["prog", "--config=a.py", "--config.encoder.layers=2", "-config.name=x=y", "--workdir=w"]
    )
    assert rest == ["prog", "--config=a.py", "--workdir=w"]
    assert changes == {"encoder.layers": "2", "name": "x=y"}
    with pytest.raises(ValueError, match="needs a value"):
        split_flags(["prog", "--config.seed", "3"])


def test_the_command_starts_anew_with_huge_pages_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append((program, arguments)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for _ in range(2):  # the second time stands for the new process: it has the variable
        use_huge_pages()
    assert started == [(sys.executable, sys.orig_argv)]
    monkeypatch.setenv("GLIBC_TUNABLES", "a user's own")
    use_huge_pages()
    assert len(started) == 1


def run(*flags: str, script: str = "") -> subprocess.CompletedProcess[str]:
    start = [script] if script else ["-m", "bert_jax"]
    return subprocess.run(
        [sys.executable, *start, *flags],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=experiments/bert_tiny.py", "--config.encoder.layer=2"], "did you mean 'layers'"),
        (["--config=experiments/bert_tin.py"], "there is no file"),
        (["--config=experiments/bert_tiny.py"], "pre-training needs a corpus"),
        (["--config=experiments/bert_tiny.py", "--config.task.corpus=absent"], "absent"),
        (["--config=experiments/bert_tiny.py", "--profile=9"], "--profile=100:110, not '9'"),
        (["--config=experiments/bert_tiny.py", "--profile=1:2", "--seeds=2"], "--profile is for one run"),
        (["--config=experiments/sst2.py"], "names no encoder"),
        (["--config=experiments/sst2.py", "--config.init_from=absent"], "absent is no workdir of a run"),
        (["--config=experiments/sst2.py", "--config.encoder.layers=2"], "name one with --config.vocab"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(flags: list[str], message: str, tmp_path: pathlib.Path) -> None:
    done = run(*flags, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_by_command_line_and_predictions_from_it(tiny: Experiment, corpus: str, tmp_path: pathlib.Path) -> None:
    """The whole way as a user goes it: the tiny model from a file and flags, then a [MASK] filled in from stdin."""
    flags = [
        "--config=experiments/bert_laptop.py",
        f"--config.task.corpus={corpus}",
        "--config.encoder.vocab_size=320",
        "--config.task.heldout=0.1",
        "--config.phases.0.steps=3",
        "--config.phases.1.steps=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = run(*flags, "--profile=2:3")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 5
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert b"_step" in trace.read_bytes()
    assert experiment.read_config(str(tmp_path / "run")) == override(
        experiment.load(str(REPOSITORY / "experiments" / "bert_laptop.py")),
        dict(flag.removeprefix("--config.").split("=") for flag in flags if flag.startswith("--config.")),
    )
    (tmp_path / "lines.txt").write_text('a [MASK] b.\n{"text": "the [MASK]"}\n')
    ask = [f"--model={tmp_path / 'run'}", f"--input={tmp_path / 'lines.txt'}", "--top=2"]
    answers = run(*ask, script="scripts/predict.py")
    assert answers.returncode == 0, answers.stderr
    assert [len(json.loads(line)["fill"]) for line in answers.stdout.splitlines()] == [2, 2]
    (tmp_path / "lines.txt").write_text("a [MASK] b.\nno place\n")
    answers = run(*ask, script="scripts/predict.py")
    assert answers.returncode == 1
    assert "line 2: the text must hold [MASK] exactly once" in answers.stderr


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "scripts").glob("*.py")))
def test_help_says_what_it_does_with_an_example(script: str) -> None:
    said = run("--help", script=f"scripts/{script}")
    assert f"scripts/{script}" in said.stdout, said.stderr
