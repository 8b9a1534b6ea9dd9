"""Tokens of many texts: what the tokenizer gives, made once."""

import pathlib

import numpy as np
import pytest

from bert_jax.text import encoding
from bert_jax.text.tokenizer import WordPiece

VOCABULARY = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "é"], lower=False)
TEXTS = ["a b", "", "abb  é", "a b", "zz"]


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_it_gives_what_the_tokenizer_gives(
    offsets: bool, kept: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "WORTH_KEEPING", 0)
    for _ in range(2):
        found = encoding.encode(TEXTS, VOCABULARY, str(tmp_path) if kept else None, offsets=offsets)
        assert list(found) == ["a b", "", "abb  é", "zz"]
        for text, one in found.items():
            tokens, spans = VOCABULARY.encode_with_offsets(text)
            np.testing.assert_array_equal(one.tokens, tokens)
            np.testing.assert_array_equal(one.offsets, np.reshape(spans, (-1, 2)) if offsets else np.zeros((0, 2)))
    assert bool(list(tmp_path.iterdir())) == kept


def test_texts_are_tokenised_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other texts, another vocabulary or casing and offsets are made anew; few texts are not worth a file."""
    asked = []
    encode = WordPiece.encode
    monkeypatch.setattr(WordPiece, "encode", lambda self, text: asked.append(text) or encode(self, text))
    few = ["a b"] * 3
    many = ["a b " * 50_000, "b"]
    for texts in (few, many, many, few, [*many, "a"]):
        encoding.encode(texts, VOCABULARY, str(tmp_path))
    assert list(map(len, asked)) == [3, 200_000, 1, 3, 200_000, 1, 1]
    lower = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "é"], lower=True)
    asked.clear()
    encoding.encode(many, lower, str(tmp_path))
    assert len(asked) == 2


def test_half_a_surrogate_pair_is_unknown_at_any_size(tmp_path: pathlib.Path) -> None:
    for text in ("a \ud83d", "a \ud83d " * 50_000):
        found = encoding.encode([text], VOCABULARY, str(tmp_path))[text].tokens
        assert found.tolist()[:2] == [5, 1]
