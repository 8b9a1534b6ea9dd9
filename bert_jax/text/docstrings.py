"""The English documentation in the Python and the packages that are installed: real text that every machine has."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import os
import pathlib
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence

from bert_jax.config import nearest, require

_SKIPPED = {"__pycache__", "_vendor", "dist-packages", "site-packages", "test", "tests"}


def modules(packages: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """The name and source code of each module with docstrings: of these top-level packages, or of all if none is named.

    Nothing is imported but the built-in modules. The standard library is one package, "stdlib"; its help topics and
    built-in modules come as modules of bare docstrings.

    Raises:
      ValueError: at the call, where a package is not installed.
    """
    found = _packages()
    for name in packages:
        require(name in found, f"python-docs: no package {name!r} is installed: {nearest(name, found)}")
    return itertools.chain.from_iterable(_package(name, found[name]) for name in packages or found)


def prose(code: str) -> list[str]:
    """The paragraphs of English in a module's docstrings, each docstring once; none where the code has errors."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of invalid escapes in other people's strings
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    docstrings = dict.fromkeys(map(inspect.cleandoc, _bare_strings(body)))
    return [paragraph for docstring in docstrings for paragraph in _paragraphs(docstring)]


def _packages() -> dict[str, list[pathlib.Path]]:
    """The files and folders of each top-level package by its name; the standard library is one, "stdlib"."""
    found: dict[str, list[pathlib.Path]] = {"stdlib": [pathlib.Path(sysconfig.get_path("stdlib"))]}
    folders = [pathlib.Path(entry) for entry in sys.path]
    for folder in folders:
        if folder.name in ("site-packages", "dist-packages") and folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.suffix == ".py" or (path.is_dir() and path.name.isidentifier() and path.name not in _SKIPPED):
                    found.setdefault(path.stem, []).append(path)
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "stdlib", name))}


def _package(name: str, roots: list[pathlib.Path]) -> Iterator[tuple[str, str]]:
    if name == "stdlib":
        yield from _interpreter()
    for root in roots:
        base = root if name == "stdlib" else root.parent
        for folder, below, files in os.walk(root) if root.is_dir() else [(str(root.parent), [], [root.name])]:
            below[:] = sorted(set(below) - _SKIPPED)
            for file in sorted(file for file in files if file.endswith(".py")):
                path = pathlib.Path(folder, file)
                try:
                    with tokenize.open(path) as stream:
                        code = stream.read()
                except (SyntaxError, UnicodeDecodeError):  # a template, or a test of bad sources
                    continue
                if '"""' in code or "'''" in code:
                    module = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
                    yield module, code


def _interpreter() -> Iterator[tuple[str, str]]:
    """What is in no source file: the help topics and the built-in modules, each as a module of bare docstrings."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for topic in sorted(topics):
        yield f"help:{topic}", repr(topics[topic])
    for name in sorted(name for name in sys.builtin_module_names if not name.startswith("_")):
        module = importlib.import_module(name)
        members = [module, *(value for _, value in sorted(vars(module).items()) if callable(value))]
        inner = [value for member in members if isinstance(member, type) for _, value in sorted(vars(member).items())]
        docs = [value.__doc__ for value in [*members, *inner] if isinstance(getattr(value, "__doc__", None), str)]
        yield name, "\n".join(map(repr, docs))


def _bare_strings(body: Sequence[ast.AST]) -> Iterator[str]:
    """Strings that are statements: the docstrings of everything, attributes too, in the order of the source."""
    for node in body:
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                yield node.value.value
        else:
            for part in ("body", "orelse", "handlers", "finalbody", "cases"):
                yield from _bare_strings(getattr(node, part, ()))


_ROLE = re.compile(r":[a-z:]+:`~?([^`<]+)(?: <[^`]*>)?`")  # :func:`~numpy.sum`
_MARKUP = re.compile(r"`+~?([^`<]+?)(?: <[^`]*>)?`+_{0,2}|\*\*([^*]+)\*\*")  # ``x``, `x`_, `text <url>`_, **x**
_ITEM = re.compile(r"\s*(?:[-*+•]|\d+[.)]|\(?[a-z0-9]\))\s+|\s*:[a-z]+(?: [^:]+)?:\s+|\s*\*{0,2}\w+(?: \([^)]*\))?:\s+")
_DECLARATION = re.compile(r"\s*[\w, *.]+ : \S")  # "x : array_like, optional", a type and no sentence
_TABLE = re.compile(r"\S {3,}\S|[|+]\s*$|^\s*[|+]")
_CODE = re.compile(r"^\s*(?:>>>|\.\.\.|\.\. |\$ |@|def |class |import |from \w+ import )")


def _paragraphs(docstring: str) -> Iterator[str]:
    """A clean docstring's paragraphs of English, each on one line: no examples, tables, rulers, types or headings."""
    literal: int | None = None  # the indentation of the "::" whose block we are in
    for block in re.split(r"\n\s*\n", docstring):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = _indent(lines[0])
        if literal is not None and indent > literal:
            continue
        literal = indent if lines[-1].endswith("::") else None
        if not any(_CODE.match(line) for line in lines):
            yield from filter(_is_prose, map(_plain_text, _joined(lines)))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: list[str]) -> Iterator[str]:
    """Wrapped lines put together; an item of a list, a dedent and a ruler begin anew."""
    held: list[str] = []
    indent = 0
    for line in lines:
        ruler = not any(map(str.isalnum, line))
        if ruler or _TABLE.search(line) or _DECLARATION.match(line):
            if not ruler:
                yield " ".join(held)
            held = []  # what stands over a ruler is a heading
        else:
            if held and (_ITEM.match(line) or _indent(line) < indent):
                yield " ".join(held)
                held = []
            held.append(_ITEM.sub("", line, count=1).strip() if _ITEM.match(line) else line.strip())
            indent = _indent(line)
    yield " ".join(held)


def _plain_text(paragraph: str) -> str:
    return _MARKUP.sub(lambda match: match[1] or match[2], _ROLE.sub(r"\1", paragraph)).replace("::", ":")


def _is_prose(paragraph: str) -> bool:
    """Five words or more, nearly all letters, and the end of a sentence."""
    ordinary = sum(char.isalpha() or char == " " for char in paragraph)
    return (
        len(paragraph.split()) >= 5
        and ordinary >= 0.85 * len(paragraph)
        and paragraph.rstrip(")\"'").endswith((".", "?", "!", ":"))
    )
