"""Several processes, one run: they stop at one step, and none waits for a host that is gone."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# After so many seconds without a sign of life a host counts as lost. JAX's 100 would keep a pod idle for longer than
# most restarts take; a busy host's heartbeats come from a thread of their own, late by a few seconds at worst.
HEARTBEAT = 30

# So many seconds a host has for what it does by itself, such as reading a batch, and for what it does with the others,
# such as a step: who works must have less than those who wait for him. Heartbeats would go on for ever; idle chips cost
# more than a restart from a checkpoint. Where one may still compile, or write more than the others, they have patience.
OWN = 40.0
SHARED = 60.0
PATIENT = 600.0

# How errors of a runtime begin that lost touch with another host's.
_BROKEN = re.compile("(UNKNOWN|UNAVAILABLE|ABORTED|INTERNAL|CANCELLED|DEADLINE_EXCEEDED): ")


class _LastWords:
    """Says a line on stderr where this process ends without a goodbye: a small shell that reads until the pipe closes.

    JAX ends the processes that a lost host leaves behind by an abort, from a thread that runs no Python.
    """

    SHELL = """trap '' TERM INT HUP; while IFS= read -r line; do last=$line; done; [ -z "$last" ] || echo "$last" >&2"""

    def __init__(self) -> None:
        shell = subprocess.Popen(["sh", "-c", self.SHELL], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert shell.stdin
        self._pipe = shell.stdin
        atexit.register(self.set, "")

    def set(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody ended the shell: that is no reason to end the run
            self._pipe.write(line + "\n")
            self._pipe.flush()


_last_words: list[_LastWords] = []  # of this process, once it has joined others


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several, as `jax.distributed.initialize` does. None: the platform knows.

    From then on the loss of a host ends the others within a minute: with JAX's own lines, which say what host it was,
    and a last line on how to go on (`if_lost`). So does a host that hangs, once the others notice (`within`).
    """
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT)
    _last_words.append(_LastWords())
    if_lost("the same command on all hosts begins anew")
    sys.excepthook = lambda *error: (traceback.print_exception(*error), leave(1))  # type: ignore[assignment]


def if_lost(how: str) -> None:
    """How the run goes on, to be said where this process ends because it or another host was lost."""
    for words in _last_words:
        words.set(
            f"the run has ended, as a host was lost or hung (the lines above say which, if JAX knows, or where); {how}"
        )


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What runs inside takes `seconds` at most. Otherwise it hangs: the process ends, and says where all threads are.

    Nothing of this in a process that has joined no others: nobody waits for it. These may not lie within each other.
    """
    if not _last_words:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)  # by a thread that needs nothing of Python
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def agreed(value: Any) -> Any:
    """The first host's value, on every host: what it alone reads. JSON values; all hosts must call this together."""
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(text))] = np.frombuffer(text, np.uint8)[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def leave(status: int) -> int:
    """Ends this process at once if there are others: an orderly end would wait for them, and they for it."""
    if not _last_words:
        return status
    _last_words[0].set("")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Where what runs inside fails for want of another host, gives JAX the time to find out which, and end this."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not _BROKEN.match(str(error)):
            raise
        print(f"waiting to hear whether a host is lost: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        time.sleep(2 * HEARTBEAT)
        raise


class Interrupted(KeyboardInterrupt):
    """A signal that ends what runs at once. No `Exception`: code that handles errors does not hold it up."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Signals:
    """SIGTERM and SIGINT of a run. Outside of `deferred` they raise `Interrupted` at once: there is nothing to save.

    Inside it the first one is kept, to be asked for where the state can be saved; a second one raises. With several
    hosts all get the same answer at the same step, whichever heard the signal, at no cost to the devices: JAX listens
    to SIGTERM and agrees on the step in the background.
    """

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._deferred = False

    def at_step(self, step: int) -> int | None:
        """The signal that was heard, or None; to be asked by all hosts after each step, with its number."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self.heard

    @property
    def heard(self) -> int | None:
        """The signal that a single process heard; of several hosts None, as the others may not have heard it."""
        return self._kept[0] if self._kept and jax.process_count() == 1 else None

    def interrupt(self) -> None:
        """Raises `Interrupted` where one was `heard`."""
        if self.heard is not None:
            raise Interrupted(self.heard)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs inside is not interrupted by the first signal."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def hear(self, signum: int, _: object) -> None:
        if jax.process_count() > 1:  # JAX hears SIGTERM itself; SIGINT is passed on as one
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._deferred and not self._kept:
            self._kept.append(signum)
        else:
            raise Interrupted(signum)


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Listens to SIGTERM and SIGINT. Outside of the main thread, a notebook's or a test's, they stay as they are."""
    found = Signals()
    handled = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    before: dict[signal.Signals, Any] = {signum: signal.getsignal(signum) for signum in handled}
    try:
        for signum in handled:
            signal.signal(signum, found.hear)
    except ValueError:
        before = {}
    try:
        yield found
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
