"""Batches are a function of the step: shuffled anew each epoch, the same on any mesh and any number of hosts."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from bert_jax import config
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Context
from bert_jax.training import data, planning, sharding


class Numbers:
    """Examples that are their own numbers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": np.stack([ids, ids * 2], axis=1)}


def place(data_axis: int = 1, fsdp: int = 1, model: int = 1) -> NamedSharding:
    devices = jax.devices()[: data_axis * fsdp * model]
    return sharding.batch_sharding(sharding.make_mesh(config.Mesh(data_axis, fsdp, model), devices))


@given(st.integers(1, 300), st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    ids, visits = data.shuffled(size, seed, np.arange(epoch * size, (epoch + 1) * size))
    assert sorted(ids) == list(range(size))
    assert set(visits) == {epoch}


def test_epochs_and_seeds_differ() -> None:
    first, second = (data.shuffled(100, 0, np.arange(100) + 100 * epoch)[0].tolist() for epoch in (0, 1))
    assert first != second
    assert first != data.shuffled(100, 5, np.arange(100))[0].tolist()
    assert first != sorted(first)


def test_any_two_of_seed_phase_and_epoch_have_orders_of_their_own() -> None:
    """Also those whose sums are equal, or were: seed 0 in its second epoch, and seed 1 in its first."""
    keys = list(itertools.product((0, 1, 2, 3, 7919, 2 * 7919, 2**31 - 1), (0, 1, 2), (0, 1, 2, 3, 7919)))
    orders = {}
    for seed, phase, epoch in keys:
        batches = data.Batches(Numbers(40), 40, place(), seed=seed, phase_index=phase)
        orders[seed, phase, epoch] = tuple(batches.order(epoch).ids.tolist())
    assert len(set(orders.values())) == len(keys)
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(range(40))}
    # As a shuffle would: on average one example in 40 stands where it stands in another order.
    same = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in itertools.combinations(orders.values(), 2)]
    assert np.mean(same) == pytest.approx(1.0, abs=0.05)


def test_the_phases_of_a_run_have_orders_of_their_own(tiny: Experiment) -> None:
    """And no seed's second phase is the first of another: see `planning.stretches`."""
    found = []
    for seed in (0, 7919):
        context = Context(planning.find_tokenizer(tiny), seed=0)  # the same pairs
        exp = override(tiny, {"seed": seed, "phases.1.length": 16})
        found += [stretch.batches.order(0).ids.tolist() for stretch in planning.stretches(exp, context, place())]
    assert len(set(map(tuple, found))) == 4


GOLDEN = [3, 1, 8, 2, 0, 8, 1, 3, 9, 2, 4, 7, 5, 0, 6, 6, 9, 3, 0, 4]


def test_an_order_stays_what_it_is() -> None:
    """A run goes on with the order that it began with: a change here changes every run that is under way.

    Renew the numbers with the first line.
    """
    ids, visits = data.shuffled(10, 3, np.arange(5, 25), phase=1)
    assert ids.tolist() == GOLDEN
    assert visits.tolist() == [0] * 5 + [1] * 10 + [2] * 5


def test_pools_of_two_phases_are_dealt_out_differently() -> None:
    first, second = ([grouped(Sized(3000), phase_index=n).order(i).length for i in range(64)] for n in (0, 1))
    assert first != second
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 40


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8)])
def test_a_batch_is_the_same_on_every_mesh(shape: tuple[int, int, int]) -> None:
    one, many = (data.Batches(Numbers(100), 16, place(*s), seed=3) for s in ((1, 1, 1), shape))
    for n in (0, 5, 6, 100):  # 6 holds the end of an epoch
        a, b = one[n], many[n]
        assert sorted(a) == ["id", "value", "visit", "weight"]
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_hold_the_batch_of_one(hosts: int) -> None:
    """Each host assembles only its own rows, by number; together they are the batch."""
    batches = data.Batches(Numbers(100), 16, place(), seed=3)
    size = 16 // hosts
    for n in (0, 6, 41):
        parts = [batches.rows(n, slice(host * size, (host + 1) * size)) for host in range(hosts)]
        whole = batches.rows(n)
        for name in whole:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_only_the_devices_own_rows_are_assembled() -> None:
    asked = []

    class Watched(Numbers):
        def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
            asked.append(len(ids))
            return super().batch(ids)

    batches = data.Batches(Watched(100), 16, place(4, 1, 2))
    asked.clear()  # a row is looked at before
    batches[0]
    assert asked == [4, 4, 4, 4], "rows that two devices share are assembled once"


def test_an_evaluation_sees_each_example_once() -> None:
    batches = data.Batches(Numbers(21), 8, place(), shuffle=False)
    assert len(batches) == 3
    rows = [batches.rows(n) for n in range(3)]
    seen = np.concatenate([row["id"][row["weight"] > 0] for row in rows])
    np.testing.assert_array_equal(seen, np.arange(21))
    assert all(len(row["id"]) == 8 for row in rows)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 6 rows cannot be split over 4 devices"):
        data.Batches(Numbers(10), 6, place(4))


def test_no_examples_is_said() -> None:
    with pytest.raises(ValueError, match="no examples"):
        data.Batches(Numbers(0), 6, place())


def test_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(data.ahead(lambda n: n * n, range(3, 50))) == [n * n for n in range(3, 50)]
    with pytest.raises(ZeroDivisionError):
        list(data.ahead(lambda n: 1 // (5 - n), range(10)))


class Sized(Numbers):
    """Examples of 1 to `longest` tokens, each its own number over and over; the loss is a mean over tokens."""

    def __init__(self, size: int, longest: int = 60, seed: int = 0) -> None:
        super().__init__(size)
        self.sizes = np.random.default_rng(seed).integers(1, longest + 1, size)
        self.terms, self.longest = self.sizes, longest

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        mask = np.arange(self.longest) < self.sizes[ids][:, None]
        return {"tokens": np.where(mask, ids[:, None], -1), "mask": mask, "value": ids * 2}


def spec(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"tokens": (rows, length), "mask": (rows, length)}
    return {
        name: jax.ShapeDtypeStruct(shapes.get(name, (rows,)), np.int32)
        for name in ("tokens", "mask", "value", "id", "visit", "weight")
    }


def grouped(source: Sized, lengths: int = 4, steps: int = 150, **more: Any) -> data.Grouped:
    return data.Grouped(source, 8, place(), spec, lengths, steps=steps, **more)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(1, 5))
def test_the_static_lengths_are_the_best_there_are(sizes: list[int], count: int) -> None:
    def padded(lengths: Sequence[int]) -> int:
        return sum(min(length for length in lengths if length >= size) for size in sizes)

    found = data.static_lengths(np.asarray(sizes), count)
    choices = {min(-(-size // 8) * 8, max(sizes)) for size in sizes} - {max(sizes)}
    every = [(*some, max(sizes)) for k in range(count) for some in itertools.combinations(sorted(choices), k)]
    assert found == sorted(set(found))
    assert len(found) <= count
    assert padded(found) == min(map(padded, every))


def test_a_pool_holds_the_examples_of_as_many_plain_batches() -> None:
    source = Sized(300)
    plain, groups = data.Batches(source, 8, place(), seed=3), grouped(source, seed=3)
    for first, stop in ((0, 64), (64, 128), (128, 150)):  # the last one is cut off by the end of the run
        some, same = ([one.order(n) for n in range(first, stop)] for one in (plain, groups))
        pairs = [
            sorted((i, v) for o in orders for i, v in zip(o.ids, o.visits, strict=True)) for orders in (some, same)
        ]
        assert pairs[0] == pairs[1]
        assert any(a.ids.tolist() != b.ids.tolist() for a, b in zip(some, same, strict=True))


def test_groups_have_few_lengths_and_little_padding() -> None:
    source = Sized(300)
    groups = grouped(source)
    rows = [groups.rows(n) for n in range(150)]
    for row in rows:
        np.testing.assert_array_equal(row["mask"].sum(axis=1), source.sizes[row["id"]])  # nothing is cut off
        np.testing.assert_array_equal(row["value"], row["id"] * 2)
    lengths = [row["tokens"].shape[1] for row in rows]
    assert len(set(lengths)) == 4
    real = sum(int(row["mask"].sum()) for row in rows)
    assert sum(8 * length for length in lengths) < 1.35 * real < 0.8 * 150 * 8 * 60
    assert lengths[:64] != sorted(lengths[:64]), "in random order"


def test_the_order_of_lengths_hardly_depends_on_the_seed() -> None:
    source = Sized(3000)
    one, other = ([grouped(source, seed=s).order(n) for n in range(64)] for s in (0, 1))
    assert one[0].ids.tolist() != other[0].ids.tolist()
    assert sum(a.length == b.length for a, b in zip(one, other, strict=True)) > 54


def test_shares_make_the_mean_of_batches_the_mean_over_tokens() -> None:
    """As the mean over all tokens of a pool, whatever the values are."""
    source, values = Sized(300), np.random.default_rng(1).normal(size=300)
    groups = grouped(source, steps=64)
    found, tokens = [], []
    for n in range(64):
        row = groups.rows(n)
        each = (values[row["id"]] * row["mask"].sum(axis=1)).sum() / row["mask"].sum()
        found.append(each * row["share"][0])
        tokens += np.repeat(values[row["id"]], source.sizes[row["id"]]).tolist()
    assert np.mean(found) == pytest.approx(np.mean(tokens), rel=1e-5)


def test_a_grouped_evaluation_sees_each_example_once_in_order_of_length() -> None:
    groups = data.Grouped(Sized(301), 8, place(), spec, 4, shuffle=False)
    rows = [groups.rows(n) for n in range(len(groups))]
    assert len(rows) == 38
    seen = np.concatenate([row["id"][row["weight"] > 0] for row in rows])
    assert sorted(seen) == list(range(301))
    lengths = [row["tokens"].shape[1] for row in rows]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_a_grouped_batch(hosts: int) -> None:
    groups = grouped(Sized(300), seed=3)
    for n in (0, 70):
        parts = [groups.rows(n, slice(h * 8 // hosts, (h + 1) * 8 // hosts)) for h in range(hosts)]
        for name, whole in groups.rows(n).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole)


def test_examples_without_lengths_cannot_be_grouped() -> None:
    with pytest.raises(ValueError, match="no lengths to be grouped by"):
        data.Grouped(Numbers(10), 2, place(), spec, 4)
