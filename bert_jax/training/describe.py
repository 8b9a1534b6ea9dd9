"""An experiment before it runs: all its fields, and what it takes, as far as its config and its data say."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax import config, experiment
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Context
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.training import planning, sharding
from bert_jax.training.program import Program, parameter_count


class Stage(NamedTuple):
    """What a phase takes. None: only its data could say."""

    phase: config.Phase
    steps: int | None
    tokens: int | None  # that the model reads, padding included
    flops: float | None  # of all its steps, as flops.py counts; None too where the encoder is frozen
    why: str = ""  # it is not known


class Work(NamedTuple):
    """What a run takes."""

    parameters: int  # that are trained
    stages: tuple[Stage, ...]

    def total(self, name: str) -> Any:
        """The sum of the stages' `name`; None where one is not known."""
        values = [getattr(stage, name) for stage in self.stages]
        return None if None in values else sum(values)


class Placeholder:
    """A `tasks.base.Vocabulary` without a tokenizer: where the special pieces stand changes no program's size."""

    def __init__(self, size: int) -> None:
        self.vocab_size, self.mask, self.cls, self.sep = size, 0, 1, 2
        self.continuation = np.zeros(size, bool)


def work(
    exp: Experiment,
    data_dir: str = "",
    cache_dir: str = "",
    *,
    tokenizer: Callable[[Experiment], Any] = planning.find_tokenizer,
) -> Work:
    """What a run takes. Data are read where the config alone does not fix the steps and their lengths.

    Args:
      exp: with its encoder: see `planning.resolve`.
      data_dir: the folder of the task's files.
      cache_dir: as of `train.run`.
      tokenizer: finds the experiment's; what it raises is as if there were none.
    """
    assert exp.encoder is not None
    mesh = sharding.make_mesh(config.Mesh())  # this machine's, whatever the run's shall be
    params = Program(exp, Placeholder(exp.encoder.vocab_size), 1, mesh).abstract.params
    found = []
    for index, phase in enumerate(exp.phases):
        try:
            lengths = _lengths(exp, index, data_dir, cache_dir, tokenizer, sharding.batch_sharding(mesh))
        except (ValueError, OSError) as error:  # without data, or without a vocabulary to read it by
            found.append(Stage(phase, phase.steps or None, None, None, str(error)))
            continue
        tokens, flops = planning.tokens_and_flops(dataclasses.replace(exp, phases=(phase,)), params, [lengths])
        found.append(Stage(phase, lengths.total(), tokens, None if exp.task.frozen else flops))
    return Work(parameter_count(params), tuple(found))


def _lengths(
    exp: Experiment,
    index: int,
    data_dir: str,
    cache_dir: str,
    tokenizer: Callable[[Experiment], Any],
    place: jax.sharding.NamedSharding,
) -> collections.Counter[int]:
    """How many of a phase's batches have each length."""
    phase = exp.phases[index]
    if phase.steps and phase.lengths == 1:
        return collections.Counter({phase.length: phase.steps})
    if exp.task.frozen:
        raise ValueError("its data are an encoder's vectors, which take long")
    source = exp.task.source("train", phase.length, Context(tokenizer(exp), data_dir, exp.seed, cache_dir))
    steps = planning.steps_of(phase, source)
    batches = planning.batches_of(source, exp, phase, place, seed=exp.seed, phase_index=index, steps=steps)
    return planning.batch_lengths(phase, steps, batches)


def text(exp: Experiment, taken: Work) -> str:
    """The experiment as `--show` prints it: each field as a flag takes it, with the default that it departs from; then
    parameters, and each phase's steps, tokens and FLOPs."""
    usual = _defaults(exp)
    lines = []
    for name, value in config.leaves(config.to_dict(exp)).items():
        if name == "task.is":
            lines.append(f"# task: {value}")
        if name.rpartition(".")[2] == "is":
            continue
        other = f"  # default: {config.spelled(usual[name])}" if name in usual and usual[name] != value else ""
        lines.append(f"{name}={config.spelled(value)}{other}")
    lines += ["", f"{taken.parameters:,} parameters are trained" + (", the encoder is not" if exp.task.frozen else "")]
    for index, stage in enumerate(taken.stages):
        phase = stage.phase
        steps = f"{_count(stage.steps)} steps" if stage.steps else f"{phase.epochs:g} epochs"
        why = f" ({stage.why})" if stage.why else ""
        lines.append(f"phase {index}: {steps} of {phase.batch_size} x {phase.length}, {_taken([stage])}{why}")
    if len(taken.stages) > 1:
        lines.append(f"in all: {_count(taken.total('steps'))} steps, {_taken(taken.stages)}")
    return "\n".join(lines)


def _taken(stages: Sequence[Stage]) -> str:
    taken = Work(0, tuple(stages))
    tokens, flops = taken.total("tokens"), taken.total("flops")
    return f"{_count(tokens)} tokens, {'?' if flops is None else f'{flops:.3g}'} FLOPs"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _defaults(exp: Experiment) -> dict[str, Any]:
    """The leaves of an experiment that names nothing but its task's class and how many phases there are."""
    fields = dataclasses.fields(exp.task)  # type: ignore[arg-type]
    needed = {field.name: getattr(exp.task, field.name) for field in fields if not config.has_default(field)}
    kind = Pretrain if isinstance(exp.task, experiment.UnknownTask) else type(exp.task)
    phases = (config.Phase(steps=1),) * len(exp.phases)
    plain = Experiment(encoder=config.Encoder(), task=kind(**needed), phases=phases)
    unset = {f"phases.{index}.steps": 0 for index in range(len(phases))}
    return {**config.leaves(config.to_dict(plain)), **unset}
