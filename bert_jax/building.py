"""Builds the token store: in parallel, in bounded memory, and so that it can be stopped anywhere.

Worker processes split and tokenise, the parent appends in order. Every few seconds it commits: it flushes the files and
records, atomically, how many documents of the input went in and how long each file is by then. Whoever goes on cuts
the files back to those lengths and skips those documents, so a stop leaves no trace in the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bert_jax import corpus, parallel, text, tokenizer
from bert_jax.config import differences, require
from bert_jax.corpus import Corpus
from bert_jax.text import Document
from bert_jax.tokenizer import Tokenizer

COMMIT_SECONDS = 10.0  # of work, which is what a kill may cost
NOTHING = dict.fromkeys(("read", "bytes", "documents", "sentences", "tokens", "unknown", "name_bytes"), 0)


def build(
    sources: Sequence[str],
    vocabulary: Tokenizer,
    directory: str | os.PathLike[str],
    *,
    workers: int | None = None,
    errors: text.Errors = "strict",
    field: str = "text",
) -> Corpus:
    """Tokenises `sources` (see `text.documents`) into `directory`. Run again after a stop, it goes on where it was.

    The bytes written depend neither on the number of `workers` (processes; default: one for each core) nor on stops.
    The calling script needs an `if __name__ == "__main__"`, unless there is one worker, which is the caller itself.

    Raises:
      ValueError: where the directory holds another corpus, another process is building there, the sources hold no
        text, have changed since the last stop, or (with errors="strict") have a byte that is not UTF-8.
      OSError: where a source does not exist or the disk is full. What was done until then is kept.
      RuntimeError: where a worker process died. Likewise.

    Example:
      >>> build(["python-docs:stdlib"], tokenizer.load("vocab.txt"), "corpus").count("documents")
    """
    directory = pathlib.Path(directory)
    documents = text.documents(sources, errors=errors, field=field)
    for source in sources:
        inside = pathlib.Path(source).is_dir() and directory.resolve().is_relative_to(pathlib.Path(source).resolve())
        require(not inside, f"the output {directory} lies inside the input {source}: choose another directory")
    dtype = np.dtype(np.uint16 if vocabulary.vocab_size <= 1 << 16 else np.uint32)
    identity = {
        "format": corpus.FORMAT,
        "sources": [entry for source in sources for entry in _identity(source)],
        "vocabulary": vocabulary.fingerprint,
        "errors": errors,
        "field": field,
        "dtype": dtype.name,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        counts, last = _begin(directory, identity)
        if counts is None:
            print(f"{directory} already holds this corpus, complete: nothing to do", file=sys.stderr)
            return Corpus.open(directory)
        if counts["read"]:
            _skip(documents, counts["read"], last, directory)
            print(f"{directory}: going on after {counts['read']:,} documents", file=sys.stderr)
        else:
            vocabulary.save(directory)
        encode = functools.partial(_encode, vocabulary, dtype)
        workers = workers or len(os.sched_getaffinity(0))
        with _Writer(directory, identity, counts, last, vocabulary.unk) as writer:
            with contextlib.closing(parallel.parallel_map(encode, documents, workers)) as encoded:  # type: ignore[type-var]
                for document, result in encoded:
                    writer.append(document, result)
            require(writer.counts["tokens"] > 0, f"no text in {', '.join(sources)}")
            writer.finish()
    return Corpus.open(directory)


class _Encoded(NamedTuple):
    """What a worker makes of a document."""

    tokens: np.ndarray
    lengths: np.ndarray  # of its sentences, in tokens
    size: int  # of its text, in bytes


def _encode(vocabulary: Tokenizer, dtype: np.dtype, document: Document) -> _Encoded:
    _end_with_parent()
    paragraphs = text.paragraphs(document)
    sentences = [ids for sentence in text.split(paragraphs) if (ids := vocabulary.encode(sentence))]
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    tokens = np.fromiter(itertools.chain.from_iterable(sentences), dtype, int(lengths.sum()))
    return _Encoded(tokens, lengths, len("\n".join(paragraphs).encode(errors="replace")))


@functools.cache
def _end_with_parent() -> None:
    """Sees to it that a worker ends when its parent is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Writer:
    """Appends documents to the files of a corpus and commits, now and then, how far they are good."""

    def __init__(
        self, directory: pathlib.Path, identity: dict[str, Any], counts: dict[str, int], last: str, unknown: int
    ) -> None:
        self.directory, self.identity, self.counts, self._last = directory, identity, counts, last
        self._unknown = unknown
        self._files: dict[str, BinaryIO] = {}
        self._bytes_before = counts["bytes"]
        self._began = self._committed = self._said = time.monotonic()
        plain = all(entry["name"].endswith(".txt") for entry in identity["sources"])
        self._total = sum(entry.get("bytes", 0) for entry in identity["sources"]) if plain else 0  # 0: not known

    def __enter__(self) -> _Writer:
        for name, size in corpus.sizes(self.counts, np.dtype(self.identity["dtype"])).items():
            file = self._files[name] = open(self.directory / name, "ab")
            if self.counts["read"]:
                file.truncate(size)  # forgets what a killed build wrote after its last commit
            else:
                file.truncate(0)
                file.write(bytes(size))  # the offset 0 that each file of offsets begins with
        return self

    def append(self, document: Document, encoded: _Encoded) -> None:
        """Documents without a token are read, and dropped."""
        kept = int(len(encoded.tokens) > 0)
        name = (" ".join(document.name.split()) + "\n").encode(errors="replace") * kept
        added = {
            "read": 1,
            "bytes": encoded.size,
            "documents": kept,
            "sentences": len(encoded.lengths),
            "tokens": len(encoded.tokens),
            "unknown": int(np.count_nonzero(encoded.tokens == self._unknown)),
            "name_bytes": len(name),
        }
        after = {key: value + added[key] for key, value in self.counts.items()}
        if kept:
            self._files[corpus.TOKENS].write(encoded.tokens.data)
            self._files[corpus.SENTENCES].write((self.counts["tokens"] + np.cumsum(encoded.lengths)).data)
            self._files[corpus.DOCUMENTS].write(np.int64(after["sentences"]).tobytes())
            self._files[corpus.NAMES].write(name)
            self._files[corpus.NAME_ENDS].write(np.int64(after["name_bytes"]).tobytes())
        self.counts, self._last = after, _label(document)
        now = time.monotonic()
        if now - self._said > (0.5 if sys.stderr.isatty() else 30):
            self._say(now)
        if now - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        _write_json(self.directory / corpus.PROGRESS, {**self.identity, "counts": self.counts, "last": self._last})
        self._committed = time.monotonic()

    def finish(self) -> None:
        self.commit()
        _write_json(self.directory / corpus.MANIFEST, {**self.identity, "counts": self.counts, "complete": True})
        (self.directory / corpus.PROGRESS).unlink()
        self._say(time.monotonic())
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Keeps what is done, whatever stopped it. Where even that cannot be written, the last commit stands."""
        with contextlib.suppress(OSError):
            if error is not None:
                self.commit()
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        done = f"after {self.counts['read']:,} documents"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"the disk of {self.directory} is full {done}: make room and run the same command again, it goes on",
            ) from None
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(
                f"a worker process died {done} (out of memory?): run the same command again, with fewer workers, it "
                'goes on. (A script of your own that calls build needs an `if __name__ == "__main__"`.)'
            ) from None

    def _say(self, now: float) -> None:
        """A line that rewrites itself on a terminal; elsewhere a line in half a minute."""
        self._said, counts = now, self.counts
        speed = (counts["bytes"] - self._bytes_before) / max(now - self._began, 1e-3)
        line = (
            f"{counts['bytes'] / 1e6:,.1f} MB at {speed / 1e6:.1f} MB/s, {counts['documents']:,} documents, "
            f"{counts['sentences']:,} sentences, {counts['tokens']:,} tokens"
        )
        left = (self._total - counts["bytes"]) / max(speed, 1)
        line += f", {left:,.0f} s left" if left > 1 else ""
        before, after = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
        print(before + line, end=after, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(directory: pathlib.Path) -> Iterator[None]:
    """Keeps a second build out. The lock is freed when the process ends, however it ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"another process is building {directory}: wait for it, or stop it") from None
    finally:
        os.close(handle)


def _begin(directory: pathlib.Path, identity: dict[str, Any]) -> tuple[dict[str, int] | None, str]:
    """The counts to go on from, None where the corpus is complete, and the label of the last document that is in it."""
    complete = (directory / corpus.MANIFEST).exists()
    record = directory / (corpus.MANIFEST if complete else corpus.PROGRESS)
    found = corpus.read_json(record) if record.exists() else None
    if found is None:  # so far not ours: overwrite nothing
        taken = [name for name in corpus.sizes(NOTHING, np.dtype(np.uint16)) if (directory / name).exists()]
        with contextlib.suppress(FileNotFoundError):
            if tokenizer.load(directory).fingerprint != identity["vocabulary"]:
                taken.append("another vocabulary")
        require(not taken, f"{directory} is no corpus and holds {', '.join(taken)}: choose another directory")
    if found is None or (not complete and found["counts"]["tokens"] == 0):
        _write_json(directory / corpus.PROGRESS, {**identity, "counts": NOTHING, "last": ""})
        return NOTHING, ""
    differ = differences({key: found.get(key) for key in identity}, identity)
    require(
        not differ,
        f"{directory} holds another {'' if complete else 'half-built '}corpus; it differs (there, and asked for) in\n"
        + "".join(f"  {line}\n" for line in differ)
        + "choose another directory, or delete this one",
    )
    return (None if complete else found["counts"]), found.get("last", "")


def _skip(documents: Iterator[Document], count: int, last: str, directory: pathlib.Path) -> None:
    """Passes over the first `count` documents; the last of them must be `last`, or the input is not what it was."""
    skipped = next(itertools.islice(documents, count - 1, None), None)
    label = "the end of the input" if skipped is None else _label(skipped)
    require(
        label == last,
        f"the input has changed since the build of {directory} stopped: document {count:,} was {last} and is {label}: "
        "delete the directory and build it again",
    )


def _label(document: Document) -> str:
    return f"{document.name} ({len(document.text):,} characters)"


def _identity(source: str) -> list[dict[str, Any]]:
    """Name, size and hash of each file of a source. Of other sources (python-docs, tfds:...) only the name is known."""
    path = pathlib.Path(source)
    if path.is_dir():
        found: Iterable[pathlib.Path] = path.rglob("*")
    else:
        found = [path] if path.exists() else map(pathlib.Path, glob.glob(source, recursive=True))
    entries = []
    for file in sorted(file for file in found if file.is_file()):
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        entries.append({"name": file.name, "bytes": file.stat().st_size, "sha256": digest})
    return entries or [{"name": source}]


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
