"""Runs a study: what is missing is run, what was cut goes on, what others work on is waited for; then the table.

Several processes, on several machines that see the workdir under one path, can do this at once: each run is claimed
by one.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from etils import epath

from bert_jax import chips, claims, config, report, results, sharding, study, sweep, tables, train
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.program import Program
from bert_jax.results import Result
from bert_jax.study import Base, Cell, Run, Study
from bert_jax.tasks.base import Context

WAIT = 5.0  # seconds between two looks at what others do


def reproduce(
    plan: Study,
    base: Base,
    workdir: str,
    *,
    together: int = 1,
    data_dir: str = "",
    cache_dir: str = "",
    quiet: bool = False,
) -> list[Result]:
    """Runs what is missing and writes the table into WORKDIR/NAME, after each run anew.

    A run whose loss is no number leaves its place in the table empty, and those that start from it do not run.

    Args:
      plan: the study.
      base: what its rows change.
      workdir: where all runs and the table are kept.
      together: how many seeds of a fine-tuning, at most, go through one program.
      data_dir: the folder of the tasks' folders.
      cache_dir: as of `train.run`.
      quiet: no progress on stderr.

    Raises:
      ValueError: at what is wrong with the study, its data, or a run of it.
      train.Stopped: at a signal. The same call goes on.
    """
    cells = study.plan(plan, base, workdir)
    check_files(cells, data_dir)
    everything = study.runs(cells)
    console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)
    failed: set[str] = set()
    write = functools.partial(_write, plan, base, cells, workdir, data_dir)
    write()
    waiting = ""
    while True:
        failed |= {run.workdir for run in everything if run.after is not None and run.after.workdir in failed}
        left = [run for run in everything if not run.result() and run.workdir not in failed]
        if not left:
            return write()
        ran = False
        for group in _groups(left, together):
            with contextlib.ExitStack() as claimed:
                mine = [run for run in group if claimed.enter_context(claims.claim(_claim(run))) and not run.result()]
                if not mine:
                    continue
                for run in mine:
                    console.print(f"{run.kind}: {run.command(data_dir)}", markup=False)
                how = {"data_dir": mine[0].data_dir(data_dir), "cache_dir": cache_dir, "quiet": quiet}
                failed |= {folder for folder, result in sweep.run_group(mine, how).items() if result is None}
            jax.clear_caches()  # the programs of a run are of no use to the next, and stay in memory
            ran = True
            write()
            done = sum(run.result() is not None for run in everything)
            console.print(
                f"{done} of {len(everything)} runs are done: {_home(plan, workdir)}/report.html", markup=False
            )
        if not ran:
            held = {claims.holder(_claim(run)) for run in left} - {""}
            said = f"waiting for {', '.join(sorted(held))}" if held else ""
            if said and said != waiting:
                console.print(said, markup=False)
            waiting = said
            time.sleep(WAIT)


def _groups(left: Sequence[Run], together: int) -> Iterator[list[Run]]:
    """The runs that can begin, seeds of one fine-tuning side by side."""
    seeds: dict[str, list[Run]] = {}
    for run in left:
        alone = run.workdir if run.kind == "pre-training" else str(epath.Path(run.workdir).parent)
        seeds.setdefault(alone, []).append(run)
    for same in seeds.values():
        for start in range(0, len(same), together):
            first = same[start].after
            if first is None or first.result():  # looked up late: it may have come to its end since
                yield same[start : start + together]


def _claim(run: Run) -> str:
    return f"{run.workdir}.claim"


def _home(plan: Study, workdir: str) -> pathlib.Path:
    """Where the table lies."""
    return pathlib.Path(workdir) / plan.name


def _write(plan: Study, base: Base, cells: Sequence[Cell], workdir: str, data_dir: str) -> list[Result]:
    found = results.collect(cells)
    report.write(plan, base, found, _home(plan, workdir), data_dir)
    return found


def check_files(cells: Sequence[Cell], data_dir: str) -> None:
    """That the files of all fine-tunings are there, before hours of pre-training.

    Raises:
      ValueError: that lists those that are not, with the columns that need them.
    """
    missing: dict[str, str] = {}
    for cell in cells:
        for run in list(cell.runs.values())[:1]:
            if run.kind == "fine-tuning":
                dev = getattr(run.experiment.task, "dev", ())
                for name in (getattr(run.experiment.task, "train", ""), *((dev,) if isinstance(dev, str) else dev)):
                    path = tables.path_of(name, run.data_dir(data_dir)) if name else ""
                    if path and not path.startswith("tfds:") and not epath.Path(path).exists():
                        missing[path] = cell.column.name
    lines = "".join(f"\n  {path} (column {column})" for path, column in missing.items())
    require(not missing, f"these files are not there; name their folder with --data_dir, or fewer --columns:{lines}")


class Estimate(NamedTuple):
    """What a run takes, before it runs. None: not known without data or weights that are not there yet."""

    run: Run
    done: bool
    steps: int | None
    tokens: int | None
    flops: float | None
    seconds: float | None


def estimates(cells: Sequence[Cell], data_dir: str = "", cache_dir: str = "") -> tuple[list[Estimate], str]:
    """Steps, tokens, FLOPs and predicted seconds of all runs, and what the prediction rests on."""
    everything = study.runs(cells)
    rate, basis = speed(everything)
    found, known = [], {}
    for run in everything:
        result = run.result()
        if result:
            seconds = result.get("seconds")
            found.append(Estimate(run, True, result["step"], result["tokens"], result.get("flops"), seconds))
            continue
        same = str(epath.Path(run.workdir).parent)  # seeds of one run differ in nothing that counts here
        if same not in known:
            known[same] = _work(run, data_dir, cache_dir)
        steps, tokens, flops = known[same]
        found.append(Estimate(run, False, steps, tokens, flops, None if flops is None else flops / rate))
    return found, basis


def _work(run: Run, data_dir: str, cache_dir: str) -> tuple[int | None, int | None, float | None]:
    """Steps, tokens and FLOPs, from the config and the lengths of the examples."""
    start = run.experiment if run.after is None else run.after.experiment
    exp = run.experiment
    if exp.encoder is None:
        exp = dataclasses.replace(exp, encoder=start.encoder) if run.after else train.resolve(exp)
    if exp.task.frozen:  # the features take the time, and are computed once for all such runs
        return None, None, None
    try:
        vocabulary = train.find_tokenizer(start if run.after else exp)
        mesh = sharding.make_mesh(exp.mesh)
        context = Context(vocabulary, run.data_dir(data_dir), exp.seed, cache_dir)
        lengths = [_lengths(exp, phase, context, sharding.batch_sharding(mesh)) for phase in exp.phases]
        tokens, flops = train.work(exp, Program(exp, vocabulary, 1, mesh).abstract.params, lengths)
        return sum(one.total() for one in lengths), tokens, flops
    except (ValueError, OSError):  # without data
        return None, None, None


def _lengths(exp: Experiment, phase: config.Phase, context: Context, place: Any) -> collections.Counter[int]:
    """Those of a phase's batches; data is read where they depend on it."""
    if phase.steps and phase.lengths == 1:
        return collections.Counter({phase.length: phase.steps})
    source = exp.task.source("train", phase.length, context)
    steps = train.steps_of(phase, source)
    return train.lengths_of(phase, steps, train.batches_of(source, exp, phase, place, seed=exp.seed, steps=steps))


def speed(everything: Sequence[Run]) -> tuple[float, str]:
    """FLOP/s to predict by, and where they come from: runs that are done, else the chip, else a measurement."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    done = [result for run in everything if (result := run.result()) and result.get("device") == device]
    done = [result for result in done if result.get("flops") and result.get("seconds", 0) > 1]
    if done:
        rate = sum(result["flops"] for result in done) / sum(result["seconds"] for result in done)
        return rate, f"{rate:.3g} FLOP/s, as the {len(done)} runs that are done had on {device}"
    chip = chips.find(jax.devices()[0].device_kind)
    if chip:
        rate = 0.4 * chip.flops * jax.device_count()
        return rate, f"{rate:.3g} FLOP/s, 40% of the peak of {device}: no run is done yet"
    rate = 0.4 * _measured()
    return rate, f"{rate:.3g} FLOP/s, 40% of what matrix products get on {device} now: no run is done yet"


def _measured(size: int = 1024, seconds: float = 0.5) -> float:
    """FLOP/s of float32 matrix products."""
    product = jax.jit(lambda x: x @ x / size)
    x = jnp.ones((size, size))
    product(x).block_until_ready()
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        product(x).block_until_ready()
        count += 1
    return 2 * size**3 * count / (time.monotonic() - began)


def show(found: Sequence[Estimate], basis: str, console: rich.console.Console, data_dir: str = "") -> None:
    """The runs of a study before they run: --dry_run."""
    table = rich.table.Table(box=None, pad_edge=False)
    for name in ("run", "state", "steps", "tokens", "FLOPs", "time"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=name == "run")
    for one in found:
        begun = epath.Path(one.run.workdir, "config.json").exists()
        state = "done" if one.done else "begun" if begun else "to run"
        counts = ["?" if value is None else f"{value:,}" for value in (one.steps, one.tokens)]
        flops = "?" if one.flops is None else f"{one.flops:.3g}"
        table.add_row(one.run.name, state, *counts, flops, "?" if one.seconds is None else _clock(one.seconds))
    console.print(table)
    left = [one for one in found if not one.done]
    total = sum(one.seconds or 0 for one in left)
    unknown = sum(one.seconds is None for one in left)
    rest = f", and {unknown} runs that cannot be predicted" if unknown else ""
    console.print(f"\n{len(found)} runs, {len(left)} left: about {_clock(total)} of steps{rest}. Predicted by {basis}.")
    console.print("\nEach by itself:")
    for one in found:
        console.print(f"    {one.run.command(data_dir)}", soft_wrap=True, markup=False, highlight=False)


def _clock(seconds: float) -> str:
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60:02.0f}"
