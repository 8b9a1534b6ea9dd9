"""Several processes, one run: they stop at one step, and none waits for a host that is gone."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# After so many seconds without a sign of life a host counts as lost. JAX's 100 would keep a pod idle for longer than
# most restarts take; a busy host's heartbeats come from a thread of their own, late by a few seconds at worst.
HEARTBEAT = 30

# After so many seconds at one thing a main thread hangs, and all hosts with it, while heartbeats go on. Idle chips
# cost more than a restart from a checkpoint. What compiles, or waits for a host that does, may take longer.
PATIENCE = 60.0
COMPILING = 600.0

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


class _Alarm:
    """Ends this process where its main thread is not back in time, from a thread of its own."""

    def __init__(self) -> None:
        self._due, self._said = math.inf, ""
        threading.Thread(target=self._watch, daemon=True, name="alarm").start()

    def set(self, seconds: float, said: str) -> None:
        self._due, self._said = math.inf, f"for {seconds:.0f} seconds {said}"
        self._due = time.monotonic() + seconds

    def _watch(self) -> None:
        while time.monotonic() < self._due:
            time.sleep(0.5)
        print(f"error: {self._said}; this host is at", file=sys.stderr)
        traceback.print_stack(sys._current_frames()[threading.main_thread().ident or 0])
        sys.stderr.flush()
        os._exit(1)  # and the last words


_last_words: list[_LastWords] = []  # of this process, once it has joined others
_alarms: list[_Alarm] = []  # likewise


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several, as `jax.distributed.initialize` does. None: the platform knows.

    From then on a host that is lost, or hangs (`due`), ends the others within a minute or two: with JAX's own lines,
    which say what host it was, or with ours, and a last line on how to go on (`if_lost`).
    """
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT)
    _last_words.append(_LastWords())
    _alarms.append(_Alarm())
    if_lost("the same command on all hosts begins anew")
    sys.excepthook = lambda *error: (traceback.print_exception(*error), leave(1))  # type: ignore[assignment]


def if_lost(how: str) -> None:
    """How the run goes on, to be said where this process ends because it or another host was lost."""
    for words in _last_words:
        words.set(f"the run has ended, as a host was lost (JAX's lines above say which, if it knows); {how}")


def due(seconds: float | None, otherwise: str = "") -> None:
    """The main thread is to be back here in so many seconds. Otherwise it hangs: the process says so, and ends.

    None: it takes what it takes. Nothing of this where the process is alone, as nobody waits for it.
    """
    for alarm in _alarms:
        alarm.set(math.inf if seconds is None else seconds, otherwise)


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


@contextlib.contextmanager
def signals() -> Iterator[Callable[[int], int | None]]:
    """Turns SIGTERM and SIGINT into a question that a loop asks after each step, with its number: the signal, or None.

    All hosts get the same answer at the same step, whichever heard the signal; it costs the devices nothing. JAX then
    listens to SIGTERM itself, and agrees on the step in the background. A single process stops at once, and a second
    signal ends it where it is.
    """
    heard: list[int] = []

    def hear(signum: int, _: object) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(signum)

    def agreed(step: int) -> int | None:
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    handlers: dict[signal.Signals, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGINT), hear)
    if jax.process_count() > 1:
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    before: dict[signal.Signals, Any] = {signum: signal.getsignal(signum) for signum in handlers}
    try:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    except ValueError:  # not in the main thread: a notebook's or a test's; signals stay as they are
        before = {}
    try:
        yield agreed if jax.process_count() > 1 else lambda _: heard[0] if heard else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
