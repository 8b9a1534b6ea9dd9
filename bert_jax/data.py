"""From examples to global batches. Which rows a step sees is a function of the step: there is no iterator to save."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from grain.experimental import index_shuffle
from jax.sharding import NamedSharding

from bert_jax.config import require
from bert_jax.tasks.base import Source

T = TypeVar("T")


def shuffled(size: int, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples at `positions` [B] of an endless stream that shuffles `size` examples anew for each epoch.

    Returns:
      The ids [B], in [0, size), and how often each was seen before [B], that is the epoch.
    """
    epochs, places = np.divmod(positions, size)
    ids = [
        index_shuffle(int(place), max_index=size - 1, seed=(seed + int(epoch)) % 2**32, rounds=4)
        for place, epoch in zip(places, epochs, strict=True)
    ]
    return np.asarray(ids, np.int64), epochs


class Batches:
    """Global batches by number. Each process assembles only the rows that its own devices hold.

    `batches[n]` is a dict of global `jax.Array`s [B, ...]: what the source gives, and "id", "visit" (how often the
    example was seen before) and "weight" (1; 0 for the rows that fill up the last batch of an evaluation).
    """

    def __init__(
        self, source: Source, batch_size: int, sharding: NamedSharding, *, seed: int = 0, shuffle: bool = True
    ) -> None:
        shards = sharding.num_devices // sharding.mesh.shape["model"]
        require(
            batch_size % shards == 0,
            f"a batch of {batch_size} rows cannot be split over {shards} devices: choose a multiple of {shards}",
        )
        require(len(source) > 0, "there are no examples")
        self.source, self.batch_size, self.sharding, self.seed, self.shuffle = (
            source,
            batch_size,
            sharding,
            seed,
            shuffle,
        )

    def __len__(self) -> int:
        """Batches that one pass over the source fills, the last one perhaps in part."""
        return -(-len(self.source) // self.batch_size)

    def rows(self, n: int, span: slice = slice(None)) -> dict[str, np.ndarray]:
        """The rows `span` of batch `n`, on the host."""
        positions = np.arange(n * self.batch_size, (n + 1) * self.batch_size)[span]
        weight = np.ones(len(positions), np.float32)
        if self.shuffle:
            ids, visits = shuffled(len(self.source), self.seed, positions)
        else:
            weight[positions >= len(self.source)] = 0
            ids, visits = np.minimum(positions, len(self.source) - 1), np.zeros_like(positions)
        return {
            **self.source.batch(ids),
            "id": ids.astype(np.int32),
            "visit": visits.astype(np.int32),
            "weight": weight,
        }

    def __getitem__(self, n: int) -> dict[str, jax.Array]:
        def span_of(index: Any) -> tuple[int, int]:
            """The rows [start, stop) of a device's part."""
            return index[0].indices(self.batch_size)[:2]

        places = self.sharding.addressable_devices_indices_map((self.batch_size,))
        spans = {span_of(index) for index in places.values()}
        parts = {span: self.rows(n, slice(*span)) for span in spans}

        def global_array(name: str) -> jax.Array:
            example = next(iter(parts.values()))[name]
            return jax.make_array_from_callback(
                (self.batch_size, *example.shape[1:]),
                self.sharding,
                lambda index: parts[span_of(index)][name],
            )

        return {name: global_array(name) for name in next(iter(parts.values()))}


def ahead(get: Callable[[int], T], numbers: range, depth: int = 3) -> Iterator[T]:
    """`get(n)` for each of `numbers`, in order, computed up to `depth` items ahead by a thread."""
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="data") as pool:
        pending: list[concurrent.futures.Future[Any]] = []
        try:
            for n in numbers:
                pending.append(pool.submit(get, n))
                if len(pending) > depth:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()
