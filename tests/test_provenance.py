"""By what a run was made: the commit of a checkout, kept with what began it and beside what ended it."""

import json
import pathlib
import re
import subprocess

import pytest

from bert_jax import experiment, provenance
from bert_jax.experiment import Experiment
from bert_jax.training import metrics, train

pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A git checkout with a package in it."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b.c")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    for line in ("init -q", "add package", "commit -q -m first"):
        subprocess.run(["git", *line.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_is_of_the_checkout_that_tracks_the_package(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, installed = checkout / "package", checkout / "environment" / "package"
    commit = provenance._commit(package)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert provenance._commit(installed) == ""
    assert provenance._commit(package) == commit, "files that git does not track are not the checkout's"
    (package / "__init__.py").write_text("x = 1\n")
    assert provenance._commit(package) == f"{commit} (modified)"
    monkeypatch.setenv("PATH", str(installed))
    assert provenance._commit(package) == "", "there is no git"
    assert provenance._commit(checkout / "absent") == ""


def test_versions_and_a_date_in_utc() -> None:
    made = provenance.now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["date"])
    assert all(made[name] for name in ("bert_jax", "jax", "python"))
    given = {"bert_jax": "1.2", "jax": "0.10", "python": "3.11", "commit": f"{'ab' * 20} (modified)"}
    assert provenance.spelled(given) == "bert_jax 1.2 (commit ababababab (modified)), JAX 0.10, Python 3.11"


def test_a_run_says_what_began_it_and_what_ended_it(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version goes on with it, and is named beside the first."""
    versions = {"bert_jax": "1", "jax": "1", "python": "1", "commit": "one"}
    monkeypatch.setattr(provenance, "_versions", lambda: versions)
    train.run(tiny, str(tmp_path), stop_at=3, quiet=True)
    first = json.loads((tmp_path / "config.json").read_text())
    assert {**first["began"], "date": ""} == {**versions, "date": ""}
    monkeypatch.setattr(provenance, "_versions", lambda: {**versions, "bert_jax": "2", "commit": "two"})
    result = train.run(tiny, str(tmp_path), quiet=True)
    assert json.loads((tmp_path / "config.json").read_text()) == first
    assert result["began"] == first["began"]
    assert (result["ended"]["bert_jax"], result["ended"]["commit"]) == ("2", "two")
    assert result["ended"]["date"] >= result["began"]["date"]
    assert result["data"] == first["data"] != {}
    assert experiment.read_config(str(tmp_path)) == tiny
    del first["began"]  # an earlier version's
    (tmp_path / "config.json").write_text(json.dumps(first))
    (tmp_path / "result.json").unlink()
    again = train.run(tiny, str(tmp_path), quiet=True)
    assert "began" not in again
    assert metrics.read(str(tmp_path), "validation")
