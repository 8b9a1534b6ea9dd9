"""Text to token ids and back: WordPiece exactly as the reference cuts it, and SentencePiece.

Words are cut into pieces by the `tokenizers` library; what a word is, words.py says.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2

from bert_jax import files
from bert_jax.config import require
from bert_jax.text import tokenizer_files, words
from bert_jax.text.tokenizer_files import Added

SPECIAL = tokenizer_files.SPECIAL
MAX_WORD = 200  # characters; a longer word is [UNK]


class Tokenizer(abc.ABC):
    """What both kinds share. Picklable; two with one `fingerprint` and `rules` give the same ids for every text."""

    lower: bool  # whether text is lower-cased
    pad: int  # ids of the special tokens
    unk: int
    cls: int
    sep: int
    mask: int
    continuation: np.ndarray  # bool [V]: the piece continues a word; False for the special tokens
    fingerprint: str  # sha256, hexadecimal, of vocabulary and casing
    rules: str = ""  # what else its tokens follow from

    def __init__(self, pieces: Sequence[str]):
        self._pieces = list(pieces)

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return len(self._pieces)

    @property
    def special(self) -> tuple[int, int, int, int, int]:
        """The ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return self.pad, self.unk, self.cls, self.sep, self.mask

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The tokens as they stand in the vocabulary."""
        return [self._pieces[i] for i in ids]

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`, no special tokens added. A "[MASK]" in it is plain text, as in the reference."""

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and for each token the characters of `text` that it covers: start, and end (exclusive)."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; [CLS], [SEP] and [PAD] are left out."""

    @abc.abstractmethod
    def save(self, path: str | os.PathLike) -> None:
        """Writes what `load(path)` reads: the vocabulary, and beside it `tokenizer_config.json` with the casing.

        `path` is a directory, in which the file gets its usual name, or a file (`*.txt`, for SentencePiece `*.model`).
        """

    def _save(self, path: str | os.PathLike, name: str, content: bytes, **more: Any) -> None:
        file = files.path(path)
        file = file if file.suffix == pathlib.Path(name).suffix else file / name
        config = json.dumps({"do_lower_case": self.lower, **more}, indent=2, ensure_ascii=False)
        files.write(file.with_name("tokenizer_config.json"), config + "\n")
        files.write(file, content)


class WordPiece(Tokenizer):
    """The reference's tokenizer over a vocabulary of pieces, in the order of their ids; `##` marks a continuation.

    Of pieces that are alike the last counts, and an empty one is no token. Published tokenizers may depart from the
    reference's in what the keywords say.

    Raises:
      ValueError: where a special token, or one of `added`, is missing.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        lower: bool,
        *,
        strip_accents: bool | None = None,
        longest_word: int | None = None,
        added: Iterable[Added] = (),
    ):
        """
        Args:
          pieces: the vocabulary.
          lower: whether text is lower-cased.
          strip_accents: whether accents go; None: as `lower`.
          longest_word: characters; a longer word is [UNK]. None: `MAX_WORD`.
          added: tokens among `pieces` that are cut out of the text first, as they stand there.
        """
        super().__init__(pieces)
        self.lower, self.strip_accents = lower, lower if strip_accents is None else strip_accents
        self.longest_word, self.added = longest_word or MAX_WORD, tuple(added)
        index = {piece: i for i, piece in enumerate(self._pieces) if piece}
        missing = [token for token in (*SPECIAL, *(one.content for one in self.added)) if token not in index]
        require(
            not missing, f"no {', '.join(missing)} in it: a BERT vocabulary has {', '.join(SPECIAL)}, a token a line"
        )
        self.pad, self.unk, self.cls, self.sep, self.mask = (index[token] for token in SPECIAL)
        self.continuation = np.array([piece.startswith("##") for piece in self._pieces])
        head = f"WordPiece lower={lower}"
        if self.strip_accents != lower:
            head += f" strip_accents={self.strip_accents}"
        if self.added:
            head += f" added={json.dumps(sorted(self.added))}"
        # The reference has 200, `transformers` 100: a word between them is in no vocabulary, and those of the two fit.
        if self.longest_word in (100, MAX_WORD):
            self.rules = "" if self.longest_word == MAX_WORD else f"longest_word={self.longest_word}"
        else:
            head += f" longest_word={self.longest_word}"
        self.fingerprint = hashlib.sha256("\n".join([head, *self._pieces]).encode()).hexdigest()
        self._model = tokenizers.models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=self.longest_word)
        self._ids = words.Memo(self._cut)
        self._aligned = words.Memo(self._align, limit=1 << 16)
        self._added = {one.content.lower() if lower and one.folds else one.content: one for one in self.added}
        self._numbers = {content: index[one.content] for content, one in self._added.items()}
        self._apart = re.compile("|".join(_pattern(one, lower) for one in sorted(self.added, key=_shortest_last)))

    def __reduce__(self) -> tuple:
        more: dict[str, Any] = {
            "strip_accents": self.strip_accents,
            "longest_word": self.longest_word,
            "added": self.added,
        }
        return functools.partial(WordPiece, **more), (self._pieces, self.lower)

    def _cut(self, word: str) -> list[int]:
        """Greedy longest match first."""
        try:
            return [token.id for token in self._model.tokenize(word)]
        except UnicodeEncodeError:  # half a surrogate pair, which is in no vocabulary
            return [self.unk]

    def _align(self, chunk: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text without white space."""
        tokens = []
        for word, spans in words.aligned(chunk, self.lower, self.strip_accents):
            ids = self._ids[word]
            lengths = [len(self._pieces[i].removeprefix("##")) for i in ids] if ids != [self.unk] else [len(word)]
            ends = list(itertools.accumulate(lengths))
            starts = [0, *ends[:-1]]
            for i, a, b in zip(ids, starts, ends, strict=True):
                tokens.append((i, min(start for start, _ in spans[a:b]), max(end for _, end in spans[a:b])))
        return tokens

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for start, stop, added in self._parts(text):
            if added is None:
                found = words.split(text[start:stop] if self.added else text, self.lower, self.strip_accents)
                ids += itertools.chain.from_iterable(map(self._ids.__getitem__, found))
            else:
                ids.append(added)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans = [], []
        for first, last, added in self._parts(text):
            if added is not None:
                ids.append(added)
                spans.append((first, last))
                continue
            for chunk in words.CHUNK.finditer(text, first, last):
                origin = chunk.start()
                for i, start, end in self._aligned[chunk[0]]:
                    ids.append(i)
                    spans.append((origin + start, origin + end))
        return ids, spans

    def _parts(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """The text in parts [start, stop): added tokens with their numbers, and what stands between them."""
        end = 0
        for match in self._apart.finditer(text) if self.added else ():
            yield end, match.start(), None
            number = self._numbers.get(match[0])
            yield *match.span(), self._numbers[match[0].lower()] if number is None else number
            end = match.end()
        yield end, len(text), None

    def decode(self, ids: Iterable[int]) -> str:
        text = " ".join(self.pieces(i for i in ids if i not in (self.pad, self.cls, self.sep))).replace(" ##", "")
        return _LOOSE.sub(lambda match: match[0].strip(), text.removeprefix("##"))

    def save(self, path: str | os.PathLike) -> None:
        more: dict[str, Any] = {}
        if self.strip_accents != self.lower:
            more["strip_accents"] = self.strip_accents
        if self.longest_word != MAX_WORD:
            more["max_input_chars_per_word"] = self.longest_word
        if self.added:
            more["added_tokens_decoder"] = self.added_tokens()
        self._save(path, "vocab.txt", "".join(piece + "\n" for piece in self._pieces).encode(), **more)

    def added_tokens(self) -> dict[str, dict[str, Any]]:
        """The added tokens by their numbers, as tokenizer_config.json has them."""
        return {
            str(self._numbers[content]): {
                **{"content": one.content, "normalized": one.folds, "single_word": one.word},
                **{"lstrip": False, "rstrip": False, "special": not one.folds},
            }
            for content, one in self._added.items()
        }


def _pattern(token: Added, lower: bool) -> str:
    """What finds an added token in raw text."""
    text = re.escape(token.content)
    text = f"(?i:{text})" if lower and token.folds else text
    return rf"(?<!\w){text}(?!\w)" if token.word else text


def _shortest_last(token: Added) -> int:
    return -len(token.content)


# Spaces that nobody would write: before a closing mark, after an opening one, in "don ' t", between Han characters.
_WIDE = words.HAN + "，。、！？；：（）《》「」“”"
_LOOSE = re.compile(
    rf" (?=[.,!?;:%)\]}}])|(?<=[(\[{{]) |(?<=\w) ' (?=(?:s|t|d|m|re|ve|ll)\b)|(?<=[{_WIDE}]) (?=[{_WIDE}])"
)


class SentencePiece(Tokenizer):
    """A SentencePiece model, unigram or BPE, given as the bytes of its file. It carries its own normalisation.

    The special tokens are looked up by their usual names; those that the model lacks get ids after its last piece.
    With `lower`, text is lower-cased before a model whose normalisation keeps case; None leaves it to the model.

    Raises:
      ValueError: where `model` is no SentencePiece model, or `lower` is False and the model folds case.
    """

    _NAMES = (("[PAD]", "<pad>"), ("[CLS]", "<cls>", "<s>"), ("[SEP]", "<sep>", "</s>"), ("[MASK]", "<mask>"))

    def __init__(self, model: bytes, lower: bool | None = None):
        proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        try:
            proto.ParseFromString(model)
            sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # protobuf's DecodeError or a RuntimeError, by where the bytes go wrong
            raise ValueError("not a SentencePiece model") from error
        folds = proto.normalizer_spec.name.endswith("_cf")
        require(lower is not False or not folds, "this SentencePiece model folds case itself: it cannot be cased")
        super().__init__([piece.piece for piece in proto.pieces])
        self.lower = folds if lower is None else lower
        self._model = model
        index = {piece: i for i, piece in enumerate(self._pieces)}
        found = [next((index[name] for name in names if name in index), None) for names in self._NAMES]
        for i in found:  # a "user defined" [MASK] would be cut out of raw text; a control symbol is not
            if i is not None:
                proto.pieces[i].type = proto.SentencePiece.CONTROL
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.unk = self._processor.unk_id()
        ids = []
        for names, i in zip(self._NAMES, found, strict=True):
            ids.append(len(self._pieces) if i is None else i)
            self._pieces += [names[0]] if i is None else []
        self.pad, self.cls, self.sep, self.mask = ids
        count = len(proto.pieces)
        odd = [i in self.special or (i < count and self._processor.is_control(i)) for i in range(self.vocab_size)]
        self.continuation = np.array([not p.startswith("▁") and not o for p, o in zip(self._pieces, odd, strict=True)])
        self.fingerprint = hashlib.sha256(f"SentencePiece lower={self.lower}\n".encode() + model).hexdigest()

    def __reduce__(self) -> tuple:
        return SentencePiece, (self._model, self.lower)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(self._prepared(text))

    def _prepared(self, text: str) -> str:
        """As many characters as `text` has, all of them with a UTF-8 encoding."""
        return encodable(text.translate(words.LOWER) if self.lower else text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        proto: Any = sentencepiece_pb2.SentencePieceText()  # type: ignore[attr-defined]
        proto.ParseFromString(self._processor.encode(self._prepared(text), out_type="serialized_proto"))
        # The library counts bytes. chars[b] is the character that byte b belongs to.
        sizes = [len(char.encode()) for char in self._prepared(text)]
        chars = [i for i, size in enumerate(sizes) for _ in range(size)] + [len(text)]
        spans = []
        for piece in proto.pieces:
            start, end = chars[piece.begin], chars[piece.end]
            while start < end and text[start].isspace():
                start += 1
            spans.append((start, end))
        return [piece.id for piece in proto.pieces], spans

    def decode(self, ids: Iterable[int]) -> str:
        parts = []
        for special, run in itertools.groupby(ids, key=lambda i: i in self.special and i != self.unk):
            if not special:
                parts.append(self._processor.decode(list(map(int, run))))
            else:
                parts += [self._pieces[i] for i in run if i == self.mask]
        return " ".join(parts)

    def save(self, path: str | os.PathLike) -> None:
        self._save(path, "spm.model", self._model)


def encodable(text: str) -> str:
    """`text` with "?" for each half of a surrogate pair, which has no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def load(path: str | os.PathLike, lower: bool | None = None) -> Tokenizer:
    """The tokenizer of a `vocab.txt`, a SentencePiece `*.model`, or a directory that holds one of them or a WordPiece
    `tokenizer.json`.

    What stands beside the file is followed: casing and accents, the longest word, added tokens (see
    `tokenizer_files.read`). `lower` decides the casing. Without it those files do, and without them the vocabulary: a
    piece that lower-casing would change means cased, and a SentencePiece model says by itself whether it folds case.

    Raises:
      FileNotFoundError: no such file, or nothing to load in the directory.
      ValueError: names the file and what is wrong with it, or what it says that ours cannot follow.
    """
    missing = FileNotFoundError(f"there is no vocabulary {path}: name a vocab.txt, a SentencePiece model or a folder")
    try:
        file = files.local(path)
    except FileNotFoundError:  # in a bucket
        raise missing from None
    if not file.exists():
        raise missing
    if file.is_dir():
        named = [file / name for name in ("vocab.txt", "tokenizer.json") if (file / name).exists()]
        candidates = named[:1] if named and not _other_model(named[0]) else sorted(file.glob("*.model"))
        if not candidates:
            require(not named, f"{file}: its tokenizer.json is no WordPiece, and there is no SentencePiece *.model")
            raise FileNotFoundError(f"{file}: neither a vocab.txt nor a *.model in it")
        names = ", ".join(candidate.name for candidate in candidates)
        require(len(candidates) == 1, f"{file}: which of {names}? name the file itself")
        file = candidates[0]
    if file.suffix == ".model":
        content = file.read_bytes()
        require(bool(content), f"{file}: the file is empty")
        try:
            return SentencePiece(content, tokenizer_files.read_casing(file.parent) if lower is None else lower)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    stated = tokenizer_files.read(file.parent)
    pieces = stated.pieces if file.suffix == ".json" else tokenizer_files.lines(file.read_bytes(), file)
    assert pieces is not None
    pieces = tokenizer_files.with_added(pieces, stated.added, file)
    lower = stated.lower if lower is None else lower
    lower = not _cased(pieces) if lower is None else lower
    more: dict[str, Any] = {"strip_accents": stated.strip_accents, "longest_word": stated.longest_word}
    try:
        return WordPiece(pieces, lower, added=stated.added.values(), **more)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _other_model(file: pathlib.Path) -> bool:
    """Whether a tokenizer.json holds no WordPiece, so that what lies beside it is the vocabulary."""
    return file.name == "tokenizer.json" and tokenizer_files.kind_of(file) != "WordPiece"


def _cased(pieces: Iterable[str]) -> bool:
    """Whether lower-casing would change an ordinary piece. Pieces in brackets ([CLS], <S>) are not ordinary."""
    return any(piece != piece.lower() and piece[0] not in "[<" for piece in pieces if piece)
