"""The tokens of many texts, each made once: kept by content, so that another run with the same texts reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bert_jax import cache
from bert_jax.text.tokenizer import Tokenizer

FORMAT = 1  # a change of what a tokenizer of the same fingerprint gives must change it
WORTH_KEEPING = 1 << 17  # characters; fewer are tokenised as fast as they are found


class Encoding(NamedTuple):
    """A text's tokens, and if they were asked for the characters [start, stop) that each covers."""

    tokens: np.ndarray  # int32 [K]
    offsets: np.ndarray  # int32 [K, 2]; [0, 2] where they were not asked for


def encode(
    texts: Iterable[str], tokenizer: Tokenizer, cache_dir: str | None = None, *, offsets: bool = False
) -> dict[str, Encoding]:
    """The encoding of each text, without special tokens.

    `cache_dir` is where they are kept, as `cache.arrays` has it; None: nowhere.
    """
    texts = list(dict.fromkeys(texts))

    def build(make: cache.Make) -> None:
        found = [tokenizer.encode_with_offsets(text) if offsets else (tokenizer.encode(text), []) for text in texts]
        make("ends", (len(texts),), np.int64)[:] = np.cumsum([len(tokens) for tokens, _ in found])
        for name, part, width in (("tokens", 0, ()), ("offsets", 1, (2,))):
            flat = np.asarray(list(itertools.chain.from_iterable(one[part] for one in found)), np.int32)
            make(name, (len(flat), *width), np.int32)[:] = flat.reshape(-1, *width)

    arrays: dict[str, np.ndarray] = {}
    if cache_dir is None or sum(map(len, texts)) < WORTH_KEEPING:
        build(lambda name, shape, dtype: arrays.setdefault(name, np.zeros(shape, dtype)))
    else:
        key = {"what": "tokens", "texts": cache.digest(*texts), "by": tokenizer.fingerprint, "offsets": offsets}
        key |= {"rules": tokenizer.rules} if tokenizer.rules else {}
        arrays = cache.arrays(cache_dir, {**key, "format": FORMAT}, build)
    tokens, spans = np.asarray(arrays["tokens"]), np.asarray(arrays["offsets"])  # of a plain class: quick to cut
    ends = arrays["ends"].tolist()
    return {
        text: Encoding(tokens[start:stop], spans[start:stop])
        for text, start, stop in zip(texts, [0, *ends[:-1]], ends, strict=True)
    }
