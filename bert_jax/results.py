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

from bert_jax.study import Cell, Column, Row

SIGNIFICANT = 0.05  # a difference with a p-value of as much or more is inside the noise


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cell against the first row's: a paired t-test over what differs in nothing but the row."""

    difference: float  # of the means, ours less the first row's
    p: float  # how often chance alone would make as large a difference; nan of fewer than two pairs
    pairs: int
    over: str  # "fine-tuning seeds" or "pre-training seeds"

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
    for name in column.figure.split(",") if column.figure else ("score", "loss"):
        if name.strip() in result:
            return float(result[name.strip()])
    return None


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
    return Comparison(mean, p, len(differences), over)
