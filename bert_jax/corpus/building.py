"""Builds the token store: in parallel, in bounded memory, and so that it can be stopped anywhere.

Worker processes split and tokenise, the parent appends in order. Every few seconds it commits: it flushes the files and
records, atomically, how many documents of the input went in and how long each file is by then. Whoever goes on cuts
the files back to those lengths and skips those documents, so a stop leaves no trace in the bytes. With the lengths go
the files' checksums: what went wrong on the disk meanwhile is noticed here, and later by whoever opens the corpus.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bert_jax import files
from bert_jax.config import differences, require
from bert_jax.corpus import store
from bert_jax.corpus.store import Corpus
from bert_jax.text import parallel, readers, tokenizer
from bert_jax.text.readers import Document
from bert_jax.text.tokenizer import Tokenizer

COMMIT_SECONDS = 10.0  # of work, which is what a kill may cost
NOTHING = dict.fromkeys(store.COUNTS, 0)
_BEFORE = {"sentences": "split"}  # of corpora that do not say: what there was when they were built


def build(
    sources: Sequence[str],
    vocabulary: Tokenizer,
    directory: str | os.PathLike[str],
    *,
    workers: int | None = None,
    errors: readers.Errors = "strict",
    field: str = "text",
    sentences: readers.Sentences = "split",
) -> Corpus:
    """Tokenises `sources` into `directory`; sources and options as `readers.documents` has them.

    Run again after a stop, it goes on where it was.

    The bytes written depend neither on the number of `workers` (processes; default: one for each core) nor on stops.
    The calling script needs an `if __name__ == "__main__"`, unless there is one worker, which is the caller itself.

    Raises:
      ValueError: where the directory holds another corpus or a damaged one, another process is building there, the
        sources hold no text, have changed since the last stop, or (with errors="strict") have a byte that is not UTF-8.
      OSError: where a source does not exist or the disk is full. What was done until then is kept.
      RuntimeError: where a worker process died. Likewise.

    Example:
      >>> build(["python-docs:stdlib"], tokenizer.load("vocab.txt"), "corpus").count("documents")
    """
    require(str(directory) != "", "the directory of the corpus has an empty name")
    require(workers is None or workers >= 1, f"workers must be 1 or more, not {workers}")
    directory = pathlib.Path(directory)
    files.require_folder(directory, "the corpus")
    documents = readers.documents(sources, errors=errors, field=field, sentences=sentences)
    for source in sources:
        inside = pathlib.Path(source).is_dir() and directory.resolve().is_relative_to(pathlib.Path(source).resolve())
        require(not inside, f"the output {directory} lies inside the input {source}: choose another directory")
    dtype = np.dtype(np.uint16 if vocabulary.vocab_size <= 1 << 16 else np.uint32)
    identity = {
        "format": store.FORMAT,
        "sources": readers.identity(sources),
        "vocabulary": vocabulary.fingerprint,
        "errors": errors,
        "field": field,
        "dtype": dtype.name,
        "sentences": sentences,
    }
    with files.room(directory, "make room and run the same command again"):
        directory.mkdir(parents=True, exist_ok=True)
        with files.locked(directory, f"another process is building {directory}: wait for it, or stop it"):
            begun = _begin(directory, identity)
            if begun is None:
                print(f"{directory} already holds this corpus, complete: nothing to do", file=sys.stderr)
                return Corpus.open(directory)
            if begun.counts["read"]:
                readers.skip(documents, begun.counts["read"], begun.last, directory)
                print(f"{directory}: going on after {begun.counts['read']:,} documents", file=sys.stderr)
            else:
                vocabulary.save(directory)
            encode = functools.partial(_encode, vocabulary, dtype)
            workers = workers or len(os.sched_getaffinity(0))
            with _Writer(directory, identity, begun, vocabulary.unk) as writer:
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
    paragraphs = readers.paragraphs(document)
    texts = readers.split(paragraphs, lines=document.kind == "lines")
    sentences = [ids for sentence in texts if (ids := vocabulary.encode(sentence))]
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    tokens = np.fromiter(itertools.chain.from_iterable(sentences), dtype, int(lengths.sum()))
    return _Encoded(tokens, lengths, len("\n".join(paragraphs).encode(errors="replace")))


class _State(NamedTuple):
    """How far a build is."""

    counts: dict[str, int]
    last: str  # the label of the last document that is in
    checksums: dict[str, int]  # of the files, as long as the counts say; of an older version's build, none


class _Writer:
    """Appends documents to the files of a corpus and commits, now and then, how far they are good."""

    def __init__(self, directory: pathlib.Path, identity: dict[str, Any], begun: _State, unknown: int) -> None:
        self.directory, self.identity, self._state = directory, identity, begun
        self._kept = begun.counts["read"]  # documents, by the last commit
        self._unknown = unknown
        self._files: dict[str, BinaryIO] = {}
        self._bytes_before = begun.counts["bytes"]
        self._began = self._committed = self._said = time.monotonic()
        plain = all(entry["name"].endswith(".txt") for entry in identity["sources"])
        self._total = sum(entry.get("bytes", 0) for entry in identity["sources"]) if plain else 0  # 0: not known

    @property
    def counts(self) -> dict[str, int]:
        return self._state.counts

    def __enter__(self) -> _Writer:
        counts, last, committed = self._state
        checksums = {}
        for name, size in store.sizes(counts, np.dtype(self.identity["dtype"])).items():
            path = self.directory / name
            if counts["read"]:
                checksums[name] = _unharmed(path, size, committed.get(name))
            file = self._files[name] = open(path, "ab")
            if counts["read"]:
                file.truncate(size)  # forgets what a killed build wrote after its last commit
            else:
                file.truncate(0)
                file.write(bytes(size))  # the offset 0 that each file of offsets begins with
                checksums[name] = zlib.crc32(bytes(size))
        self._state = _State(counts, last, checksums)
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
        checksums = dict(self._state.checksums)
        if kept:
            data: dict[str, Any] = {
                store.TOKENS: encoded.tokens.data,
                store.SENTENCES: (self.counts["tokens"] + np.cumsum(encoded.lengths)).data,
                store.DOCUMENTS: np.int64(after["sentences"]).tobytes(),
                store.NAMES: name,
                store.NAME_ENDS: np.int64(after["name_bytes"]).tobytes(),
            }
            for file, part in data.items():
                self._files[file].write(part)
                checksums[file] = zlib.crc32(part, checksums[file])
        self._state = _State(after, readers.label(document), checksums)  # at once: a signal may come at any time
        now = time.monotonic()
        if now - self._said > (0.5 if sys.stderr.isatty() else 30):
            self._say(now)
        if now - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        state = self._state
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        files.write_json(self.directory / store.PROGRESS, {**self.identity, **state._asdict()})
        self._kept, self._committed = state.counts["read"], time.monotonic()

    def finish(self) -> None:
        self.commit()
        done = {"counts": self.counts, "checksums": self._state.checksums, "complete": True}
        files.write_json(self.directory / store.MANIFEST, {**self.identity, **done})
        (self.directory / store.PROGRESS).unlink()
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
        if isinstance(error, OSError):
            kept = f"{self._kept:,} documents are kept: make room and run the same command again, it goes on"
            with files.room(self.directory, kept):
                raise error
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(
                f"a worker process died after {self._kept:,} documents (out of memory?): run the same command again, "
                "with fewer workers, it goes on. (A script of your own that calls build needs an "
                '`if __name__ == "__main__"`.)'
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


def _unharmed(path: pathlib.Path, size: int, expected: int | None) -> int:
    """The checksum of the first `size` bytes of a file, which an earlier build has committed."""
    found = files.checksum(path, size) if path.exists() and path.stat().st_size >= size else None
    require(
        found is not None and expected in (None, found),
        f"{path} is damaged: it is not what the build had written when it stopped. Delete {path.parent} and build the "
        "corpus again",
    )
    assert found is not None
    return found


def _begin(directory: pathlib.Path, identity: dict[str, Any]) -> _State | None:
    """What to go on from; None where the corpus is complete."""
    complete = (directory / store.MANIFEST).exists()
    record = directory / (store.MANIFEST if complete else store.PROGRESS)
    found = store.read_record(record) if record.exists() else None
    if found is None:  # so far not ours: overwrite nothing
        taken = [name for name in store.sizes(NOTHING, np.dtype(np.uint16)) if (directory / name).exists()]
        with contextlib.suppress(FileNotFoundError):
            if tokenizer.load(directory).fingerprint != identity["vocabulary"]:
                taken.append("another vocabulary")
        require(not taken, f"{directory} is no corpus and holds {', '.join(taken)}: choose another directory")
    if found is None or (not complete and found["counts"]["tokens"] == 0):
        state = _State(NOTHING, "", {})
        files.write_json(directory / store.PROGRESS, {**identity, **state._asdict()})
        return state
    differ = differences({key: found.get(key, _BEFORE.get(key)) for key in identity}, identity)
    require(
        not differ,
        f"{directory} holds another {'' if complete else 'half-built '}corpus; it differs (there, and asked for) in\n"
        + "".join(f"  {line}\n" for line in differ)
        + "choose another directory, or delete this one",
    )
    return None if complete else _State(found["counts"], found["last"], found.get("checksums", {}))
