"""The train loop, for every task: `run` takes an experiment from its start to its result, stopped and resumed at will.

    plan (phases with their data) -> program (compiled) -> loop: steps, figures, evaluations, checkpoints -> result.json

Several runs that differ in seed or learning rate alone can share a program: they are lanes of one loop.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from bert_jax import (
    checkpoint,
    chips,
    config,
    data,
    experiment,
    hosts,
    metrics,
    optimizer,
    planning,
    pretrained,
    sharding,
)
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.program import TOGETHER, Program, State, means, parameter_count, step_flops
from bert_jax.tasks.base import Batch, Context, Source


class Stopped(Exception):  # noqa: N818 - no error: a request that was heard
    """A signal ended the run after a whole step; the state is saved. `signum` is the signal."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from there"
        )
        self.signum = signum


def initial_state(exp: Experiment, program: Program, checkpoints: checkpoint.Checkpoints | None) -> tuple[State, str]:
    """Where a run starts, and a word on it: its own checkpoint, else the weights of `init_from`, else random ones."""
    latest = checkpoints.latest() if checkpoints else None
    if checkpoints and latest is not None:
        return checkpoints.restore(latest, program.abstract_state()), f"goes on at step {latest}"
    state = program.init(exp.seed)
    if exp.task.frozen:
        return state, f"starts from random weights, on {exp.init_from or 'random ones'} as they are"
    if exp.init_from == "" or exp.random_init:
        return state, "starts from random weights"
    source = pretrained.open(exp.init_from, exp.init_step).params(exp.encoder, exp.init_positions, exp.seed)
    params = checkpoint.initialise(state.params, source, task=exp.task, name=exp.init_from)
    where = "" if exp.init_step is None else f", step {exp.init_step}"
    return state._replace(params=params), f"starts from the weights of {exp.init_from}{where}"


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
    lanes: list[_Lane] = []
    for exp, workdir in zip(exps, workdirs, strict=True):
        same = bool(lanes) and not planning.own_features(exp)
        frozen = lanes[0].context.frozen if same else planning.frozen_encoder(exp, workdir)
        context = Context(planning.find_tokenizer(exp, workdir), data_dir, exp.seed, cache_dir, frozen, quiet)
        lanes.append(_Lane(exp, workdir, context, mesh, sources, quiet=quiet))
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


class _Lane:
    """A run's own: its data, its files, what it scored last. It shares the program and the steps with others."""

    def __init__(
        self,
        exp: Experiment,
        workdir: str,
        context: Context,
        mesh: jax.sharding.Mesh,
        sources: dict[Any, Source],
        *,
        quiet: bool,
    ) -> None:
        """Reads all that the run needs, and writes nothing. `sources` are those that other runs of its program read."""
        self.exp, self.workdir, self.folder, self.quiet = exp, workdir, epath.Path(workdir), quiet
        self.context, self.vocabulary = context, context.tokenizer
        place = sharding.batch_sharding(mesh)
        self.plan = planning.stretches(exp, self.context, place, sources)
        self.tests = planning.evaluated(
            exp.task.tests() if exp.predict else (), exp, self.plan[-1].phase, self.context, place, sources
        )
        self.main = jax.process_index() == 0
        self.result: dict[str, Any] | None = None
        self.scores: dict[str, float] = {}
        self.kept: dict[str, dict[str, np.ndarray]] = {}  # what the task keeps of each split, at the last evaluation
        self.checkpoints: checkpoint.Checkpoints | None = None
        self.writer: metrics.Writer | None = None
        self.earlier: dict[str, float] = {}  # of the run's earlier calls: see metrics.Goodput

    def open(self) -> None:
        """Records the run in its workdir, and finds out how far it came: `start`, and `result` where it is done."""
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            experiment.record(self.exp, self.workdir)
            self.vocabulary.save(str(self.folder / "tokenizer"))
        if self.context.frozen is not None:
            checkpoint.write_frozen(self.workdir, self.context.frozen.params)
        self.checkpoints = checkpoint.Checkpoints(self.workdir, self.exp.every.keep)
        self.start = self.checkpoints.latest()
        finished = self.folder / "result.json"
        predicted = not self.exp.predict or (self.folder / "predictions").exists()
        if self.start == self.plan[-1].stop and finished.exists() and predicted:
            self.result = json.loads(finished.read_text())
        elif self.main:
            self.writer = metrics.Writer(self.workdir, -1 if self.start is None else self.start)
        self.enter(self.plan[-1])

    def enter(self, stretch: planning.Stretch) -> None:
        """A phase begins: it is evaluated at its own length."""
        self.validation = stretch.validation
        self.baselines = self.exp.task.baselines(self.context, stretch.phase.length)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self.writer:
            self.writer.write(step, split, values)

    def evaluate(self, program: Program, step: int, params: Any) -> dict[str, float]:
        """The scores of all validation splits, with the baselines; written, and kept for the end."""
        self.scores = {}
        for split, batches in self.validation.items():
            figures, self.kept[split] = program.evaluate(params, batches, self.exp.seed)
            figures |= self.exp.task.score(batches.source, self.kept[split])
            suffix = f"_{split}" if self.scores else ""
            self.scores |= {name + suffix: value for name, value in figures.items()}
        self.write(step, "validation", {**self.scores, **self.baselines})
        return {**self.scores, **self.baselines}

    def save(self, step: int, state: State, goodput: metrics.Goodput) -> None:
        assert self.checkpoints is not None
        if self.checkpoints.save(step, state) and self.writer:
            self.writer.write(step, "goodput", goodput.seconds(self.earlier), time=round(time.time(), 1))

    def finish(self, program: Program, state: State, goodput: metrics.Goodput) -> None:
        """Predictions and result.json, once the last checkpoint is on disk."""
        step, metric = int(state.step), self.exp.task.metric
        lengths = [stretch.lengths for stretch in self.plan]
        tokens, operations = planning.tokens_and_flops(self.exp, state.params, lengths)
        if not self.scores:  # killed between the last checkpoint and the result
            self.evaluate(program, step, state.params)
        self.result = {
            "step": step,
            "done": True,
            **({"metric": metric, "score": self.scores[metric]} if metric else {}),
            **self.scores,
            **self.baselines,
            "parameters": parameter_count(state.params),
            "tokens": tokens,
            "flops": operations,
            "seconds": sum(line.get("seconds", 0.0) for line in metrics.read(self.workdir, "train")),  # in steps
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }
        files = self._predictions(program, state.params) if self.exp.predict else {}
        self.result["goodput"] = metrics.Goodput.shares(goodput.seconds(self.earlier))
        if not self.main:
            return
        if files:
            (self.folder / "predictions").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.folder / "predictions" / name).write_text(content)
        whole = self.folder / ".result.json"  # others may be waiting for it: it is there whole or not at all
        whole.write_text(json.dumps(self.result, indent=1) + "\n")
        whole.replace(self.folder / "result.json")

    def _predictions(self, program: Program, params: Any) -> dict[str, str]:
        """The task's files of predictions, of what was evaluated last and of the test splits."""
        for split, batches in self.tests.items():
            _, self.kept[split] = program.evaluate(params, batches, self.exp.seed)
        files: dict[str, str] = {}
        for split, batches in {**self.validation, **self.tests}.items():
            files |= self.exp.task.predictions(split, batches.source, self.kept[split], self.scores)
        return files

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        if self.checkpoints:
            self.checkpoints.close()


class _Loop:
    """The steps of one program, for one run or for several side by side."""

    def __init__(
        self,
        lanes: Sequence[_Lane],
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
                    with self.goodput.at("steps" if shape in shapes else "compile"):
                        state, figures = self.program.step(state, batch, self.program.knobs)
                    shapes.add(shape)
                    step += 1
                    self.count(batch, stretch)
                    self.pending.append((step, figures))
                    if self.profile:
                        self.profile.after(step, state)
                    self.after(step, state)
                    signum = heard(step)
                    if signum is not None:
                        self.save(step, state)
                        raise Stopped(signum, step)
        return state

    def count(self, batch: Batch, stretch: planning.Stretch) -> None:
        """Adds up what a step works on."""
        read = batch["tokens"] if "tokens" in batch else batch["predicted"]  # of a frozen encoder, words
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
        steps, fetched = [s for s, _ in self.pending], jax.device_get([f for _, f in self.pending])
        self.pending = []
        now, each = time.monotonic(), []
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

    def check(self, lane: _Lane, steps: Sequence[int], figures: Sequence[dict[str, Any]]) -> None:
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

    def save(self, step: int, state: State) -> None:
        """Checkpoints, of states whose figures are known to be good."""
        self.flush(step)
        with self.goodput.at("checkpoints"):
            for lane, own in zip(self.lanes, self.apart(state), strict=True):
                lane.save(step, own, self.goodput)
