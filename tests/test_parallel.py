"""A function of many documents, in several processes."""

import functools
from collections.abc import Iterator

import pytest

from bert_jax import parallel, text
from bert_jax.text import Document


def numbered(count: int) -> Iterator[Document]:
    return (Document(str(i), f"Text number {i}. And more.\n" * (1 + i % 7)) for i in range(count))


def fail_at(name: str, document: Document) -> str:
    if document.name == name:
        raise KeyError(f"in {name}")
    return document.name


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_map(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BATCH", 500)  # many batches
    expected = [(document, text.sentences(document)) for document in numbered(200)]
    assert list(parallel.parallel_map(text.sentences, numbered(200), workers)) == expected
    assert list(parallel.parallel_map(text.sentences, numbered(0), workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_map_hands_on_errors(workers: int) -> None:
    with pytest.raises(KeyError, match="in 7"):
        list(parallel.parallel_map(functools.partial(fail_at, "7"), numbered(20), workers))


def test_parallel_map_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no further ahead than a few batches, and stops its workers when it is left."""
    monkeypatch.setattr(parallel, "BATCH", 1)
    taken = 0

    def endless() -> Iterator[Document]:
        nonlocal taken
        while True:
            taken += 1
            yield Document(str(taken), "A text.")

    found = parallel.parallel_map(text.sentences, endless(), 2)
    assert next(found)[0].name == "1"
    assert taken < 20
    found.close()  # type: ignore[attr-defined]
