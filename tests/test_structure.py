"""Imports go in one direction: the order that WORKSPACE.md gives. No module imports one that stands below it."""

import ast
import re

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "bert_jax"


def order() -> list[str]:
    """The modules in the order of WORKSPACE.md's map."""
    text = (REPOSITORY / "WORKSPACE.md").read_text()
    return re.findall(r"^ {4}([a-z0-9_/]+\.py) ", text, flags=re.MULTILINE)


def modules() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imported(module: str) -> set[str]:
    """The modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bert_jax"):
            base = node.module.replace(".", "/").removeprefix("bert_jax").removeprefix("/")
            for alias in node.names:
                inner = f"{base}/{alias.name}.py".removeprefix("/")
                found.add(inner if (PACKAGE / inner).exists() else f"{base}.py")
    return found


def test_the_map_names_every_module() -> None:
    assert sorted(order()) == modules()


@pytest.mark.parametrize("module", modules())
def test_imports_point_up(module: str) -> None:
    above = order()[: order().index(module)]
    assert imported(module) <= set(above)


@pytest.mark.parametrize("module", [path for path in modules() if path.startswith(("text/", "corpus/"))])
def test_the_corpus_build_needs_no_jax(module: str) -> None:
    """Its worker processes start in a moment, and hold no device."""
    tree = ast.parse((PACKAGE / module).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names)
