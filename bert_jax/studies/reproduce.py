"""Runs a study: what is missing is run, what was cut goes on, what others work on is waited for; then the table.

Several processes, on several machines that see the workdir under one path, can do this at once: each run is claimed
by one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from etils import epath

from bert_jax import chips, claims, files
from bert_jax.config import require
from bert_jax.studies import report, results, sweep
from bert_jax.studies.results import Result
from bert_jax.studies.study import Base, Cell, Run, Study, commands, plan, runs
from bert_jax.tasks import tables
from bert_jax.training import describe, metrics, planning
from bert_jax.weights import checkpoint

WAIT = 5.0  # seconds between two looks at what others do


def reproduce(
    study: Study,
    base: Base,
    workdir: str,
    *,
    together: int = 1,
    data_dir: str = "",
    cache_dir: str = "",
    on_metrics: metrics.Hook | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Runs what is missing and writes the table into WORKDIR/NAME, after each run anew.

    The table and its page are written at the start and after each run, not while this waits for other machines.
    A run whose loss is NaN or infinite leaves its place in the table empty, and those that start from it do not run;
    table and page say so. The next call tries it again.

    Args:
      study: the table or figure.
      base: what its rows change.
      workdir: where all runs and the table are kept.
      together: how many seeds of a fine-tuning, at most, go through one program.
      data_dir: the folder of the tasks' folders.
      cache_dir: as of `train.run`.
      on_metrics: likewise.
      quiet: no progress on stderr.

    Raises:
      ValueError: at what is wrong with the study, its data, or a run of it.
      train.Stopped: at a signal. The same call goes on.
    """
    files.require_folder(workdir, "the workdir")
    cells = plan(study, base, workdir, data_dir)
    check_files(cells, data_dir)
    check_pretrainings(cells)
    everything = runs(cells)
    earlier = {run.workdir: sweep.failed_at(run.workdir) for run in everything}

    def failed(run: Run) -> bool:
        """Whether it came to no end in this call, here or elsewhere, or what it starts from did."""
        mark = sweep.failed_at(run.workdir)
        own = sweep.failure(run.workdir) if run.result() else mark and mark != earlier[run.workdir]
        return bool(own) or (run.after is not None and failed(run.after))

    console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)
    home = files.path(workdir) / study.name
    waiting = ""
    written: list[Run] | None = None  # what was left when the table was written last
    while True:
        left = [run for run in everything if not run.result() and not failed(run)]
        if left != written:
            found, written = results.collect(cells), left
            report.write(study, base, found, home, data_dir)
            lost = sum(failed(run) for run in everything)
            done = f"{len(everything) - len(left) - lost} of {len(everything)} runs are done"
            console.print(f"{done}{f', {lost} failed' if lost else ''}: {home / 'report.html'}", markup=False)
        if not left:
            return found
        ran = False
        for group in _groups(left, together):
            with _claimed(group) as mine:
                for run in mine:
                    console.print(f"{run.kind}: {run.command(data_dir)}", markup=False)
                how: dict[str, Any] = {"cache_dir": cache_dir, "on_metrics": on_metrics, "quiet": quiet}
                sweep.run_group(mine, {**how, "data_dir": group[0].data_dir(data_dir)})
            if mine:
                jax.clear_caches()  # the programs of a run are of no use to the next, and stay in memory
                ran = True
                break  # the table first, and then what can begin now
        if not ran:
            waiting = _wait(left, waiting, console)


@contextlib.contextmanager
def _claimed(group: Sequence[Run]) -> Iterator[list[Run]]:
    """Those of the runs that are ours for the time of the `with`, and are not done yet."""
    with contextlib.ExitStack() as claimed:
        yield [run for run in group if claimed.enter_context(claims.claim(_claim(run))) and not run.result()]


def _wait(left: Sequence[Run], said: str, console: rich.console.Console) -> str:
    """Waits a while for runs of others; says for whose, if it is news, and returns that."""
    holders = {claims.holder(_claim(run)) for run in left} - {""}
    text = f"waiting for {', '.join(sorted(holders))}" if holders else ""
    if text not in ("", said):
        console.print(text, markup=False)
    time.sleep(WAIT)
    return text


def _groups(left: Sequence[Run], together: int) -> Iterator[list[Run]]:
    """The runs that can begin, seeds of one fine-tuning side by side."""
    seeds: dict[str, list[Run]] = {}
    for run in left:
        alone = run.workdir if run.kind == "pre-training" else str(files.path(run.workdir).parent)
        seeds.setdefault(alone, []).append(run)
    for same in seeds.values():
        for start in range(0, len(same), together):
            first = same[start].after
            if first is None or first.result():  # looked up late: it may have come to its end since
                yield same[start : start + together]


def _claim(run: Run) -> str:
    return f"{run.workdir}.claim"


def check_files(cells: Sequence[Cell], data_dir: str) -> None:
    """That the files of all fine-tunings are there, before hours of pre-training.

    Raises:
      ValueError: that lists those that are not, with the columns that need them.
    """
    wanted = {
        tables.path_of(name, run.data_dir(data_dir)): cell.column.name
        for cell in cells
        for run in cell.runs.values()
        for name in run.experiment.task.files()
    }
    missing = {p: c for p, c in wanted.items() if not tables.is_there(p)}
    lines = "".join(f"\n  {path} (column {column})" for path, column in missing.items())
    require(not missing, f"these files are not there; name their folder with --data_dir, or fewer --columns:{lines}")


def check_pretrainings(cells: Sequence[Cell]) -> None:
    """That the checkpoints from which rows begin are there or will be, before weeks of pre-training.

    Raises:
      ValueError: that lists pre-trainings which are past such a step and did not keep it, with the rows; and those that
        lie there under the names of earlier versions.
    """
    old = {run.formerly: run.workdir for run in runs(cells) if run.formerly not in ("", run.workdir)}
    begun = {a: b for a, b in old.items() if _config(a).exists() and not _config(b).exists()}
    names = "".join(f"\n  {files.path(a).parent} to {files.path(b).parent.name}" for a, b in begun.items())
    require(
        not begun,
        "these pre-trainings are of a version that did not name runs by their data. Where their corpus is the one that "
        f"lies there now, rename their folders, and their fine-tunings are made anew; else move them away:{names}",
    )
    lost: dict[str, set[str]] = {}
    for cell in cells:
        for run in cell.runs.values():
            if run.after is None or run.result():
                continue
            steps, done = checkpoint.steps(run.after.workdir), run.after.result()
            last = done["step"] if done else max(steps, default=0)
            begin = last if run.experiment.init_step is None else run.experiment.init_step
            if begin not in steps and begin <= last and (done or run.experiment.init_step is not None):
                lost.setdefault(f"{run.after.workdir}, step {begin:,}", set()).add(cell.row.name)
    lines = "".join(f"\n  {place} (row {', '.join(sorted(rows))})" for place, rows in lost.items())
    require(
        not lost,
        "these checkpoints are gone, or were not kept when their pre-training passed them: name the other --rows, or "
        f"delete what stands before the comma to pre-train anew:{lines}",
    )


def _config(workdir: str) -> epath.Path:
    return files.path(workdir) / "config.json"


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
    everything = runs(cells)
    rate, basis = speed(everything)
    found, known = [], {}
    for run in everything:
        result = run.result()
        if result:
            seconds = result.get("seconds")
            found.append(Estimate(run, True, result["step"], result["tokens"], result.get("flops"), seconds))
            continue
        same = str(files.path(run.workdir).parent)  # seeds of one run differ in nothing that counts here
        if same not in known:
            known[same] = _work(run, data_dir, cache_dir)
        steps, tokens, flops = map(known[same].total, ("steps", "tokens", "flops"))
        found.append(Estimate(run, False, steps, tokens, flops, None if flops is None else flops / rate))
    return found, basis


def _work(run: Run, data_dir: str, cache_dir: str) -> describe.Work:
    """What the run takes, from the config and, where it needs them, the lengths of the examples."""
    start = run.experiment if run.after is None else run.after.experiment
    exp = run.experiment
    if exp.encoder is None:
        exp = dataclasses.replace(exp, encoder=start.encoder) if run.after else planning.resolve(exp)
    reads = start if run.after else exp  # whose vocabulary it is
    found = lambda _: planning.find_tokenizer(reads)  # noqa: E731
    return describe.work(exp, run.data_dir(data_dir), cache_dir, tokenizer=found)


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
        counts = ["?" if value is None else f"{value:,}" for value in (one.steps, one.tokens)]
        flops = "?" if one.flops is None else f"{one.flops:.3g}"
        seconds = "?" if one.seconds is None else _clock(one.seconds)
        table.add_row(one.run.name, one.run.state(), *counts, flops, seconds)
    console.print(table)
    left = [one for one in found if not one.done]
    total = sum(one.seconds or 0 for one in left)
    unknown = sum(one.seconds is None for one in left)
    rest = f", and {unknown} runs that cannot be predicted" if unknown else ""
    console.print(f"\n{len(found)} runs, {len(left)} left: about {_clock(total)} of steps{rest}. Predicted by {basis}.")
    console.print("\nEach by itself:")
    for line in commands([one.run for one in found], data_dir):
        console.print(f"    {line}", soft_wrap=True, markup=False, highlight=False)


def _clock(seconds: float) -> str:
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60:02.0f}"
