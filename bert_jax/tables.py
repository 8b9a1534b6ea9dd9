"""Rows of a task's files: tab- or comma-separated, JSON lines, or a prepared TFDS data set; each knows its place."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from absl import logging

from bert_jax import files, text
from bert_jax.config import nearest, require

ARCHIVES = (".xz", ".gz", ".bz2", ".zst")


class Row(NamedTuple):
    """A row: where it stands, for messages ("dev.tsv:17"), and its cells by column."""

    place: str
    cells: dict[str, str]


def path_of(name: str, data_dir: str) -> str:
    """Where a task's file lies: `tfds:` sources and absolute paths as they are, all else in `data_dir`.

    An archive, NAME.xz and so on, stands in for a file that is not there.
    """
    if name.startswith("tfds:"):
        return name
    path = os.path.join(data_dir, name)
    return next((path + ending for ending in ("", *ARCHIVES) if os.path.exists(path + ending)), path)


def plain(path: str) -> str:
    """A path without the ending of an archive: its ending says how the content is to be read."""
    return next((path.removesuffix(ending) for ending in ARCHIVES if path.endswith(ending)), path)


def stem(name: str) -> str:
    """What a file or a source is called in figures: "MNLI/dev_mismatched.tsv" and "tfds:glue/mnli:x" are the last
    part of their names, without an ending that says the format."""
    return re.sub(r"\.(tsv|csv|txt|jsonl?|conllu)$", "", re.split("[/:]", plain(name))[-1])


def read_text(path: str) -> str:
    """A UTF-8 file whole, line ends made "\\n", a byte order mark left out.

    Raises:
      ValueError: where there is no such file, or it is not UTF-8.
    """
    try:
        file = files.local(path)
    except FileNotFoundError:
        file = pathlib.Path(path)
    require(file.is_file(), f"there is no file {path}: --data_dir must name the folder of the official files")
    try:
        return text.decompressed(file).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; convert the file, for example with iconv") from None


def read(
    path: str,
    needed: Sequence[str],
    *,
    columns: Sequence[str] = (),
    malformed: Literal["error", "skip"] = "error",
) -> list[Row]:
    """The rows of a file or TFDS source, with at least the columns `needed`.

    The name says the format: `.csv` (a quoted cell may hold commas and line ends), `.jsonl` or `.json` (an object a
    line), `tfds:NAME:SPLIT`, and all else is tab-separated, where a quote is a character like any other, as in GLUE.

    Args:
      path: the file, or "tfds:...".
      needed: columns that must be there.
      columns: the names of the columns of a file without a header; a first line that holds the needed names is a header
        all the same, as that of CoLA's test file.
      malformed: what to do with a row of more or fewer cells than there are columns.

    Raises:
      ValueError: that names file and line, what was expected and what stands there.
    """
    if path.startswith("tfds:"):
        return list(_tfds(path, needed))
    content = read_text(path)
    if plain(path).endswith((".jsonl", ".json")):
        rows = list(_json_lines(path, content, needed))
    else:
        rows = list(_cells(path, content, needed, list(columns), malformed))
    require(bool(rows), f"{path}: no rows" + ("" if columns else " after the header"))
    return rows


def _cells(path: str, content: str, needed: Sequence[str], columns: list[str], malformed: str) -> Iterator[Row]:
    lines = _csv(path, content) if plain(path).endswith(".csv") else _tsv(content)
    skipped = []
    for index, (number, cells) in enumerate(lines):
        if index == 0 and (not columns or set(needed) <= set(cells)):
            columns = cells
            for name in needed:
                require(name in columns, f"{path}:1: no column {name!r}: {nearest(name, columns)}")
        elif len(cells) == len(columns):
            yield Row(f"{path}:{number}", dict(zip(columns, cells, strict=True)))
        else:
            if malformed == "error":
                found = f"{len(cells)} found: {' | '.join(cells)[:80]!r}"
                raise ValueError(f"{path}:{number}: {len(columns)} columns expected ({', '.join(columns)}), {found}")
            skipped.append(number)
    if skipped:
        logging.warning("%s: %d malformed rows skipped, the first in line %d", path, len(skipped), skipped[0])


def _tsv(content: str) -> Iterator[tuple[int, list[str]]]:
    """Only "\\n" ends a line: some texts hold other characters that Python takes for line ends."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line:
            yield number, line.split("\t")


def _csv(path: str, content: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline="\n"), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: {error}: is a quote left open or not doubled?") from None


def _json_lines(path: str, content: str, needed: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: no JSON object: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path}:{number}: a JSON object is expected, not {line[:80]!r}")
        for name in needed:
            if name not in found:
                raise ValueError(f"{path}:{number}: no field {name!r}: {nearest(name, found)}")
        yield Row(f"{path}:{number}", {name: _plain(value) for name, value in found.items()})


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tfds(path: str, needed: Sequence[str]) -> Iterator[Row]:
    """A class is its name in the data set's own list of labels, or "" where it is hidden, as in GLUE's test splits."""
    source, features = text.tfds_source(path, needed)
    for number in range(len(source)):
        cells = {}
        for name, value in source[number].items():
            if hasattr(features[name], "int2str"):
                value = features[name].int2str(int(value)) if value >= 0 else ""
            cells[name] = value.decode() if isinstance(value, bytes) else str(value)
        yield Row(f"{path}:{number}", cells)
