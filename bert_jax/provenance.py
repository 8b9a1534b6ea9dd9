"""By what something was made, and when: the versions of this package, JAX and Python, the commit, the date."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping

import bert_jax


def now() -> dict[str, str]:
    """The names "bert_jax", "jax", "python", "commit" and "date" with their values.

    "commit" is that of the checkout that this package lies in, with " (modified)" where tracked files differ from it.
    It is left out where the package is installed elsewhere, or there is no git. "date" is in UTC, as ISO 8601 has it.
    """
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**_versions(), "date": date.replace("+00:00", "Z")}


@functools.cache
def _versions() -> dict[str, str]:
    """All that does not change while a process lives. The commit is that of its first question."""
    found = {"bert_jax": bert_jax.__version__, "jax": importlib.metadata.version("jax")}
    commit = _commit(pathlib.Path(__file__).parent)
    return {**found, "python": platform.python_version(), **({"commit": commit} if commit else {})}


def _commit(package: pathlib.Path) -> str:
    """Of the git checkout whose tracked files the package's are; "" where they are none's."""

    def git(*arguments: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # it changes nothing
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=True, timeout=10, env=environment
        )
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment may lie in a checkout of something else
        commit = git("rev-parse", "HEAD")
        return f"{commit} (modified)" if git("status", "--porcelain", "--untracked-files=no") else commit
    return ""


def spelled(made: Mapping[str, str]) -> str:
    """What `now` gave, as a sentence has it: "bert_jax 0.1.0 (commit 0a1b2c3d4e), JAX 0.10.2, Python 3.11.7"."""
    words = made.get("commit", "").split(" ", 1)
    commit = " ".join([words[0][:10], *words[1:]])
    named = {"bert_jax": "bert_jax", "jax": "JAX", "python": "Python"}
    parts = [f"{title} {made[name]}" for name, title in named.items() if name in made]
    if commit and parts:
        parts[0] += f" (commit {commit})"
    return ", ".join(parts)


def written() -> str:
    """The sentence under what is written now."""
    made = now()
    return f"Written {made['date'].replace('T', ' ').replace('Z', ' UTC')} by {spelled(made)}."
