"""The classification set that every machine has."""

import pathlib

import pytest

from bert_jax.tasks import quickstart


def test_the_set_is_balanced_disjoint_and_repeatable(tmp_path: pathlib.Path) -> None:
    libraries = ("optax", "absl")
    for name in ("a", "b"):
        quickstart.write(str(tmp_path / name), libraries, per_library=60)
    texts = {split: (tmp_path / "a" / f"{split}.tsv").read_text() for split in ("train", "dev")}
    assert texts == {split: (tmp_path / "b" / f"{split}.tsv").read_text() for split in ("train", "dev")}
    rows = {split: [line.split("\t") for line in text.splitlines()[1:]] for split, text in texts.items()}
    assert {sentence for sentence, _ in rows["train"]}.isdisjoint(sentence for sentence, _ in rows["dev"])
    assert [label for _, label in rows["train"]].count("optax") == 60
    assert {label for _, label in rows["dev"]} == set(libraries)
    assert not any("optax" in sentence.lower() for sentence, _ in rows["train"]), "the answer stands in the text"


def test_a_library_with_too_little_text_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="has only"):
        quickstart.write(str(tmp_path), ("optax", "absl"), per_library=100_000)
