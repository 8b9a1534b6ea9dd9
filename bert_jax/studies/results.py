"""What the runs of a study say: means, spreads, and which differences from the first row are more than noise.

Of a figure's points, the first row is the first that is as far into its pre-training: the other line's point.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from bert_jax.studies.study import Cell, Column, Row

SIGNIFICANT = 0.05  # a difference with a p-value of as much or more is inside the noise


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cell against the first row's: a paired t-test over what differs in nothing but the row."""

    difference: float  # of the means, ours less the first row's
    p: float  # how often chance alone would make as large a difference; nan of fewer than two pairs
    pairs: int
    over: str  # "fine-tuning seeds" or "pre-training seeds"
    deviation: float = 0.0  # the standard deviation of the pairs' differences

    @property
    def noise(self) -> bool:
        """Whether the seeds cannot tell the two apart."""
        return not self.p < SIGNIFICANT


@dataclasses.dataclass(frozen=True)
class Result:
    """A cell's figures by (seed of the pre-training, seed of the fine-tuning), of the runs that are done."""

    cell: Cell
    values: Mapping[tuple[int, int], float]
    collapsed: tuple[tuple[int, int], ...]  # whose predictions are all the same
    against: Comparison | None  # None in the first row, and where nothing can be compared
    failed: Mapping[tuple[int, int], str] = dataclasses.field(default_factory=dict)  # why; the rest is not run yet

    @property
    def row(self) -> Row:
        return self.cell.row

    @property
    def column(self) -> Column:
        return self.cell.column

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> dict[str, int]:
        """How many runs have no figure here, by why: "failed", "begun", "not yet run", "without this figure"."""
        words = {"to run": "not yet run", "done": "without this figure"}
        without = [seeds for seeds in self.cell.runs if seeds not in self.values]
        states = ["failed" if seeds in self.failed else self.cell.runs[seeds].state() for seeds in without]
        return dict(collections.Counter(sorted(words.get(state, state) for state in states)))

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation over all runs, that of a sample; 0 of one."""
        return statistics.stdev(self.values.values()) if self.n > 1 else 0.0

    @property
    def paper(self) -> float | int | None:
        """The paper's figure, as it prints it."""
        return self.row.paper.get(self.column.name)


def collect(cells: Sequence[Cell]) -> list[Result]:
    """The results that are there, in the order of `cells`."""
    first: dict[tuple[str, float], dict[tuple[int, int], float]] = {}
    found = []
    for cell in cells:
        values, collapsed, failed = {}, [], {}
        for seeds, run in cell.runs.items():
            result, why = run.result(), run.failure()
            value = figure(result, cell.column) if result else None
            if why or (value is not None and not math.isfinite(value)):
                failed[seeds] = why or f"its {cell.column.name} is NaN or infinite: {value}"
            elif value is not None:
                values[seeds] = value * cell.column.scale
                if result and result.get("constant"):
                    collapsed.append(seeds)
        place = cell.column.name, cell.row.at
        against = compare(values, first[place]) if place in first else None
        first.setdefault(place, values)
        found.append(Result(cell, values, tuple(collapsed), against, failed))
    return found


def failures(results: Sequence[Result]) -> dict[str, str]:
    """Why runs failed, by workdir, those that could not begin for it included."""
    return {one.cell.runs[seeds].workdir: why for one in results for seeds, why in one.failed.items()}


def figure(result: Mapping[str, Any], column: Column) -> float | None:
    """What a column is about, from a result.json; None where it is not there."""
    name = figure_name(result, column)
    return None if name is None else float(result[name])


def figure_name(result: Mapping[str, Any], column: Column) -> str | None:
    """Under which name a result.json has what a column is about; None where it has not."""
    names = [name.strip() for name in column.figure.split(",")] if column.figure else ["score", "loss"]
    return next((name for name in names if name in result), None)


def largest_class(one: Result) -> str:
    """What always naming the largest class scores on a cell's validation data; "" where it is about no classes.

    Where the cell's figure is not an accuracy, that is the accuracy, and called so.
    """
    for run in one.cell.runs.values():
        result = run.result() or {}
        name = figure_name(result, one.column)
        name = str(result.get("metric", "")) if name == "score" else name or ""
        key = name.replace("accuracy", "majority")
        if key != name and key in result:
            return f"{100 * result[key]:.1f}"
        if "majority" in result and name not in ("", "loss"):
            return f"accuracy {100 * result['majority']:.1f}"
    return ""


def compare(ours: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float]) -> Comparison | None:
    """A paired t-test over the seeds that both have. None where they share none.

    Fine-tunings of one pre-training are no independent witnesses of how that pre-training is made: of several
    pre-trainings, the means of their fine-tunings are paired. Of a single one, the test is over fine-tuning seeds, and
    speaks of that one pre-training alone.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    groups: dict[int, list[float]] = collections.defaultdict(list)
    for seeds in shared:
        groups[seeds[0]].append(ours[seeds] - theirs[seeds])
    several = len(groups) > 1
    differences = [statistics.fmean(group) for group in groups.values()] if several else groups[shared[0][0]]
    over = "pre-training seeds" if several else "fine-tuning seeds"
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        p = math.nan
    elif np.ptp(differences) == 0:  # without any spread the test divides by 0, and knows nothing
        p = 1.0 if mean == 0 else math.nan
    else:
        p = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return Comparison(mean, p, len(differences), over, spread)
