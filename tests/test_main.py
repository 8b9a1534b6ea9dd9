"""The command line: overrides as flags, errors in one line, exit codes."""

import collections
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from bert_jax import config, experiment
from bert_jax.config import override, split_flags
from bert_jax.experiment import Experiment
from bert_jax.startup import use_huge_pages
from bert_jax.training import describe, planning, sharding
from bert_jax.training.program import Program, parameter_count
from tests.conftest import REPOSITORY, command, environment


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
        (
            ["--config=experiments/sst2.py", "--config.init_from=absent"],
            "there is no directory absent; nothing is",
        ),
        (["--config=experiments/sst2.py", "--config.encoder.layers=2"], "name one with --config.vocab"),
        (["--config=experiments/bert_tiny.py", "--config.optimizer.learning_rate=inf"], "must be a finite number"),
        (["--config=experiments/bert_tiny.py", "--config.encoder.vocab_size=400000000"], "bytes of memory at the very"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(flags: list[str], message: str, tmp_path: pathlib.Path) -> None:
    done = run(*flags, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


FLAGS = {  # what each command needs, and what it refuses; a bar between two
    "bert_jax/__main__.py": (
        "--config=a.py|--workdir=w",
        "--workdir=|--workdir= |--config=|--grid=|--coordinator=|--stop_at=-5|--stop_at=x|--seeds=0|--seeds=-1|"
        "--seeds=1000000000|--together=0|--processes=0|--process=-1|--keep=some",
    ),
    "scripts/predict.py": (
        "--model=m",
        "--model=|--input=|--config=|--top=-3|--top=0|--batch_size=0|--batch_size=-1|--batch_size=10000000000|"
        "--null_threshold=nan|--null_threshold=x|--layer=last|--embeddings=all",
    ),
    "scripts/reproduce.py": (
        "--study=s.py|--workdir=w",
        "--study=|--workdir=|--base=|--seeds=0|--seeds=1000000000|--pretraining_seeds=-1|--together=0",
    ),
    "scripts/preflight.py": ("--config=a.py|--topology=v5e:2x2", "--config=|--topology="),
    "scripts/plot.py": ("", "--output=|--split=test"),
    "scripts/check_answers.py": ("--input=i|--vocab=v", "--input=|--vocab="),
    "scripts/library_sentences.py": ("--output=o", "--output="),
    "scripts/benchmark.py": ("", "--batch=0|--length=0|--rounds=0|--seconds=-1|--seconds=inf|--size=huge"),
}
PARSE = """
import runpy, sys
from absl import flags
file, good, bad = sys.argv[1], sys.argv[2].split("|"), sys.argv[3].split("|")
runpy.run_path(file, run_name="flags")
flags.FLAGS(["", *filter(None, good)])
for flag in bad:
    try:
        flags.FLAGS(["", *filter(None, good), flag])
    except flags.IllegalFlagValueError as error:
        assert flag.lstrip("-").partition("=")[0] in str(error), error
    else:
        print("taken:", flag)
"""


@pytest.mark.parametrize("script", FLAGS)
def test_flags_that_make_no_sense_are_refused(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARSE, script, *FLAGS[script]],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


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
    assert b"step_num" in trace.read_bytes(), "XProf's pages go by steps"
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


def test_a_workdir_that_is_a_file_is_said() -> None:
    done = run("--config=bert_tiny", "--workdir=README.md")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the workdir README.md must be a folder, and" in done.stderr


@pytest.mark.parametrize("line", [["-m", "bert_jax", "--config"], ["scripts/reproduce.py", "--study"]])
def test_ctrl_c_is_a_line(tmp_path: pathlib.Path, line: list[str]) -> None:
    """While an experiment's file is read, before any step."""
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    given = [sys.executable, *line[:-1], f"{line[-1]}={tmp_path / 'slow.py'}", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(given, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "stopped by SIGINT; run the same command again"
    assert "Traceback" not in ended.stderr


def test_show_prints_the_experiment_and_runs_nothing(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Every field as a flag takes it, what departs from a default, and what it takes; no workdir is needed."""
    line = command(tiny, tmp_path, tmp_path / "run", "--show", "--config.encoder.layers=3")
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    fields = dict(
        shown.split("  #")[0].split("=", 1) for shown in done.stdout.split("\n\n")[0].splitlines() if "=" in shown
    )
    assert override(override(tiny, {"encoder.hidden": 4, "seed": 9}), fields) == override(tiny, {"encoder.layers": 3})
    assert "encoder.layers=3  # default: 12" in done.stdout
    exp = override(tiny, {"encoder.layers": 3})
    params = experiment_params(exp)
    tokens, flops = planning.tokens_and_flops(
        exp, params, [collections.Counter({p.length: p.steps}) for p in exp.phases]
    )
    assert f"{parameter_count(params):,} parameters are trained" in done.stdout
    assert f"in all: 10 steps, {tokens:,} tokens, {flops:.3g} FLOPs" in done.stdout


def experiment_params(exp: Experiment) -> Any:
    assert exp.encoder is not None
    return Program(
        exp, describe.Placeholder(exp.encoder.vocab_size), 1, sharding.make_mesh(config.Mesh())
    ).abstract.params


def test_show_says_what_only_data_could(tmp_path: pathlib.Path) -> None:
    shown = run("--config=sst2", "--show", "--config.encoder.layers=2", f"--data_dir={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    assert "phase 0: 3 epochs of 32 x 128, ? tokens, ? FLOPs (no vocabulary: name one" in shown.stdout
