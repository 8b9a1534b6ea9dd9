"""Who works on what, where several processes or machines share a folder: a file says so, and its age whether he lives.

A claim is a file that only one can create. Its holder touches it every few seconds; one that was not touched for
`STALE` seconds belongs to nobody who lives, and is taken over. On this machine a dead process is known at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from bert_jax.config import require

BEAT = 10.0  # seconds between two touches
STALE = 120.0  # seconds without one; clocks of machines that share a folder differ by less


@contextlib.contextmanager
def claim(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Whether what `path` stands for is ours for the time of the `with`. Where it is another's, nothing is done.

    Raises:
      ValueError: at a path in an object store: creating a file there does not tell two from one.
    """
    require("://" not in str(path), f"a claim needs a file system, local or shared as NFS is, and {path} lies in none")
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    mine = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex})
    if not (_create(file, mine) or (_abandoned(file) and _take_over(file, mine))):
        yield False
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):  # a folder that is away for a moment
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True, name=f"claim on {file.name}")
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            if file.read_text() == mine:  # else somebody took us for dead
                file.unlink()


def holder(path: str | os.PathLike[str]) -> str:
    """Who holds it, "HOST, process N"; "" where nobody does who lives."""
    try:
        found = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return ""
    return "" if _abandoned(pathlib.Path(path)) else f"{found['host']}, process {found['process']}"


def _create(file: pathlib.Path, text: str) -> bool:
    try:
        with file.open("x") as opened:
            opened.write(text)
    except FileExistsError:
        return False
    return True


def _abandoned(file: pathlib.Path) -> bool:
    try:
        age = time.time() - file.stat().st_mtime
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return True  # given back this moment
    except ValueError:  # about to be written, or its writer died there
        return age > STALE
    if found["host"] == socket.gethostname():
        try:
            os.kill(found["process"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return age > STALE


def _take_over(file: pathlib.Path, mine: str) -> bool:
    """Makes an abandoned claim ours; of several that try at once, one does, and at no moment is there no claim."""
    lock = file.with_name(f"{file.name}.takeover")
    if not _create(lock, mine):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > STALE:  # who held it died at it
                lock.unlink()
        return False
    try:
        if not _abandoned(file):
            return False
        if not file.exists():
            return _create(file, mine)
        temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
        temporary.write_text(mine)
        os.replace(temporary, file)
        return True
    finally:
        lock.unlink(missing_ok=True)
