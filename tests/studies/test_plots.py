"""Curves: drawn from metrics.jsonl, and a clear word where there is nothing to draw."""

import pathlib
import subprocess
import sys

import pytest

from bert_jax.studies import plots
from bert_jax.training import metrics
from tests.conftest import REPOSITORY


def run(folder: pathlib.Path, accuracies: list[float]) -> str:
    writer = metrics.Writer(str(folder))
    for step, accuracy in enumerate(accuracies):
        writer.write(step, "validation", {"accuracy": accuracy, "majority": 0.5})
    writer.close()
    return str(folder)


def test_a_picture_is_written(tmp_path: pathlib.Path) -> None:
    runs = {"one": run(tmp_path / "one", [0.5, 0.7]), "two": run(tmp_path / "two", [0.4])}
    plots.draw(runs, ["accuracy"], str(tmp_path / "new" / "curves.png"))
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_stands_beside_its_baseline(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots.plt, "close", lambda _: None)
    runs = {"one": run(tmp_path / "one", [0.5, 0.7]), "two": run(tmp_path / "two", [0.4])}
    plots.draw(runs, ["accuracy"], str(tmp_path / "curves.png"))
    (panel,) = plots.plt.gcf().axes
    assert panel.get_legend_handles_labels()[1] == ["one", "largest class: 0.5", "two"]
    assert [list(line.get_ydata()) for line in panel.lines] == [[0.5, 0.7], [0.5, 0.5], [0.4]]


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_says_the_format(ending: str, begins: bytes, tmp_path: pathlib.Path) -> None:
    plots.save(plots.plt.figure(), tmp_path / f"curves.{ending}")
    assert (tmp_path / f"curves.{ending}").read_bytes().startswith(begins)


def test_an_ending_that_is_no_format_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"curves\.xyz must end in the name of a format: .*png"):
        plots.save(plots.plt.figure(), tmp_path / "curves.xyz")
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_workdir_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"nope is not a run's workdir: it has no metrics\.jsonl"):
        plots.draw({"nope": str(tmp_path / "nope")}, ["accuracy"], str(tmp_path / "curves.png"))


def test_a_metric_that_no_run_has_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="has validation figures named 'mlm_loss'"):
        plots.draw({"one": run(tmp_path, [0.5])}, ["mlm_loss"], str(tmp_path / "curves.png"))


def test_a_run_of_any_task_is_drawn_by_a_process_that_imported_none() -> None:
    """config.json names classes: they are known without the experiment file that imported them."""
    code = "from bert_jax import experiment; assert {'Classify', 'Pretrain'} <= experiment.kinds().keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
