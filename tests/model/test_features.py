"""A frozen encoder's hidden states: those of the encoder itself, computed once and kept, by what they follow from."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from bert_jax.config import Encoder
from bert_jax.model import features
from bert_jax.model.encoder import Bert
from bert_jax.model.features import Frozen, vectors

TINY = Encoder(layers=3, hidden=16, heads=2, vocab_size=50, max_positions=70, init_stddev=0.2)


@functools.cache
def frozen() -> Frozen:
    row = np.zeros((1, 1), np.int32)
    return Frozen(TINY, jax.jit(Bert(TINY).init)(jax.random.key(0), row, row, row == 0)["params"])


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    """40 rows of 3 to 70 tokens, of some lengths more than one batch, with 0 to 16 places each."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([3, 31, 32, 70], 40)
    mask = np.arange(70)[None] < sizes[:, None]
    predicted = mask & (rng.random(mask.shape) < rng.choice([0.0, 0.05, 0.15], (40, 1)))
    predicted[sizes == 3] = [False, True, *[False] * 68]
    tokens = np.where(mask, rng.integers(1, 50, mask.shape), 0).astype(np.int32)
    assert 10 < predicted.sum(axis=1).max() <= 16
    assert predicted.sum(axis=1).min() == 0
    return {"tokens": tokens, "segments": np.zeros_like(tokens), "mask": mask, "predicted": predicted}


@functools.cache
def short() -> dict[str, np.ndarray]:
    """Its rows of up to 32 tokens: one compilation."""
    rows = inputs()["mask"].sum(axis=1) <= 32
    return {name: array[rows, :32] for name, array in inputs().items()}


def wanted(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The hidden states of all layers at those places, [4, W, D], by the encoder itself."""
    apply = jax.jit(functools.partial(Bert(TINY).apply, all_layers=True))
    states = apply({"params": frozen().params}, *(arrays[name] for name in ("tokens", "segments", "mask"))).layers
    return np.array(states)[:, arrays["predicted"]]


class Runs:
    """Counts the runs of the encoder, and says what each was for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers: list[list[int]] = []
        fill = features._fill

        def counted(frozen: Frozen, arrays: dict, into: dict, quiet: bool) -> None:
            self.layers.append(sorted(into))
            fill(frozen, arrays, into, quiet)

        monkeypatch.setattr(features, "_fill", counted)


@pytest.mark.parametrize("kept", [True, False])
def test_the_vectors_are_the_encoder_s(kept: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches: several of them, rows of every length, rows without a place."""
    monkeypatch.setattr(features, "TOKENS", 300)
    found = vectors(frozen(), inputs(), [0, 2, 3], cache_dir=str(tmp_path) if kept else None)
    assert [layer.dtype for layer in found] == [np.float32] * 3
    states = wanted(inputs())
    np.testing.assert_allclose(np.stack(found), states[[0, 2, 3]], atol=2e-5)
    assert np.abs(states[1:] - states[:-1]).mean() > 0.1, "the layers are too alike to tell"


def test_batches_hold_each_row_once_within_the_tokens() -> None:
    mask = inputs()["mask"]
    seen: list[int] = []
    for rows, length in features._batches(mask):
        assert len(rows) == features.TOKENS // length
        assert mask[rows].sum(axis=1).max() <= length
        seen += sorted(set(rows.tolist()))
    assert sorted(seen) == list(range(40))


def test_what_is_kept_is_not_computed_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer: a choice computes what no other left, all of it in one run."""
    runs = Runs(monkeypatch)
    ask = functools.partial(vectors, frozen(), short(), cache_dir=str(tmp_path))
    first = ask([2])
    both = ask([1, 2])
    again = ask([0, 1, 2, 3])
    assert runs.layers == [[2], [1], [0, 3]]
    np.testing.assert_array_equal(first[0], both[1])
    np.testing.assert_array_equal(both[0], again[1])
    assert all(isinstance(layer, np.memmap) for layer in again)
    np.testing.assert_allclose(np.stack(again), wanted(short()), atol=2e-5)
    # A new object with the same contents, and what changes no hidden state.
    same = Frozen(dataclasses.replace(TINY, dropout=0.3, scan=False), jax.tree.map(np.array, frozen().params))
    vectors(same, short(), [0, 1, 2, 3], cache_dir=str(tmp_path))
    assert len(runs.layers) == 3


def test_what_would_be_another_is_computed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    params = jax.tree.map(np.array, frozen().params)
    params["layers"]["inner"]["bias"][0, 0] += 1e-6
    tokens = short()["tokens"].copy()
    tokens[0, 1] += 1
    known = [frozen(), short(), "float32"]
    others = [
        (0, Frozen(TINY, params)),
        (0, Frozen(dataclasses.replace(TINY, gelu="tanh"), frozen().params)),
        (0, Frozen(dataclasses.replace(TINY, heads=4), frozen().params)),
        (1, {**short(), "tokens": tokens}),
        (1, {**short(), "predicted": short()["mask"]}),
        (2, "float16"),
    ]
    for n, (place, other) in enumerate([(0, frozen()), *others]):
        given = [*known]
        given[place] = other
        found = vectors(given[0], given[1], [1], dtype=given[2], cache_dir=str(tmp_path))
        assert len(runs.layers) == n + 1
    np.testing.assert_allclose(found[0], wanted(short())[1], atol=5e-3)
    assert found[0].dtype == np.float16


def test_a_damaged_layer_is_computed_again_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    whole = [np.array(layer) for layer in vectors(frozen(), short(), [1, 3], cache_dir=str(tmp_path))]
    (file,) = [p for p in tmp_path.glob("*/vectors.npy") if np.array_equal(np.load(p), whole[1])]
    file.write_bytes(file.read_bytes()[:-1])
    again = vectors(frozen(), short(), [1, 3], cache_dir=str(tmp_path))
    assert runs.layers == [[1, 3], [3]]
    np.testing.assert_array_equal(whole[1], again[1])
