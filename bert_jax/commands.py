"""The command `bert_jax`: training, and every script of the project, from any folder.

bert_jax --config=bert_base --workdir=RUN       as python -m bert_jax
bert_jax predict --model=RUN                    as python scripts/predict.py
"""

from __future__ import annotations

import ast
import pathlib
import runpy
import sys

from bert_jax.config import nearest
from bert_jax.definitions import PACKAGE


def scripts() -> dict[str, pathlib.Path]:
    """The scripts by name: of an installation those in the package, of a checkout those beside it."""
    inside = PACKAGE / "scripts"
    folder = inside if inside.is_dir() else PACKAGE.parent / "scripts"
    return {file.stem: file for file in sorted(folder.rglob("*.py"))}


def usage() -> str:
    """What the command can do: a line for each script, its docstring's first."""
    known = scripts()
    width = max(map(len, known))
    said = [(name, ast.get_docstring(ast.parse(file.read_bytes())) or "") for name, file in known.items()]
    lines = [f"  bert_jax {name:<{width}}  {text.splitlines()[0]}" for name, text in said if text]
    return "\n".join(
        [
            "bert_jax --config=FILE --workdir=DIR pre-trains or fine-tunes: see bert_jax --help.",
            "The other commands; each has a --help of its own:",
            *lines,
        ]
    )


def main() -> None:
    """Runs what the first argument names, with the others; without a name, training."""
    first = sys.argv[1] if len(sys.argv) > 1 else "help"
    if first == "help":
        print(usage())
        return
    if first.startswith("-"):
        runpy.run_module("bert_jax", run_name="__main__", alter_sys=True)
        return
    name, known = first.replace("-", "_"), scripts()
    if name not in known:
        sys.exit(f"error: bert_jax has no command {first!r}: {nearest(name, known)}")
    sys.argv[:] = [str(known[name]), *sys.argv[2:]]
    runpy.run_path(str(known[name]), run_name="__main__")


if __name__ == "__main__":
    main()
