"""The train loop, for every task: `run` takes an experiment from its start to its result, stopped and resumed at will.

    plan (phases with their data) -> program (compiled) -> loop: steps, figures, evaluations, checkpoints -> result.json

Several runs that differ in seed or learning rate alone can share a program: they are lanes of one loop.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert_jax import chips, config, data, hosts, metrics, optimizer, planning, sharding
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.lane import Lane, initial_state
from bert_jax.program import TOGETHER, Program, State, means, parameter_count, read_by, step_flops
from bert_jax.tasks.base import Batch, Context, Source


class Stopped(Exception):  # noqa: N818 - no error: a request that was heard
    """A signal ended the run after a whole step; the state is saved. `signum` is the signal."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from there"
        )
        self.signum = signum


def run(
    exp: Experiment,
    workdir: str,
    *,
    data_dir: str = "",
    cache_dir: str = "",
    stop_at: int = 0,
    profile: tuple[int, int] | None = None,
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
      quiet: no progress on stderr.

    Raises:
      ValueError: at what is wrong with the experiment, its data or its checkpoints; nothing is lost.
      FloatingPointError: at a loss that is no number; says the step. The last good checkpoint stands.
      Stopped: at SIGTERM or SIGINT, after the checkpoint is written. Of several hosts, all stop where one hears it.
    """
    where: dict[str, Any] = {"data_dir": data_dir, "cache_dir": cache_dir}
    return run_together([exp], [workdir], stop_at=stop_at, profile=profile, quiet=quiet, **where)[0]


def run_together(
    exps: Sequence[Experiment],
    workdirs: Sequence[str],
    *,
    data_dir: str = "",
    cache_dir: str = "",
    stop_at: int = 0,
    profile: tuple[int, int] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """`run` for several experiments at once, in one program: each ends as it would by itself, in its own workdir.

    Those that stand at different steps, as after a stop between two checkpoints, go in as many programs.

    Raises:
      ValueError: also where they differ in more than `TOGETHER`.
    """
    began = time.time()
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
        lanes.append(Lane(exp, workdir, context, mesh, sources, quiet=quiet))
    first, last = profile or (1, 1)
    steps = lanes[0].plan[-1].stop
    require(1 <= first <= last, f"a profile goes from a first to a last step, counted from 1, not {first} to {last}")
    require(last <= (stop_at or steps), f"step {last} cannot be profiled: the run ends at {stop_at or steps}")
    try:
        with hosts.together():
            if jax.process_count() > 1:  # all have read the workdirs before one writes to them
                multihost_utils.sync_global_devices("start of run")
            for lane in lanes:
                lane.open()
            unfinished = [lane for lane in lanes if lane.result is None]
            for step in dict.fromkeys(lane.start for lane in unfinished):
                _Loop([lane for lane in unfinished if lane.start == step], mesh, stop_at, began, profile).run()
                began = time.time()
    finally:
        for lane in lanes:
            lane.close()
    return [lane.result or {} for lane in lanes]


class _Loop:
    """The steps of one program, for one run or for several side by side."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        mesh: jax.sharding.Mesh,
        stop_at: int,
        began: float,
        profile: tuple[int, int] | None,
    ) -> None:
        """`began` is when this call of the runs did, in Unix time."""
        self.lanes, self.mesh, first = lanes, mesh, lanes[0]
        self.profile = metrics.Profile(str(first.folder / "profile"), *profile) if profile else None
        self.goodput = metrics.Goodput(began)
        for lane in lanes:
            lane.earlier = metrics.Goodput.earlier(lane.workdir, lane.start or 0, began) if lane.main else {}
        self.exp, self.every, self.plan = first.exp, first.exp.every, first.plan
        self.total = self.plan[-1].stop
        self.last = min(self.total, stop_at or self.total)
        self.program = Program(first.exp, first.vocabulary, self.total, mesh, [lane.exp for lane in lanes[1:]])
        self.progress = metrics.Progress(self.total, first.start or 0, first.quiet or not first.main)
        self.pending: list[tuple[int, dict[str, Any]]] = []  # figures that are still on the device
        chip = chips.find(jax.devices()[0].device_kind)
        self.peak = chip.flops * mesh.size if chip else 0.0  # FLOP/s in bfloat16
        self.enter(0)

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
                state = self.train(step, state)
            step = max(step, self.last)
            self.save(step, state)
            self.goodput.enter("checkpoints")
            for lane in self.lanes:
                assert lane.checkpoints is not None
                lane.checkpoints.wait()
            self.goodput.enter("evaluation")
            for lane, own in zip(self.lanes, self.apart(state), strict=True):
                if step == self.total:
                    lane.finish(self.program, own, self.goodput)
                else:
                    lane.result = {"step": step, "done": False}
            shares = metrics.Goodput.shares(self.goodput.seconds(self.lanes[0].earlier))
            spent = "  ".join(f"{place} {share:.1%}" for place, share in shares.items() if place != "seconds" and share)
            self.progress.say(f"of {shares['seconds']:,.0f} seconds: {spent}")

    def apart(self, state: State) -> Sequence[State]:
        """The runs' states."""
        return self.program.split(state) if len(self.lanes) > 1 else [state]

    def enter(self, phase: int) -> None:
        self.stop = self.plan[phase].stop
        self.tokens, self.flops = 0, 0.0  # since the last figures
        self.since: float | None = None  # when the last figures came; the first step of a phase compiles
        self.patience = hosts.PATIENT  # for a step
        for lane in self.lanes:
            lane.enter(lane.plan[phase])

    def batches(self, phase: int) -> data.Batches | data.Stacked:
        each = [lane.plan[phase].batches for lane in self.lanes]
        return data.Stacked(each, self.program.batches_sharding) if len(each) > 1 else each[0]

    def train(self, step: int, state: State) -> State:
        """Steps from `step`, where `state` stands, up to `last`."""
        shapes = set()  # those that there is a program for
        self.goodput.enter("steps")
        with hosts.signals() as heard, self.profile or contextlib.nullcontext():
            for phase, stretch in enumerate(self.plan):
                end = min(stretch.stop, self.last)
                if step >= end:
                    continue
                self.enter(phase)
                if step == 0 and self.every.evaluate:
                    self.evaluate(step, state)
                numbers = range(step - stretch.start, end - stretch.start)
                batches = data.ahead(self.batches(phase).__getitem__, numbers)
                for batch in self.goodput.waits("data", batches):
                    if self.profile:
                        self.profile.before(step + 1, state)
                    shape = tuple(x.shape for x in jax.tree.leaves(batch))
                    self.patience = self.patience if shape in shapes else hosts.PATIENT
                    with self.goodput.at("steps" if shape in shapes else "compile"), hosts.within(self.patience):
                        state, figures = self.program.step(state, batch, self.program.knobs)
                    shapes.add(shape)
                    step += 1
                    self.count(batch, stretch)
                    self.pending.append((step, figures))
                    if self.profile and self.profile.after(step, state):
                        self.patience = hosts.PATIENT  # the trace is written
                    self.after(step, state)
                    signum = heard(step)
                    if signum is not None:
                        self.save(step, state)
                        raise Stopped(signum, step)
        return state

    def count(self, batch: Batch, stretch: planning.Stretch) -> None:
        """Adds up what a step works on."""
        read = read_by(batch)
        self.tokens, length = self.tokens + read.size, read.shape[-1]
        if self.peak:
            params, rows = self.program.abstract.params, stretch.phase.batch_size
            self.flops += len(self.lanes) * step_flops(self.exp, params, length, rows)

    def after(self, step: int, state: State) -> None:
        """What is due after a step."""
        self.progress.advance(step)
        if self.since is None or step % self.every.log == 0:
            self.flush(step)
        if step == self.stop or (self.every.evaluate and step % self.every.evaluate == 0):
            self.evaluate(step, state)
        if self.every.checkpoint and step % self.every.checkpoint == 0:
            self.save(step, state)

    def flush(self, step: int) -> None:
        """Fetches the figures of the steps since the last time, checks and logs them."""
        if not self.pending:
            return
        for _, on_device in self.pending:
            with hosts.within(self.patience):
                jax.block_until_ready(on_device)
        steps, fetched = [s for s, _ in self.pending], jax.device_get([f for _, f in self.pending])
        self.pending = []
        now, each = time.monotonic(), []
        if self.since is not None:  # how long a step takes is known
            self.patience = max(hosts.SHARED, 10 * (now - self.since) / len(steps))
        for row, lane in enumerate(self.lanes):
            figures = [{k: tuple(np.atleast_1d(x)[row] for x in pair) for k, pair in one.items()} for one in fetched]
            self.check(lane, steps, figures)
            values = means(figures)
            values["learning_rate"] = float(optimizer.schedule(lane.exp.optimizer, self.total)(steps[-1] - 1))
            if self.since is not None:
                values["tokens_per_second"] = self.tokens / len(self.lanes) / (now - self.since)
                values["seconds"] = now - self.since
                if self.peak:  # the share of the chips' peak that the model's own operations took
                    values["mfu"] = self.flops / (now - self.since) / self.peak
            lane.write(step, "train", values)
            each.append(values)
        self.since, self.tokens, self.flops = now, 0, 0.0
        shown = ("loss", "mlm_accuracy", "nsp_accuracy", "accuracy", "tokens_per_second", "mfu")
        mean = {name: sum(values[name] for values in each) / len(each) for name in shown if name in each[0]}
        if "tokens_per_second" in mean:
            mean["tokens_per_second"] *= len(each)
        self.progress.log(step, mean)
        hosts.if_lost(f"the same command on all hosts goes on from the checkpoint of step {self.complete()}")

    def complete(self) -> int:
        """The newest step whose checkpoint all runs are known to have on disk; 0 where there is none."""
        return min((lane.checkpoints.complete() or 0) if lane.checkpoints else 0 for lane in self.lanes)

    def check(self, lane: Lane, steps: Sequence[int], figures: Sequence[dict[str, Any]]) -> None:
        """That all losses are numbers."""
        for one, values in zip(steps, figures, strict=True):
            if not all(np.isfinite(pair[0]) for pair in values.values()):
                assert lane.checkpoints is not None
                good, where = lane.checkpoints.latest(), f" in {lane.workdir}" if len(self.lanes) > 1 else ""
                raise FloatingPointError(
                    f"the loss is no number at step {one}{where}. The last good checkpoint is that of step {good}; a "
                    "lower --config.optimizer.learning_rate, or a longer warmup, is the usual cure"
                )

    def evaluate(self, step: int, state: State) -> None:
        self.flush(step)
        began = time.monotonic()
        with self.goodput.at("evaluation"):
            for lane, own in zip(self.lanes, self.apart(state), strict=True):
                scores = lane.evaluate(self.program, step, own.params)
                which = f" seed {lane.exp.seed}" if len(self.lanes) > 1 else ""
                figures = "  ".join(f"{k} {v:.4g}" for k, v in scores.items())
                self.progress.say(f"step {step}: validation{which}  {figures}")
        if self.since is not None:
            self.since += time.monotonic() - began  # evaluation is not training time
        self.patience = hosts.PATIENT

    def save(self, step: int, state: State) -> None:
        """Checkpoints, of states whose figures are known to be good."""
        self.flush(step)
        self.patience = hosts.PATIENT  # the first host writes more than the others, who wait for it at the next step
        with self.goodput.at("checkpoints"):
            for lane, own in zip(self.lanes, self.apart(state), strict=True):
                lane.save(step, own, self.goodput)
