"""Python files that define something: EXPERIMENT, STUDY, GRID. Where they are found, how they run, what went wrong.

The files in `experiments/` lie beside this package, in a checkout as in an installation, so they are had from every
folder by their name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from bert_jax.config import nearest, require

PACKAGE = pathlib.Path(__file__).resolve().parent
EXPERIMENTS = PACKAGE.parent / "experiments"


def find(path: str) -> pathlib.Path:
    """The file that `path` names: that file, or one of `experiments/` by its path from there, or by its name alone.

    Raises:
      ValueError: where there is neither.

    Example:
      >>> find("sst2") == find("experiments/sst2.py")
      True
    """
    given = pathlib.Path(path).expanduser()
    if given.is_file():
        return given.resolve()
    inner = pathlib.Path(*given.parts[1:]) if given.parts[:1] == (EXPERIMENTS.name,) else given
    ours = EXPERIMENTS / inner.with_suffix(".py")
    if not given.is_absolute() and ours.is_file():
        return ours
    require(not given.is_dir(), f"{path} is a folder: name a Python file in it")
    raise ValueError(f"there is no file {path}; of experiments/, {nearest(given.stem, names())}")


def names(beside: str = "") -> list[str]:
    """The names of the files in `experiments/`, and of those beside that one."""
    folders = [EXPERIMENTS, *([find(beside).parent] if beside else [])]
    return sorted({file.stem for folder in folders for file in folder.glob("*.py")})


def defined(path: str) -> dict[str, Any]:
    """All that a Python file defines, by name. The file runs as a module that is called as its path is.

    It may import experiments (`from experiments.bert_base import EXPERIMENT`) from wherever it lies, and the files
    beside it, by name or by that of their folder.

    Raises:
      ValueError: where there is no such file, or what the file does raises an error; it says in which line.
    """
    file = find(path)
    module = types.ModuleType(str(file))
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where annotations that are texts are looked up
    with _importable(file.parent):
        try:
            exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))
        except Exception as error:
            raise ValueError(f"{_place(error, path, file)}: {_reason(error, module)}") from error
    return dict(vars(module))


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    """The folder's own name goes before what is installed, the files in it do not: one may be called `queue`."""
    before = list(sys.path)
    sys.path[:] = [str(folder.parent), *before, str(folder), str(EXPERIMENTS.parent)]
    try:
        yield
    finally:
        sys.path[:] = before


def _place(error: BaseException, path: str, file: pathlib.Path) -> str:
    """FILE, line N: the innermost line of that file, or of one that it imports from beside it or from experiments/."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{path if error.filename == str(file) else error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if pathlib.Path(frame.filename).parent in (file.parent, EXPERIMENTS, EXPERIMENTS / "grids"):
            return f"{path if frame.filename == str(file) else frame.filename}, line {frame.lineno}"
    return path


def _reason(error: BaseException, module: types.ModuleType) -> str:
    """What went wrong, in a line; of a field that there is not, with the nearest that there is."""
    if isinstance(error, SyntaxError):
        return f"this is not Python: {error.msg}"
    unknown = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown and isinstance(error, TypeError):
        for kind in _classes(unknown[1], module):
            fields = [field.name for field in dataclasses.fields(kind) if field.init]
            return f"{unknown[1]} has no field {unknown[2]!r}: {nearest(unknown[2], fields)}"
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith(f"{EXPERIMENTS.name}."):
        return f"{error}; {_shadowed()}"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _classes(name: str, module: types.ModuleType) -> Iterator[Any]:
    """The dataclasses of that name: the file's own, then this package's."""
    packages = [of for key, of in sorted(sys.modules.items()) if key.partition(".")[0] == PACKAGE.name]
    for place in (module, *packages):
        kind = vars(place).get(name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield kind


def _shadowed() -> str:
    taken = getattr(sys.modules.get(EXPERIMENTS.name), "__file__", None)
    if taken:
        return f"experiments is {taken} here, which hides those of bert_jax: rename that folder or delete that file"
    return f"there is: {', '.join(names())}"


def require_defined(path: str, name: str, kind: type) -> Any:
    """What a file defines under that name, of that type.

    Raises:
      ValueError: as `defined`, and where it defines none.
    """
    found = defined(path).get(name)
    require(isinstance(found, kind), f"{path} must define {name} = {kind.__name__}(...)")
    return found
