"""Files on local disks and in buckets (gs://), by one kind of path: written whole, appended to, or created once.

A file that is rewritten is there as it was before or as it is now, never in between: locally it is written beside and
renamed, in a bucket an object is replaced at once. Lines are appended; buckets do not append, so there they go to
objects of their own beside the file, which are joined at each `sync`. Nothing here imports JAX.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

BLOCK = 1 << 24  # bytes that are read at a time
_FULL = {
    errno.ENOSPC: "the disk of {} is full",
    errno.EDQUOT: "the disk quota of {} is used up",
    errno.EFBIG: "a file in {} may not become larger (ulimit -f)",
}
_AGAIN = "what was there before is unchanged; make room and run the same command again"
BETWEEN = 10.0  # seconds between two uploads of lines: a bucket takes about one write a second to an object


def remote(name: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a bucket."""
    return "://" in os.fspath(name)


def path(name: str | os.PathLike[str]) -> epath.Path:
    """The path of that name: a local one made absolute, a bucket's as it is.

    Raises:
      ValueError: at an empty name, and where the packages that read buckets are not installed.
    """
    text = os.fspath(name)
    if text.strip() == "":
        raise ValueError("a path is empty: name a file or a folder")
    if not remote(text):
        return epath.Path(text).expanduser().absolute()
    if not text.startswith("gs://"):
        raise ValueError(f"{text}: a path is local or begins with gs://")
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError:
        raise ValueError(f"{text}: buckets need more packages: pip install 'bert_jax[tpu]'") from None
    for protocol in ("gs", "gcs"):  # what other processes write must be seen at once
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    return epath.Path(text)


def cache_folder(name: str = "") -> pathlib.Path:
    """What runs share and may be deleted: the folder of that name, else $BERT_JAX_CACHE, else ~/.cache/bert_jax."""
    return pathlib.Path(name or os.environ.get("BERT_JAX_CACHE") or "~/.cache/bert_jax").expanduser()


def make_folder(name: str | os.PathLike[str]) -> epath.Path:
    """Makes a folder with those above it, where they are not there; buckets need none. Returns its path."""
    folder = path(name)
    if not remote(name):
        with room(folder):
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_folder(name: str | os.PathLike[str], what: str) -> None:
    """Refuses what is not a folder and cannot become one, as a file of that name is there, or above it.

    Raises:
      ValueError: that says `what` it was to be, and names the file.
    """
    folder = path(name)
    for one in () if remote(name) else (folder, *folder.parents):
        if one.is_file():
            raise ValueError(f"{what} {name} must be a folder, and {one} is a file: choose another")


class DiskFullError(OSError):
    """There is no room to write. The message names the file or folder and says what stands and what to do."""


@contextlib.contextmanager
def room(name: str | os.PathLike[str], cure: str = _AGAIN) -> Iterator[None]:
    """Where the disk is full inside, raises a `DiskFullError` about a file or folder that ends in `cure`.

    Of several that lie within each other, the innermost with a cure of its own speaks.
    """
    try:
        yield
    except OSError as error:
        said = isinstance(error, DiskFullError) and not str(error).endswith(_AGAIN)
        if said or error.errno not in _FULL:
            raise
        raise DiskFullError(error.errno, f"{_FULL[error.errno].format(os.fspath(name))}: {cure}") from None


def write(name: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file whole: whoever reads it finds the earlier content or this one. Its folder is made.

    Where it has this very content, nothing is written: a full disk does not matter then.

    Raises:
      OSError: names the file; the earlier content stands.
    """
    data = content.encode() if isinstance(content, str) else content
    file = path(name)
    with contextlib.suppress(OSError):
        if file.read_bytes() == data:
            return
    if remote(name):
        file.write_bytes(data)
        return
    make_folder(file.parent)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with room(file):
            with open(temporary, "xb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())  # a power cut must not leave the new name with no content
            os.replace(temporary, file)
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)


def write_json(name: str | os.PathLike[str], value: Any) -> None:
    """`write` of a JSON value."""
    write(name, json.dumps(value, indent=1) + "\n")


def create(name: str | os.PathLike[str], content: str) -> bool:
    """Writes a file that is not there yet; False where it is. Of several processes that try at once, one succeeds."""
    file = path(name)
    if remote(name):
        try:
            with _bucket(file).open(os.fspath(file), "xb") as opened:  # the object store itself decides who is first
                opened.write(content.encode())
        except FileExistsError:
            return False
        return True
    make_folder(file.parent)
    try:
        with room(file), open(file, "x", encoding="utf-8") as opened:
            opened.write(content)
    except FileExistsError:
        return False
    except OSError:
        with contextlib.suppress(OSError):
            file.unlink()  # it was created, and has no content
        raise
    return True


def touch(name: str | os.PathLike[str], content: str) -> None:
    """Makes a file new, whose content is `content` already."""
    if remote(name):
        path(name).write_text(content)
    else:
        os.utime(name)


def age(name: str | os.PathLike[str]) -> float:
    """Seconds since a file was written.

    Raises:
      FileNotFoundError: it is not there.
    """
    if not remote(name):
        return time.time() - os.stat(name).st_mtime
    written = _bucket(path(name)).info(os.fspath(name))["mtime"]
    return time.time() - (written if isinstance(written, (int, float)) else written.timestamp())


def remove(name: str | os.PathLike[str]) -> None:
    """Deletes a file; where it is not there, nothing happens."""
    with contextlib.suppress(FileNotFoundError):
        path(name).unlink()


def local(name: str | os.PathLike[str], cache_dir: str = "") -> pathlib.Path:
    """A local path to a file or folder; what lies in a bucket is copied to the cache folder, once for each content.

    Raises:
      FileNotFoundError: there is nothing of that name in the bucket.
    """
    if not remote(name):
        return pathlib.Path(name)
    source, system = path(name), _bucket(path(name))
    text = os.fspath(source).rstrip("/")
    found = system.find(text, detail=True)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "there is no such object or folder", text)
    identity = sorted(f"{key} {info.get('size')} {info.get('etag')} {info.get('mtime')}" for key, info in found.items())
    digest = hashlib.sha256("\n".join([text, *identity]).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir) / "downloads" / digest
    target = folder / source.name
    if not target.exists():
        partial = folder.with_name(f"{digest}.{uuid.uuid4().hex[:8]}")
        partial.mkdir(parents=True)
        try:
            with room(partial):
                system.get(text, str(partial / source.name), recursive=system.isdir(text))
            with contextlib.suppress(OSError):  # another process was first
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def upload(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> None:
    """Copies the files of a local folder to a folder in a bucket."""
    root = pathlib.Path(folder)
    for file in sorted(root.rglob("*")):
        if file.is_file():
            (path(name) / file.relative_to(root).as_posix()).write_bytes(file.read_bytes())


def _bucket(where: epath.Path) -> Any:
    """fsspec's file system of a bucket: `epath` does neither create exclusively nor say an object's etag."""
    return epath.backend.fsspec_backend.fs(where)


def checksum(name: str | os.PathLike[str], size: int | None = None) -> int:
    """The CRC-32 of a local file, or of its first `size` bytes."""
    found, left = 0, os.path.getsize(name) if size is None else size
    with open(name, "rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, BLOCK))):
            found, left = zlib.crc32(block, found), left - len(block)
    return found


def intact(name: str | os.PathLike[str], expected: int, size: int | None = None) -> bool:
    """Whether a local file, or its first `size` bytes, has this checksum. It is read once, unless it changes."""
    state = os.stat(name)
    return _checksum(os.path.abspath(name), size, state.st_ino, state.st_size, state.st_mtime_ns) == expected


@functools.lru_cache(maxsize=4096)
def _checksum(name: str, size: int | None, *_: int) -> int:
    return checksum(name, size)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], message: str) -> Iterator[None]:
    """Keeps a second process of this machine out of a local folder. The lock is freed however the process ends.

    Raises:
      ValueError: `message`, where another process is in.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(message) from None
    finally:
        os.close(handle)


class Lines:
    """A file of lines that is appended to: what was written stays as it is, whatever happens to the process or disk.

    Lines that `keep` does not want are dropped at the start, and so is a last line that a kill cut short. Only one
    process may write; `read_lines` reads at any time.
    """

    def __init__(self, name: str | os.PathLike[str], keep: Callable[[str], bool] = lambda _: True) -> None:
        self._path, self._remote = path(name), remote(name)
        content = _content(self._path)
        wanted = [line for line in _whole(content) if keep(line)]
        if "".join(f"{line}\n" for line in wanted) != content:
            write(self._path, "".join(f"{line}\n" for line in wanted))
        self._lines = wanted if self._remote else []  # all of them, to be joined
        self._uploaded, self._since = len(wanted), time.monotonic()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "lines") if self._remote else None
        self._under_way: concurrent.futures.Future[None] | None = None
        if self._remote:
            self._join()  # of parts that an earlier process left

    def append(self, line: str) -> None:
        """Adds a line.

        Raises:
          OSError: the disk is full; the lines before this one stand.
        """
        if not self._remote:
            make_folder(self._path.parent)
            with room(self._path), open(self._path, "ab", buffering=0) as file:
                before, data = file.tell(), f"{line}\n".encode()
                try:
                    if file.write(data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(before)  # of the half of a line
                    raise
            return
        self._lines.append(line)
        idle = self._under_way is None or self._under_way.done()
        if idle and time.monotonic() - self._since >= BETWEEN:
            self._finish()
            assert self._pool
            start, self._uploaded, self._since = self._uploaded, len(self._lines), time.monotonic()
            self._under_way = self._pool.submit(self._upload, start, self._lines[start:])

    def sync(self) -> None:
        """All lines are on disk, or in the file in the bucket, when this returns."""
        if self._remote:
            self._finish()
            self._join()
        elif self._path.exists():
            with open(self._path, "ab") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self.sync()
        if self._pool:
            self._pool.shutdown()

    def _upload(self, start: int, lines: list[str]) -> None:
        (_parts(self._path) / f"{start:09d}").write_text("".join(f"{line}\n" for line in lines))

    def _finish(self) -> None:
        """Waits for an upload, and raises what it raised."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def _join(self) -> None:
        parts = _part_files(self._path)
        if parts or self._uploaded < len(self._lines):
            write(self._path, "".join(f"{line}\n" for line in self._lines))
            self._uploaded, self._since = len(self._lines), time.monotonic()
        for part in parts:
            remove(part)


def read_lines(name: str | os.PathLike[str]) -> list[str]:
    """The lines of a file that `Lines` writes; none where it is not there."""
    return _whole(_content(path(name)))


def _whole(content: str) -> list[str]:
    """The lines that came to their end."""
    return content.split("\n")[:-1]


def _content(file: epath.Path) -> str:
    text = file.read_text() if file.exists() else ""
    if not remote(file):
        return text
    count = text.count("\n")
    for part in _part_files(file):
        if int(part.name) >= count:  # else it was joined, and its deletion was cut short
            text += part.read_text()
            count = text.count("\n")
    return text


def _parts(file: epath.Path) -> epath.Path:
    return file.with_name(f"{file.name}.parts")


def _part_files(file: epath.Path) -> list[epath.Path]:
    """The objects that hold lines which the file does not have yet, in order; of a local file, none."""
    folder = _parts(file)
    if not remote(file) or not folder.exists():
        return []
    return sorted((part for part in folder.iterdir() if part.name.isdigit()), key=lambda part: part.name)
