"""A run's own: its data, its files, where it starts, what it scores. Runs of one program are lanes of one loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from bert_jax import claims, experiment, files, provenance
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Context, Source
from bert_jax.training import fingerprints, metrics, planning, sharding
from bert_jax.training.program import Program, State, parameter_count
from bert_jax.weights import checkpoint, pretrained

Kept: TypeAlias = dict[str, dict[str, np.ndarray]]  # by split, what the task keeps of each example


class Lane:
    """A run's own: its data, its files, what it scored last. It shares the program and the steps with others."""

    def __init__(
        self,
        exp: Experiment,
        workdir: str,
        context: Context,
        mesh: jax.sharding.Mesh,
        sources: dict[Any, Source],
        *,
        on_metrics: metrics.Hook | None = None,
        quiet: bool,
    ) -> None:
        """Reads all that the run needs, and writes nothing. `sources` are those that other runs of its program read."""
        self.on_metrics = on_metrics
        self.exp, self.workdir, self.folder, self.quiet = exp, workdir, files.path(workdir), quiet
        self.context, self.vocabulary = context, context.tokenizer
        place = sharding.batch_sharding(mesh)
        self.plan = planning.stretches(exp, self.context, place, sources)
        self.tests = planning.evaluated(
            exp.task.tests() if exp.predict else (), exp, self.plan[-1].phase, self.context, place, sources
        )
        self.main = jax.process_index() == 0
        self.data: dict[str, str] = {}  # what they are: see `fingerprints.of`
        self.result: dict[str, Any] | None = None
        self.checkpoints: checkpoint.Checkpoints | None = None
        self.writer: metrics.Writer | None = None
        self.claim: claims.Claim | None = None
        self.earlier: dict[str, float] = {}  # of the run's earlier calls: see metrics.Goodput
        self.carried: dict[str, Any] = {}  # sums of figures since the last log, which the checkpoint came before
        self.evaluated: set[int] = set()  # steps whose validation figures are written
        self._latest: tuple[int, dict[str, float], Kept] | None = None  # the last evaluation: step, figures, outputs
        self._baselines: dict[int, dict[str, float]] = {}  # by the step that their phase begins at

    def open(self, say: Callable[[str], None]) -> None:
        """Records the run in its workdir, and finds out how far it came: `start`, and `result` where it is done.

        Raises:
          ValueError: another process trains in the workdir, or another experiment is recorded there.
        """
        if self.main:
            files.make_folder(self.folder)
            self.claim = claims.acquire_or_wait(self.folder / "run.lock", self.workdir, say)
            data, length = fingerprints.of(self.exp, self.context.data_dir), pretrained.start_length(self.exp)
            self.data = experiment.record(self.exp, self.workdir, data, length)
            self.vocabulary.save(self.folder / "tokenizer")
        if self.context.frozen is not None:
            checkpoint.write_frozen(self.workdir, self.context.frozen.params)
        self.checkpoints = checkpoint.Checkpoints(self.workdir, self.exp.every.keep, self.exp.every.keep_every)
        self.start = self.checkpoints.latest()
        if self.start == self.plan[-1].stop:
            self.result = self._finished()
        if self.result is None and self.main:
            self._resume(-1 if self.start is None else self.start)

    def _finished(self) -> dict[str, Any] | None:
        """What result.json says; None where it is not there, or lacks predictions that are wanted."""
        result = experiment.read_result(self.workdir)
        if result is None or not self.exp.predict:
            return result
        named = result.get("predictions")
        if named is None or not all((self.folder / "predictions" / name).exists() for name in named):
            return None
        return result

    def _resume(self, step: int) -> None:
        """Opens the log, and reads what it says of `step` and before."""
        self.writer = metrics.Writer(self.workdir, step, self.on_metrics)
        lines = metrics.read(self.workdir)
        self.evaluated = {line["step"] for line in lines if line["split"] == "validation"}
        self.carried = next((line for line in lines if (line["step"], line["split"]) == (step, "since_log")), {})

    def check_claim(self) -> None:
        """Raises `ValueError` where another process has taken the workdir: two must not write to it."""
        if self.claim and self.claim.lost:
            raise ValueError(
                f"another process has taken over {self.workdir}, since this one gave no sign of life for "
                f"{claims.STALE:.0f} seconds; this one ends, and the other goes on from the last checkpoint"
            )

    def write(self, step: int, split: str, values: Mapping[str, float], **more: Any) -> None:
        if self.writer:
            self.writer.write(step, split, values, **more)

    def baselines(self, stretch: planning.Stretch) -> dict[str, float]:
        """What the scores of a phase's validation data must be held against."""
        if stretch.start not in self._baselines:
            self._baselines[stretch.start] = self.exp.task.baselines(self.context, stretch.phase.length)
        return self._baselines[stretch.start]

    def evaluate(
        self, program: Program, step: int, params: Any, stretch: planning.Stretch, interrupt: Callable[[], None]
    ) -> dict[str, float]:
        """The scores of all validation splits at the length of a phase, with the baselines; written, and kept.

        `interrupt` is called between batches, and may raise; then nothing is written.
        """
        scores: dict[str, float] = {}
        kept: Kept = {}
        for split, batches in stretch.validation.items():
            figures, kept[split] = program.evaluate(params, batches, self.exp.seed, interrupt)
            figures |= self.exp.task.score(batches.source, kept[split])
            suffix = f"_{split}" if scores else ""
            scores |= {name + suffix: value for name, value in figures.items()}
        scores |= self.baselines(stretch)
        if step not in self.evaluated:
            self.write(step, "validation", scores)
            self.evaluated.add(step)
        self._latest = step, scores, kept
        return scores

    def save(self, step: int, state: State, goodput: metrics.Goodput, since_log: Mapping[str, Any]) -> None:
        """A checkpoint, with what a run that goes on from it must know of the time and the figures until then."""
        assert self.checkpoints is not None
        self.check_claim()
        if step == self.checkpoints.latest():
            return
        if self.writer:
            self.writer.write(step, "goodput", goodput.seconds(self.earlier), time=round(time.time(), 1))
            if since_log:
                self.writer.write(step, "since_log", {}, **since_log)
            self.writer.sync()
        self.checkpoints.save(step, state)

    def finish(self, program: Program, state: State, goodput: metrics.Goodput, interrupt: Callable[[], None]) -> None:
        """Predictions and result.json, once the last checkpoint is on disk: of the last phase, however it came here."""
        step, metric, last = int(state.step), self.exp.task.metric, self.plan[-1]
        lengths = [stretch.lengths for stretch in self.plan]
        tokens, operations = planning.tokens_and_flops(self.exp, state.params, lengths)
        if self._latest is None or self._latest[0] != step:  # the run was cut between the last checkpoint and here
            self.evaluate(program, step, state.params, last, interrupt)
        assert self._latest is not None
        _, scores, kept = self._latest
        result = {
            "step": step,
            "done": True,
            **({"metric": metric, "score": scores[metric]} if metric else {}),
            **scores,
            "parameters": parameter_count(state.params),
            "tokens": tokens,
            "flops": operations,
            "seconds": sum(line.get("seconds", 0.0) for line in metrics.read(self.workdir, "train")),  # in steps
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "data": self.data,
            "ended": provenance.now(),
        }
        if self.main and (began := experiment.began(self.workdir)):  # another version may have
            result["began"] = began
        if self.exp.predict:
            written = self._predictions(program, state.params, scores, kept, interrupt)
            result["predictions"] = sorted(written)
            if self.main:
                for name, content in written.items():
                    files.write(self.folder / "predictions" / name, content)
        result["goodput"] = metrics.Goodput.shares(goodput.seconds(self.earlier))
        if self.main:
            self.check_claim()
            files.write(self.folder / "result.json", json.dumps(result, indent=1) + "\n")
        self.result = result

    def _predictions(
        self, program: Program, params: Any, scores: Mapping[str, float], kept: Kept, interrupt: Callable[[], None]
    ) -> dict[str, str]:
        """The task's files of predictions, of the validation and test splits."""
        tests = {
            split: program.evaluate(params, batches, self.exp.seed, interrupt)[1]
            for split, batches in self.tests.items()
        }
        written: dict[str, str] = {}
        for split, batches in {**self.plan[-1].validation, **self.tests}.items():
            written |= self.exp.task.predictions(split, batches.source, {**kept, **tests}[split], scores)
        return written

    def close(self) -> None:
        """Waits for checkpoints, and gives the workdir free."""
        try:
            if self.writer:
                self.writer.close()
            if self.checkpoints:
                self.checkpoints.close()
        finally:
            if self.claim:
                self.claim.release()


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
    params, heads = checkpoint.initialise(state.params, source, task=exp.task, name=exp.init_from)
    where = "" if exp.init_step is None else f", step {exp.init_step}"
    word = f"starts from the weights of {exp.init_from}{where}"
    return state._replace(params=params), f"{word}, {heads}" if heads else word
