"""Checkpoints: saved asynchronously and whole, restored onto any mesh, and another run's weights taken as a start.

Each holds a checksum of every array (`checksum`), made of the values on the devices before they are written, and
compared with what is read. Orbax's files have checksums of their index, and none of the arrays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from bert_jax import config, files, trees
from bert_jax.config import require
from bert_jax.tasks.base import Task

FROZEN = "frozen"  # the workdir's folder of an encoder that is not trained
_ITEMS = ("params", "optimizer")
_CHECKSUMS = "checksums"  # the item of a checkpoint that holds them, by item and path: "params/encoder/..."


class Checkpoints:
    """The checkpoints of one workdir, by step. A half-written one is never seen: it gets its name once complete."""

    def __init__(self, workdir: str, keep: int = 3, keep_every: int = 0) -> None:
        """Of all that are saved, the newest `keep` stay, and those whose step is a multiple of `keep_every`."""
        self._directory = files.path(workdir) / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
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
        parts = {name: getattr(state, name) for name in _ITEMS}
        items: dict[str, Any] = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
        items[_CHECKSUMS] = ocp.args.JsonSave(_checksums(parts))
        with self._disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**items))
        return True

    def restore(self, step: int, state: Any) -> Any:
        """The state at `step`, laid out as the abstract `state` (`jax.ShapeDtypeStruct`s with shardings) says.

        Raises:
          ValueError: where the checkpoint is damaged, which says what to do about it, or holds other parameters.
          OSError: where it could not be read (a network that is down, missing rights): it may be sound.
          MemoryError: where there is not enough memory for it; of a device's, JAX's own error.
        """
        parts = {name: getattr(state, name) for name in _ITEMS}
        items = {name: ocp.args.StandardRestore(part) for name, part in parts.items()}
        directory, before = self._directory / str(step), [one for one in self._manager.all_steps() if one < step]
        cure = f"the run then goes on from step {max(before)}" if before else "the run then begins anew"
        with _read_errors(directory, cure, parts["params"]):
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            _verify(directory, {name: found[name] for name in _ITEMS})
        count = jax.device_put(jnp.asarray(step, state.step.dtype), state.step.sharding)
        return type(state)(step=count, params=found["params"], optimizer=found["optimizer"])

    def wait(self) -> None:
        """Until all that was saved is on disk. Raises as `save`."""
        with self._disk_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        with _full_disk(self._directory, "run the same command again, it goes on from there"):
            yield

    def close(self) -> None:
        """Waits, and lets go of the directory. Raises as `save`."""
        with self._disk_errors():
            self._manager.close()


def checksum(array: np.ndarray) -> int:
    """A number of 32 bits for an array's values and their places.

    It is the sum over the elements, modulo 2^32, of a hash of each one's bits and place. So it does not depend on how
    an array is divided among devices, whose partial sums add up. Any change of a single element changes it; of changes
    of several, one in 2^32 does not.
    """
    bits = np.ascontiguousarray(array).reshape(-1)
    bits = bits.view(f"u{min(bits.itemsize, 4)}")
    places, total = np.arange(2**15, dtype=np.uint32), 0  # in parts that stay in the processor's cache
    for start in range(0, bits.size, places.size):
        part = bits[start : start + places.size].astype(np.uint32)
        total += int(_hash(part, places[: part.size] + np.uint32(start % 2**32)).sum(dtype=np.uint64))
    return total % 2**32


@jax.jit
def _on_devices(leaves: list[jax.Array]) -> list[jax.Array]:
    """`checksum` of arrays where they lie."""

    def one(leaf: jax.Array) -> jax.Array:
        place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
        for axis in reversed(range(leaf.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride % 2**32)
            stride *= leaf.shape[axis]
        bits = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        return _hash(bits.astype(jnp.uint32), place).sum(dtype=jnp.uint32)

    return [one(leaf) for leaf in leaves]


def _hash(bits: Any, place: Any) -> Any:
    """Of 32 bits at each place, which permutes them (MurmurHash3's finaliser)."""
    bits = bits ^ place * np.uint32(0x9E3779B9)
    bits = (bits ^ bits >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ bits >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return bits ^ bits >> np.uint32(16)


def _checksums(tree: Any) -> dict[str, int]:
    """The checksums of a tree's arrays by path. Those on several hosts' devices are each host's to ask for at once."""
    leaves = trees.leaves(tree)
    placed = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    sums = dict(zip(placed, map(int, jax.device_get(_on_devices(list(placed.values())))), strict=True))
    return {path: sums[path] if path in sums else checksum(np.asarray(leaf)) for path, leaf in leaves.items()}


def _verify(directory: epath.Path, tree: Mapping[str, Any]) -> None:
    """Compares what was read, by item, with the checksums; checkpoints of earlier versions have none.

    Raises:
      ValueError: that names the arrays that are not what was saved.
    """
    if not (directory / _CHECKSUMS).exists():
        return
    recorded = config.read_json(directory / _CHECKSUMS / "metadata")
    wrong = [path for path, value in _checksums(tree).items() if recorded.get(path) != value]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    require(
        not wrong, f"checksums differ: {', '.join(wrong[:3])}{more} {'are' if wrong[1:] else 'is'} not what was saved"
    )


# What TensorStore and JAX call errors that say nothing of the files: memory, rights, networks, a stop.
_ELSEWHERE = re.compile(
    "(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED)"
)
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_DECODING = (*_MISSING, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError)


@contextlib.contextmanager
def _read_errors(directory: epath.Path, cure: str, wanted: Any = None) -> Iterator[None]:
    """Tells apart what Orbax raises where a checkpoint is read: damage, parameters that are not `wanted`, all else."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while inner := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__):
            chain.append(inner)
        root, said = chain[-1], f"cannot restore {directory}: {_first_line(chain[-1])}"
        if isinstance(root, (MemoryError, jax.errors.JaxRuntimeError)) or not isinstance(root, Exception):
            raise root from None  # a stop, too
        elsewhere = any(_ELSEWHERE.match(str(link)) for link in chain)
        if elsewhere or any(isinstance(link, OSError) and not isinstance(link, _MISSING) for link in chain):
            raise OSError(f"{said}. That says nothing against the checkpoint: run the same command again") from error
        if not all(isinstance(link, _DECODING) or type(link) is Exception for link in chain):
            raise root from None
        other = _other_parameters(directory, wanted)
        if other:
            raise ValueError(
                f"{directory} holds other parameters than this experiment: {other}. If it is this run's own, it is "
                f"damaged: delete that directory; {cure}"
            ) from error
        raise ValueError(f"{said}. It is damaged: delete that directory; {cure}") from error


def _other_parameters(directory: epath.Path, wanted: Any) -> str:
    """In what a checkpoint's parameters differ from those that are wanted; "" also where that cannot be read."""
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as reader:
            there = _shapes(reader.metadata(directory / "params").item_metadata.tree)
    except Exception:  # as damaged as the arrays
        return ""
    here = _shapes(wanted)
    paths = [path for path in {**here, **there} if here.get(path) != there.get(path)] if here else []
    return "; ".join(
        f"{path} is {there.get(path, 'missing')} there, {here.get(path, 'missing')} here" for path in paths[:3]
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {trees.path_of(keys): tuple(leaf.shape) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@contextlib.contextmanager
def _full_disk(directory: epath.Path, cure: str) -> Iterator[None]:
    """A full disk comes out of Orbax as many an error, with a page of text."""
    try:
        yield
    except Exception as error:
        if not re.search("No space left|quota exceeded", str(error)):
            raise
        steps = _steps(directory)
        stands = f"the checkpoint of step {steps[-1]} stands" if steps else "no checkpoint is complete yet"
        raise OSError(errno.ENOSPC, f"the disk of {directory} is full; {stands}. Make room and {cure}") from None


def steps(workdir: str | os.PathLike[str]) -> list[int]:
    """The steps whose checkpoints are complete, ascending. In a bucket an incomplete one has its step's name, too."""
    return _steps(files.path(workdir) / "checkpoints")


def _steps(directory: epath.Path) -> list[int]:
    paths = directory.iterdir() if directory.exists() else ()
    return sorted(int(path.name) for path in paths if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path))


def read_params(workdir: str, step: int | None = None) -> Any:
    """The parameters of a run, as host arrays in nested dicts: those of its last checkpoint, or of `step`.

    Where the run stands on a frozen encoder, that is among them.

    Raises:
      ValueError: where there is no such checkpoint, or it is damaged.
      OSError: where it could not be read, as in `Checkpoints.restore`.
    """
    frozen = read_frozen(workdir)
    return _read(workdir, step) if frozen is None else {**_read(workdir, step), "encoder": frozen}


def read_frozen(workdir: str) -> Any | None:
    """The encoder that a run stands on and does not train, as host arrays in nested dicts; None: it has none."""
    folder = files.path(workdir) / FROZEN
    return _read(str(folder), 0)["encoder"] if (folder / "checkpoints" / "0").exists() else None


def write_frozen(workdir: str, params: Any) -> None:
    """Keeps that encoder in the workdir, once: each checkpoint would else hold it again. All processes must call it."""
    folder = files.path(workdir) / FROZEN
    if not (folder / "checkpoints" / "0").exists():
        write_params(str(folder), {"encoder": params})


def _read(workdir: str, step: int | None) -> Any:
    directory = files.path(workdir) / "checkpoints"
    require(
        directory.exists(),
        f"{workdir} holds no checkpoints: name the workdir of a run that saved one (does it lie elsewhere?)",
    )
    steps = _steps(directory)
    require(bool(steps), f"{directory} holds no complete checkpoint")
    step = steps[-1] if step is None else step
    require(step in steps, f"{directory} holds no checkpoint of step {step}: there is {steps}")
    before = [one for one in steps if one < step]
    cure = f"that of step {before[-1]} is then the last" if before else "there is none before it"
    folder = directory / str(step)
    with _read_errors(folder, cure), _quiet(), ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(folder / "params").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        params = reader.restore(folder / "params", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        _verify(folder, {"params": params})
    return params


def write_params(workdir: str, params: Any, step: int = 0) -> None:
    """Writes the checkpoint of parameters alone that `read_params` reads: weights to start from or to use.

    Raises:
      OSError: where the disk is full.
    """
    params = jax.tree.map(np.asarray, params)  # what cannot be read is found before anything is written
    items: dict[str, Any] = {"params": ocp.args.StandardSave(params)}
    items[_CHECKSUMS] = ocp.args.JsonSave(_checksums({"params": params}))
    directory = files.path(workdir) / "checkpoints"
    with _full_disk(directory, "run the same command again"), ocp.CheckpointManager(directory) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def initialise(params: Any, source: Any, *, task: Task, name: str, whole: bool = False) -> tuple[Any, str]:
    """`params` with the values of `source` (a tree of what `np.asarray` takes), laid out as `params` are.

    What `task` calls fresh keeps its own initial values, what it calls optional does so where `source` lacks it, and
    what it calls unused may be left over; all else must be there on both sides, in the same shape. With `whole` nothing
    starts anew. `name` is where `source` comes from, for messages.

    Returns:
      The parameters, and the heads that start anew or are left out, in words; "" where there are none.

    Raises:
      ValueError: that lists what is missing, left over or of another shape.
    """
    wanted = trees.leaves(params)
    given = trees.leaves(source)
    modules = {path.split("/")[0] for path in given}
    skipped = {*task.fresh, *(module for module in task.optional if module not in modules)}
    if whole:
        skipped = set()

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
    here = {path.split("/")[0] for path in wanted}
    anew, dropped = sorted(skipped & here), sorted((modules - here) | (skipped & modules))
    said = [f"{', '.join(anew)} from random values"] if anew else []
    said += [f"{', '.join(dropped)} left out"] if dropped else []

    def fill(keys: tuple[Any, ...], leaf: Any) -> jax.Array:
        path = trees.path_of(keys)
        if path.split("/")[0] in skipped:
            return leaf
        return jax.device_put(np.asarray(given[path], leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, params), "; ".join(said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns that one item of a checkpoint has no metadata of its own; it needs none."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
