"""A function of many documents, in several processes."""

import contextlib
import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bert_jax.text import parallel, readers
from bert_jax.text.readers import Document
from bert_jax.text.tokenizer import SPECIAL, WordPiece
from tests.conftest import REPOSITORY


def numbered(count: int) -> Iterator[Document]:
    return (Document(str(i), f"Text number {i}. And more.\n" * (1 + i % 7)) for i in range(count))


def fail_at(name: str, document: Document) -> str:
    if document.name == name:
        raise KeyError(f"in {name}")
    return document.name


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_map(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "BATCH", 500)  # many batches
    expected = [(document, readers.sentences(document)) for document in numbered(200)]
    assert list(parallel.parallel_map(readers.sentences, numbered(200), workers)) == expected
    assert list(parallel.parallel_map(readers.sentences, numbered(0), workers)) == []


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

    found = parallel.parallel_map(readers.sentences, endless(), 2)
    assert next(found)[0].name == "1"
    assert taken < 20
    found.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("script", ["build_vocab", "build_corpus"])
def test_no_worker_outlives_a_killed_parent(script: str, tmp_path: pathlib.Path) -> None:
    """At any moment: while workers start, before the first work and within it, and when all of it is waited for."""
    WordPiece([*SPECIAL, *"abcdefgh"], lower=True).save(tmp_path / "vocab.txt")
    os.mkfifo(tmp_path / "endless.txt")
    pipe = os.open(tmp_path / "endless.txt", os.O_RDWR)  # which waits for no reader
    os.set_blocking(pipe, False)
    output = tmp_path / ("out.txt" if script == "build_vocab" else "corpus")
    flags = [f"--input={tmp_path / 'endless.txt'}", f"--output={output}", "--workers=2"]
    flags += ["--size=100"] if script == "build_vocab" else [f"--vocab={tmp_path / 'vocab.txt'}"]
    line = b"a bad cab had a bed. " * 100 + b"\n\n"
    for seconds in (0, random.uniform(0, 2)):
        child = subprocess.Popen(
            [sys.executable, f"scripts/{script}.py", *flags],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        killed = None
        deadline = time.monotonic() + 100
        while killed is None or time.monotonic() < killed:
            assert time.monotonic() < deadline, "no worker was started"
            with contextlib.suppress(BlockingIOError):
                os.write(pipe, line)
            if killed is None and len(in_group(child.pid)) > 2:  # a tracker of resources, and a worker
                killed = time.monotonic() + seconds
        child.kill()
        child.wait()
        deadline = time.monotonic() + 60
        while (left := in_group(child.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            os.kill(process, signal.SIGKILL)
        assert not left
    os.close(pipe)


def in_group(group: int) -> list[int]:
    """The processes of a process group that live."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of, *_ = path.read_text().rpartition(")")[2].split()
            found += [int(path.parent.name)] * (int(of) == group and state != "Z")
    return found
