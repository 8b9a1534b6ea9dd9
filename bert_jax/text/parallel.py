"""A function of many documents, in several processes: in order, in bounded memory."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bert_jax.text.readers import Document

T = TypeVar("T")

BATCH = 1 << 18  # characters that a worker process gets at a time


def parallel_map(
    function: Callable[[Document], T], documents: Iterable[Document], workers: int
) -> Iterator[tuple[Document, T]]:
    """Each document with `function(document)`, in order, worked out by so many processes; by this one below 2.

    A few dozen batches are under way at a time, so memory is bounded by them and not by `documents`. `function` is
    pickled once for each worker: a top-level function, or a `functools.partial` of one. Workers are spawned, not
    forked, since a fork of a process in which JAX has started threads can hang: a script needs its
    `if __name__ == "__main__"`. They end with this process, however it ends.

    Raises:
      Whatever `function` or `documents` raises; `BrokenProcessPool` where a worker dies.
    """
    if workers < 2:
        yield from ((document, function(document)) for document in documents)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(function,)
    )
    under_way: collections.deque[tuple[list[Document], concurrent.futures.Future]] = collections.deque()
    try:
        for batch in _batches(documents):
            under_way.append((batch, pool.submit(_work, batch)))
            if len(under_way) > 4 * workers:
                done, future = under_way.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in under_way:
            yield from zip(done, future.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about `BATCH` characters."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.text)
        if held >= BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


_function: Callable[[Document], Any]  # of a worker


def end_with_parent() -> None:
    """Ends this process, one of `multiprocessing`, when its parent ends, however it does: no work comes any more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


def _start(function: Callable[[Document], Any]) -> None:
    end_with_parent()  # first of all, before there is any work
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends the pool


def _work(batch: list[Document]) -> list[Any]:
    return list(map(_function, batch))
