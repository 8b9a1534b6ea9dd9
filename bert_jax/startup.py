"""What a process does before JAX starts, and what its programs share with those of other processes."""

from __future__ import annotations

import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from bert_jax import cache


def run(main: Callable[[list[str]], Any], argv: list[str] | None = None) -> None:
    """Runs a command, `main` of its arguments, as `absl.app.run` does.

    Ctrl-C ends it in a line, wherever it is at; a reader that closes the pipe, without one.
    """

    def logged(arguments: list[str]) -> Any:
        log_warnings()  # after the flags, which set what absl logs
        return main(arguments)

    try:
        app.run(logged, argv=argv)
    except KeyboardInterrupt:
        print("stopped by SIGINT; run the same command again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read it has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def use_huge_pages() -> None:
    """Starts this Python anew with glibc told to ask for huge pages, which it reads at the start of a process alone.

    On a CPU, each step's arrays are mapped anew: a Base step (8 x 128) takes 390,000 page faults, or with this 1,400.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def log_warnings() -> None:
    """What this package warns of goes to stderr. Of what other libraries log, which is much, errors alone do."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_handler().python_handler.addFilter(_told)


def _told(record: logging.LogRecord) -> bool:
    ours = pathlib.Path(__file__).parent in pathlib.Path(record.pathname).parents
    raised = {"orbax", "asyncio"} & {*pathlib.Path(record.pathname).parts}  # what its threads log is raised here, too
    return ours or (record.levelno >= logging.ERROR and not raised)


def keep_programs(cache_dir: str = "") -> None:
    """A program that any run compiled is not compiled again: they lie in the folder of `cache.arrays`.

    $JAX_COMPILATION_CACHE_DIR, where it is set, names another place.
    """
    import jax  # here: what prints --help needs no device

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = pathlib.Path(cache_dir or cache.default_directory()).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))


def require_values(*holders: flags.FlagHolder[Any]) -> None:
    """Refuses an empty text where a flag names a file or a folder: as a path it would be the current folder."""
    for holder in holders:
        flags.register_validator(
            holder, lambda value: value is None or value.strip() != "", "is empty: give it a value"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of too little memory: Python's, NumPy's, or that of a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def memory() -> int:
    """Bytes of memory of all devices together, those of other processes included; of CPUs, the machines'."""
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    own = sum(of.get("bytes_limit", 0) for of in stats) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return own * jax.process_count()
