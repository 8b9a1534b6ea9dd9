"""Arrays that take long to make and are kept: memory-mapped files in a folder whose name is what they follow from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
import tokenize
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bert_jax import files
from bert_jax.config import require

Make = Callable[[str, tuple[int, ...], Any], np.ndarray]  # (name, shape, dtype) -> an array on disk, to be filled

CURE = "make room, or name another folder with --cache_dir, and run the same command again"
_KEY = "key.json"


def default_directory() -> str:
    """$BERT_JAX_CACHE, else ~/.cache/bert_jax."""
    return str(files.cache_folder())


def digest(*parts: str | bytes | np.ndarray) -> str:
    """A name for contents, 32 hexadecimal digits: that of texts and of arrays with their types and shapes."""
    found = hashlib.sha256()
    for part in parts:
        kind = f"{part.dtype.str} {part.shape}" if isinstance(part, np.ndarray) else type(part).__name__
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
        found.update(f"{kind} {array.nbytes}:".encode())  # so that ("a", "bc") is not ("ab", "c")
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:32]


def arrays(directory: str, key: Mapping[str, Any], build: Callable[[Make], None]) -> dict[str, np.ndarray]:
    """The arrays of `key`, read-only and memory-mapped; made by `build` where `directory` does not hold them yet.

    `build(make)` asks `make(name, shape, dtype)` for arrays on disk and fills them: no more of them need be in memory
    than it works on. They get their place once `build` has returned, so that a half-written set is never seen. Of
    several processes on a machine, one builds and the others wait for it. Nothing is ever deleted: the folder, or any
    in it, can be at any time while no run reads it.

    Args:
      directory: a local folder, made where it is not there; "" is `default_directory()`.
      key: all that the arrays follow from, and a version of the code that makes them; JSON values.
      build: makes the arrays.

    Raises:
      ValueError: at a directory that is not local.
      OSError: where it cannot be written, or the disk is full.

    Example:
      >>> def build(make): make("squares", (3,), np.int32)[:] = [0, 1, 4]
      >>> int(arrays("/tmp/cache", {"what": "squares", "version": 1}, build)["squares"][2])   # doctest: +SKIP
      4
    """
    require("://" not in directory, f"the cache must be a local folder, not {directory}: name one with --cache_dir")
    known = json.loads(json.dumps(key))
    folder = pathlib.Path(directory or default_directory()).expanduser() / digest(json.dumps(known, sort_keys=True))
    found = _open(folder, known)
    if found is not None:
        return found
    with files.room(folder.parent, CURE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the process ends, however it does
            found = _open(folder, known)
            if found is not None:
                return found
            if folder.exists():
                print(f"{folder} is damaged: what it keeps is made again", file=sys.stderr)
            _build(folder, known, build)
    found = _open(folder, known)
    require(
        found is not None,
        f"{folder} is damaged as soon as it is written: check the disk, or name another folder with --cache_dir",
    )
    assert found is not None
    return found


def _build(folder: pathlib.Path, key: Any, build: Callable[[Make], None]) -> None:
    """Makes `folder`, which gets its name once it is whole."""
    partial = folder.with_suffix(".partial")
    for leftover in (partial, folder):  # of a process that was killed; and what is damaged
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir()
        made: dict[str, np.ndarray] = {}

        def make(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            made[name] = _new(partial / f"{name}.npy", shape, np.dtype(dtype))
            return made[name]

        build(make)
        entries = {}
        for name, array in made.items():
            if isinstance(array, np.memmap):
                array.flush()  # before it gets its name: a power cut must not leave zeros of the right size
            entries[name] = [list(array.shape), array.dtype.str, files.checksum(partial / f"{name}.npy")]
        (partial / _KEY).write_text(json.dumps({"key": key, "arrays": entries}, indent=1) + "\n")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _open(folder: pathlib.Path, key: Any) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`; None where they are not there, or their files are not what was written.

    What an older version wrote has no checksums: of it, types and shapes are checked.
    """
    try:
        known = json.loads((folder / _KEY).read_text())
        if known["key"] != key:
            return None
        found = {}
        for name, (shape, dtype, *checksum) in known["arrays"].items():
            file = folder / f"{name}.npy"
            if checksum and not files.intact(file, checksum[0]):
                return None
            found[name] = np.load(file, mmap_mode="r")
            if [list(found[name].shape), found[name].dtype.str] != [shape, dtype]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, SyntaxError, tokenize.TokenError):
        return None
    return found


def _new(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of zeros on disk, its room reserved: a page that a full disk has no room for would kill the process."""
    if math.prod(shape) == 0:  # no memory to map
        np.save(path, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        missing = f"{array.nbytes / 1e6:,.1f} MB are needed; {CURE}"
        with files.room(path.parent.parent, missing), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
