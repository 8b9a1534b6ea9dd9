"""Who works on what, where several processes or machines share a folder or a bucket: a run of a study, a workdir.

A claim is a file that names its owner; a heartbeat keeps its modification time fresh. A claim without a heartbeat for
`STALE` seconds is abandoned and is taken over. On one machine a dead owner is known at once.
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
from collections.abc import Callable, Iterator
from typing import Any

from bert_jax import files

BEAT = 10.0  # seconds between two heartbeats
STALE = 120.0  # seconds without one; clocks of machines that share a folder differ by less


class Claim:
    """A claim that this process owns. `lost` is true once another process has taken it over."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self._text = path, text
        self._over, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"heartbeat of {path}")
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process owns it now: this one gave no sign of life for `STALE` seconds, as in a sleep."""
        return self._lost.is_set()

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self.path) == self._text:
                files.remove(self.path)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):  # a folder that is away for a moment
                if _read(self.path) != self._text:  # the claim of another is not to be kept fresh by us
                    self._lost.set()
                    return
                files.touch(self.path, self._text)


def acquire(path: str | os.PathLike[str]) -> Claim | None:
    """Our claim of what `path` stands for; None where another process has it. Every claim must be released."""
    name = os.fspath(path)
    text = json.dumps({**_myself(), "id": uuid.uuid4().hex})
    return Claim(name, text) if files.create(name, text) or _take_over(name, text) else None


@contextlib.contextmanager
def claim(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Whether what `path` stands for is ours for the time of the `with`. Where it is another's, nothing is done."""
    ours = acquire(path)
    try:
        yield ours is not None
    finally:
        if ours:
            ours.release()


def acquire_or_wait(path: str | os.PathLike[str], what: str, say: Callable[[str], None]) -> Claim:
    """`acquire`, where an owner that may be dead is waited for until its claim is stale, `STALE` seconds at most.

    Raises:
      ValueError: a living process works on `what`.
    """
    began, said = time.monotonic(), False
    before = _state(path)
    while True:
        ours = acquire(path)
        if ours:
            return ours
        owner, state = holder(path), _state(path)
        alive = _alive(_values(path)) or (before is not None and state is not None and state != before)
        if alive or time.monotonic() - began > 2 * STALE:
            raise ValueError(
                f"another process works on {what}: {owner or 'unknown'}. Stop it, or wait for its end; the same "
                "command then goes on"
            )
        if not said:
            say(f"{owner or 'another process'} may still work on {what}: waiting {STALE:.0f} seconds for a heartbeat")
            said = True
        time.sleep(min(1.0, BEAT / 4))


def holder(path: str | os.PathLike[str]) -> str:
    """Who has it, "HOST, process N"; "" where nobody does who lives."""
    found = _values(path)
    if found is None or _abandoned(os.fspath(path)):
        return ""
    return f"{found.get('host', 'an unknown host')}, process {found.get('process', '?')}"


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "processes": _process_namespace(),
        "started": _started(os.getpid()),
    }


def _process_namespace() -> str:
    """What makes process numbers comparable: this boot of this machine, and the namespace. "" where it is unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process started, in the kernel's clock; "" where there is none. A number alone is given out again."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(found: dict[str, Any] | None) -> bool | None:
    """Whether an owner lives; None: it cannot be known here."""
    if found is None or not found.get("processes") or found["processes"] != _process_namespace():
        return None
    return _started(int(found.get("process", 0))) == found.get("started")


def _read(path: str) -> str:
    return files.path(path).read_text()


def _values(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a claim says; None where it is not there or not a claim (about to be written, damaged, of other JSON)."""
    try:
        found = json.loads(_read(os.fspath(path)))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _state(path: str | os.PathLike[str]) -> tuple[Any, int] | None:
    """What a heartbeat changes: who the owner is, and when it was heard."""
    with contextlib.suppress(OSError):
        return json.dumps(_values(path)), round(time.time() - files.age(path))
    return None


def _abandoned(path: str) -> bool:
    found = _values(path)
    try:
        stale = files.age(path) > STALE
    except FileNotFoundError:
        return True  # released this moment
    return stale or _alive(found) is False


def _take_over(path: str, text: str) -> bool:
    """Makes an abandoned claim ours; of several that try at once, one does, and at no moment is there no claim."""
    if not _abandoned(path):
        return False
    lock = f"{path}.takeover"
    if not files.create(lock, text):
        with contextlib.suppress(OSError):
            if files.age(lock) > STALE:  # who held it died at it
                files.remove(lock)
        return False
    try:
        if not _abandoned(path):
            return False
        if not files.path(path).exists():
            return files.create(path, text)
        files.write(path, text)
        return True
    finally:
        files.remove(lock)
