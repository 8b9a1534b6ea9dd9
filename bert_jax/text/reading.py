"""Text for a vocabulary, read part by part: what each part comes to is kept in a folder, so a stop costs one part.

Worker processes split sentences; `reduce` makes of the sentences of a part what the vocabulary is learned from, the
counts of words or the sentences themselves. Parts end at places that depend on the text alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax import files
from bert_jax.text import parallel, readers

FORMAT = 1  # of the folder, and of how sentences are split
PART = 1 << 24  # characters of a part
SAMPLE = 100  # of so many sentences, one is kept as it is
_RECORD = "progress.json"


class Part(NamedTuple):
    """How far the reading was at the end of a part."""

    documents: int
    last: str  # the label of the last one
    characters: int  # of the sentences, those of earlier parts too
    checksum: int  # of the part's file
    final: bool  # whether no other part follows


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it meanwhile.

    Raises:
      ValueError: where one is in.
      OSError: where it cannot be made.
    """
    folder = pathlib.Path(folder)
    with files.room(folder.parent, "make room and run the same command again"):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, f"another process reads into {folder}: wait for it, or stop it"):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # where nothing was read


def read(
    sources: Sequence[str],
    folder: str | os.PathLike[str],
    reduce: Callable[[list[str]], Any],
    *,
    what: str,
    most: int = sys.maxsize,
    workers: int | None = None,
    errors: readers.Errors = "strict",
    field: str = "text",
    sentences: readers.Sentences = "split",
) -> Iterator[int]:
    """Fills `folder` (see `opened`) with the parts of the sources; `contents` then gives them.

    Stopped anywhere, the same call goes on after the last whole part. What the folder holds of another input or `what`
    is not used.

    Args:
      sources: see `readers.documents`; `errors`, `field` and `sentences` likewise.
      reduce: of the sentences of a part, JSON.
      what: a name for `reduce`: what is kept of another is not taken for its own.
      most: characters; the sentences that exceed them in all are left out.
      workers: processes; default: one for each core.

    Yields:
      After each part, the characters so far.

    Raises:
      ValueError, OSError: as `readers.documents`, and where the input has changed since a stop or the disk is full.
    """
    folder = pathlib.Path(folder)
    documents = readers.documents(sources, errors=errors, field=field, sentences=sentences)
    settings = {"format": FORMAT, "what": what, "most": most, "errors": errors, "field": field, "part": PART}
    if sentences != "split":  # so that what an earlier version has read is still known
        settings["sentences"] = sentences
    identity = {**settings, "sources": readers.identity(sources)}
    parts = _kept(folder, identity)
    if parts:
        readers.skip(documents, parts[-1].documents, parts[-1].last, folder)
        print(f"{folder}: going on after {parts[-1].characters:,} characters", file=sys.stderr)
        yield parts[-1].characters
        if parts[-1].final:
            return
    before = parts[-1] if parts else Part(0, "", 0, 0, False)
    split = parallel.parallel_map(readers.sentences, documents, workers or len(os.sched_getaffinity(0)))
    with contextlib.closing(split):  # type: ignore[type-var]
        for part, texts in _cut(split, before, most):
            file = _file(folder, len(parts))
            with files.room(folder, "the parts that are complete are kept: make room and run the same command again"):
                files.write_json(file, {"sample": texts[::SAMPLE], "content": reduce(texts)})
                parts.append(part._replace(checksum=files.checksum(file)))
                files.write_json(folder / _RECORD, {**identity, "parts": parts})
            yield part.characters


def contents(folder: str | os.PathLike[str]) -> Iterator[tuple[Any, list[str]]]:
    """For each part in the folder, what it was reduced to, and a hundredth of its sentences."""
    folder = pathlib.Path(folder)
    for number in range(len(json.loads((folder / _RECORD).read_text())["parts"])):
        part = json.loads(_file(folder, number).read_text())
        yield part["content"], part["sample"]


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:05}.json"


def _kept(folder: pathlib.Path, identity: dict[str, Any]) -> list[Part]:
    """The parts that an earlier call left, as far as they are whole."""
    try:
        found = json.loads((folder / _RECORD).read_text())
        parts = [Part(*part) for part in found.pop("parts")]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        found, parts = None, []
    if found != identity:
        print(f"{folder} holds parts of another input, or damaged ones: reading anew", file=sys.stderr)
        return []
    for number, part in enumerate(parts):
        file = _file(folder, number)
        if not (file.exists() and files.intact(file, part.checksum)):
            print(f"{file} is damaged: reading anew from there", file=sys.stderr)
            return parts[:number]
    return parts


def _cut(
    split: Iterator[tuple[readers.Document, list[str]]], before: Part, most: int
) -> Iterator[tuple[Part, list[str]]]:
    """The parts after `before` with their sentences."""
    documents, last, characters = before[:3]
    held: list[str] = []
    size = 0
    full = False
    for document, sentences in split:
        documents, last = documents + 1, readers.label(document)
        kept = list(readers.at_most(sentences, most - characters))
        held += kept
        size += len(document.text)
        characters += sum(map(len, kept))
        full = len(kept) < len(sentences)
        if full or size >= PART:
            yield Part(documents, last, characters, 0, full), held
            held, size = [], 0
        if full:
            return
    yield Part(documents, last, characters, 0, True), held
