"""An experiment: everything that a run depends on, as one frozen value, and how one is read from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax

from bert_jax import config, definitions, files, provenance
from bert_jax.config import check_types, nearest, require
from bert_jax.tasks.base import Batch, Context, Pair, Source, Task
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
        check_types(self)
        for name in config.field_kinds(Experiment):
            foreign = [type(part).__name__ for part in _parts(getattr(self, name)) if not _is_ours(type(part))]
            require(
                name == "task" or not foreign,
                f"{name} is of class {foreign}: only a task may be of a class of your own, or have such in its fields",
            )
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


def least_bytes(exp: Experiment) -> int:
    """Below how many bytes of memory a run is impossible: its matrices, their gradients' two moments, a batch and its
    embeddings. 0 where the encoder is that of `init_from`, which was made somewhere.
    """
    if exp.encoder is None:
        return 0
    tokens = max(phase.batch_size * phase.length for phase in exp.phases)
    trained = 0 if exp.task.frozen else 2 * 4 * exp.encoder.parameters
    return 4 * exp.encoder.parameters + trained + tokens * (9 + 2 * exp.encoder.hidden // exp.optimizer.accumulate)


# What a run may change when it goes on: how it is computed and watched, not what is computed.
RESUMABLE = ("every", "mesh", "predict", "encoder.scan", "encoder.remat", "task.label_names")


def resumable(name: str) -> bool:
    """Whether a run that goes on may change the field of that dotted name: one of `RESUMABLE`, or what is in one."""
    return any(name == field or name.startswith(f"{field}.") for field in RESUMABLE)


@dataclasses.dataclass(frozen=True)
class UnknownTask(config.Verbatim, Task):
    """The task of a recorded run whose class this process has not imported.

    Weights, vocabulary and encoder of the run can be read without it. Its fields are those that config.json has. What a
    task does raises a `ValueError` that says where the class is.
    """

    values: Mapping[str, Any]
    origin: str  # the file or module that defines its class; "" where config.json does not say

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return tuple(values[name]) if isinstance(values[name], list) else values[name]

    @property
    def frozen(self) -> bool:
        return self.values.get("features") is not None

    def lacking(self) -> ValueError:
        """Says that the class is needed, and where it is."""
        name, here = str(self.values.get("is")), [kind.__name__ for kind in _subclasses(Task)]
        if self.origin.endswith(".py"):
            how = f"{self.origin} defines it: name that file with --config=FILE, or load it with experiment.load(FILE)"
        else:
            how = f"import {self.origin} first" if self.origin else f"import it first ({nearest(name, here)})"
        return ValueError(f"the run's task is of class {name}, which is not known here; {how}")

    def source(self, split: str, length: int, context: Context) -> Source:
        raise self.lacking()

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        raise self.lacking()

    def module(self, encoder: config.Encoder) -> nn.Module:
        raise self.lacking()

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        raise self.lacking()


def load(path: str) -> Experiment:
    """The EXPERIMENT that a Python file defines, or an experiment of this package by its name: `load("sst2")`.

    Raises:
      ValueError: where there is no such file, or it defines no EXPERIMENT; and what the file does wrong, with the line.
    """
    return definitions.require_defined(path, "EXPERIMENT", Experiment)


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


def kinds() -> dict[str, type]:
    """The config classes by name: any task's that is imported, what stands in their fields, and this package's."""
    ours = [*vars(config).values(), Experiment, Pretrain, Classify, Squad, Tag, Choose]
    return {
        kind.__name__: kind
        for kind in [*_with_inner(_subclasses(Task)), *ours]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [kind for child in children for kind in (child, *_subclasses(child)) if kind is not UnknownTask]


def _with_inner(classes: list[type]) -> list[type]:
    """The classes, and those that their fields' annotations name, with subclasses."""
    found: dict[type, None] = {}
    queue = [*classes]
    while queue:
        kind = queue.pop()
        if kind in found or not isinstance(kind, type):
            continue
        found[kind] = None
        if dataclasses.is_dataclass(kind):
            queue += _subclasses(kind)
            with contextlib.suppress(ValueError):  # what it names, if anything, is not needed
                queue += [inner for annotation in config.field_kinds(kind).values() for inner in _named(annotation)]
    return list(reversed(found))


def _named(annotation: Any) -> list[Any]:
    """The types in an annotation."""
    return [annotation, *(inner for part in typing.get_args(annotation) for inner in _named(part))]


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _parts(value: Any) -> Iterator[Any]:
    """The configs in a value, itself first."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))


def _own_classes(exp: Experiment) -> dict[str, type]:
    """The classes in the experiment's task that are not this package's, by name.

    Raises:
      ValueError: where a name stands for two classes: a file could not tell them apart.
    """
    ours, found = {name for name, kind in kinds().items() if _is_ours(kind)}, dict[str, type]()
    for kind in (type(part) for part in _parts(exp.task) if not _is_ours(type(part))):
        name = kind.__name__
        only = name not in ours and found.setdefault(name, kind) is kind
        require(only, f"two config classes are called {name}: give yours another name")
    return found


def _origin(kind: type) -> str:
    """Where a class is defined: its module's name, or the path of a file that was run."""
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None) or "" if kind.__module__ == "__main__" else kind.__module__


def read_config(workdir: str, known: Mapping[str, type] | None = None) -> Experiment:
    """The experiment that a workdir's config.json records.

    A task whose class this process has not imported is an `UnknownTask`. Nothing is imported or run for it: a workdir
    is data only.

    Args:
      workdir: the run's.
      known: config classes that go before others of their name.

    Raises:
      ValueError: where there is none, or this version does not know one of its fields, or a value is not of its type.
    """
    path = files.path(workdir) / "config.json"
    require(path.exists(), f"{workdir} is no workdir of a run: it has no config.json")
    cure = "delete that file and run the training's command again: it writes it anew, and goes on from its checkpoints"
    values = config.read_json(path, cure)
    require(values.get("is") == Experiment.__name__, f"{path} is not that of a run's workdir")
    origins = values.pop(_CLASSES, {})
    for name in _BESIDE:  # see `record`
        values.pop(name, None)
    try:
        require(isinstance(origins, dict), f"{_CLASSES} must be an object, not {origins!r}")
        recorded = [kind for kind in _with_inner(_subclasses(Task)) if _origin(kind) == origins.get(kind.__name__)]
        found = {**kinds(), **{kind.__name__: kind for kind in recorded}, **(known or {})}
        task = values.get("task")
        if isinstance(task, dict) and not set(_recorded(task)) <= set(found):
            values["task"] = UnknownTask(task, str(origins.get(str(task.get("is")), "")))
        return config.from_dict(values, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Where that file was not changed by hand, {cure}") from None


def read_result(workdir: str) -> dict[str, Any] | None:
    """What a run's result.json says; None where there is none, as the run is not done.

    Raises:
      ValueError: where the file is damaged.
    """
    path = files.path(workdir) / "result.json"
    if not path.exists():
        return None
    cure = "delete that file and run the training's command again: it computes it anew from the last checkpoint"
    values = config.read_json(path, cure)
    require(values, f"{path} is empty; {cure}")
    for name in ("step", "score", "loss", "best_f1_threshold", "tokens", "flops", "seconds"):  # what is reckoned with
        value = values.get(name, 0)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number, f"{path} is damaged: {name} must be a number, not {value!r}; {cure}")
    return values


_BESIDE = ("data", "start_length", "began")  # what config.json holds beside the experiment's fields
_CLASSES = "classes"  # of config.json: where classes are defined that are not this package's


def _recorded(values: Any) -> Iterator[str]:
    """The names of classes in what `config.to_dict` made."""
    if isinstance(values, dict):
        if "is" in values:
            yield str(values["is"])
        values = list(values.values())
    for value in values if isinstance(values, list) else ():
        yield from _recorded(value)


def start_length(workdir: str) -> int | None:
    """The length of the weights that a run started from, in tokens, as config.json has it; None: it does not say."""
    found = config.read_json(files.path(workdir) / "config.json").get("start_length")
    return found if isinstance(found, int) else None


def began(workdir: str) -> dict[str, str] | None:
    """By which versions and when a run began, as config.json has it: see `provenance.now`; None: it does not say."""
    found = config.read_json(files.path(workdir) / "config.json").get("began")
    return found if isinstance(found, dict) else None


def record(
    experiment: Experiment, workdir: str, data: Mapping[str, str] | None = None, length: int | None = None
) -> dict[str, str]:
    """Writes config.json; where one is there already, the run is the same but for what `RESUMABLE` names.

    Args:
      experiment: the run's.
      workdir: the run's.
      data: what its data are, by the field that names them, as `fingerprints.of` gives it; config.json holds it under
        "data". Where both know a field's data, these must be the same, and may lie elsewhere. None, as a config.json of
        an earlier version: not known, not checked.
      length: that of the weights that the run starts from; what an earlier call said goes before it. It is kept under
        "start_length", as those weights may be gone once the run is used.

    Under "began" it keeps by which versions and when the run began: see `provenance.now`. Others may go on with it.

    Returns:
      All that is known of the data, now or from before.

    Raises:
      ValueError: that lists the fields that differ, or whose data do.
    """
    path = files.path(workdir) / "config.json"
    values, own, known = config.to_dict(experiment), _own_classes(experiment), dict(data or {})
    beginning: Any = provenance.now()
    if path.exists():
        before = config.to_dict(read_config(workdir, own))  # with what became a field since then at its default
        recorded = config.read_json(path)
        then: dict[str, str] = recorded.get("data") or {}
        length = recorded.get("start_length", length)
        beginning = recorded.get("began")
        same = {field for field in then.keys() & known.keys() if then[field] == known[field]}
        changed = [
            line
            for line in config.differences(before, values)
            if not resumable(line.partition(":")[0]) and line.partition(":")[0] not in same
        ]
        require(
            not changed,
            f"{workdir} holds a run of another experiment; choose another --workdir, or undo these changes (field: "
            "value there, and here):\n  " + "\n  ".join(changed),
        )
        places = config.leaves(values)
        others = [f"{field}: {places.get(field)}" for field in sorted(then.keys() & known.keys() - same)]
        hint = "; --config.init_step names an earlier checkpoint of weights that were trained on" if others else ""
        require(
            not others,
            f"{workdir} holds a run of other data than lie there now; bring back what it began with, wherever it "
            f"lies, or choose another --workdir{hint} (field: where its data lie):\n  " + "\n  ".join(others),
        )
        known = {**then, **known}
    if own:
        values[_CLASSES] = {name: _origin(kind) for name, kind in own.items()}
    beside = {"data": known, "start_length": length, "began": beginning}
    files.write_json(path, {**values, **{name: value for name, value in beside.items() if value is not None}})
    return known
