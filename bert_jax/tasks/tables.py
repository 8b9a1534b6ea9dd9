"""Rows of a task's files: tab- or comma-separated, JSON, parquet and Arrow, or a prepared TFDS data set; each knows its
place."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import logging

from bert_jax import files
from bert_jax.config import nearest, require
from bert_jax.text import arrow, decoding, readers

ARCHIVES = (".xz", ".gz", ".bz2", ".zst")


class Row(NamedTuple):
    """A row: where it stands, for messages ("dev.tsv:17", "rows.json[16]"), and its cells by column."""

    place: str
    cells: dict[str, str]


class Record(NamedTuple):
    """The same with the values that the file holds: texts, of JSON, parquet and TFDS also numbers, lists and None."""

    place: str
    cells: dict[str, Any]


def path_of(name: str, data_dir: str) -> str:
    """Where a task's file lies: `tfds:` sources and absolute paths as they are, all else in `data_dir`.

    An archive, NAME.xz and so on, stands in for a file that is not there.
    """
    if name.startswith("tfds:"):
        return name
    path = os.path.join(data_dir, name)
    return next((path + ending for ending in ("", *ARCHIVES) if os.path.exists(path + ending)), path)


def is_there(path: str) -> bool:
    """Whether a path, as `path_of` gives it, leads to a file or folder, or is a pattern of some; TFDS is not asked."""
    return path.startswith("tfds:") or files.path(path).exists() or bool(glob.glob(path, recursive=True))


def plain(path: str) -> str:
    """A path without the ending of an archive: its ending says how the content is to be read."""
    return next((path.removesuffix(ending) for ending in ARCHIVES if path.endswith(ending)), path)


def stem(name: str) -> str:
    """What a file or a source is called in figures: "MNLI/dev_mismatched.tsv" and "tfds:glue/mnli:x" are the last
    part of their names, without an ending that says the format or the part of it."""
    last = re.split("[/:]", plain(name).rstrip("/"))[-1]
    last = re.sub(r"\.(tsv|csv|txt|jsonl?|conll(u|up)?|parquet|arrow)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"-(\d+-of-\d+|\*)$", "", last)


def read_text(path: str) -> str:
    """A text file whole, line ends made "\\n", a byte order mark left out; UTF-8 where no such mark says otherwise.

    Raises:
      ValueError: where there is no such file, or bytes that have no meaning in its encoding.
    """
    try:
        file = files.local(path)
    except FileNotFoundError:
        file = pathlib.Path(path)
    require(file.is_file(), f"there is no file {path}: --data_dir must name the folder of the official files")
    return decoding.text(decoding.decompressed(file), path)


def read(
    path: str,
    needed: Sequence[str],
    *,
    texts: Sequence[str] = (),
    columns: Sequence[str] = (),
    malformed: Literal["error", "skip"] = "error",
) -> list[Row]:
    """The rows of a file or TFDS source, with at least the columns `needed`.

    The name says the format: `.csv` (a quoted cell may hold commas and line ends), `.jsonl` or `.json` (an object a
    line, or one array of objects), parquet, Arrow and folders as `arrow.files` has them, `tfds:NAME:SPLIT`, and all
    else is tab-separated, where a quote is a character like any other, as in GLUE.

    Args:
      path: the file, or "tfds:...".
      needed: columns that must be there.
      texts: those that must be texts. Of the others, a value that is not is a cell as JSON writes it, and null an empty
        one.
      columns: the names of the columns of a file without a header; a first line that holds the needed names is a header
        all the same, as that of CoLA's test file.
      malformed: what to do with a row of more or fewer cells than there are columns.

    Raises:
      ValueError: that names file and line, what was expected and what stands there.
    """
    rows = [
        Row(place, {name: _cell(value, name in texts, place, name) for name, value in cells.items()})
        for place, cells in records(path, needed, columns=columns, malformed=malformed)
    ]
    require(bool(rows), f"{path}: no rows" + ("" if columns else " after the header"))
    return rows


def with_gold(rows: Sequence[Row], label: str, unlabelled: Sequence[str], path: str) -> dict[int, Row]:
    """The rows that have a label, by their numbers: those whose `label` is one of `unlabelled` are left out, and
    counted in the log.

    Raises:
      ValueError: where there is none.
    """
    found = {number: row for number, row in enumerate(rows) if row.cells[label] not in unlabelled}
    if len(found) < len(rows):
        logging.warning("%s: %d of %d rows have no label and are left out", path, len(rows) - len(found), len(rows))
    require(bool(found), f"{path}: none of {len(rows)} rows has a label")
    return found


def records(
    path: str,
    needed: Sequence[str],
    *,
    columns: Sequence[str] = (),
    malformed: Literal["error", "skip"] = "error",
) -> Iterator[Record]:
    """The rows that `read` gives, with the values as they are."""
    name = plain(path).lower()
    if path.startswith("tfds:"):
        yield from _tfds(path, needed)
    elif arrow.is_source(path):
        yield from (Record(*row) for row in arrow.rows(path, needed))
    elif name.endswith((".jsonl", ".json")):
        yield from _json(path, read_text(path), needed)
    else:
        yield from _cells(path, read_text(path), needed, list(columns), malformed)


def _cell(value: Any, text: bool, place: str, name: str) -> str:
    if text or isinstance(value, str):
        return decoding.a_text(value, place, ": ", name)
    return "" if value is None else json.dumps(value, default=str)


def _cells(path: str, content: str, needed: Sequence[str], columns: list[str], malformed: str) -> Iterator[Record]:
    lines = _csv(path, content) if plain(path).lower().endswith(".csv") else _tsv(content)
    skipped = []
    for index, (number, cells) in enumerate(lines):
        if index == 0 and (not columns or set(needed) <= set(cells)):
            columns = cells
            for name in needed:
                require(name in columns, f"{path}:1: no column {name!r}: {nearest(name, columns)}")
            twice = next((name for name in columns if name and columns.count(name) > 1), None)
            require(twice is None, f"{path}:1: two columns have the name {twice!r}")
        elif len(cells) == len(columns):
            yield Record(f"{path}:{number}", dict(zip(columns, cells, strict=True)))
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
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # a cell may be a whole document
    reader = csv.reader(io.StringIO(content, newline="\n"), strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{start}: {error}: is a quote left open or not doubled?") from None


def _json(path: str, content: str, needed: Sequence[str]) -> Iterator[Record]:
    """An object a line, or one array of objects."""
    for place, source in _json_values(path, content):
        if not isinstance(source, dict):
            raise ValueError(f"{place}: a JSON object is expected, not {decoding.shown(source)}")
        for name in needed:
            if name not in source:
                raise ValueError(f"{place}: no field {name!r}: {nearest(name, source)}")
        yield Record(place, source)


def _json_values(path: str, content: str) -> Iterator[tuple[str, Any]]:
    if content.lstrip().startswith("["):
        try:
            rows = decoding.json_value(content)
        except ValueError as error:
            raise ValueError(f"{path}: no JSON array of objects: {error}") from None
        yield from ((f"{path}[{number}]", row) for number, row in enumerate(rows))
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                row = decoding.json_value(line)
            except ValueError as error:
                hint = " (rows are an object a line, or one array of objects)" if line.strip() == "{" else ""
                raise ValueError(f"{path}:{number}: no JSON object: {error}{hint}") from None
            yield f"{path}:{number}", row


def _tfds(path: str, needed: Sequence[str]) -> Iterator[Record]:
    """A class is its name in the data set's own list of labels, or "" where it is hidden, as in GLUE's test splits."""
    source, features = readers.tfds_source(path, needed)
    for number in range(len(source)):
        row = source[number]
        cells = {name: _tfds_value(row[name], features[name], f"{path}:{number}: {name}") for name in row}
        yield Record(f"{path}:{number}", cells)


def _tfds_value(value: Any, feature: Any, what: str) -> Any:
    if hasattr(feature, "feature") and isinstance(value, (list, np.ndarray)):  # a sequence
        return [_tfds_value(item, feature.feature, what) for item in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if value >= 0 else ""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what}: byte {error.start} is not UTF-8") from None
    return value if isinstance(value, (str, dict)) else str(value)
