"""From examples to global batches. Which rows a step sees is a function of the step: there is no iterator to save."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from grain.experimental import index_shuffle
from jax.sharding import NamedSharding

from bert_jax.config import require
from bert_jax.tasks.base import Measured, Source
from bert_jax.training import hosts

T = TypeVar("T")


def shuffled(size: int, seed: int, positions: np.ndarray, phase: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The examples at `positions` [B] of an endless stream that shuffles `size` examples anew for each epoch.

    The order of an epoch is that of 32 bits hashed from (seed, phase, epoch): any two of these have orders of their
    own. A sum would not do: with seed + epoch, the second epoch of seed 0 is the first of seed 1.

    Returns:
      The ids [B], in [0, size), and how often each was seen before [B], that is the epoch.
    """
    epochs, places = np.divmod(positions, size)
    keys = {epoch: order_key(seed, phase, epoch) for epoch in np.unique(epochs).tolist()}
    ids = [
        index_shuffle(place, max_index=size - 1, seed=keys[epoch], rounds=4)
        for place, epoch in zip(places.tolist(), epochs.tolist(), strict=True)
    ]
    return np.asarray(ids, np.int64), epochs


def order_key(seed: int, phase: int, epoch: int) -> int:
    """32 bits that an epoch's order follows from, the same on every machine and in every version of NumPy."""
    return int(np.random.SeedSequence((seed, phase, epoch)).generate_state(1)[0])


class Order(NamedTuple):
    """What a global batch is made of."""

    ids: np.ndarray  # int [B], the examples
    visits: np.ndarray  # int [B], how often each was seen before
    weight: np.ndarray  # float32 [B]: 1; 0 for the rows that fill up the last batch of an evaluation
    length: int = 0  # that the examples are cut to; 0: as the source makes them
    share: float = 1.0  # what the batch's mean counts for in the mean over its pool: see `Grouped`


class Batches:
    """Global batches by number. Each process assembles only the rows that its own devices hold.

    `batches[n]` is a dict of global `jax.Array`s [B, ...]: what the source gives, and "id", "visit" (how often the
    example was seen before) and "weight" (1; 0 for the rows that fill up the last batch of an evaluation).
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        sharding: NamedSharding,
        *,
        seed: int = 0,
        phase_index: int = 0,
        shuffle: bool = True,
        check: Callable[[Mapping[str, np.ndarray]], None] = lambda rows: None,
    ) -> None:
        """`phase_index` says which of the run's phases these batches are for: each has orders of its own.

        `check` sees the source's rows of each batch, and one row now; it raises where a model cannot read them.
        """
        shards = sharding.num_devices // sharding.mesh.shape["model"]
        require(
            batch_size % shards == 0,
            f"a batch of {batch_size} rows cannot be split over {shards} devices: choose a multiple of {shards}",
        )
        require(len(source) > 0, "there are no examples")
        check(source.batch(np.zeros(1, np.int64)))
        self.source, self.batch_size, self.sharding = source, batch_size, sharding
        self.seed, self.phase_index, self.shuffle, self.check = seed, phase_index, shuffle, check

    def __len__(self) -> int:
        """Batches that one pass over the source fills, the last one perhaps in part."""
        return -(-len(self.source) // self.batch_size)

    def order(self, n: int) -> Order:
        """What batch `n` is made of."""
        return Order(*self._examples(n, n + 1))

    def _examples(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, visits and weights of the batches [start, stop), one after the other."""
        positions = np.arange(start * self.batch_size, stop * self.batch_size)
        if self.shuffle:
            ids, visits = shuffled(len(self.source), self.seed, positions, self.phase_index)
            return ids, visits, np.ones(len(positions), np.float32)
        weight = (positions < len(self.source)).astype(np.float32)
        return np.minimum(positions, len(self.source) - 1), np.zeros_like(positions), weight

    def rows(self, n: int, span: slice = slice(None), length: int = 0) -> dict[str, np.ndarray]:
        """The rows `span` of batch `n`, on the host. `length` is for batches that have no length of their own."""
        order = self.order(n)
        rows = self.source.batch(order.ids[span])
        self.check(rows)
        return {
            **rows,
            "id": order.ids[span].astype(np.int32),
            "visit": order.visits[span].astype(np.int32),
            "weight": order.weight[span],
        }

    def __getitem__(self, n: int) -> dict[str, jax.Array]:
        return _assembled(lambda span: self.rows(n, span), self.batch_size, self.sharding)


class Grouped(Batches):
    """Batches of examples that are about as long, cut to one of a few static lengths: short ones cost little.

    Each `POOL` batches in a row hold the examples that as many plain batches would, dealt out anew: every batch at
    random from one range of lengths, the batches in random order. So each example is seen as often, and the gradient's
    expectation is the same, if a batch counts by its "share" [B] (one number, in every row): where the loss is a mean
    over words, a batch of short sentences has few of them.

    The order of lengths does not depend on the seed: several seeds in one program need little padding.
    """

    POOL = 64

    def __init__(
        self,
        source: Source,
        batch_size: int,
        sharding: NamedSharding,
        spec: Callable[[int, int], Mapping[str, jax.ShapeDtypeStruct]],
        lengths: int,
        *,
        steps: int = 0,
        shuffle: bool = True,
        **more: Any,
    ) -> None:
        """At most so many `lengths`; `spec(B, T)` gives a batch's shapes. Training takes `steps` batches. `more` is as
        of `Batches`."""
        super().__init__(source, batch_size, sharding, shuffle=shuffle, **more)
        if not isinstance(source, Measured):
            raise ValueError("these examples have no lengths to be grouped by: leave phases' `lengths` at 1")
        self.spec, self.steps, self.terms = spec, steps if shuffle else len(self), source.terms
        self.lengths = np.asarray(static_lengths(source.sizes, lengths))
        self.group = np.searchsorted(self.lengths, source.sizes)
        self._pool: tuple[int, list[Order]] = (-1, [])  # the last one that was asked for

    def order(self, n: int) -> Order:
        """What batch `n` is made of. An evaluation has one pool, in the order of lengths."""
        pool, place = divmod(n, self.POOL) if self.shuffle else (0, n)
        if self._pool[0] != pool:
            start = pool * self.POOL
            stop = min(start + self.POOL, self.steps) if self.shuffle else self.steps
            self._pool = pool, self._dealt(pool, start, stop)
        return self._pool[1][place]

    def _dealt(self, pool: int, start: int, stop: int) -> list[Order]:
        """The examples of the batches [start, stop), dealt out to as many."""
        ids, visits, weight = self._examples(start, stop)
        deal = np.argsort(self.group[ids], kind="stable")
        deal = deal.reshape(stop - start, self.batch_size)
        if self.shuffle:
            deal = deal[np.random.default_rng((self.phase_index, pool)).permutation(len(deal))]
        terms = self.terms[ids[deal]].sum(axis=1)
        lengths, shares = self.lengths[self.group[ids[deal]].max(axis=1)], terms / terms.mean()
        return [Order(ids[d], visits[d], weight[d], *more) for d, *more in zip(deal, lengths, shares, strict=True)]

    def rows(self, n: int, span: slice = slice(None), length: int = 0) -> dict[str, np.ndarray]:
        """The rows `span` of batch `n`, on the host, cut to `length`, by default the batch's own."""
        order, rows = self.order(n), super().rows(n, span)
        spec = self.spec(len(rows["id"]), length or int(order.length))
        cut = {name: rows[name][tuple(map(slice, spec[name].shape))] for name in rows}
        return {**cut, "share": np.full(len(rows["id"]), order.share, np.float32)}


class Stacked:
    """The batches of runs that train in one program, by number: [S, B, ...], all as long as the longest."""

    def __init__(self, runs: Sequence[Batches], sharding: NamedSharding) -> None:
        self.runs, self.sharding = runs, sharding

    def __getitem__(self, n: int) -> dict[str, jax.Array]:
        length = max(int(one.order(n).length) for one in self.runs)

        def rows(span: slice) -> dict[str, np.ndarray]:
            each = [one.rows(n, span, length) for one in self.runs]
            return {name: np.stack([one[name] for one in each]) for name in each[0]}

        return _assembled(rows, self.runs[0].batch_size, self.sharding, axis=1)


def _assembled(
    rows: Callable[[slice], dict[str, np.ndarray]], batch_size: int, sharding: NamedSharding, axis: int = 0
) -> dict[str, jax.Array]:
    """Global arrays with `batch_size` rows along `axis`, of which this process makes those that its devices hold."""

    def span_of(index: Any) -> tuple[int, int]:
        """The rows [start, stop) of a device's part."""
        return index[axis].indices(batch_size)[:2]

    places = sharding.addressable_devices_indices_map((1,) * axis + (batch_size,))
    spans = {span_of(index) for index in places.values()}
    parts = {span: rows(slice(*span)) for span in spans}

    def global_array(name: str) -> jax.Array:
        shape = list(next(iter(parts.values()))[name].shape)
        shape[axis] = batch_size
        return jax.make_array_from_callback(tuple(shape), sharding, lambda index: parts[span_of(index)][name])

    return {name: global_array(name) for name in next(iter(parts.values()))}


def static_lengths(sizes: np.ndarray, count: int, multiple: int = 8) -> list[int]:
    """The at most `count` lengths, ascending, to which `sizes` [N] are padded with the fewest tokens in all.

    All but the last are multiples of `multiple`; the last is that of the longest example.
    """
    found, numbers = np.unique(np.minimum(-(-sizes // multiple) * multiple, sizes.max()), return_counts=True)
    before = np.concatenate([[0], np.cumsum(numbers)])  # examples that are shorter than `found[i]`
    cost = found * before[1:].astype(np.float64)  # of one length, for the examples up to each
    chosen = [[int(length)] for length in found]
    for _ in range(min(count, len(found)) - 1):
        # With one more length: the examples up to `found[i]` as they were, those from there to `found[j]` at that.
        total = cost[:, None] + found * (before[1:] - before[1:, None])
        total[np.tril_indices(len(found))] = np.inf
        best = np.where(total.min(axis=0) < cost, total.argmin(axis=0), -1)
        chosen = [[*chosen[i], int(found[j])] if i >= 0 else chosen[j] for j, i in enumerate(best)]
        cost = np.minimum(cost, total.min(axis=0))
    return chosen[-1]


def ahead(get: Callable[[int], T], numbers: range, depth: int = 3) -> Iterator[T]:
    """`get(n)` for each of `numbers`, in order, computed up to `depth` items ahead by a thread.

    Where other hosts wait for this one, it has `hosts.OWN` seconds for each.
    """
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="data")
    pending: list[concurrent.futures.Future[T]] = []

    def oldest() -> T:
        with hosts.within(hosts.OWN):
            return pending.pop(0).result()

    try:
        for n in numbers:
            pending.append(pool.submit(get, n))
            if len(pending) > depth:
                yield oldest()
        while pending:
            yield oldest()
    finally:
        pool.shutdown(wait=jax.process_count() == 1, cancel_futures=True)  # others do not wait for a thread that hangs
