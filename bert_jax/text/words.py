"""Text to words as the reference's BasicTokenizer has them, and the characters that each came from.

The `tokenizers` library's own BERT normaliser is not the reference's (it drops unassigned and private characters,
lowers a final sigma otherwise, knows an older Unicode), so text is normalised here, with `str.translate` over tables
that fill as characters appear.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

_CJK = (  # the ranges whose characters are words by themselves
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class Memo(dict):
    """A function's results by argument, found at the speed of a dict; emptied when `limit` of them are held."""

    def __init__(self, function: Callable[[Any], Any], limit: int = 1 << 18):
        self._function, self._limit = function, limit

    def __missing__(self, key: Any) -> Any:
        if len(self) >= self._limit:
            self.clear()
        value = self[key] = self._function(key)
        return value


def _clean(code: int) -> str | None:
    """What becomes of a character first: all white space is " ", control characters go, CJK stands apart."""
    char, category = chr(code), unicodedata.category(chr(code))
    if char in "\t\n\r" or category == "Zs":
        return " "
    if code in (0, 0xFFFD) or category in ("Cc", "Cf"):
        return None
    return f" {char} " if any(low <= code <= high for low, high in _CJK) else char


def _punctuation(code: int) -> bool:
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_symbol or unicodedata.category(chr(code)).startswith("P")


def _split(code: int) -> str:
    return f" {chr(code)} " if _punctuation(code) else chr(code)


def _split_bare(code: int) -> str | None:
    return None if unicodedata.category(chr(code)) == "Mn" else _split(code)


def _bare(code: int) -> str:
    """A character in NFD, without accents."""
    return "".join(char for char in unicodedata.normalize("NFD", chr(code)) if unicodedata.category(char) != "Mn")


def _lower(code: int) -> str:
    """Lower case where that is one character, as for all but one."""
    return chr(code).lower() if len(chr(code).lower()) == 1 else chr(code)


# Tables for str.translate. There are 1.1 million characters, so they never fill up.
_CLEAN, _SPLIT, _SPLIT_BARE, _BARE, LOWER = (
    Memo(function, limit=1 << 21) for function in (_clean, _split, _split_bare, _bare, _lower)
)

HAN = "".join(f"{chr(low)}-{chr(high)}" for low, high in _CJK)
_SPACE = " \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# CJK characters, and what lies between them and white space as `_clean` leaves it: no step looks across these borders.
CHUNK = re.compile(f"[{HAN}]|[^{_SPACE}{HAN}]+")


def split(text: str, lower: bool, strip: bool | None = None) -> list[str]:
    """The reference's BasicTokenizer: cleaned, lower-cased and without accents where `lower`, cut at punctuation.

    `strip` says whether accents go, where that is not as `lower`, as in some published tokenizers.

    Source: PAPER item 17, google-research/bert `tokenization.py`.
    """
    text = text.translate(_CLEAN)
    if lower:
        text = text.lower()
    if not (lower if strip is None else strip):
        return text.translate(_SPLIT).split()
    return (text if text.isascii() else _without_accents(text)).translate(_SPLIT).split()


def _without_accents(text: str) -> str:
    """NFD without its nonspacing marks, in time that grows with the text: NFD's own grows with the square of a letter's
    marks, which it sorts by their class.

    Of what is left only spacing marks have a class, a few of rare scripts, which nearly always stand in order.
    """
    bare = text.translate(_BARE)
    if unicodedata.is_normalized("NFD", bare):
        return bare
    chars = (char for one in text for char in unicodedata.normalize("NFD", one))
    ordered: list[str] = []
    for marks, group in itertools.groupby(chars, key=lambda char: unicodedata.combining(char) > 0):
        run = list(group)
        ordered += sorted(run, key=unicodedata.combining) if marks else run
    return "".join(char for char in ordered if unicodedata.category(char) != "Mn")


def aligned(text: str, lower: bool, strip: bool | None = None) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """`split`, and for each of their characters the span of `text` that it came from; a Python step a character."""
    strip = lower if strip is None else strip
    chars = [(c, i) for i, char in enumerate(text) for c in char.translate(_CLEAN)]
    if lower:
        # Lower case depends on the context (a final sigma), its length does not.
        origins = [i for char, i in chars for _ in char.lower()]
        chars = list(zip("".join(char for char, _ in chars).lower(), origins, strict=True))
    if strip:
        chars = [(c, i) for char, i in chars for c in unicodedata.normalize("NFD", char)]
    word: list[str] = []
    spans: list[tuple[int, int]] = []
    for marks, run in itertools.groupby(chars, key=lambda pair: strip and unicodedata.combining(pair[0]) > 0):
        # NFD orders the marks of one letter by their class.
        for char, i in sorted(run, key=lambda pair: unicodedata.combining(pair[0])) if marks else run:
            kept = char.translate(_SPLIT_BARE if strip else _SPLIT)
            if not kept and spans:  # a dropped accent belongs to its letter
                spans[-1] = (spans[-1][0], max(spans[-1][1], i + 1))
            for c in kept:
                if not c.isspace():
                    word.append(c)
                    spans.append((i, i + 1))
                elif word:
                    yield "".join(word), spans
                    word, spans = [], []
    if word:
        yield "".join(word), spans
