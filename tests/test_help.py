"""What --help and the documents show: lines as they were written, and commands of flags and files that exist."""

import ast
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

MAINS = {
    **{f"scripts/{path.name}": path for path in (REPOSITORY / "scripts").glob("*.py")},
    "scripts/tpu/launch.py": REPOSITORY / "scripts" / "tpu" / "launch.py",
    "-m bert_jax": REPOSITORY / "bert_jax" / "__main__.py",
}
PATTERNS = ("*.md", "experiments/**/*.md", "experiments/*.py", "scripts/*", "scripts/tpu/*", "bert_jax/__main__.py")
DOCUMENTS = sorted(path for pattern in PATTERNS for path in REPOSITORY.glob(pattern) if path.is_file())


@pytest.mark.parametrize("name", MAINS)
def test_help_keeps_the_lines_of_its_text(name: str) -> None:
    """Python joins lines that end in a backslash, and absl puts the command's name for a percent sign."""
    (text,) = [one.value for one in ast.parse(MAINS[name].read_text()).body[:1] if isinstance(one, ast.Expr)]
    assert isinstance(text, ast.Constant)
    lines = text.value.splitlines()
    assert text.end_lineno is not None
    assert len(lines) == text.end_lineno - text.lineno + (not text.value.endswith("\n"))
    assert "%" not in text.value
    for line in lines:
        assert len(line) <= 120
        assert not line.startswith("python "), "commands are indented"


@pytest.mark.parametrize("name", MAINS)
def test_flags_of_several_values_say_it_once(name: str) -> None:
    """absl adds that the option may be repeated, after a semicolon."""
    for texts in re.findall(r"DEFINE_multi\w*\(((?:.|\n)*?)\n?\)\n", MAINS[name].read_text()):
        text = re.findall(r'"([^"]*)"', texts)[-1]
        assert not text.endswith(".")
        assert "repeated" not in text


def commands(text: str) -> Iterator[str]:
    """The commands of this project in a document, each with the lines that it goes on in."""
    joined = re.sub(r"\\+\n\s*", " ", text)
    for line in joined.splitlines():
        match = re.search(r"(?:^ *|; do |\| |`|:: )python ((?:scripts/[\w/]+\.py|-m bert_jax)\b.*)", line)
        if match:
            yield re.split(r"`|\s#\s|\s{3,}|; done|\||&&", match[1])[0]


FOUND = [(path.relative_to(REPOSITORY), line) for path in DOCUMENTS for line in commands(path.read_text())]


def known_flags(main: pathlib.Path) -> set[str]:
    """By name; with those of a script that it imports."""
    text = main.read_text()
    names = set(re.findall(r'DEFINE_\w+\((?:.|\n)*?"(\w+)"', text))
    for name in re.findall(r"^import (\w+)$", text, flags=re.MULTILINE):
        beside = main.parent / f"{name}.py"
        names |= known_flags(beside) if beside.exists() else set()
    return names | {"help", "helpfull"} | {f"no{name}" for name in names}


@pytest.mark.parametrize(("document", "line"), FOUND, ids=[f"{path}-{n}" for n, (path, _) in enumerate(FOUND)])
def test_commands_name_what_exists(document: pathlib.Path, line: str) -> None:
    words = shlex.split(line)
    name, given = (" ".join(words[:2]), words[2:]) if words[0] == "-m" else (words[0], words[1:])
    known = known_flags(MAINS[name])
    for word in given:
        flag = re.match(r"--([\w.]+)", word)
        dotted = flag and re.match(r"(config|tuning)\.", flag[1])
        assert not flag or dotted or flag[1] in known, f"{document}: {word}"
        for file in re.findall(r"experiments/[a-z0-9_/.]+\.py", word):
            assert (REPOSITORY / file).exists(), f"{document}: {word}"


def test_the_commands_are_found() -> None:
    assert {str(path) for path, _ in FOUND} >= {"README.md", "scripts/reproduce.py"}
    assert len(FOUND) > 40


def test_the_image_is_made_of_what_is_there() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*)", text, flags=re.MULTILINE) for name in line.split()[:-1]]
    assert copied
    assert all((REPOSITORY / name).exists() for name in copied)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*re.findall(r"EXTRA=(\w+)", text)} <= extras.keys()
