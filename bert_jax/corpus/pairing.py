"""Sentence pairs for pre-training, as the reference pairs them (paper, section 3.1 and appendix A.2).

An example is a row of five numbers: where span A and span B lie in the token store, and whether B is random. A pass
over the corpus is a file of such rows; ten passes stand for the reference's ten copies of the data, and take a fraction
of the space. Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import getpass
import hashlib
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
import tokenize
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from bert_jax import files
from bert_jax.config import require
from bert_jax.corpus.store import Corpus

FORMAT = 1  # of the index: a change of the pairing must change it, so that no older file is taken for a new one
SHORT = 0.1  # share of documents whose examples aim at a random shorter length
ROW = np.dtype(
    [
        ("a_start", np.int64),  # in tokens of the store
        ("a_length", np.int32),
        ("b_start", np.int64),
        ("b_length", np.int32),  # -1: there is no B, and no [SEP] after it
        ("is_random", np.bool_),  # the reference's label: 0 = B is what follows A, 1 = B is from another document
    ]
)
BLOCK = 1 << 17  # sentences that are paired at once, which bounds the memory
INDEX = "index"  # the folder in a corpus's directory
CHECKED = b"crc32 "  # how the end of an index file begins; the checksum of all before it follows


def held_out(corpus: Corpus, share: float, seed: int) -> np.ndarray:
    """Which documents [documents] are for validation: a share of them, at least 2 where there are 4 or more.

    Depends on nothing else, so that passes and lengths agree about it.
    """
    require(0 <= share <= 0.5, f"heldout must lie in [0, 0.5], not {share}")
    documents = corpus.count("documents")
    count = max(round(share * documents), 2 if share and documents >= 4 else 0)
    chosen = np.zeros(documents, np.bool_)
    chosen[np.random.default_rng((seed, documents)).permutation(documents)[:count]] = True
    return chosen


def members(corpus: Corpus, split: str, heldout: float, seed: int, paired: bool = True) -> np.ndarray:
    """The documents that belong to `split`, int64 and ascending.

    Raises:
      ValueError: where there are none or, `paired`, too few to take a random B from another document.
    """
    require(split in ("train", "validation"), f"split must be 'train' or 'validation', not {split!r}")
    chosen = np.flatnonzero(held_out(corpus, heldout, seed) == (split == "validation"))
    needed = "next sentence prediction needs 2 documents or more" if paired else "pre-training needs a document"
    require(
        len(chosen) >= (2 if paired else 1),
        f"{needed}, and the {split} split of {corpus.directory} has {len(chosen)} (of {corpus.count('documents')} in "
        f"all, heldout={heldout:g}): give more text, or mark where documents end with a blank line",
    )
    return chosen


def pairs(
    corpus: Corpus,
    split: np.ndarray,
    first: int,
    last: int,
    length: int,
    rng: np.random.Generator,
    paired: bool = True,
) -> np.ndarray:
    """The rows [examples] that documents `first` to `last` (exclusive) give in one pass, those in `split` (`members`).

    Sentences are gathered into a chunk until it is as long as the target, or the document ends. A is the chunk's first
    sentences, a uniform number of them; B is the rest or, at a coin under one half and where the chunk has a single
    sentence, comes from a random document. The sentences that a random B displaced begin the next chunk.

    Not `paired`, the whole chunk is A, and there is no B.
    """
    room = length - 3 if paired else length - 2  # for A and B, beside [CLS] and two [SEP], or one
    documents = np.asarray(corpus.documents[first : last + 1])
    base = documents[0]
    starts = np.asarray(corpus.sentences[base : documents[-1] + 1])  # [sentences + 1] of these documents, in tokens
    documents = documents - base
    owner = np.repeat(np.arange(last - first), np.diff(documents))

    # For each sentence: what would the example look like that begins here? Walking along `follow` picks those that do.
    short = rng.random(last - first) < SHORT
    target = np.where(short, rng.integers(2, room, last - first, endpoint=True), room)[owner]
    here = np.arange(len(owner))
    end = np.minimum(np.searchsorted(starts, starts[:-1] + target), documents[owner + 1])
    cut = here + 1 + (rng.random(len(owner)) * np.maximum(end - here - 1, 1)).astype(np.int64)
    cut = cut if paired else end
    is_random = ((end - here == 1) | (rng.random(len(owner)) < 0.5)) & paired
    follow = np.where(is_random, cut, end).tolist()
    begins: list[int] = []
    bounds = documents.tolist()
    for document in (split[slice(*np.searchsorted(split, (first, last)))] - first).tolist():
        sentence, stop = bounds[document], bounds[document + 1]
        while sentence < stop:
            begins.append(sentence)
            sentence = follow[sentence]

    at = np.asarray(begins, np.int64)
    a_start, b_start, b_end = starts[at], starts[cut[at]], starts[end[at]]
    a_length = b_start - a_start
    is_random = is_random[at]
    which = np.flatnonzero(is_random)
    wanted = target[at[which]] - a_length[which]
    b_start[which], b_end[which] = _random_spans(corpus, split, first + owner[at[which]], wanted, rng)
    b_length = b_end - b_start

    a_dropped, b_dropped = _excess(a_length, b_length, room)
    rows = np.empty(len(at), ROW)
    rows["a_start"] = a_start + rng.binomial(a_dropped, 0.5)  # each dropped token goes from the front or from the back
    rows["a_length"] = a_length - a_dropped
    rows["b_start"] = b_start + rng.binomial(b_dropped, 0.5)
    rows["b_length"] = b_length - b_dropped if paired else -1
    rows["is_random"] = is_random
    return rows


def _random_spans(
    corpus: Corpus, split: np.ndarray, own: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end [n], in tokens, of spans from other documents than `own` [n], of `wanted` [n] tokens or more.

    A span begins at a random sentence of a random document and ends with the sentence that reaches the length, or with
    the document; it has one sentence at least.
    """
    drawn = rng.integers(len(split), size=len(own))
    for _ in range(9):  # the reference draws ten times, and then takes what it has, mislabelled in a small corpus
        same = np.flatnonzero(split[drawn] == own)
        drawn[same] = rng.integers(len(split), size=len(same))
    other = split[np.where(split[drawn] == own, (drawn + 1) % len(split), drawn)]
    begin, stop = corpus.documents[other], corpus.documents[other + 1]
    sentence = begin + (rng.random(len(own)) * (stop - begin)).astype(np.int64)
    start = corpus.sentences[sentence]
    reached = np.searchsorted(corpus.sentences, start + np.maximum(wanted, 1))
    return start, corpus.sentences[np.minimum(reached, stop)]


def _excess(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens A and B lose if, while they exceed `room`, one is dropped from A if it is longer, else from B."""
    excess = np.maximum(a + b - room, 0)
    a_alone = np.minimum(excess, np.maximum(a - b, 0))  # until they are even
    b_alone = np.minimum(excess, np.maximum(b - a, 0))
    rest = excess - a_alone - b_alone  # in turn, B first
    return a_alone + rest // 2, b_alone + rest - rest // 2


def _blocks(corpus: Corpus) -> Iterator[tuple[int, int]]:
    """Spans of documents of about `BLOCK` sentences each."""
    marks = np.searchsorted(corpus.documents, np.arange(0, corpus.count("sentences"), BLOCK))
    bounds = np.unique(np.append(marks, corpus.count("documents"))).tolist()
    yield from itertools.pairwise(bounds)


@dataclasses.dataclass(frozen=True)
class Pass:
    """What the rows of one pass depend on, beside the corpus. The same values give the same rows on any machine."""

    length: int
    number: int
    seed: int
    split: str
    heldout: float
    paired: bool = True


def index(corpus: Corpus, which: Pass) -> np.ndarray:
    """The rows [examples] of a pass, memory-mapped from a file beside the corpus that is written at first use.

    Where the corpus lies read-only, the file goes to the directory for temporary files (TMPDIR). A file that is not
    what was written to it is made again.

    Raises:
      OSError: where the disk is full.
      ValueError: where the split has too few documents.
    """
    key = json.dumps([FORMAT, corpus.fingerprint, *dataclasses.astuple(which)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    kind = f"{which.split}{'' if which.paired else '-unpaired'}"
    name = f"{kind}-length{which.length}-pass{which.number}-seed{which.seed}-{digest}.npy"
    private = pathlib.Path(tempfile.gettempdir()) / f"bert_jax-{getpass.getuser()}" / "index"
    homes = [corpus.directory / INDEX]
    if not private.parent.exists() or private.parent.stat().st_uid == os.getuid():  # anybody may write to /tmp
        homes.append(private)
    for home in homes:
        rows = _mapped(home / name)
        if rows is not None:
            return rows
        if (home / name).exists():
            print(f"{home / name} is damaged: the example index is made again", file=sys.stderr)
    cure = (
        "make room for the example index and run the same command again. The corpus and the indexes that are complete "
        f"stand; those of other lengths and seeds in {INDEX}/ may be deleted"
    )
    for home in homes:
        temporary = home / f".{name}.{uuid.uuid4().hex[:8]}"
        try:
            with files.room(home, cure):
                if home == private:
                    private.parent.mkdir(mode=0o700, exist_ok=True)
                home.mkdir(parents=True, exist_ok=True)
                with open(temporary, "xb") as file:
                    _write(file, corpus, which)
                with open(temporary, "ab") as file:
                    file.write(CHECKED + files.checksum(temporary).to_bytes(4, "little"))
                os.replace(temporary, home / name)  # whole or not at all, whoever else writes it meanwhile
            rows = _mapped(home / name)
            require(rows is not None, f"{home / name} is damaged as soon as it is written: check the disk")
            assert rows is not None
            return rows
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    raise PermissionError(errno.EACCES, f"the example index may be written neither to {homes[0]} nor to {private}")


def _write(file: BinaryIO, corpus: Corpus, which: Pass) -> None:
    split = members(corpus, which.split, which.heldout, which.seed, which.paired)
    _header(file, 0)
    count, said = 0, time.monotonic()
    for block, (first, last) in enumerate(_blocks(corpus)):
        rng = np.random.default_rng((which.seed, which.number, block))
        rows = pairs(corpus, split, first, last, which.length, rng, which.paired)
        file.write(rows.tobytes())
        count += len(rows)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            done = f"{last / corpus.count('documents'):.0%}, {count:,} examples"
            print(f"example index, {which.split} pass {which.number}: {done}", file=sys.stderr)
    file.seek(0)
    _header(file, count)


def _header(file: BinaryIO, count: int) -> None:
    """NumPy pads the header so that a longer count takes no more space: it can be written before the count is known."""
    header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _mapped(path: pathlib.Path) -> np.ndarray | None:
    """The rows in a file; None where there is none, or it is not what was written: cut short, or changed since.

    A file that an older version wrote has no checksum at its end.
    """
    if not path.exists():
        return None
    size, end = path.stat().st_size, len(CHECKED) + 4
    with open(path, "rb") as file:
        file.seek(max(size - end, 0))
        tail = file.read()
    checked = tail.startswith(CHECKED)
    if checked and not files.intact(path, int.from_bytes(tail[-4:], "little"), size - end):
        return None
    try:
        rows = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError):  # NumPy parses the header
        return None
    if rows.dtype != ROW or rows.ndim != 1 or rows.offset + rows.nbytes + end * checked != size:
        return None
    return np.asarray(rows)  # a plain view of the map: indexing np.memmap itself is slow


def damaged(corpus: Corpus) -> list[pathlib.Path]:
    """The index files beside a corpus that are not what was written to them."""
    return [path for path in _files(corpus) if _mapped(path) is None]


def _files(corpus: Corpus) -> list[pathlib.Path]:
    return sorted((corpus.directory / INDEX).glob("*.npy"))


class PairExamples:
    """Random access to the pairs of several passes over a split, one after the other; validation has a single pass.

    Args:
      length: T, tokens of an example with its special tokens; 5 or more.
      passes: how often the train documents are paired anew (the reference's dupe_factor).
      seed: of the split and of the pairing.
      heldout: share of the documents that make up the validation split.
      paired: False gives sentences of one document, [CLS] A [SEP], in place of pairs.

    Raises:
      ValueError: where the split has fewer than two documents.

    Example:
      >>> PairExamples(Corpus.open("corpus"), length=128, passes=10, seed=0).batch(np.arange(32))["tokens"].shape
      (32, 128)
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        length: int,
        passes: int,
        seed: int,
        split: str = "train",
        heldout: float = 0.01,
        paired: bool = True,
    ) -> None:
        require(length >= 5, f"length must be 5 or more ([CLS] A [SEP] B [SEP]), not {length}")
        require(passes >= 1, f"passes must be 1 or more, not {passes}")
        require(seed >= 0, f"seed must be 0 or more, not {seed}")
        members(corpus, split, heldout, seed, paired)  # raises before any file is made
        self.corpus, self.length = corpus, length
        same: dict[str, Any] = {"length": length, "passes": passes, "seed": seed, "split": split}
        same |= {"heldout": heldout, "paired": paired}
        self._again = functools.partial(PairExamples, corpus, **same)
        numbers = range(passes if split == "train" else 1)
        self._rows = [index(corpus, Pass(length, number, seed, split, heldout, paired)) for number in numbers]
        self._starts = np.cumsum([0, *map(len, self._rows)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def epoch_size(self) -> int:
        """The examples of one pass, on average: the paper's epochs are readings of the corpus (appendix A.2)."""
        return round(len(self) / len(self._rows))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the same files instead of receiving their content."""
        return self._again, ()

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The index rows [B] of examples `ids` [B]."""
        require(len(ids) == 0 or 0 <= ids.min() <= ids.max() < len(self), f"ids must lie in [0, {len(self)})")
        number = np.searchsorted(self._starts, ids, side="right") - 1
        found = np.empty(len(ids), ROW)
        for i, (n, place) in enumerate(zip(number.tolist(), (ids - self._starts[number]).tolist(), strict=True)):
            found[i] = self._rows[n][place]
        return found

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Examples `ids` [B] as arrays.

        Returns:
          tokens: int32 [B, T], [CLS] A [SEP] B [SEP], or [CLS] A [SEP], and then [PAD].
          segments: int32 [B, T], 0 up to the first [SEP], 1 up to the second, 0 on padding.
          mask: bool [B, T], True on what is no padding.
          next_sentence: int32 [B], 0 where B follows A in the text, 1 where it is random.
          id: int64 [B].
        """
        rows = self.rows(ids)
        return {
            **assemble(self.corpus, rows, self.length),
            "next_sentence": rows["is_random"].astype(np.int32),
            "id": ids.astype(np.int64),
        }


def assemble(corpus: Corpus, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """The "tokens", "segments" and "mask" [B, T] of index rows [B]; see `PairExamples.batch`."""
    special, place = corpus.tokenizer, np.arange(length)[None, :]
    middle = rows["a_length"][:, None].astype(np.int64) + 1  # the place of the first [SEP], and of the second
    last = middle + rows["b_length"][:, None] + 1
    in_b, mask = place > middle, place <= last
    source = place + np.where(in_b, rows["b_start"][:, None] - middle - 1, rows["a_start"][:, None] - 1)
    inside = mask & (place != 0) & (place != middle) & (place != last)
    tokens = np.where(inside, corpus.tokens[np.where(inside, source, 0)], special.pad).astype(np.int32)
    tokens[:, 0] = special.cls
    np.put_along_axis(tokens, middle, special.sep, 1)
    np.put_along_axis(tokens, last, special.sep, 1)
    return {"tokens": tokens, "segments": (in_b & mask).astype(np.int32), "mask": mask}


def unigram_entropy(corpus: Corpus, split: str, heldout: float, seed: int) -> float:
    """The entropy, in nats, of the distribution of single tokens in `split`. Reads the tokens of that split alone.

    No model that ignores the context has a lower masked LM loss: a curve that falls below it shows a model that reads.
    """
    chosen = members(corpus, split, heldout, seed)
    counts = np.zeros(corpus.tokenizer.vocab_size, np.int64)
    for bounds in _blocks(corpus):
        own = chosen[slice(*np.searchsorted(chosen, bounds))]
        spans = corpus.sentences[corpus.documents[np.stack([own, own + 1], axis=1)]].tolist()
        tokens = [corpus.tokens[start:end] for start, end in spans]
        if tokens:
            counts += np.bincount(np.concatenate(tokens), minlength=len(counts))
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def describe(corpus: Corpus, length: int = 128, examples: int = 4) -> str:
    """A few examples as text, how those of the first documents divide, and what index files there are; for people."""
    split = np.arange(corpus.count("documents"))
    lines = []
    if len(split) > 1:
        rows = pairs(corpus, split, *next(_blocks(corpus)), length, np.random.default_rng(0))
        lengths = rows["a_length"] + rows["b_length"] + 3
        shares = f"{rows['is_random'].mean():.1%} with a random B, {(lengths == length).mean():.1%} full"
        lines.append(f"examples    at length {length}: {shares}, {lengths.mean():.1f} tokens")
        for row in rows[np.linspace(0, len(rows) - 1, examples).astype(int)]:
            spans = [(row["a_start"], row["a_length"]), (row["b_start"], row["b_length"])]
            a, b = (corpus.tokenizer.decode(corpus.tokens[start : start + size].tolist()) for start, size in spans)
            lines.append(f"{'random B' if row['is_random'] else 'is next':<12}[CLS] {a} [SEP] {b} [SEP]")
    for path in _files(corpus):
        found = _mapped(path)
        lines.append(f"index       {path.name}, {'damaged' if found is None else f'{len(found):,} examples'}")
    return "\n".join(lines)
