"""Scores a model on labelled files without training: figures and predictions are those of a run's own evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from bert_jax import files
from bert_jax.config import require
from bert_jax.experiment import Experiment, UnknownTask
from bert_jax.model.features import Frozen
from bert_jax.tasks.base import Context, Task
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.tagging import Tag
from bert_jax.training import planning, sharding
from bert_jax.training.program import Program
from bert_jax.weights import checkpoint, pretrained
from bert_jax.weights.pretrained import Pretrained


def evaluate(
    model: str,
    exp: Experiment | None = None,
    *,
    output: str = "",
    data_dir: str = "",
    cache_dir: str = "",
) -> dict[str, Any]:
    """The figures of a model on the validation files of an experiment's task; no weight is changed.

    Args:
      model: a run's workdir, a Hugging Face directory or a TF1 checkpoint's, with the head of the task.
      exp: whose task names the files, and whose last phase the length and the batch; its encoder, its start and its
        optimizer do not matter. None: the model's own.
      output: a directory for result.json and `predictions/`, those of the test files among them; "": none.
      data_dir: where the task finds its files.
      cache_dir: as in `train.run`.

    Raises:
      ValueError: where the model lacks the task's head, its classes are others than the task's, or a file is wrong.
    """
    found = pretrained.open(model)
    require(found.tokenizer is not None, f"{model} holds no tokenizer: put the vocab.txt of its weights there")
    assert found.tokenizer is not None
    exp = fitted(found, found.experiment if exp is None else exp)
    assert exp.encoder is not None
    params = dict(found.params())
    frozen = Frozen(exp.encoder, jax.tree.map(np.asarray, params.pop("encoder"))) if exp.task.frozen else None
    context = Context(found.tokenizer, data_dir, exp.seed, cache_dir, frozen)
    mesh = sharding.make_mesh(exp.mesh)
    place, sources = sharding.batch_sharding(mesh), dict[Any, Any]()
    phase, figures = exp.phases[-1], dict[str, Any]()
    with jax.set_mesh(mesh):
        program = Program(exp, found.tokenizer, 1, mesh)
        empty = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            program.abstract.params,
            program.shardings.params,
        )
        weights, heads = checkpoint.initialise(empty, params, task=exp.task, name=model, whole=True)
        if heads:
            logging.warning("of %s: %s", model, heads)
        validation = planning.evaluated(exp.task.validation(), exp, phase, context, place, sources)
        kept = {}
        for split, batches in validation.items():
            values, kept[split] = program.evaluate(weights, batches)
            values |= exp.task.score(batches.source, kept[split])
            suffix = f"_{split}" if figures else ""
            figures |= {name + suffix: value for name, value in values.items()}
        figures |= exp.task.baselines(context, phase.length)
        metric = exp.task.metric
        result = {"model": model, **({"metric": metric, "score": figures[metric]} if metric else {}), **figures}
        if output:
            tests = planning.evaluated(exp.task.tests(), exp, phase, context, place, sources)
            kept |= {split: program.evaluate(weights, batches)[1] for split, batches in tests.items()}
            written: dict[str, str] = {}
            for split, batches in {**validation, **tests}.items():
                written |= exp.task.predictions(split, batches.source, kept[split], figures)
            for name, content in written.items():
                files.write(files.make_folder(files.path(output) / "predictions") / name, content)
            result["predictions"] = sorted(written)
            files.write(files.path(output) / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def fitted(found: Pretrained, exp: Experiment) -> Experiment:
    """The experiment as the model can be asked: its encoder, the classes in its order, no longer than it reads.

    Raises:
      ValueError: where the model has no head for the task, or other classes than it.
    """
    task, own = exp.task, found.task
    for one in (task, own):
        if isinstance(one, UnknownTask):
            raise one.lacking()
    kind = type(task).__name__
    require(
        type(own) is type(task),
        f"{found.directory} is a model for {type(own).__name__ if own else 'no task: an encoder without a head'}, and "
        f"the experiment's task is {kind}: fine-tune it first, or name another model",
    )
    assert own is not None
    require(not task.files() or any(task.files()), "which file is to be scored? name it: --config.task.dev=FILE")
    phases = tuple(dataclasses.replace(one, length=min(one.length, found.length)) for one in exp.phases[-1:])
    changes: dict[str, Any] = {"task": classes_of(found.directory, own, task), "phases": phases, "init_from": ""}
    return dataclasses.replace(exp, encoder=found.encoder, **changes)


def classes_of(directory: str, own: Task, task: Task) -> Task:
    """The task with its classes in the order of the model's, which its own task `own` knows.

    They are told by what the file calls them, or by what they mean ("1" is "equivalent"), in any case. Where the model
    has no names for them (LABEL_0), the order is taken to be the task's, with a warning.

    Raises:
      ValueError: where the classes of the two are others.
    """
    bilstm: dict[str, Any] = {"bilstm": getattr(own, "bilstm", None)} if hasattr(task, "bilstm") else {}
    if isinstance(task, Tag) and isinstance(own, Tag):
        same = _order(own.labels, task.labels)
        require(same is not None, f"{directory} knows the tags {_said(own.labels)}, the task {_said(task.labels)}")
        return dataclasses.replace(task, labels=_by(same, task.labels), features=own.features, **bilstm)
    if not isinstance(task, Classify) or not isinstance(own, Classify):
        return dataclasses.replace(task, **bilstm) if dataclasses.is_dataclass(task) else task  # type: ignore[return-value]
    require(
        own.problem == task.problem and bool(own.labels) == bool(task.labels),
        f"{directory} is for {own.problem} of {len(own.labels) or 1} outputs, the task for {task.problem} of "
        f"{len(task.labels) or 1}",
    )
    if not task.labels:
        return dataclasses.replace(task, **bilstm)
    pairs = [(mine, theirs) for mine in (own.names, own.labels) for theirs in (task.names, task.labels, task.spelled)]
    order = next((found for mine, theirs in pairs if (found := _order(mine, theirs)) is not None), None)
    if order is None and own.names == tuple(f"LABEL_{i}" for i in range(len(task.labels))):
        logging.warning("%s has no names for its classes: they are taken to be %s", directory, _said(task.names))
        order = list(range(len(task.labels)))
    require(order is not None, f"{directory} knows the classes {_said(own.names)}, the task {_said(task.names)}")
    changed: dict[str, Any] = {name: _by(order, getattr(task, name)) for name in ("labels", "label_names", "spelled")}
    return dataclasses.replace(task, **changed, **bilstm)


def _order(theirs: tuple[str, ...], ours: tuple[str, ...]) -> list[int] | None:
    """Where each of their names stands among ours; None where these are others."""
    places: Mapping[str, int] = {name.casefold(): number for number, name in enumerate(ours)}
    found = [places.get(name.casefold()) for name in theirs]
    return [n for n in found if n is not None] if len(places) == len(ours) and {*found} == {*places.values()} else None


def _by(order: list[int] | None, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(values[number] for number in order or ()) if values else ()


def _said(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
