"""What a process does before JAX starts, and what its programs share with those of other processes."""

from __future__ import annotations

import os
import pathlib
import sys

from bert_jax import cache


def use_huge_pages() -> None:
    """Starts this Python anew with glibc told to ask for huge pages, which it reads at the start of a process alone.

    On a CPU, each step's arrays are mapped anew: a Base step (8 x 128) takes 390,000 page faults, or with this 1,400.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def keep_programs(cache_dir: str = "") -> None:
    """A program that any run compiled is not compiled again: they lie in the folder of `cache.arrays`.

    $JAX_COMPILATION_CACHE_DIR, where it is set, names another place.
    """
    import jax  # here: what prints --help needs no device

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = pathlib.Path(cache_dir or cache.default_directory()).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
