"""Vocabularies made of text: WordPiece and SentencePiece."""

from __future__ import annotations

import collections
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import sentencepiece
import tokenizers

from bert_jax.config import require
from bert_jax.text import words
from bert_jax.text.tokenizer import MAX_WORD, SPECIAL, SentencePiece, Tokenizer, WordPiece, encodable

LARGEST = 10_000_000  # pieces; the libraries that learn them reserve memory for so many, and abort where there is none


def _check(size: int, coverage: float) -> None:
    require(0 < size <= LARGEST, f"a vocabulary has 1 to {LARGEST:,} pieces, not {size:,}")
    require(0 < coverage <= 1, f"coverage must lie above 0, and at 1 at most, not {coverage}")


def describe(vocabulary: Tokenizer, texts: Sequence[str]) -> str:
    """A line for the reader of a log: how many pieces there are, and how well they fit `texts`."""
    counts = collections.Counter(itertools.chain.from_iterable(map(vocabulary.encode, texts)))
    total, whole = counts.total(), sum(len(words.split(text, vocabulary.lower)) for text in texts)
    return (
        f"{vocabulary.vocab_size:,} pieces, {'lower-cased' if vocabulary.lower else 'cased'}; "
        f"on {total:,} tokens of text {total / max(whole, 1):.2f} pieces a word, "
        f"{counts[vocabulary.unk] / max(total, 1):.3%} [UNK], {len(counts):,} pieces in use"
    )


def train_wordpiece(
    texts: Iterable[str], size: int, *, lower: bool = True, coverage: float = 0.9999, min_count: int = 2
) -> WordPiece:
    """A vocabulary of at most `size` pieces of the words in `texts`; see `wordpiece_of`."""
    counts = added(collections.Counter(words.split(text, lower)) for text in texts)
    return wordpiece_of(counts, size, lower=lower, coverage=coverage, min_count=min_count)


def count_words(texts: Iterable[str], lower: bool) -> collections.Counter[str]:
    """How often each word occurs, as WordPiece cuts words."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(words.split(text, lower))
    return counts


def added(parts: Iterable[Mapping[str, int]]) -> collections.Counter[str]:
    """The sum of counts; above 10 million words, without those that came once."""
    counts: collections.Counter[str] = collections.Counter()
    for part in parts:
        counts.update(part)
        if len(counts) > 10_000_000:  # bounds the memory at 2 GB; what came once in so much text is noise
            counts = collections.Counter({word: count for word, count in counts.items() if count > 1})
    return counts


def wordpiece_of(
    counts: collections.Counter[str], size: int, *, lower: bool = True, coverage: float = 0.9999, min_count: int = 2
) -> WordPiece:
    """A vocabulary of at most `size` pieces; the same counts of words give the same one, in any order.

    The special tokens lie where BERT-Base has them: [PAD] at 0, the others at 100 to 103, between [unused] pieces;
    below a size of 1,000 they are the first five. Then come single characters, the most frequent ones that make up the
    share `coverage` of the text (the knob that matters for Chinese), and then what byte-pair merges of the words give.
    Merges seen fewer than `min_count` times are left out, so a short text gives fewer than `size` pieces.

    Raises:
      ValueError: no words in `counts`, or `size` has no room for the characters or is above `LARGEST`.
    """
    _check(size, coverage)
    require(bool(counts), "no words to make a vocabulary of: the input is empty")
    alphabet = _alphabet(counts, coverage)
    kept = sorted(word for word in counts if alphabet.issuperset(word) and len(word) <= MAX_WORD)
    inner = {f"##{char}" for word in kept for char in word[1:]}
    unused = [f"[unused{i}]" for i in range(99)] if size >= 1000 else []
    reserved = [SPECIAL[0], *unused, *SPECIAL[1:]]
    # The characters go in as "special" tokens: the trainer would number them in the order of a hash map.
    first = sorted(alphabet) + sorted(inner)
    require(
        size >= len(reserved) + len(first),
        f"a vocabulary of {size} has no room: {len(reserved)} pieces are reserved and the text has {len(alphabet)} "
        f"characters ({len(first)} pieces) at a coverage of {coverage}. "
        f"Ask for {len(reserved) + len(first)} or more, or lower the coverage",
    )
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size - len(reserved), special_tokens=first, min_frequency=min_count, show_progress=False
    )
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.train_from_iterator(_repeated(kept, counts), trainer)
    index = model.get_vocab()
    return WordPiece(reserved + sorted(index, key=index.__getitem__), lower)


def _alphabet(counts: collections.Counter[str], coverage: float) -> set[str]:
    """The fewest characters that make up the share `coverage` of all characters."""
    chars: collections.Counter[str] = collections.Counter()
    for word, count in counts.items():
        for char in word:
            chars[char] += count
    order = sorted(chars, key=lambda char: (-chars[char], char))
    shares = np.cumsum([chars[char] for char in order]) / chars.total()
    needed = int(np.searchsorted(shares, coverage * (1 - 1e-12))) + 1
    return {char for char in order[:needed] if char.isprintable()}  # lone surrogates are not, and have no UTF-8


def _repeated(each: Iterable[str], counts: collections.Counter[str], most: int = 10_000) -> Iterator[str]:
    """Each word as often as it was counted: the trainer takes text, no counts."""
    for word in each:
        for start in range(0, counts[word], most):
            yield " ".join([word] * min(most, counts[word] - start))


def train_sentencepiece(
    texts: Iterable[str],
    size: int,
    *,
    kind: str = "unigram",
    lower: bool = True,
    coverage: float = 0.9999,
) -> SentencePiece:
    """A SentencePiece model of a `kind`, "unigram" or "bpe": `size` pieces, [PAD] [UNK] [CLS] [SEP] [MASK] the first.

    `texts` are sentences or paragraphs; the library leaves out those above 64 KB. `lower` folds case (NFKC_CF).

    Raises:
      ValueError: an empty input, or a size that the library finds too large or too small for it (in its words), or
        above `LARGEST`.
    """
    _check(size, coverage)
    require(kind in ("unigram", "bpe"), f"kind must be unigram or bpe, not {kind!r}")
    model = io.BytesIO()
    pad, unk, *controls = SPECIAL
    failures: list[BaseException] = []

    def fed() -> Iterator[str]:
        try:
            yield from filter(None, map(encodable, texts))
        except BaseException as error:  # the library would make another of it
            failures.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=fed(),
            model_writer=model,
            vocab_size=size,
            model_type=kind,
            character_coverage=coverage,
            normalization_rule_name="nmt_nfkc_cf" if lower else "nmt_nfkc",
            pad_id=0,
            pad_piece=pad,
            unk_id=1,
            unk_piece=unk,
            bos_id=-1,
            eos_id=-1,
            control_symbols=controls,
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        reason = str(error).rpartition("] ")[2].strip() or "the input is empty"
        raise ValueError(f"a SentencePiece vocabulary of {size}: {reason}") from None
    return SentencePiece(model.getvalue())
