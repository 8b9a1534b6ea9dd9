"""The documentation of Python and its packages: what is read, what of it is prose, and that nothing is imported."""

import subprocess
import sys

import pytest

from bert_jax.text import readers
from bert_jax.text.readers import Document
from tests.conftest import REPOSITORY


def read(source: str) -> list[Document]:
    return list(readers.documents([source]))


def test_python_docs() -> None:
    found = read("python-docs:stdlib")
    names = [document.name for document in found]
    assert len(found) > 500
    assert {"argparse", "asyncio.base_events", "collections", "help:assert", "builtins"} <= set(names)
    assert not any(name.startswith(("test.", "site-packages")) for name in names)
    assert names == [document.name for document in read("python-docs:stdlib")]
    sentences = [sentence for document in found[::5] for sentence in readers.sentences(document)]
    assert 2e5 < sum(map(len, sentences)) < 1e6
    assert not any(sentence.startswith((">>>", "----", "====")) for sentence in sentences)
    letters = sum(char.isalpha() or char == " " for sentence in sentences for char in sentence)
    assert letters > 0.9 * sum(map(len, sentences))


def test_python_docs_of_packages() -> None:
    everything = readers.documents(["python-docs"])
    assert isinstance(next(everything), Document)
    found = read("python-docs:absl,sentencex")
    assert {document.name.split(".")[0] for document in found} == {"absl", "sentencex"} or found[0].name == "absl"
    with pytest.raises(ValueError, match="no package 'nunpy' is installed: did you mean 'numpy'"):
        read("python-docs:nunpy")


def test_python_docs_imports_nothing() -> None:
    program = (
        "import sys; from bert_jax.text import readers; before = set(sys.modules)\n"
        "for d in readers.documents(['python-docs:absl', 'python-docs:stdlib']):\n"
        "    d.kind == 'text' and readers.sentences(d)\n"
        "for d in readers.documents(['python-docs:flax']): readers.sentences(d)\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.builtin_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    modules = {name for name in ran.stdout.split() if not name.startswith("_sysconfigdata")}
    assert modules <= {"pydoc_data", "encodings"}  # the help topics, and a codec for an old source file
    assert ran.stderr == ""


MODULE = '''
"""The summary of a module that is
wrapped over two lines.

Example:
    >>> help(x)
    This is what the example prints for its reader, who
    likes to see a line or two of it before going on.

Notes on the design
-------------------
Every ``function`` of this module is *pure*, see :func:`~numpy.sum` and `the docs <https://x.org>`_.

Some code follows here as a block::

    tell the machine to do one thing after another.

After it the prose goes on as before.

  the name      The first cell of the row says what it is.
  the value     The second cell of the row says what it is.
"""

class Thing:
    """The summary of a module that is
    wrapped over two lines."""

    def method(self, x):
        """Gives back what came in without a change.

        Args:
          x: the value that came in, of any kind
            that you may like.
          y (int): the number of times that it goes round.

        Parameters
        ----------
        x : array_like, optional
            The input that is to be given back.
        """
        "a stray string that is no sentence = 3"
        return x

    attribute: int = 1
    """How many of these there are in all the world."""

    class Inner:
        """The summary of a module that is
        wrapped over two lines."""
'''


def test_prose_of_a_module() -> None:
    assert readers.sentences(Document("m", MODULE, "python")) == [
        "The summary of a module that is wrapped over two lines.",
        "Every function of this module is *pure*, see numpy.sum and the docs.",
        "Some code follows here as a block:",
        "After it the prose goes on as before.",
        "The summary of a module that is wrapped over two lines.",
        "Gives back what came in without a change.",
        "the value that came in, of any kind that you may like.",
        "the number of times that it goes round.",
        "The input that is to be given back.",
        "How many of these there are in all the world.",
    ]


@pytest.mark.parametrize("code", ["x = 1", "", "def broken(:", "x = '\0'", "(" * 10_000, "x = " + "-" * 5_000 + "1"])
def test_modules_without_documentation(code: str) -> None:
    assert readers.sentences(Document("m", code, "python")) == []


def test_the_text_of_a_module_is_its_prose() -> None:
    """What a corpus counts as its text: not the code around it."""
    lines = readers.paragraphs(Document("m", MODULE, "python"))
    assert lines[0] == "The summary of a module that is wrapped over two lines."
    assert readers.split(lines) == readers.sentences(Document("m", MODULE, "python"))
    assert len("\n".join(lines)) < len(MODULE)
