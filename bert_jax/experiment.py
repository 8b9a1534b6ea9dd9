"""An experiment: everything that a run depends on, as one frozen value, and how one is read from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from etils import epath

from bert_jax import config, files
from bert_jax.config import require, require_tuples
from bert_jax.tasks.base import Task
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag

# How position embeddings are made of those of weights that have another number of them. "same": not at all. Fewer:
# "cut" leaves out the last. More: "fresh" adds random ones, "tile" begins again with the first, "interpolate" spreads.
Positions: TypeAlias = Literal["same", "cut", "fresh", "tile", "interpolate"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run, whole: run it with `python -m bert_jax --config=FILE`, where FILE defines EXPERIMENT as one of these."""

    name: str = "bert"
    encoder: config.Encoder | None = None  # None: as in init_from
    task: Task = Pretrain()
    optimizer: config.Optimizer = config.Optimizer()
    phases: tuple[config.Phase, ...] = (config.Phase(steps=1_000_000),)
    mesh: config.Mesh = config.Mesh()
    every: config.Every = config.Every()
    vocab: str = ""  # vocab.txt, a SentencePiece model or a directory with one; "": that of the corpus or of init_from
    init_from: str = ""  # weights, vocabulary and encoder to start from: a workdir, a Hugging Face or TF1 directory
    init_step: int | None = None  # which of the checkpoints, where init_from is a workdir; none: the last
    init_positions: Positions = "same"  # what becomes of their positions where encoder.max_positions is another
    random_init: bool = False  # take init_from's vocabulary and encoder, but not its weights: the control of a study
    predict: bool = False  # write the predictions of validation and test splits at the end, to WORKDIR/predictions
    seed: int = 0

    def __post_init__(self) -> None:
        require_tuples(self)
        require(bool(self.phases), "an experiment needs at least one phase")
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2^31), not {self.seed}")
        for index, phase in enumerate(self.phases):
            for name in ("clip_shards", "accumulate"):
                parts = getattr(self.optimizer, name)
                require(
                    phase.batch_size % parts == 0,
                    f"phases.{index}.batch_size={phase.batch_size} cannot be split into optimizer.{name}={parts} equal "
                    f"parts: choose a multiple of {parts}",
                )
        if self.encoder is not None:
            longest = max(phase.length for phase in self.phases)
            require(
                longest <= self.encoder.max_positions,
                f"a phase of length {longest} needs encoder.max_positions of as many, not {self.encoder.max_positions}",
            )


# What a run may change when it goes on: how it is computed and watched, not what is computed.
RESUMABLE = ("every", "mesh", "predict", "encoder.scan", "encoder.remat")


def load(path: str) -> Experiment:
    """The EXPERIMENT that a Python file defines. It may import its siblings: `from experiments.bert_base import ...`.

    Raises:
      ValueError: where there is no such file, or it defines no EXPERIMENT.
    """
    found = defined(path).get("EXPERIMENT")
    if not isinstance(found, Experiment):
        raise ValueError(f"{path} must define EXPERIMENT = Experiment(...)")
    return found


def changed(
    exp: Experiment, changes: Mapping[str, Any], source: Callable[[Experiment], config.Encoder | None]
) -> Experiment:
    """`exp` with changes by dotted name; where it names no encoder, those of one are changes of its `source`.

    Raises:
      ValueError: as `config.override`.
    """
    inner = {name: value for name, value in changes.items() if name.startswith("encoder.")}
    exp = config.override(exp, {name: value for name, value in changes.items() if name not in inner})
    if inner and exp.encoder is None:
        exp = dataclasses.replace(exp, encoder=source(exp))
    return config.override(exp, inner)


def defined(path: str) -> dict[str, Any]:
    """All that a Python file defines, by name.

    Raises:
      ValueError: where there is no such file.
    """
    file = pathlib.Path(path).resolve()
    require(file.is_file(), f"there is no file {path}")
    with _importable(file.parent.parent):
        return runpy.run_path(str(file))


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def kinds() -> dict[str, type]:
    """The config classes by name: this package's, its tasks', and any other task's that is imported."""
    values = [*vars(config).values(), Experiment, Pretrain, Classify, Squad, Tag, Choose, *_subclasses(Task)]
    return {value.__name__: value for value in values if isinstance(value, type) and dataclasses.is_dataclass(value)}


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [kind for child in children for kind in (child, *_subclasses(child))]


def read_config(workdir: str) -> Experiment:
    """The experiment that a workdir's config.json records.

    Raises:
      ValueError: where there is none, or this version does not know one of its fields.
    """
    path = epath.Path(workdir) / "config.json"
    require(path.exists(), f"{workdir} is no workdir of a run: it has no config.json")
    values = config.read_json(path)
    require(values.get("is") == Experiment.__name__, f"{path} is not that of a run's workdir")
    try:
        return config.from_dict(values, kinds())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def record(experiment: Experiment, workdir: str) -> None:
    """Writes config.json; where one is there already, the run is the same but for what `RESUMABLE` names.

    Raises:
      ValueError: that lists the fields that differ.
    """
    path = epath.Path(workdir) / "config.json"
    values = config.to_dict(experiment)
    if path.exists():
        before = config.to_dict(read_config(workdir))  # with what became a field since then at its default
        changed = [line for line in config.differences(before, values) if not line.startswith(RESUMABLE)]
        require(
            not changed,
            f"{workdir} holds a run of another experiment; choose another --workdir, or undo these changes (field: "
            "value there, and here):\n  " + "\n  ".join(changed),
        )
    files.write(path, json.dumps(values, indent=1) + "\n")
