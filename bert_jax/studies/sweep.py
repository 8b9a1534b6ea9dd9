"""One experiment over a grid of values and several seeds: the best on dev, mean and spread (paper, appendix A.3).

Every run is one that `python -m bert_jax` would make by itself, in a workdir below the sweep's. Runs that are done are
read, those that were cut off go on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
from absl import logging

from bert_jax import config, definitions, experiment, files, provenance
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.training import fingerprints, planning, train

FAILED = "failed.json"  # in the workdir of a run that came to no end, while that is so

Grid: TypeAlias = Mapping[str, Sequence[Any]]  # the values of each field, by dotted name


class Run(NamedTuple):
    """One point of the grid with one seed."""

    changes: dict[str, Any]  # to the experiment, by dotted name, the seed apart
    experiment: Experiment
    workdir: str


CURE = (
    "What collapsed has learnt nothing. The usual cures are a lower learning rate, and Adam's bias correction "
    "(`--config.optimizer.bias_correction=true`), which the reference leaves out: its first steps are up to 6.5 times "
    "as long, with b2 of 0.999."
)


@dataclasses.dataclass(frozen=True)
class Point:
    """What the seeds gave at one point of the grid. Figures of runs that failed are None."""

    changes: dict[str, Any]
    seeds: tuple[int, ...]
    values: tuple[float | None, ...]
    collapsed: tuple[int, ...]  # seeds whose predictions are all the same
    workdirs: tuple[str, ...]

    @property
    def done(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.done) if self.done else float("nan")

    @property
    def deviation(self) -> float:
        """The standard deviation of the seeds, that of a sample."""
        return statistics.stdev(self.done) if len(self.done) > 1 else 0.0

    @property
    def name(self) -> str:
        return _name(self.changes) or "as configured"


@dataclasses.dataclass(frozen=True)
class Summary:
    """A sweep's points, best first by their means."""

    metric: str
    points: tuple[Point, ...]
    majority: float | None  # what always naming the largest class scores
    failed: Mapping[str, str] = dataclasses.field(default_factory=dict)  # why, by workdir

    @property
    def better(self) -> Literal["greater", "less"]:
        return "less" if self.metric == "loss" else "greater"

    def best_run(self) -> str:
        """The workdir of the best single run, as the paper chooses among restarts of Large."""
        sign = -1 if self.better == "less" else 1
        pairs = [(sign * v, w) for p in self.points for v, w in zip(p.values, p.workdirs, strict=True) if v is not None]
        require(bool(pairs), "no run of the sweep came to its end")
        return max(pairs, key=lambda pair: pair[0])[1]

    def table(self) -> str:
        """As Markdown: a line for each point."""
        lines = [f"| point | {self.metric}, mean | sd | n | best | worst | |", "|---|---|---|---|---|---|---|"]
        for point in self.points:
            notes = [f"{len(point.collapsed)} collapsed to one answer: seeds {_list(point.collapsed)}"] * bool(
                point.collapsed
            )
            failed = [seed for seed, value in zip(point.seeds, point.values, strict=True) if value is None]
            notes += [f"NaN or infinite: seeds {_list(failed)}"] * bool(failed)
            if not point.done:
                lines.append(f"| {point.name} | - | - | 0 | - | - | {'; '.join(notes)} |")
                continue
            ends = (max(point.done), min(point.done))
            best, worst = ends if self.better == "greater" else ends[::-1]
            figures = " | ".join(f"{value:.4f}" for value in (point.mean, point.deviation))
            n = len(point.done)
            lines.append(f"| {point.name} | {figures} | {n} | {best:.4f} | {worst:.4f} | {'; '.join(notes)} |")
        if any(point.collapsed for point in self.points):
            lines.append(f"\n{CURE}")
        if self.majority is not None:
            lines.append(f"\nAlways the largest class: {self.majority:.4f}")
        if self.failed:
            lines.append("\nFailed; what failed in its training is tried again by the same command:\n")
            lines += [f"- {workdir}: {reason}" for workdir, reason in self.failed.items()]
        return "\n".join(lines)


def load_grid(path: str) -> Grid:
    """The GRID that a Python file defines: {"optimizer.learning_rate": (5e-5, 3e-5, 2e-5), ...}.

    Raises:
      ValueError: where there is no such file, or its GRID is none.
    """
    grid = definitions.defined(path).get("GRID")
    require(
        isinstance(grid, Mapping) and all(isinstance(v, (tuple, list)) and v for v in grid.values()),
        f'{path} must define GRID = {{"optimizer.learning_rate": (5e-5, 3e-5), ...}}: values by field',
    )
    assert isinstance(grid, Mapping)
    return grid


def runs(exp: Experiment, workdir: str, grid: Grid, seeds: int) -> list[Run]:
    """All runs, point by point: the grid's values in order, the last field fastest, each with `seeds` seeds from
    `exp.seed` on.

    Raises:
      ValueError: at a field or a value that the experiment does not take; before anything runs.
    """
    require(seeds > 0, f"seeds must be above 0, not {seeds}")
    require("seed" not in grid, "the grid names no seeds: say how many with --seeds")
    found = []
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        folders = {n: files.path(workdir) / _name(changes) / f"seed={n}" for n in range(exp.seed, exp.seed + seeds)}
        point = planning.configured(exp, changes, str(folders[exp.seed]))
        for seed, folder in folders.items():
            found.append(Run(changes, dataclasses.replace(point, seed=seed), str(folder)))
    require(len({run.workdir for run in found}) == len(found), "two points of the grid are the same")
    return found


def sweep(
    exp: Experiment,
    workdir: str,
    grid: Grid | None = None,
    *,
    seeds: int = 1,
    together: int = 1,
    keep: str = "best",
    **how: Any,
) -> Summary:
    """Runs what is missing, and writes summary.json and summary.md.

    Args:
      exp: the experiment; its seed is the first.
      workdir: where the runs' workdirs lie.
      grid: values by field; none: the experiment as it is.
      seeds: how many.
      together: how many runs, at most, go through one program. They must differ in seed and learning rate alone.
      keep: whose checkpoints stay: "best" deletes those of a run once another is better.
      how: data_dir, cache_dir, on_metrics and quiet, as `train.run` takes them.

    Raises:
      ValueError: as `runs` and `train.run`.
      train.Stopped: at a signal. The same call goes on.
    """
    require(keep in ("best", "all"), f"keep must be best or all, not {keep!r}")
    require(together > 0, f"together must be above 0, not {together}")
    everything = runs(exp, workdir, grid or {}, seeds)
    results: dict[str, dict[str, Any] | None] = {}
    for group in _groups(everything, together):
        results |= _finished(group, how.get("data_dir", ""))
        missing = [run for run in group if run.workdir not in results]
        results |= run_group(missing, how)
        if keep == "best":
            _forget(results)
        jax.clear_caches()  # programs of past points
    summary = _summary(everything, results)
    values: dict[str, Any] = {"metric": summary.metric, "majority": summary.majority, "best_run": summary.best_run()}
    values |= {"failed": summary.failed, "written": provenance.now()}
    points = [{**dataclasses.asdict(p), "mean": p.mean, "deviation": p.deviation} for p in summary.points]
    files.write_json(files.path(workdir) / "summary.json", {**values, "points": points})
    files.write(files.path(workdir) / "summary.md", f"{summary.table()}\n\n{provenance.written()}\n")
    return summary


def _groups(everything: Sequence[Run], together: int) -> Iterator[list[Run]]:
    """The runs, those side by side that fit in one program."""

    def shared(run: Run) -> str:
        values = config.to_dict(config.override(run.experiment, {"seed": 0, "optimizer.learning_rate": 1.0}))
        return json.dumps(values, sort_keys=True)

    fitting: dict[str, list[Run]] = {}
    for run in everything:
        fitting.setdefault(shared(run), []).append(run)
    for same in fitting.values():
        yield from (same[start : start + together] for start in range(0, len(same), together))


def _finished(group: Sequence[Run], data_dir: str) -> dict[str, dict[str, Any] | None]:
    """The results that are there, of runs that were the same, on the same data."""
    found: dict[str, dict[str, Any] | None] = {}
    for run in group:
        result = experiment.read_result(run.workdir)
        if result is not None:
            exp = planning.resolve(run.experiment, run.workdir)
            experiment.record(exp, run.workdir, fingerprints.of(exp, data_dir))
            found[run.workdir] = result
    return found


def failure(workdir: str) -> str:
    """Why a run has no figure: it came to no end, or to one that is NaN or infinite. "" where neither is so."""
    result = experiment.read_result(workdir)
    if result is not None:
        # The last step may have made weights of which a score can be had, but no loss.
        return next(
            (f"its {x} is NaN or infinite" for x in ("loss", "score") if not math.isfinite(result.get(x, 0.0))), ""
        )
    return failed_at(workdir).get("error", "")


def failed_at(workdir: str) -> dict[str, Any]:
    """What the mark of a run that failed says, "error" and "time"; {} where there is none."""
    path = files.path(workdir) / FAILED
    try:
        return config.read_json(path) if path.exists() else {}
    except ValueError as error:
        return {"error": f"it is not known why: {error}"}


def _mark(workdir: str, error: str) -> None:
    files.write_json(files.path(workdir) / FAILED, {"error": error, "time": time.time()})


@runtime_checkable
class Runnable(Protocol):
    """What can be run: an experiment with its place."""

    @property
    def experiment(self) -> Experiment: ...
    @property
    def workdir(self) -> str: ...


def run_group(group: Sequence[Runnable], how: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """The results of runs in one program, by workdir; of those whose loss was NaN or infinite, None: see `failure`.

    `how` are data_dir, cache_dir, on_metrics and quiet, as `train.run` takes them.
    """
    if not group:
        return {}
    exps, workdirs = [run.experiment for run in group], [run.workdir for run in group]
    try:
        results = train.run_together(exps, workdirs, **how)
        for workdir in workdirs:
            files.remove(files.path(workdir) / FAILED)
        return dict(zip(workdirs, results, strict=True))
    except FloatingPointError as error:
        several = f"; each of the {len(group)} runs beside it goes on by itself" if len(group) > 1 else ""
        logging.warning("%s: %s%s", ", ".join(workdirs), error, several)
        if len(group) == 1:
            _mark(workdirs[0], str(error))
            return {workdirs[0]: None}
    alone = [run_group([run], how) for run in group]  # one must not take the others with it
    return {workdir: result for part in alone for workdir, result in part.items()}


def figure(result: Mapping[str, Any]) -> tuple[str, float]:
    """The figure that runs are compared by, and its name: the task's metric, or the loss."""
    return (result["metric"], result["score"]) if "score" in result else ("loss", result["loss"])


def _forget(results: Mapping[str, dict[str, Any] | None]) -> None:
    """Deletes the checkpoints of all runs but the best so far."""
    done = {workdir: figure(result) for workdir, result in results.items() if result and not failure(workdir)}
    if not done:
        return
    choose = min if next(iter(done.values()))[0] == "loss" else max
    best = choose(done, key=lambda workdir: done[workdir][1])
    for workdir in done:
        if workdir != best and (files.path(workdir) / "checkpoints").exists():
            (files.path(workdir) / "checkpoints").rmtree()


def _summary(everything: Sequence[Run], results: Mapping[str, dict[str, Any] | None]) -> Summary:
    failed = {run.workdir: why for run in everything if (why := failure(run.workdir))}
    done = {workdir: result for workdir, result in results.items() if result and workdir not in failed}
    require(
        bool(done),
        "no run of the sweep came to its end: a lower learning rate is the usual cure:\n  "
        + "\n  ".join(f"{workdir}: {why}" for workdir, why in failed.items()),
    )
    (metric,) = {figure(result)[0] for result in done.values()}
    points = []
    for _, group in itertools.groupby(everything, key=lambda run: run.changes):
        same = list(group)
        found = [done.get(run.workdir) for run in same]
        seeds = tuple(run.experiment.seed for run in same)
        points.append(
            Point(
                same[0].changes,
                seeds,
                tuple(figure(result)[1] if result else None for result in found),
                tuple(s for s, result in zip(seeds, found, strict=True) if result and result.get("constant")),
                tuple(run.workdir for run in same),
            )
        )
    sign = 1 if metric == "loss" else -1
    points.sort(key=lambda point: sign * point.mean if point.done else float("inf"))
    majority = next((result.get("majority") for result in done.values()), None)
    return Summary(metric, tuple(points), majority if metric == "accuracy" else None, failed)


def _name(changes: Mapping[str, Any]) -> str:
    """ "learning_rate=5e-05,batch_size=32": the fields' last names, where those tell them apart."""
    short = [field.split(".")[-1] for field in changes]
    names = short if len(set(short)) == len(short) else list(changes)
    return ",".join(f"{name}={value}" for name, value in zip(names, changes.values(), strict=True))


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
