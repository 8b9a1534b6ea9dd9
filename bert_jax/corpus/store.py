"""The token store: a corpus tokenised once, in flat memory-mapped arrays. `building.build` writes it, this reads it.

Nothing here imports JAX: processes that build a corpus or an index start in a fraction of a second and hold no device.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bert_jax import files
from bert_jax.config import require
from bert_jax.text import tokenizer
from bert_jax.text.tokenizer import Tokenizer

FORMAT = 1  # of the directory
MANIFEST, PROGRESS = "manifest.json", "progress.json"  # of a complete corpus, and of a half-built one
TOKENS, SENTENCES, DOCUMENTS = "tokens.bin", "sentences.bin", "documents.bin"
NAMES, NAME_ENDS = "names.txt", "name_ends.bin"
COUNTS = ("read", "bytes", "documents", "sentences", "tokens", "unknown", "name_bytes")  # that a manifest has
LARGE = 1 << 31  # bytes: reading so many to verify them may take a while, and is said


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus on disk. Sentence s is `tokens[sentences[s]:sentences[s + 1]]`, document d has the sentences
    `documents[d]` to `documents[d + 1]` (exclusive); none is empty.
    """

    directory: pathlib.Path
    manifest: dict[str, Any]
    tokens: np.ndarray  # uint16, or uint32 for a vocabulary above 65,536 [tokens]
    sentences: np.ndarray  # int64 [sentences + 1]
    documents: np.ndarray  # int64 [documents + 1]

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, verify: bool = True) -> Corpus:
        """Maps the corpus that `build` wrote to `directory`.

        `verify` reads all of it once, to hold it against its checksums; a process does so at the first call. A corpus
        that an older version built has none: of it, as without `verify`, only the sizes are checked.

        Raises:
          ValueError: where there is none, it is half-built or damaged, or another version wrote it.
        """
        directory = pathlib.Path(directory)
        if not (directory / MANIFEST).exists():
            half = (directory / PROGRESS).exists()
            raise ValueError(
                f"{directory} holds a half-built corpus: run the same build_corpus command again, it goes on from there"
                if half
                else f"{directory} holds no corpus ({MANIFEST} is missing): build one with scripts/build_corpus.py"
            )
        manifest = read_record(directory / MANIFEST)
        expected = sizes(manifest["counts"], np.dtype(manifest["dtype"]))
        for name, size in expected.items():
            path = directory / name
            found = path.stat().st_size if path.exists() else None
            require(
                found == size,
                f"{directory} is damaged: {name} {'is missing' if found is None else f'has {found:,} bytes'}, and its "
                f"manifest tells of {size:,}: delete the directory and build it again",
            )
        checksums = manifest.get("checksums", {}) if verify else {}
        if checksums and sum(expected.values()) > LARGE:
            print(f"{directory}: verifying {sum(expected.values()) / 1e9:.1f} GB", file=sys.stderr)
        for name, checksum in checksums.items():
            require(
                files.intact(directory / name, checksum),
                f"{directory} is damaged: {name} has not the checksum that its manifest tells of. Delete the directory "
                "and build it again, or take it from a copy",
            )

        def mapped(name: str, kind: np.dtype) -> np.ndarray:
            return np.asarray(np.memmap(directory / name, kind, mode="r"))

        return cls(
            directory=directory,
            manifest=manifest,
            tokens=mapped(TOKENS, np.dtype(manifest["dtype"])),
            sentences=mapped(SENTENCES, np.dtype(np.int64)),
            documents=mapped(DOCUMENTS, np.dtype(np.int64)),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same files, which this one has verified, instead of receiving their content."""
        return functools.partial(Corpus.open, verify=False), (self.directory,)

    def count(self, of: str) -> int:
        """How many "documents", "sentences" or "tokens" there are, "bytes" of text, or "unknown" tokens."""
        return int(self.manifest["counts"][of])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells corpora apart by what they were made from, and by their contents where they have checksums."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the corpus, from the copy beside it.

        Raises:
          ValueError: where that is damaged, or another one.
        """
        found = tokenizer.load(self.directory)
        require(
            found.fingerprint == self.manifest["vocabulary"],
            f"the vocabulary in {self.directory} is not the one that made the corpus: copy that one there again "
            f"(its fingerprint is {self.manifest['vocabulary'][:12]}), or build the corpus again",
        )
        return found

    def check_vocabulary(self, fingerprint: str) -> None:
        """Raises `ValueError` where the tokens are of another vocabulary than the one with this `fingerprint`."""
        own = self.manifest["vocabulary"]
        require(
            own == fingerprint,
            f"the corpus {self.directory} was built with another vocabulary ({own[:12]}) than the run names "
            f"({fingerprint[:12]}): let the run name {self.directory}, or build the corpus again with the run's",
        )

    def name(self, document: int) -> str:
        """Where a document comes from."""
        ends = np.memmap(self.directory / NAME_ENDS, np.dtype(np.int64), mode="r")
        with open(self.directory / NAMES, "rb") as file:
            file.seek(int(ends[document]))
            return file.read(int(ends[document + 1] - ends[document])).decode().rstrip("\n")

    def document(self, document: int) -> list[np.ndarray]:
        """The sentences of a document, as arrays of token ids."""
        starts = self.sentences[self.documents[document] : self.documents[document + 1] + 1].tolist()
        return [self.tokens[start:end] for start, end in itertools.pairwise(starts)]


def describe(corpus: Corpus) -> str:
    """What is in a corpus, in some twenty lines for people."""
    manifest, count = corpus.manifest, corpus.count
    sample = np.linspace(0, count("sentences") - 1, min(count("sentences"), 1 << 20)).astype(np.int64)
    sentences = corpus.sentences[sample + 1] - corpus.sentences[sample]
    sample = np.linspace(0, count("documents") - 1, min(count("documents"), 1 << 20)).astype(np.int64)
    documents = corpus.sentences[corpus.documents[sample + 1]] - corpus.sentences[corpus.documents[sample]]
    percents = [5, 25, 50, 75, 95, 100]

    def spread(lengths: np.ndarray) -> str:
        values = np.percentile(lengths, percents).astype(int)
        shares = ", ".join(f"{p}%: {value:,}" for p, value in zip(percents, values, strict=True))
        return f"of {lengths.mean():.1f} tokens ({shares})"

    lines = [
        f"corpus      {corpus.directory}, format {manifest['format']}, tokens as {manifest['dtype']}",
        *(f"source      {source['name']}, {source.get('bytes', 0):,} bytes" for source in manifest["sources"]),
        f"vocabulary  {corpus.tokenizer.vocab_size:,} pieces, fingerprint {manifest['vocabulary'][:12]}",
        f"text        {count('bytes'):,} bytes, {count('bytes') / count('tokens'):.2f} a token",
        f"documents   {count('documents'):,} {spread(documents)}",
        f"sentences   {count('sentences'):,} {spread(sentences)}",
        f"tokens      {count('tokens'):,}, of them [UNK] {count('unknown') / count('tokens'):.3%}",
    ]
    for document in np.linspace(0, count("documents") - 1, min(3, count("documents"))).astype(int).tolist():
        beginning = corpus.tokenizer.decode(np.concatenate(corpus.document(document)[:3])[:40].tolist())
        lines.append(f"document    {document:,}, {corpus.name(document)}: {beginning} ...")
    return "\n".join(lines)


def sizes(counts: dict[str, int], dtype: np.dtype) -> dict[str, int]:
    """The files of a corpus and the bytes in each."""
    offset = np.dtype(np.int64).itemsize
    return {
        TOKENS: counts["tokens"] * dtype.itemsize,
        SENTENCES: (counts["sentences"] + 1) * offset,
        DOCUMENTS: (counts["documents"] + 1) * offset,
        NAMES: counts["name_bytes"],
        NAME_ENDS: (counts["documents"] + 1) * offset,
    }


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """What a corpus's manifest.json or progress.json says.

    Raises:
      ValueError: where it is damaged, or of another format.
    """
    record = read_json(path)
    require(
        record.get("format") == FORMAT,
        f"{path.parent} holds a corpus of format {record.get('format')}, and this version reads format {FORMAT}: "
        "build it again into another directory",
    )
    wrong = [name for name, right in _FIELDS.items() if name not in record or not right(record[name])]
    wrong += [name for name in ["last"] if path.name == PROGRESS and not isinstance(record.get(name), str)]
    wrong += ["checksums"] if not _whole_numbers(record.get("checksums", {}), ()) else []
    require(
        not wrong,
        f"{path} is damaged ({', '.join(wrong)} missing or wrong): delete {path.parent} and build the corpus again",
    )
    return record


def _whole_numbers(values: Any, names: Iterable[str]) -> bool:
    return (
        isinstance(values, dict)
        and all(type(value) is int and value >= 0 for value in values.values())
        and values.keys() >= set(names)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "sources": lambda value: isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value),
    "vocabulary": lambda value: isinstance(value, str),
    "dtype": lambda value: value in ("uint16", "uint32"),
    "counts": lambda value: _whole_numbers(value, COUNTS),
}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of a corpus.

    Raises:
      ValueError: where there is none in it.
    """
    try:
        value = json.loads(path.read_text())
        require(isinstance(value, dict), "it holds no JSON object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent} and build the corpus again") from None
    return value
