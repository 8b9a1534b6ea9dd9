"""Batches are a function of the step: shuffled anew each epoch, the same on any mesh and any number of hosts."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from bert_jax import config, data, sharding


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

    data.Batches(Watched(100), 16, place(4, 1, 2))[0]
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
