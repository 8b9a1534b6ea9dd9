"""Large local files: checksums, whole or not at all, one writer at a time, and what a full disk says.

Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

BLOCK = 1 << 24  # bytes that are read at a time
_FULL = {
    errno.ENOSPC: "the disk of {} is full",
    errno.EDQUOT: "the disk quota of {} is used up",
    errno.EFBIG: "a file in {} may not become larger (ulimit -f)",
}


class DiskFullError(OSError):
    """There is no room to write. The message names the folder and says what stands and what to do."""


@contextlib.contextmanager
def room(folder: str | os.PathLike[str], cure: str) -> Iterator[None]:
    """Where the disk is full inside, raises a `DiskFullError` about `folder` that ends in `cure`."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(error.errno, f"{_FULL[error.errno].format(folder)}: {cure}") from None


def checksum(path: str | os.PathLike[str], size: int | None = None) -> int:
    """The CRC-32 of a file, or of its first `size` bytes."""
    found, left = 0, os.path.getsize(path) if size is None else size
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, BLOCK))):
            found, left = zlib.crc32(block, found), left - len(block)
    return found


def intact(path: str | os.PathLike[str], expected: int, size: int | None = None) -> bool:
    """Whether a file, or its first `size` bytes, has this checksum. A process reads a file once, unless it changes."""
    state = os.stat(path)
    return _checksum(os.path.abspath(path), size, state.st_ino, state.st_size, state.st_mtime_ns) == expected


@functools.lru_cache(maxsize=4096)
def _checksum(path: str, size: int | None, *_: int) -> int:
    return checksum(path, size)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file whole or not at all: a power cut or a full disk leaves what stood there before."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def locked(directory: pathlib.Path, message: str) -> Iterator[None]:
    """Keeps a second process out of a directory. The lock is freed when the process ends, however it ends.

    Raises:
      ValueError: `message`, where another process is in.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(message) from None
    finally:
        os.close(handle)
