"""Checkpoints: saved asynchronously and whole, restored onto any mesh, and another run's weights taken as a start."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from bert_jax import files
from bert_jax.config import require
from bert_jax.sharding import path_of
from bert_jax.tasks.base import Task

FROZEN = "frozen"  # the workdir's folder of an encoder that is not trained


class Checkpoints:
    """The checkpoints of one workdir, by step. A half-written one is never seen: it gets its name once complete."""

    def __init__(self, workdir: str, keep: int = 3) -> None:
        self._directory = files.path(workdir) / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest(self) -> int | None:
        """The newest step that there is a checkpoint of, or soon will be."""
        return self._manager.latest_step()

    def complete(self) -> int | None:
        """The newest step whose checkpoint is known to be on disk."""
        steps = sorted(self._manager.all_steps())
        return next(iter(steps[-2:-1] if self._manager.is_saving_in_progress() else steps[-1:]), None)

    def save(self, step: int, state: Any) -> bool:
        """Starts to write `state` (step, params, optimizer); returns once the arrays are copied from the devices.

        False where there is a checkpoint of that step already: it stays as it is.

        Raises:
          OSError: where the disk is full, at this checkpoint or the one before. Older ones stand.
        """
        if step in self._manager.all_steps():
            return False
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in ("params", "optimizer")}
        with self._disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**items))
        return True

    def restore(self, step: int, state: Any) -> Any:
        """The state at `step`, laid out as the abstract `state` (`jax.ShapeDtypeStruct`s with shardings) says.

        Raises:
          ValueError: where the checkpoint is damaged or holds other parameters.
        """
        items = {name: ocp.args.StandardRestore(getattr(state, name)) for name in ("params", "optimizer")}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises many kinds; all mean that this checkpoint cannot be used
            raise ValueError(
                f"cannot restore {self._directory / str(step)}: {_first_line(error)}. If it is damaged, delete that "
                "directory: the run then goes on from the checkpoint before"
            ) from error
        count = jax.device_put(jax.numpy.asarray(step, state.step.dtype), state.step.sharding)
        return type(state)(step=count, params=found["params"], optimizer=found["optimizer"])

    def wait(self) -> None:
        """Until all that was saved is on disk. Raises as `save`."""
        with self._disk_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """A full disk comes out of Orbax as many an error, with a page of text."""
        try:
            yield
        except Exception as error:
            if "No space left" not in str(error):
                raise
            raise OSError(
                errno.ENOSPC,
                f"the disk of {self._directory} is full; the checkpoint of step {self.latest()} stands. Make room and "
                "run the same command again, it goes on from there",
            ) from None

    def close(self) -> None:
        """Waits, and lets go of the directory. Raises as `save`."""
        with self._disk_errors():
            self._manager.close()


def read_params(workdir: str, step: int | None = None) -> Any:
    """The parameters of a run, as host arrays in nested dicts: those of its last checkpoint, or of `step`.

    Where the run stands on a frozen encoder, that is among them.

    Raises:
      ValueError: where there is no such checkpoint, or it is damaged.
    """
    frozen = read_frozen(workdir)
    return _read(workdir, step) if frozen is None else {**_read(workdir, step), "encoder": frozen}


def read_frozen(workdir: str) -> Any | None:
    """The encoder that a run stands on and does not train, as host arrays in nested dicts; None: it has none."""
    folder = epath.Path(workdir) / FROZEN
    return _read(str(folder), 0)["encoder"] if (folder / "checkpoints" / "0").exists() else None


def write_frozen(workdir: str, params: Any) -> None:
    """Keeps that encoder in the workdir, once: each checkpoint would else hold it again. All processes must call it."""
    if not (epath.Path(workdir) / FROZEN / "checkpoints" / "0").exists():
        write_params(str(epath.Path(workdir) / FROZEN), {"encoder": params})


def _read(workdir: str, step: int | None) -> Any:
    directory = files.path(workdir) / "checkpoints"
    require(
        directory.exists(),
        f"{workdir} holds no checkpoints: name the workdir of a run that saved one (does it lie elsewhere?)",
    )
    steps = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    require(bool(steps), f"{directory} holds no complete checkpoint")
    step = steps[-1] if step is None else step
    require(step in steps, f"{directory} holds no checkpoint of step {step}: there is {steps}")
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as reader:
            shapes = reader.metadata(directory / str(step) / "params").item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            return reader.restore(directory / str(step) / "params", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # as above
        raise ValueError(f"cannot read {directory / str(step)}: {_first_line(error)}") from error


def write_params(workdir: str, params: Any, step: int = 0) -> None:
    """Writes the checkpoint of parameters alone that `read_params` reads: weights to start from or to use."""
    params = jax.tree.map(np.asarray, params)  # what cannot be read is found before anything is written
    with ocp.CheckpointManager(files.path(workdir) / "checkpoints") as manager:
        manager.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))


def initialise(params: Any, source: Any, *, task: Task, name: str) -> Any:
    """`params` with the values of `source` (a tree of what `np.asarray` takes), laid out as `params` are.

    What `task` calls fresh keeps its own initial values, what it calls optional does so where `source` lacks it, and
    what it calls unused may be left over; all else must be there on both sides, in the same shape. `name` is where
    `source` comes from, for messages.

    Raises:
      ValueError: that lists what is missing, left over or of another shape.
    """
    wanted = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    given = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(source)}
    modules = {path.split("/")[0] for path in given}
    skipped = {*task.fresh, *(module for module in task.optional if module not in modules)}

    problems = []
    for path, leaf in wanted.items():
        if path.split("/")[0] in skipped:
            continue
        if path not in given:
            problems.append(f"{path} is missing there")
        elif given[path].shape != leaf.shape:
            problems.append(f"{path} is {given[path].shape} there and {leaf.shape} here")
    left = [path for path in given if path not in wanted and path.split("/")[0] not in (*task.unused, *task.fresh)]
    problems += [f"{path} would be left over" for path in left]
    require(not problems, f"{name} does not fit this experiment:\n  " + "\n  ".join(problems[:12]))

    def fill(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = path_of(keys)
        if path.split("/")[0] in skipped:
            return leaf
        return jax.device_put(np.asarray(given[path], leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, params)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns that one item of a checkpoint has no metadata of its own; it needs none."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
