"""The train loop, for every task: `run` takes an experiment from its start to its result, stopped and resumed at will.

    plan (phases with their data) -> program (compiled) -> loop: steps, figures, evaluations, checkpoints -> result.json

Several runs that differ in seed or learning rate alone can share a program: they are lanes of one loop.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert_jax import chips, config
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Batch, Context, Source
from bert_jax.training import data, hosts, metrics, optimizer, planning, sharding
from bert_jax.training.lane import Lane, initial_state
from bert_jax.training.program import TOGETHER, Program, State, Totals, means, parameter_count, read_by


class Stopped(Exception):  # noqa: N818 - not an error: a request that was heard
    """A signal ended the run; what there is to save is saved. `signum` is the signal."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        where = "before the next step" if step is None else f"at step {step}"
        super().__init__(f"stopped by {signal.Signals(signum).name} {where}; the same command goes on from there")
        self.signum = signum


def run(
    exp: Experiment,
    workdir: str,
    *,
    data_dir: str = "",
    cache_dir: str = "",
    stop_at: int = 0,
    profile: tuple[int, int] | None = None,
    on_metrics: metrics.Hook | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains until the last phase ends, going on where an earlier call stopped, and returns what result.json holds.

    Args:
      exp: the experiment.
      workdir: local or gs://; made where it is not there. Holds config.json, metrics.jsonl, checkpoints, result.json.
      data_dir: where a task finds its official files.
      cache_dir: where what takes long to make is kept; "" is `cache.default_directory()`.
      stop_at: ends the call after this many steps in all, with a checkpoint; 0 means at the end of the last phase.
      profile: the first and the last step, counted from 1, of a trace for XProf, which is written to WORKDIR/profile.
      on_metrics: is called with the workdir and each line of metrics.jsonl, as a dict, once that is written; on the
        first host, and once for each line however often the run is stopped. Its errors are warned of, and end nothing.
      quiet: no progress on stderr.

    Raises:
      ValueError: at what is wrong with the experiment, its data or its checkpoints; nothing is lost.
      FloatingPointError: at a loss that is NaN or infinite; says the step. The last good checkpoint stands.
      Stopped: at SIGTERM or SIGINT, after the checkpoint is written; of several hosts, all stop where one hears it. A
        second signal ends the run at once, and what came after the last checkpoint is lost.
    """
    how: dict[str, Any] = {"data_dir": data_dir, "cache_dir": cache_dir, "on_metrics": on_metrics, "quiet": quiet}
    return run_together([exp], [workdir], stop_at=stop_at, profile=profile, **how)[0]


def run_together(
    exps: Sequence[Experiment],
    workdirs: Sequence[str],
    *,
    data_dir: str = "",
    cache_dir: str = "",
    stop_at: int = 0,
    profile: tuple[int, int] | None = None,
    on_metrics: metrics.Hook | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """`run` for several experiments at once, in one program: each ends as it would by itself, in its own workdir.

    Those that stand at different steps, as after a stop between two checkpoints, go in as many programs.

    Raises:
      ValueError: also where they differ in more than `TOGETHER`.
    """
    began = time.time()
    with hosts.signals() as signals:
        try:
            where = data_dir, cache_dir
            return _run_together(exps, workdirs, began, signals, *where, stop_at, profile, on_metrics, quiet)
        except hosts.Interrupted as interrupted:
            raise Stopped(interrupted.signum) from None


def _run_together(
    exps: Sequence[Experiment],
    workdirs: Sequence[str],
    began: float,
    signals: hosts.Signals,
    data_dir: str,
    cache_dir: str,
    stop_at: int,
    profile: tuple[int, int] | None,
    on_metrics: metrics.Hook | None,
    quiet: bool,
) -> list[dict[str, Any]]:
    exps = [planning.resolve(exp, workdir) for exp, workdir in zip(exps, workdirs, strict=True)]
    for exp in exps:
        changed = config.differences(config.to_dict(exps[0]), config.to_dict(exp))
        changed = [line for line in changed if line.split(":")[0] not in TOGETHER]
        require(not changed, f"runs of one program may differ in {' and '.join(TOGETHER)} alone: {'; '.join(changed)}")
    mesh = sharding.make_mesh(exps[0].mesh)
    sources: dict[Any, Source] = {}
    lanes: list[Lane] = []
    for exp, workdir in zip(exps, workdirs, strict=True):
        same = bool(lanes) and not planning.own_features(exp)
        frozen = lanes[0].context.frozen if same else planning.frozen_encoder(exp, workdir)
        context = Context(planning.find_tokenizer(exp, workdir), data_dir, exp.seed, cache_dir, frozen, quiet)
        lanes.append(Lane(exp, workdir, context, mesh, sources, on_metrics=on_metrics, quiet=quiet))
    require(stop_at >= 0, f"stop_at must be 0 (the end) or more, not {stop_at}")
    first, last = profile or (1, 1)
    steps = lanes[0].plan[-1].stop
    require(1 <= first <= last, f"a profile goes from a first to a last step, counted from 1, not {first} to {last}")
    require(last <= (stop_at or steps), f"step {last} cannot be profiled: the run ends at {stop_at or steps}")
    say = metrics.Progress(steps, 0, quiet or not lanes[0].main).say
    try:
        with hosts.together():
            if jax.process_count() > 1:  # all have read the workdirs before one writes to them
                multihost_utils.sync_global_devices("start of run")
            for lane in lanes:
                lane.open(say)
            if jax.process_count() > 1:  # none reads where the run stands before it is settled who works on it
                multihost_utils.sync_global_devices("workdirs are open")
            unfinished = [lane for lane in lanes if lane.result is None]
            for step in dict.fromkeys(lane.start for lane in unfinished):
                same_step = [lane for lane in unfinished if lane.start == step]
                with signals.deferred():
                    _Loop(same_step, mesh, stop_at, began, profile, signals).run()
                began = time.time()
    finally:
        for lane in lanes:
            lane.close()
    return [lane.result or {} for lane in lanes]


class _Pending(NamedTuple):
    """Figures that are due in the log, and may still be on their way from the devices."""

    step: int
    totals: Totals
    work: _Work


class _Work(NamedTuple):
    """What steps worked on."""

    tokens: int = 0
    flops: float = 0.0

    def plus(self, tokens: int, flops: float) -> _Work:
        return _Work(self.tokens + tokens, self.flops + flops)


class _Loop:
    """The steps of one program, for one run or for several side by side."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        mesh: jax.sharding.Mesh,
        stop_at: int,
        began: float,
        profile: tuple[int, int] | None,
        signals: hosts.Signals,
    ) -> None:
        """`began` is when this call of the runs did, in Unix time."""
        self.lanes, self.mesh, self.signals, first = lanes, mesh, signals, lanes[0]
        self.profile = metrics.Profile(str(first.folder / "profile"), *profile) if profile else None
        self.goodput = metrics.Goodput(began)
        for lane in lanes:
            lane.earlier = metrics.Goodput.earlier(lane.workdir, lane.start or 0, began) if lane.main else {}
        self.exp, self.every, self.plan = first.exp, first.exp.every, first.plan
        self.total = self.plan[-1].stop
        self.last = min(self.total, stop_at or self.total)
        self.program = Program(first.exp, first.vocabulary, self.total, mesh, [lane.exp for lane in lanes[1:]])
        self.progress = metrics.Progress(self.total, first.start or 0, first.quiet or not first.main)
        self.totals: Totals | None = None  # of the steps since the last log
        self.work = _Work()  # of the same, less those before `since`
        self.since: float | None = None  # when the last figures came; a phase's first step compiles and is not timed
        self.before = 0.0  # seconds of the same steps before a restart
        self.resumed = (0.0, _Work())  # what a run that goes on had of both at its checkpoint
        self.pending: _Pending | None = None
        self.signum: int | None = None  # the signal that ended the steps
        self.patience = hosts.PATIENT  # for a step
        chip = chips.find(jax.devices()[0].device_kind)
        self.peak = chip.flops * mesh.size if chip else 0.0  # FLOP/s in bfloat16

    def run(self) -> None:
        """From where the runs stand to their ends, or to `last`."""
        with jax.set_mesh(self.mesh):
            starts = [initial_state(lane.exp, self.program, lane.checkpoints) for lane in self.lanes]
            several = f"{len(self.lanes)} runs of " if len(starts) > 1 else ""
            count = f"{parameter_count(starts[0][0].params):,} parameters, {self.total:,} steps"
            self.progress.say(f"{self.exp.name}: {several}{count}; {starts[0][1]}")
            step = int(starts[0][0].step)
            state = self.program.join(*(own for own, _ in starts)) if len(starts) > 1 else starts[0][0]
            del starts  # their memory goes to the steps
            with self.progress:
                self.carry_on()
                step, state = self.train(step, state)
            self.save(step, state)
            with self.goodput.at("checkpoints"):
                for lane in self.lanes:
                    assert lane.checkpoints is not None
                    lane.checkpoints.wait()
            if self.signum is not None:
                raise Stopped(self.signum, step)
            with self.goodput.at("evaluation"):
                for lane, own in zip(self.lanes, self.apart(state), strict=True):
                    if step < self.total:
                        lane.result = {"step": step, "done": False}
                        continue
                    try:
                        lane.finish(self.program, own, self.goodput, self.signals.interrupt)
                    except hosts.Interrupted as interrupted:
                        raise Stopped(interrupted.signum, step) from None
            shares = metrics.Goodput.shares(self.goodput.seconds(self.lanes[0].earlier))
            spent = "  ".join(f"{place} {share:.1%}" for place, share in shares.items() if place != "seconds" and share)
            self.progress.say(f"of {shares['seconds']:,.0f} seconds: {spent}")

    def apart(self, state: State) -> Sequence[State]:
        """The runs' states."""
        return self.program.split(state) if len(self.lanes) > 1 else [state]

    def batches(self, stretch: planning.Stretch) -> data.Batches | data.Stacked:
        each = [lane.plan[self.plan.index(stretch)].batches for lane in self.lanes]
        return data.Stacked(each, self.program.batches_sharding) if len(each) > 1 else each[0]

    def train(self, step: int, state: State) -> tuple[int, State]:
        """Steps from `step`, where `state` stands, up to `last` or to a signal. Returns the last step and its state."""
        shapes = set()  # those that there is a program for
        knobs = self.program.on_devices(self.program.knobs)
        self.goodput.enter("steps")
        with self.profile or contextlib.nullcontext():
            if step < self.last and self.evaluation_due(step) and not self.evaluated(step):
                self.evaluate(step, state)  # before the first step, or where a signal cut it short
                self.signum = self.signals.heard
                if self.signum is not None:
                    return step, state
            for stretch in self.plan:
                end = min(stretch.stop, self.last)
                if step >= end:
                    continue
                self.since, self.patience = None, hosts.PATIENT
                batches = data.ahead(
                    self.batches(stretch).__getitem__, range(step - stretch.start, end - stretch.start)
                )
                for batch in self.goodput.waits("data", batches):
                    if self.profile:
                        self.profile.before(step + 1, state)
                    shape = tuple(x.shape for x in jax.tree.leaves(batch))
                    self.patience = self.patience if shape in shapes else hosts.PATIENT
                    mark = self.profile.marked(step + 1) if self.profile else contextlib.nullcontext()
                    place = self.goodput.at("steps" if shape in shapes else "compile")
                    with mark, place, hosts.within(self.patience):
                        state, figures = self.program.step(state, batch, knobs)
                        self.totals = (
                            self.program.add(self.totals, figures) if self.totals else self.program.begin(figures)
                        )
                    shapes.add(shape)
                    step += 1
                    self.count(batch, stretch)
                    if self.profile and self.profile.after(step, state):
                        self.patience = hosts.PATIENT  # the trace is written
                    self.after(step, state, stretch)
                    self.signum = self.signals.at_step(step)
                    if self.signum is not None:
                        return step, state
        return step, state

    def count(self, batch: Batch, stretch: planning.Stretch) -> None:
        """Adds up what a step works on."""
        read, operations = read_by(batch), 0.0
        if self.peak:
            operations = len(self.lanes) * self.program.step_flops(read.shape[-1], stretch.phase.batch_size)
        self.work = self.work.plus(read.size, operations)

    def after(self, step: int, state: State, stretch: planning.Stretch) -> None:
        """What is due after a step. Figures are fetched after the next one is under way, so that devices never wait."""
        self.progress.advance(step, self.goodput.spent("compile"))
        self.flush()
        if self.since is None:
            self.start_clock(step == stretch.start + 1)
        if step % self.every.log == 0 or step == stretch.start + 1 or self.evaluation_due(step):
            assert self.totals is not None
            self.pending, self.totals, self.work = _Pending(step, self.totals, self.work), None, _Work()
        if self.evaluation_due(step):
            self.evaluate(step, state)
        if self.every.checkpoint and step % self.every.checkpoint == 0:
            self.save(step, state)

    def start_clock(self, first: bool) -> None:
        """Time counts from here on: the first step of a phase, or of a run that goes on, has been compiled."""
        assert self.totals is not None
        self.wait_for(self.totals)
        self.since = time.monotonic()
        self.before, self.work = (0.0, _Work()) if first else self.resumed

    def carry_on(self) -> None:
        """Takes up what the steps between the last log and the checkpoint added up to, so that their mean is whole."""
        carried = [lane.carried for lane in self.lanes]
        if jax.process_count() > 1:  # the first host alone reads the log
            carried = hosts.agreed(carried)
        if not all(carried):
            return
        self.resumed = carried[0]["seconds"], _Work(carried[0]["tokens"], carried[0]["flops"])

        def stacked(values: Sequence[Any], kind: Any) -> np.ndarray:
            return np.asarray(values if len(self.lanes) > 1 else values[0], kind)

        pairs: Any = {
            name: tuple(stacked([one["pairs"][name][place] for one in carried], np.float32) for place in (0, 1))
            for name in carried[0]["pairs"]
        }
        steps = stacked([one["steps"] for one in carried], np.int32)
        self.totals = self.program.on_devices(Totals(pairs, steps, np.zeros_like(steps)))

    def wait_for(self, totals: Totals) -> None:
        with hosts.within(self.patience):
            jax.block_until_ready(totals)

    def fetched(self, totals: Totals) -> list[Totals]:
        """Each run's figures, on the host."""
        self.wait_for(totals)
        found = jax.device_get(totals)
        return [jax.tree.map(lambda x: np.atleast_1d(x)[row], found) for row in range(len(self.lanes))]  # noqa: B023

    def flush(self) -> None:
        """Fetches, checks and logs the figures that are due."""
        if self.pending is None:
            return
        (step, totals, work), self.pending = self.pending, None
        rows = self.fetched(totals)
        now, each = time.monotonic(), []
        seconds = None if self.since is None else now - self.since + self.before
        if self.since is not None:  # how long a step takes is known
            self.patience = max(hosts.SHARED, 10 * (now - self.since) / int(rows[0].steps))
        for lane, own in zip(self.lanes, rows, strict=True):
            self.check(lane, step, own)
            values = means(own.pairs)
            values["learning_rate"] = float(optimizer.schedule(lane.exp.optimizer, self.total)(step - 1))
            if seconds and work.tokens:
                values["tokens_per_second"] = work.tokens / len(self.lanes) / seconds
                values["seconds"] = seconds
                if self.peak:  # the share of the chips' peak that the model's own operations took
                    values["mfu"] = work.flops / seconds / self.peak
            lane.write(step, "train", values)
            each.append(values)
        if work.tokens:  # else the clock has just started
            self.since, self.before = now, 0.0
        shown = ("loss", "mlm_accuracy", "nsp_accuracy", "accuracy", "tokens_per_second", "mfu")
        mean = {name: sum(values[name] for values in each) / len(each) for name in shown if name in each[0]}
        if "tokens_per_second" in mean:
            mean["tokens_per_second"] *= len(each)
        self.progress.log(step, mean)
        hosts.if_lost(f"the same command on all hosts goes on from the checkpoint of step {self.complete()}")
        for lane in self.lanes:
            lane.check_claim()

    def complete(self) -> int:
        """The newest step whose checkpoint all runs are known to have on disk; 0 where there is none."""
        return min((lane.checkpoints.complete() or 0) if lane.checkpoints else 0 for lane in self.lanes)

    def check(self, lane: Lane, step: int, totals: Totals) -> None:
        """That all figures up to `step` are finite numbers."""
        if totals.bad:
            raise self.failure(
                lane, f"the loss is NaN or infinite at step {step - int(totals.steps) + int(totals.bad)}"
            )

    def failure(self, lane: Lane, what: str) -> FloatingPointError:
        """The error, with what stands and what to do."""
        assert lane.checkpoints is not None
        good, where = lane.checkpoints.latest(), f" in {lane.workdir}" if len(self.lanes) > 1 else ""
        stands = "There is no checkpoint yet" if good is None else f"The last good checkpoint is that of step {good}"
        return FloatingPointError(
            f"{what}{where}. {stands}; a lower --config.optimizer.learning_rate, or a longer warmup, is the usual cure"
        )

    def evaluation_due(self, step: int) -> bool:
        ends = any(step == stretch.stop for stretch in self.plan)
        return ends or bool(self.every.evaluate and step % self.every.evaluate == 0)

    def evaluated(self, step: int) -> bool:
        """Whether the log has the scores of `step` already."""
        found = all(step in lane.evaluated for lane in self.lanes)
        return bool(hosts.agreed(found)) if jax.process_count() > 1 else found

    def evaluate(self, step: int, state: State) -> None:
        """Scores of the validation splits, at the length of the phase that `step` belongs to or ends."""
        self.flush()
        phase = next(n for n, stretch in enumerate(self.plan) if step <= stretch.stop)
        began, several = time.monotonic(), len(self.lanes) > 1
        with self.goodput.at("evaluation"):
            each = self.program.split_params(state.params) if several else [state.params]
            for lane, params in zip(self.lanes, each, strict=True):
                try:
                    scores = lane.evaluate(self.program, step, params, lane.plan[phase], self.signals.interrupt)
                except hosts.Interrupted:  # the state is saved, and the run that goes on evaluates it
                    return
                which = f" seed {lane.exp.seed}" if several else ""
                figures = "  ".join(f"{k} {v:.4g}" for k, v in scores.items())
                self.progress.say(f"step {step}: validation{which}  {figures}")
                if not math.isfinite(scores.get("loss", 0.0)):  # the weights are no good, whatever the step's loss was
                    raise self.failure(lane, f"the loss on validation data is NaN or infinite at step {step}")
        if self.since is not None:
            self.since += time.monotonic() - began  # evaluation is not training time
        self.patience = hosts.PATIENT

    def save(self, step: int, state: State) -> None:
        """Checkpoints, of states whose figures are known to be good."""
        self.flush()
        since_log: list[dict[str, Any]] = [{} for _ in self.lanes]
        if self.totals:
            seconds = self.before + (time.monotonic() - self.since if self.since is not None else 0.0)
            for lane, own, sums in zip(self.lanes, self.fetched(self.totals), since_log, strict=True):
                self.check(lane, step, own)
                pairs = {name: [float(total), float(weight)] for name, (total, weight) in own.pairs.items()}
                sums.update(pairs=pairs, steps=int(own.steps), seconds=seconds, **self.work._asdict())
        self.patience = hosts.PATIENT  # the first host writes more than the others, who wait for it at the next step
        with self.goodput.at("checkpoints"):
            for lane, state_of, sums in zip(self.lanes, self.apart(state), since_log, strict=True):
                lane.save(step, state_of, self.goodput, sums)
