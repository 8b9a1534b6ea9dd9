"""Masking: exact counts, the 80/10/10 mix, whole words, and that an example's masks depend on nothing but itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Masking
from bert_jax.model.masking import Vocabulary, corrupt, counts

CLS, SEP, MASK, SIZE = 1, 2, 3, 1000
WORDS = Vocabulary(MASK, CLS, SEP, SIZE, continuation=np.arange(SIZE) % 3 == 0)
PIECES = Vocabulary(MASK, CLS, SEP, SIZE)
KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnums=(2, 3))
def run(key, batch, masking, vocabulary):
    return corrupt(key, batch, masking, vocabulary)


def make_batch(lengths: list[int], room: int, seed: int = 0) -> dict[str, jax.Array]:
    """[CLS] text [SEP] text [SEP], padded; of length 0, a row that is all padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, SIZE, (len(lengths), room)).astype(np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = 0
        if length:
            row[0] = CLS
            row[[length // 2, length - 1]] = SEP
    mask = np.arange(room)[None, :] < np.array(lengths)[:, None]
    return {"tokens": jnp.array(tokens), "mask": jnp.array(mask), "id": jnp.arange(len(lengths), dtype=jnp.int32)}


def check(batch: dict[str, jax.Array], out: dict[str, jax.Array], exact: bool) -> None:
    """What holds for every output of `corrupt` at the default rate."""
    before, after = np.array(batch["tokens"]), np.array(out["tokens"])
    for row in range(len(before)):
        length = int(batch["mask"][row].sum())
        chosen = np.array(out["positions"])[row][np.array(out["weights"])[row] > 0]
        most = out["positions"].shape[1]
        text = [i for i in range(length) if before[row, i] not in (CLS, SEP)]
        wanted = min(most, max(1, round(0.15 * length))) if length else 0
        assert len(chosen) == min(wanted, len(text)) if exact else len(chosen) <= wanted
        assert list(chosen) == sorted(set(chosen)), "positions in rising order, each once"
        assert set(chosen) <= set(text), "only text is predicted"
        np.testing.assert_array_equal(np.array(out["targets"])[row][: len(chosen)], before[row, chosen])
        rest = np.setdiff1d(np.arange(before.shape[1]), chosen)
        np.testing.assert_array_equal(after[row, rest], before[row, rest])
        unused = np.array(out["weights"])[row] == 0
        assert not np.array(out["positions"])[row][unused].any()
        assert not np.array(out["targets"])[row][unused].any()


def test_every_length_from_3_to_512_predicts_the_exact_count() -> None:
    batch = make_batch([*range(3, 513), 0, 2], 512)
    out = run(KEY, batch, Masking(), PIECES)
    assert out["positions"].shape == (512, 76)
    check(batch, out, exact=True)


def test_the_count_rounds_half_to_even_as_python_does() -> None:
    table = counts(Masking(), 128)
    assert [table[n] for n in (0, 1, 10, 30, 50, 70, 128)] == [0, 1, 2, 4, 8, 10, 19]
    assert counts(Masking(max_predictions=5), 128)[128] == 5


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 48), min_size=6, max_size=6), seed=st.integers(0, 2**31 - 1))
def test_any_batch(lengths: list[int], seed: int) -> None:
    batch = make_batch(lengths, 48, seed)
    check(batch, run(jax.random.key(seed), batch, Masking(), PIECES), exact=True)
    check(batch, run(jax.random.key(seed), batch, Masking(whole_word=True), WORDS), exact=False)


def test_there_are_at_most_as_many_predictions_as_tokens() -> None:
    batch = make_batch([6, 0], 6)
    out = run(KEY, batch, Masking(max_predictions=20), PIECES)
    assert out["positions"].shape == (2, 6)
    check(batch, out, exact=True)


def within_sampling_error(found: int, of: int, share: float) -> bool:
    """Within five standard deviations of a binomial."""
    return abs(found - of * share) <= 5 * (of * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.1), (1.0, 0.0), (0.0, 0.8)])
def test_the_mix(mask: float, random: float) -> None:
    """Over 1e5 predicted tokens: [MASK], another word, and kept, in the shares that Table 8 varies."""
    batch = make_batch([128] * 5500, 128)
    out = run(KEY, batch, Masking(mask=mask, random=random), PIECES)
    real = np.array(out["weights"]) > 0
    new = np.take_along_axis(np.array(out["tokens"]), np.array(out["positions"]), 1)[real]
    old = np.array(out["targets"])[real]
    assert len(new) > 100_000
    masked = new == MASK
    assert within_sampling_error(masked.sum(), len(new), mask + random / SIZE)
    # A random word is the original itself once in SIZE times.
    assert within_sampling_error((new[~masked] != old[~masked]).sum(), len(new), random * (1 - 2 / SIZE))
    words = new[~masked & (new != old)]
    if random:
        assert words.min() < 5, "special ids are drawn too: uniform over the whole vocabulary"
        expected = len(words) / SIZE
        chi_square = ((np.bincount(words, minlength=SIZE) - expected) ** 2 / expected).sum()
        assert chi_square < SIZE + 6 * (2 * SIZE) ** 0.5 + expected  # [MASK] itself is missing from the count


def test_every_position_is_as_likely() -> None:
    batch = make_batch([64] * 4000, 64)
    out = run(KEY, batch, Masking(), PIECES)
    real = np.array(out["weights"]) > 0
    found = np.bincount(np.array(out["positions"])[real], minlength=64)
    text = np.setdiff1d(np.arange(64), [0, 32, 63])
    assert (found[[0, 32, 63]] == 0).all()
    assert all(within_sampling_error(found[i], 4000, 10 / len(text)) for i in text)


def words_of(tokens: np.ndarray, length: int) -> list[list[int]]:
    """Positions grouped into words: a continuation joins the piece before it; [CLS] and [SEP] part words."""
    groups: list[list[int]] = []
    for i in range(length):
        if tokens[i] in (CLS, SEP):
            continue
        if groups and groups[-1][-1] == i - 1 and tokens[i] % 3 == 0:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def test_whole_words_are_whole() -> None:
    lengths = [*range(3, 129), 0]
    batch = make_batch(lengths, 128)
    out = run(KEY, batch, Masking(whole_word=True), WORDS)
    check(batch, out, exact=False)
    full = 0
    for row, length in enumerate(lengths):
        chosen = set(np.array(out["positions"])[row][np.array(out["weights"])[row] > 0].tolist())
        groups = words_of(np.array(batch["tokens"])[row], length)
        assert all(chosen >= set(group) or not chosen & set(group) for group in groups)
        room = counts(Masking(), 128)[length] - len(chosen)
        assert all(len(group) > room for group in groups if not chosen & set(group)), "a word that fits was skipped"
        full += room == 0
    assert full > 100, "smaller words fill up what a long one left"


def test_whole_words_need_to_know_words() -> None:
    with pytest.raises(ValueError, match="which pieces continue a word"):
        corrupt(KEY, make_batch([8], 8), Masking(whole_word=True), PIECES)


@pytest.mark.parametrize("whole_word", [False, True])
def test_masks_do_not_depend_on_the_place_in_the_batch(whole_word: bool) -> None:
    batch = make_batch([40, 48, 20, 0, 33, 48], 48)
    order = np.array([4, 1, 3, 0, 5, 2])
    moved = {name: x[order] for name, x in batch.items()}
    recipe = Masking(whole_word=whole_word)
    here, there = run(KEY, batch, recipe, WORDS), run(KEY, moved, recipe, WORDS)
    for name in here:
        np.testing.assert_array_equal(here[name][order], there[name], err_msg=name)
    alone = run(KEY, {name: x[2:3] for name, x in batch.items()}, recipe, WORDS)
    np.testing.assert_array_equal(alone["tokens"], here["tokens"][2:3])


def test_static_masks_stay_and_dynamic_ones_change_with_the_visit() -> None:
    batch = make_batch([48] * 8, 48)
    first, second = ({**batch, "visit": jnp.full(8, visit, jnp.int32)} for visit in (0, 1))
    same = [run(KEY, b, Masking(), PIECES)["positions"] for b in (first, second)]
    np.testing.assert_array_equal(*same)
    fresh = [run(KEY, b, Masking(dynamic=True), PIECES)["positions"] for b in (first, second)]
    assert (np.array(fresh[0]) != np.array(fresh[1])).any(axis=1).all()
    other = run(jax.random.key(1), first, Masking(), PIECES)["positions"]
    assert (np.array(other) != np.array(same[0])).any(axis=1).all()
