"""A run's own: its data, its files, where it starts, what it scores. Runs of one program are lanes of one loop."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax import checkpoint, experiment, metrics, planning, pretrained, sharding
from bert_jax.experiment import Experiment
from bert_jax.program import Program, State, parameter_count
from bert_jax.tasks.base import Context, Source


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
