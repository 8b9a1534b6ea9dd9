"""What an installation brings: the package, its experiments and commands, the same from every folder."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from bert_jax import commands
from tests.conftest import REPOSITORY, environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder that holds what `pip install` of a built wheel puts beside other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", f"-w{folder}"]
    done = subprocess.run([*build, str(REPOSITORY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def run(installed: pathlib.Path, empty: pathlib.Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in an empty folder, with the installation in the checkout's place."""
    environ = {**environment(), "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *line], cwd=empty, env=environ, capture_output=True, text=True)


def test_a_wheel_holds_experiments_commands_and_types(installed: pathlib.Path) -> None:
    held = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"bert_jax/py.typed", "experiments/bert_base.py", "experiments/grids/paper.py"} <= held
    assert {path.name for path in (installed / "bert_jax" / "scripts").rglob("*.py")} == {
        path.name for path in (REPOSITORY / "scripts").rglob("*.py")
    }
    assert not [path for path in held if path.startswith(("tests", "experiments/results"))]


def test_experiments_are_there_after_an_installation(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code = (
        "import bert_jax, pathlib\nfrom experiments.sst2 import EXPERIMENT\n"
        f"assert pathlib.Path(bert_jax.__file__).is_relative_to({str(installed)!r})\n"
        "assert 'load' in dir(bert_jax) and bert_jax.__version__\nprint(EXPERIMENT.name)"
    )
    done = run(installed, tmp_path, "-c", code)
    assert (done.returncode, done.stdout) == (0, "sst2\n"), done.stderr


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("", 0, "bert_jax predict"),
        ("--config=bert_tiny --show", 0, "encoder.layers=2  # default: 12"),
        ("--config=experiments/bert_tiny.py --show", 0, "encoder.layers=2  # default: 12"),
        ("--config=bert_tin --show", 1, "did you mean 'bert_tiny'"),
        ("--config=bert_tiny", 1, "--workdir=DIR is needed"),
        ("predict --help", 1, "scripts/predict.py"),  # absl's status of a help
        ("predict --model=run --input=absent", 1, "there is no file absent: --input names one"),
        ("predict --model=absent", 1, "error: there is no directory absent"),
        ("build-vocab --help", 1, "scripts/build_vocab.py"),
        ("launch --help", 1, "supervise"),
        ("predcit", 1, "no command 'predcit': did you mean 'predict'"),
    ],
)
def test_the_command(line: str, status: int, said: str, installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run(installed, tmp_path, "-m", "bert_jax.commands", *line.split())
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_script_is_a_command_with_a_line_about_it() -> None:
    scripts = list((REPOSITORY / "scripts").rglob("*.py"))
    assert len(commands.scripts()) == len(scripts)
    for path in scripts:
        assert f"bert_jax {path.stem} " in commands.usage()


def test_a_script_s_workers_find_it_again(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Processes that a command starts import its file anew, wherever it lies."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat.\n\nthe dog sat too.\n" * 50)
    (tmp_path / "b.txt").write_text("the cow sat on the mat.\n\nthe hen sat too.\n" * 50)
    vocab = ["build_vocab", "--input=a.txt,b.txt", "--size=60", "--output=vocab.txt", "--workers=2"]
    corpus = ["build_corpus", "--input=a.txt,b.txt", "--vocab=vocab.txt", "--output=corpus", "--workers=2"]
    for line in (vocab, corpus, ["build_corpus", "--verify=corpus"]):
        done = run(installed, tmp_path, "-m", "bert_jax.commands", *line)
        assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_silent(tmp_path: pathlib.Path) -> None:
    """As of `bert_jax --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "bert_jax", "--help"]
    done = subprocess.run(line, cwd=REPOSITORY, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr
