"""What the scripts refuse: nonsense in flags ends in a line that names it, before any work and without a traceback."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

REFUSED = {
    "build_vocab.py": [
        ("--input=t.txt --output=o.txt --size=-1", "size"),
        ("--input=t.txt --output=o.txt --size=1000000000", "size"),
        ("--input=t.txt --output=o.txt --size=60 --max_mb=-1", "max_mb"),
        ("--input=t.txt --output=o.txt --size=60 --workers=-2", "workers"),
        ("--input=t.txt --output=o.txt --size=60 --coverage=nan", "coverage"),
        ("--input=t.txt --output=o.txt --size=60 --coverage=0", "coverage"),
        ("--input=t.txt --output= --size=60", "output"),
        ("--input=t.txt --output=.txt --size=60", "output"),
        ("--input=t.txt --output=d.txt --size=60", "is a directory"),
        ("--input=t.txt,, --output=o.txt --size=60", "an empty one"),
        ("--input=t.txt --output=o.txt --size=60 --field=", "field"),
    ],
    "build_corpus.py": [
        ("--input=t.txt --vocab=v --output=c --workers=0", "workers"),
        ("--input=t.txt --vocab=v --output=c --workers=1000000000", "workers"),
        ("--input=t.txt --vocab= --output=c", "vocab"),
        ("--input=t.txt --vocab=v --output=", "output"),
        ("--describe=d.txt --input=t.txt", "alone"),
        ("--describe= --verify=", "alone"),
        ("--verify=d.txt", "holds no corpus"),
    ],
    "plot.py": [
        ("d.txt --output=", "output"),
        ("d.txt --output=d.txt", "output"),
        ("d.txt --output=curves", "output"),
        ("d.txt --metrics=", "metrics"),
        ("a/run b/run", "both called 'run'"),
        ("x=", "workdir"),
        ("=x", "workdir"),
    ],
    "evaluate.py": [
        ("--model=", "model"),
        ("--model=d --output=", "output"),
        ("--model=nothere", "nothing is downloaded"),
    ],
    "check_answers.py": [
        ("--input= --vocab=v", "input"),
        ("--input=q --vocab=", "vocab"),
        ("--input=q --vocab=v more", "more"),
    ],
    "benchmark.py": [
        ("--batch=0", "batch"),
        ("--length=1000000000", "length"),
        ("--rounds=1000000000000", "rounds"),
        ("--seconds=-1", "seconds"),
        ("--seconds=nan", "seconds"),
        ("--set=x", "FIELD=VALUE"),
        ("--size=tiny --set=layerz=3", "layerz"),
    ],
    "benchmark_tasks.py": [
        ("--vocab=", "vocab"),
        ("--vocab=v --against=x", "against"),
        ("--vocab=v --set=x", "FIELD=VALUE"),
    ],
}
# Imports the script once, and then runs each line in a fork of its own.
PROGRAM = """
import importlib, os, sys, traceback
from absl import app

root, script, *lines = sys.argv[1:]
sys.path.insert(0, root)
module = importlib.import_module(script.removesuffix(".py"))
for line in lines:
    child = os.fork()
    if not child:
        sys.stderr = sys.stdout
        try:
            app.run(module.main, argv=[script, *line.split()])
        except SystemExit as end:
            print(end.code)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    print("=====", flush=True)
"""


@pytest.mark.parametrize("script", REFUSED)
def test_nonsense_is_refused(script: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.txt").write_text("The cat sat on the mat.")
    (tmp_path / "d.txt").mkdir()
    before = sorted(tmp_path.iterdir())
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(REPOSITORY / "scripts"),
        script,
        *(line for line, _ in REFUSED[script]),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    for (line, said), shown in zip(REFUSED[script], ran.stdout.split("=====\n")[:-1], strict=True):
        assert said in shown, line
        assert shown.rstrip().rpartition("\n")[2] not in ("0", "None"), line  # the exit status
        assert "Traceback" not in shown, line
    assert sorted(tmp_path.iterdir()) == before
