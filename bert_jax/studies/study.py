"""A study: rows, which are changes to one base, by columns, which are tasks; and the runs that fill its table.

    base --a row's changes--> pre-training --a column's experiment, the row's changes--> fine-tuning --> a cell

each for several seeds. A run's folder is named by what the run is, its data included, not by who asked for it: rows
that share a pre-training share one run, and so do studies that share a workdir.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from etils import epath

from bert_jax import cache, config, definitions, experiment, files
from bert_jax.config import nearest, require
from bert_jax.experiment import Experiment
from bert_jax.studies import sweep
from bert_jax.training import fingerprints, planning
from bert_jax.weights import pretrained

# Fields by dotted name, or a function that makes them of the base: half of its layers, the width that it has.
Changes: TypeAlias = Mapping[str, Any] | Callable[[Experiment], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Row:
    """What is compared."""

    name: str
    pretraining: Changes = dataclasses.field(default_factory=dict)  # to the base
    fine_tuning: Changes = dataclasses.field(default_factory=dict)  # to the experiment of every column
    paper: Mapping[str, float | int] = dataclasses.field(default_factory=dict)  # its figures, by column
    at: float | int = 1  # after which share of the pre-training's steps it is fine-tuned
    line: str = ""  # of a study that is a figure: which line this point belongs to
    extra: bool = False  # not the paper's: only where it is asked for by name

    def __post_init__(self) -> None:
        config.check_types(self, f"row {self.name!r}: ")
        require(0 < self.at <= 1, f"row {self.name!r}: at must lie in (0, 1], not {self.at}")


@dataclasses.dataclass(frozen=True)
class Column:
    """By what it is compared: a figure of a fine-tuning or, without `experiment`, of the pre-training itself."""

    name: str
    experiment: str = ""  # a file beside the study's
    changes: Changes = dataclasses.field(default_factory=dict)
    folder: str = ""  # below the data_dir, where its files lie
    figure: str = ""  # its name in result.json, or several that may stand for it, comma between; "": the task's own
    scale: float | int = 100  # tables show figures times this
    extra: bool = False  # not the paper's: only where it is asked for by name

    def __post_init__(self) -> None:
        config.check_types(self, f"column {self.name!r}: ")


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of the paper, or a figure. Run it with `python scripts/reproduce.py --study=FILE`, where FILE defines
    STUDY as one of these."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    base: str = "bert_base.py"  # a file beside the study's
    seeds: int = 3  # of each fine-tuning
    pretraining_seeds: int = 1
    # How many of a pre-training, evenly spread, are kept for rows that begin before its end: of other studies' too, so
    # whichever comes first, let it be the same.
    checkpoints: int = 10

    def __post_init__(self) -> None:
        config.check_types(self)
        for kind, names in (("row", [row.name for row in self.rows]), ("column", [c.name for c in self.columns])):
            require(bool(names), f"a study needs a {kind}")
            require(len(set(names)) == len(names), f"two {kind}s of {self.name} have one name: {', '.join(names)}")
        for row in self.rows:
            for name in row.paper:
                known = [column.name for column in self.columns]
                require(name in known, f"row {row.name!r} has the paper's figure of {name!r}: {nearest(name, known)}")
        for name in ("seeds", "pretraining_seeds", "checkpoints"):
            require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Base:
    """What the rows change: a pre-training, with what it asks of every fine-tuning; or weights that are there."""

    file: str  # or the directory of the weights
    experiment: Experiment
    changes: Mapping[str, Any]  # to the file's, of the command line
    fine_tuning: Mapping[str, Mapping[str, Any]]  # what it asks of recipes; under "": of all
    tuning: Mapping[str, Any]  # the command line's, which go before all others

    @property
    def trained(self) -> bool:
        return files.path(self.file).is_dir()


@dataclasses.dataclass(frozen=True)
class Run:
    """A pre-training or a fine-tuning with one seed: the experiment of a file, and what is changed of it."""

    kind: Literal["pre-training", "fine-tuning"]
    experiment: Experiment
    workdir: str
    file: str
    changes: Mapping[str, Any]
    after: Run | None = None  # the one that it starts from
    folder: str = ""  # below the data_dir, where its files lie
    formerly: str = ""  # of a pre-training, what its workdir was called before its data were part of the name

    @property
    def name(self) -> str:
        """The last two folders: what it is, and its seed."""
        return "/".join(pathlib.PurePath(self.workdir).parts[-2:])

    def result(self) -> dict[str, Any] | None:
        """What result.json says; None where the run is not done. Raises `ValueError` where it is damaged."""
        return experiment.read_result(self.workdir)

    def failure(self) -> str:
        """Why the run has no figures and, as it is, gets none; "" where it is done, or still to be made."""
        own = sweep.failure(self.workdir)
        if own or self.after is None or self.result():
            return own
        before = self.after.failure()
        return f"{self.after.name}, which it starts from, failed: {before}" if before else ""

    def state(self) -> Literal["done", "failed", "begun", "to run"]:
        """How far the run is."""
        if self.failure():
            return "failed"
        begun = (files.path(self.workdir) / "config.json").exists()
        return "done" if self.result() else "begun" if begun else "to run"

    def data_dir(self, data_dir: str) -> str:
        """Where its files lie."""
        return _below(data_dir, self.folder)

    def command(self, data_dir: str = "") -> str:
        """The command line that makes this run by itself."""
        values = [f"--config.{name}={config.spelled(value)}" for name, value in self.changes.items()]
        where = [f"--data_dir={self.data_dir(data_dir)}"] if self.kind == "fine-tuning" else []
        return shlex.join(
            ["python", "-m", "bert_jax", f"--config={self.file}", *values, *where, f"--workdir={self.workdir}"]
        )


def commands(runs: Sequence[Run], data_dir: str = "") -> list[str]:
    """The command lines that make these runs by themselves; runs that differ in their seed alone are a shell's loop."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(pathlib.PurePath(run.workdir).parent), []).append(run)
    lines: list[str] = []
    for group in groups.values():
        each = {run.experiment.seed: run.command(data_dir) for run in group}
        looped = {
            line.replace(f" --config.seed={seed} ", " --config.seed=$seed ").removesuffix(f"/seed={seed}")
            + "/seed=$seed"
            for seed, line in each.items()
        }
        seeds = " ".join(map(str, each))
        one = len(each) > 1 and len(looped) == 1
        lines += [f"for seed in {seeds}; do {looped.pop()}; done"] if one else each.values()
    return lines


class Cell(NamedTuple):
    """A row and a column, and their runs by (seed of the pre-training, seed of the fine-tuning)."""

    row: Row
    column: Column
    runs: dict[tuple[int, int], Run]


def load(path: str) -> Study:
    """The STUDY that a Python file defines.

    Raises:
      ValueError: where there is no such file, or it defines no STUDY.
    """
    found = definitions.require_defined(path, "STUDY", Study)
    columns = tuple(
        dataclasses.replace(column, experiment=_beside(path, column.experiment)) if column.experiment else column
        for column in found.columns
    )
    return dataclasses.replace(found, columns=columns, base=_beside(path, found.base))


def _beside(path: str, name: str) -> str:
    """The experiment file that a study's file names: one beside it, else one of experiments/."""
    own = pathlib.Path(path).parent / name
    return str(own) if own.is_file() else str(pathlib.Path("experiments") / name)


def load_base(path: str, changes: Mapping[str, Any], tuning: Mapping[str, Any]) -> Base:
    """The base in a file, or weights in a directory, with a command line's changes to it and to all fine-tunings.

    A file defines EXPERIMENT and, where its fine-tunings shall differ from the columns' recipes, FINE_TUNING: changes
    by recipe ("squad" for a column that is made with squad.py), those of all under "".

    Raises:
      ValueError: where there is neither, or `changes` are asked of weights.
    """
    if files.path(path).is_dir():
        require(not changes, f"{path} holds weights, whose pre-training is over: {', '.join(changes)} cannot change")
        return Base(path, pretrained.open(path).experiment, {}, {}, tuning)
    base = planning.configured(experiment.load(path), changes)
    base = planning.resolve(base) if base.encoder is None else base
    recipes = definitions.defined(path).get("FINE_TUNING", {})
    require(
        isinstance(recipes, Mapping) and all(isinstance(changes, Mapping) for changes in recipes.values()),
        f'{path}: FINE_TUNING must be changes by recipe, {{"squad": {{"phases.0.length": 128}}, "": ...}}',
    )
    for name in recipes:
        known = definitions.names(path)
        require(name == "" or name in known, f"{path}: FINE_TUNING has {name!r}: {nearest(str(name), known)}")
    return Base(path, base, changes, recipes, tuning)


def select(
    study: Study, rows: Sequence[str] = (), columns: Sequence[str] = (), seeds: int = 0, pretraining_seeds: int = 0
) -> Study:
    """The study with the rows and columns of these names, and so many seeds.

    None: all rows, the columns that are the paper's, the study's own seeds.

    Raises:
      ValueError: at a name that is none.
    """
    lines, tasks = {row.name: row for row in study.rows}, {column.name: column for column in study.columns}
    for wanted, known in ((rows, list(lines)), (columns, list(tasks))):
        for name in wanted:
            require(name in known, f"{study.name} has no {name!r}: {nearest(name, known)}")
    kept = tuple(tasks[name] for name in columns) or tuple(c for c in study.columns if not c.extra)
    names = [column.name for column in kept]
    found = [lines[name] for name in rows] or [row for row in study.rows if not row.extra]
    known_of = [{name: value for name, value in row.paper.items() if name in names} for row in found]
    return dataclasses.replace(
        study,
        rows=tuple(dataclasses.replace(row, paper=paper) for row, paper in zip(found, known_of, strict=True)),
        columns=kept,
        seeds=seeds or study.seeds,
        pretraining_seeds=pretraining_seeds or study.pretraining_seeds,
    )


def plan(study: Study, base: Base, workdir: str, data_dir: str = "") -> list[Cell]:
    """All cells with their runs, row by row.

    The folders of runs are named by their data too, as far as these are there: see `fingerprints.of`.

    Raises:
      ValueError: at a change that an experiment does not take, and where weights that are there cannot be what a row
        asks for; before anything runs.
    """
    recipes = {column.experiment: experiment.load(column.experiment) for column in study.columns if column.experiment}
    cells = []
    for row in study.rows:
        try:
            before = _pretrainings(study, row, base, workdir)
            cells += [
                Cell(row, column, _cell(study, row, column, recipes, base, before, workdir, data_dir))
                for column in study.columns
            ]
        except ValueError as error:
            raise ValueError(f"{study.name}, row {row.name!r}: {error}") from None
    return cells


def runs(cells: Sequence[Cell]) -> list[Run]:
    """The runs of all cells, each once and after the one that it starts from."""
    found: dict[str, Run] = {}
    for cell in cells:
        for run in cell.runs.values():
            for one in (run.after, run):
                if one is not None:
                    found.setdefault(one.workdir, one)
    return list(found.values())


def _pretrainings(study: Study, row: Row, base: Base, workdir: str) -> list[Run | None]:
    """Those of a row, one for each seed; None stands for weights that are there."""
    changes = made(row.pretraining, base.experiment)
    if base.trained:
        require(
            not changes and row.at == 1 and study.pretraining_seeds == 1,
            f"it needs a pre-training of its own, and {base.file} holds weights: give a base file, or name the other "
            "--rows",
        )
        return [None]
    changed = config.override(base.experiment, changes)
    changes = {**changes, **_kept(study, row, changed)}
    data = fingerprints.of(changed)
    found: list[Run | None] = []
    for number in range(study.pretraining_seeds):
        own = {**changes, "seed": base.experiment.seed + number}
        exp = config.override(base.experiment, own)
        folder = _folder(workdir, exp, data)
        former = _folder(workdir, exp, {})
        found.append(Run("pre-training", exp, folder, base.file, {**base.changes, **own}, formerly=former))
    return found


def _kept(study: Study, row: Row, exp: Experiment) -> dict[str, int]:
    """The changes by which a pre-training keeps `study.checkpoints`, evenly spread, besides its newest.

    Every pre-training that can does, whichever study makes it: another may share it, and begin there. Where it would
    have to save far more often for it, one does alone whose own row begins there, and saves at no other steps.
    """
    total = sum(phase.steps for phase in exp.phases) if all(phase.steps for phase in exp.phases) else 0
    if row.at < 1:
        require(total > 0, "its checkpoints lie at shares of all steps: give the base's phases steps, not epochs")
        require(total % study.checkpoints == 0, f"{total} steps cannot be cut into {study.checkpoints} equal parts")
    part, rest = divmod(total, study.checkpoints)
    if rest or not part:
        return {}
    usual = min(exp.every.checkpoint or part, part)  # as often as it saves anyway, and at the end of each part
    often = next(steps for steps in range(usual, 0, -1) if part % steps == 0)
    if 4 * often < usual:  # as of a large prime
        if row.at == 1:
            return {}
        often = part
    return {"every.checkpoint": often, "every.keep_every": part}


def _cell(
    study: Study,
    row: Row,
    column: Column,
    recipes: Mapping[str, Experiment],
    base: Base,
    before: Sequence[Run | None],
    workdir: str,
    data_dir: str,
) -> dict[tuple[int, int], Run]:
    if not column.experiment:  # a figure of the pre-training itself, at its end
        return {(number, 0): run for number, run in enumerate(before) if run is not None and row.at == 1}
    recipe, where = recipes[column.experiment], _below(data_dir, column.folder)
    found = {}
    for number, run in enumerate(before):
        start = base.experiment if run is None else run.experiment
        changes = {
            **base.fine_tuning.get("", {}),
            **made(column.changes, start),
            **base.fine_tuning.get(pathlib.PurePath(column.experiment).stem, {}),
            **made(row.fine_tuning, start),
            **base.tuning,
            "init_from": base.file if run is None else run.workdir,
        }
        if row.at < 1:
            total = sum(phase.steps for phase in start.phases)
            changes["init_step"] = round(row.at * total)
            require(
                abs(row.at * study.checkpoints - round(row.at * study.checkpoints)) < 1e-9,
                f"it begins after {row.at:g} of all steps, and of these {study.checkpoints} checkpoints are kept",
            )
        first = experiment.changed(recipe, changes, lambda _: start.encoder)  # noqa: B023 - called at once
        data = fingerprints.of(first if run is None else dataclasses.replace(first, init_from=""), where)
        if run is not None:  # whose name says what it is
            data["init_from"] = f"{run.name}@{changes.get('init_step', 'end')}"
        for seed in range(recipe.seed, recipe.seed + study.seeds):
            exp = config.override(first, {"seed": seed})
            folder = _folder(workdir, exp, data)
            own = {**changes, "seed": seed}
            found[number, seed] = Run("fine-tuning", exp, folder, column.experiment, own, run, column.folder)
    return found


def _below(data_dir: str, folder: str) -> str:
    """Where a column's files lie."""
    return str(epath.Path(data_dir) / folder) if data_dir else folder


def made(changes: Changes, base: Experiment) -> dict[str, Any]:
    """Changes by dotted name, of a function of the base too."""
    return dict(changes(base) if callable(changes) else changes)


def _folder(workdir: str, exp: Experiment, data: Mapping[str, str]) -> str:
    """WORKDIR/NAME-DIGEST/seed=N, the digest of all that the run's result depends on: of what it is made of, `data` by
    field, not of where that lies."""
    values = {**config.leaves(config.to_dict(dataclasses.replace(exp, seed=0, name=""))), **data}
    kept = {name: value for name, value in values.items() if not experiment.resumable(name)}
    digest = cache.digest(json.dumps(kept, sort_keys=True))[:8]
    return str(files.path(workdir) / f"{exp.name}-{digest}" / f"seed={exp.seed}")


def row_changes(row: Row, base: Base) -> list[str]:
    """What a row changes, a line for each field: "task.masking.rate: 0.4"."""
    lines = [f"{name}: {config.spelled(value)}" for name, value in made(row.pretraining, base.experiment).items()]
    tuned = made(row.fine_tuning, base.experiment)
    lines += [f"fine-tuned with {name}: {config.spelled(value)}" for name, value in tuned.items()]
    return lines + [f"after {row.at:.0%} of the pre-training's steps"] * (row.at < 1)


def column_changes(column: Column, base: Base) -> list[str]:
    """What a column is: the experiment's file, its figure, and a line for each field that it changes."""
    lines = [pathlib.PurePath(column.experiment).name if column.experiment else "the pre-training itself"]
    lines += [f"figure: {column.figure}"] * bool(column.figure)
    return lines + [f"{name}: {config.spelled(value)}" for name, value in made(column.changes, base.experiment).items()]
