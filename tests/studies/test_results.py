"""What is made of the figures: means, spreads, paired tests; against scipy and by hand."""

import json
import math
import pathlib

import pytest
import scipy.stats

from bert_jax.experiment import Experiment
from bert_jax.studies import results
from bert_jax.studies.results import compare
from bert_jax.studies.study import Cell, Column, Row, Run

SEEDS = [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_seeds_are_paired() -> None:
    ours, theirs = [0.81, 0.84, 0.80, 0.86], [0.80, 0.81, 0.79, 0.83]
    found = compare(dict(zip(SEEDS, ours, strict=True)), dict(zip(SEEDS, theirs, strict=True)))
    assert found.p == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue)
    assert found.difference == pytest.approx(0.02)
    assert (found.pairs, found.over, found.noise) == (4, "fine-tuning seeds", False)
    apart = scipy.stats.ttest_ind(ours, theirs).pvalue
    assert apart > 0.05, "the same figures, not paired, would be noise"


def test_only_shared_seeds_count() -> None:
    found = compare({(0, 0): 1.0, (0, 1): 2.0, (0, 5): 90.0}, {(0, 0): 0.5, (0, 1): 1.0, (0, 7): 9.0})
    assert found.pairs == 2
    assert found.difference == pytest.approx(0.75)
    assert compare({(0, 0): 1.0}, {(0, 1): 1.0}) is None


def test_of_several_pre_trainings_their_means_are_paired() -> None:
    """Ten fine-tunings of each of two pre-trainings are two witnesses, not twenty."""
    ours = {(p, s): p + 0.01 * s for p in range(2) for s in range(10)}
    theirs = {(p, s): 0.5 * p for p in range(2) for s in range(10)}
    found = compare(ours, theirs)
    assert found.pairs == 2
    assert found.over == "pre-training seeds"
    assert found.p == pytest.approx(scipy.stats.ttest_rel([0.045, 1.045], [0.0, 0.5]).pvalue)
    assert found.noise


@pytest.mark.parametrize(
    ("ours", "p"),
    [({(0, 0): 2.0}, math.nan), ({(0, 0): 1.0, (0, 1): 1.0}, 1.0), ({(0, 0): 2.0, (0, 1): 2.0}, math.nan)],
    ids=["one", "equal", "no spread"],
)
def test_where_there_is_nothing_to_tell_it_is_noise(ours: dict, p: float) -> None:
    found = compare(ours, {(0, 0): 1.0, (0, 1): 1.0})
    assert found.p == pytest.approx(p, nan_ok=True)
    assert found.noise


def cells(folder: pathlib.Path, figures: dict[tuple[str, str], list[dict]]) -> list[Cell]:
    """Cells whose runs have these result.json; an empty one is not done."""
    found = []
    for (row, column), each in figures.items():
        runs = {}
        for seed, result in enumerate(each):
            workdir = folder / row / column / str(seed)
            workdir.mkdir(parents=True)
            if result:
                (workdir / "result.json").write_text(json.dumps(result))
            runs[0, seed] = Run("fine-tuning", Experiment(seed=seed), str(workdir), "file.py", {})
        found.append(Cell(Row(row, paper={column: 84.4}), Column(column, figure="f1" if column == "two" else ""), runs))
    return found


def test_cells_are_collected(tmp_path: pathlib.Path) -> None:
    found = results.collect(
        cells(
            tmp_path,
            {
                ("first", "one"): [{"score": 0.8}, {"score": 0.9}],
                ("first", "two"): [{"score": 0.8, "f1": 0.1}, {"score": 0.8}],
                ("second", "one"): [{"score": 0.5, "constant": 1.0}, {}],
                ("second", "two"): [{}, {}],
            },
        )
    )
    first, other, second, empty = found
    assert first.mean == pytest.approx(85.0)
    assert first.deviation == pytest.approx(100 * 0.1 / math.sqrt(2))
    assert first.against is None
    assert dict(other.values) == {(0, 0): 10.0}
    assert second.collapsed == ((0, 0),)
    assert second.against.difference == pytest.approx(-30.0)
    assert math.isnan(second.against.p)
    assert (empty.n, empty.against, empty.paper) == (0, None, 84.4)
    assert results.failures(found) == {}
    assert math.isnan(empty.mean)


def test_a_figure_that_is_no_number_is_a_failure(tmp_path: pathlib.Path) -> None:
    """And in no mean: a run may end in it without any step whose loss was none."""
    figures = [{"score": math.nan, "f1": 0.1}, {"score": 0.5, "f1": math.inf}, {"score": 0.5, "f1": 0.1}]
    found = results.collect(cells(tmp_path, {("row", "two"): figures}))
    assert dict(found[0].values) == {(0, 2): 10.0}
    assert list(found[0].failed.values()) == ["its score is NaN or infinite", "its two is NaN or infinite: inf"]
    assert list(results.failures(found)) == [run.workdir for run in list(found[0].cell.runs.values())[:2]]
