"""Sentences of words and their tags from files: columns, a word a line (CoNLL, CoNLL-U), or rows, a sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax.tasks import tables
from bert_jax.text import decoding


class Block(NamedTuple):
    """A sentence of a file: its words, their tags as they stand there, and where each stands."""

    words: list[str]
    tags: list[str]
    place: str  # the file, or a row of it
    lines: list[int]  # of the file, one a word; none where the sentence is a row

    def where(self, word: int) -> str:
        """Where a word stands, counted from 0, for messages."""
        return f"{self.place}:{self.lines[word]}" if self.lines else f"{self.place}, word {word + 1}"


# Lines that are not words: what begins a document (CoNLL-2003, CoNLL-2012, CoNLL-U), and what is said of what follows
# (the end of one, GermEval's sources, MultiCoNER's ids, CoNLL-U's "# name = value").
_DOCUMENT = re.compile(r"-+docstart-+(\s|$)|#begin document\b|#\s*newdoc\b", re.IGNORECASE)
_COMMENT = re.compile(r"#end document\b|#\s+(https?://|id\s|newpar\b|[\w.:-]+\s=\s)")
_HASH = re.compile(r"#(\s|$)")
_CONLLU = re.compile(r"\d+([-.]\d+)?(\t[^\t]*){9}")
_NOT_A_WORD = re.compile(r"\d+[-.]\d+")  # a multiword token, whose words follow, or an empty node


def in_columns(path: str, word: int, label: int) -> Iterator[Block | None]:
    """The sentences of a file with a word a line; None where a document begins. Columns are counted from 1.

    Where each line has a tab, tabs part the columns, and a word may hold a space; else white space does. A blank line
    ends a sentence. CoNLL-U is known by its name (.conllu, .conllup) or its ten columns.

    Raises:
      ValueError: that names file and line, what was expected and what stands there.
    """
    content = tables.read_text(path).split("\n")
    name = tables.plain(path).lower()
    rows = [
        line for line in content if not (line.startswith(("#", "-")) and (_DOCUMENT.match(line) or _HASH.match(line)))
    ]
    rows = [line for line in rows if line and not line.isspace()]
    tabs = bool(rows) and all("\t" in line for line in rows)
    conllu = name.endswith((".conllu", ".conllup")) or (tabs and all(map(_CONLLU.fullmatch, rows)))
    columns = max(word, label)
    block = Block([], [], path, [])
    for number, line in enumerate([*content, ""], start=1):
        marked = line.startswith(("#", "-"))
        document = marked and _DOCUMENT.match(line)
        if not line or line.isspace() or document:
            if block.words:
                yield block
            block = Block([], [], path, [])
            if document:
                yield None
            continue
        cells = line.split("\t") if tabs else line.split()
        hash_line = marked and _HASH.match(line) and (conllu or len(cells) < columns)
        if hash_line or (marked and _COMMENT.match(line)) or (conllu and _NOT_A_WORD.fullmatch(cells[0])):
            continue
        if len(cells) < columns:
            between = "tabs" if tabs else "white space"
            raise ValueError(
                f"{path}:{number}: {columns} columns expected, {len(cells)} found, by {between}: {line[:80]!r}"
            )
        block.words.append(cells[word - 1])
        block.tags.append(cells[label - 1].strip())
        block.lines.append(number)


def in_rows(path: str, names: Sequence[str], columns: Sequence[str]) -> Iterator[Block]:
    """The sentences of a file that `tables.records` reads, a row each: two columns `names`, one of words, one of tags.

    Each is a text, which white space parts, or in JSON, parquet and TFDS a list of texts.

    Raises:
      ValueError: that names the row and what is wrong with it.
    """
    for place, cells in tables.records(path, names, columns=columns):
        words, tags = (_parts(cells[name], place, name) for name in names)
        if len(words) != len(tags):
            raise ValueError(f"{place}: {len(words)} words in {names[0]!r} and {len(tags)} tags in {names[1]!r}")
        if words:
            yield Block(words, tags, place, [])


def _parts(value: Any, place: str, name: str) -> list[str]:
    if isinstance(value, list):
        return [decoding.a_text(item, place, ": ", name, "[", number, "]") for number, item in enumerate(value)]
    return decoding.a_text(value, place, ": ", name).split()
