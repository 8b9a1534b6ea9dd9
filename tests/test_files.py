"""Files: whole or as they were, on a disk and in a bucket."""

from __future__ import annotations

import errno
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bert_jax import files
from tests import fake_bucket


@pytest.fixture(params=["local", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """A folder, of either kind."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with how many bytes still fit: what is written past them fails as on a full disk, half of it done."""

    def fill(room: int) -> None:
        left, opened = [room], open

        def limited(name: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(name, mode, *args, **kwargs)
            if not set(mode) & set("wxa+"):
                return file
            write = file.write

            def partly(data: Any) -> int:
                part = data[: max(0, left[0])]
                left[0] -= len(data)
                write(part)
                file.flush()
                if len(part) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return len(data)

            return _Writes(file, partly)

        monkeypatch.setattr(files, "open", limited, raising=False)

    return fill


class _Writes:
    """A file whose `write` is another."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def test_a_file_is_written_whole(place: str) -> None:
    files.write(f"{place}/a/b.txt", "one")
    files.write(f"{place}/a/b.txt", b"two")
    assert files.path(f"{place}/a/b.txt").read_text() == "two"
    assert [one.name for one in files.path(f"{place}/a").iterdir()] == ["b.txt"]


def test_a_full_disk_leaves_what_was_there(tmp_path: pathlib.Path, full_disk: Callable[[int], None]) -> None:
    files.write(tmp_path / "a.txt", "before")
    full_disk(3)
    with pytest.raises(OSError, match=r"the disk of .*a\.txt is full: what was there before is unchanged") as raised:
        files.write(tmp_path / "a.txt", "afterwards")
    assert raised.value.errno == errno.ENOSPC
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_takes_no_line(tmp_path: pathlib.Path, full_disk: Callable[[int], None]) -> None:
    lines = files.Lines(tmp_path / "lines")
    lines.append("first")
    full_disk(3)
    with pytest.raises(OSError, match=r"the disk of .* is full"):
        lines.append("second")
    assert (tmp_path / "lines").read_text() == "first\n"
    full_disk(1000)
    lines.append("third")
    assert files.read_lines(tmp_path / "lines") == ["first", "third"]


def test_a_full_disk_at_the_start_loses_no_line(tmp_path: pathlib.Path, full_disk: Callable[[int], None]) -> None:
    (tmp_path / "lines").write_text("".join(f"{n}\n" for n in range(1000)))
    full_disk(10)
    with pytest.raises(OSError, match="is full"):
        files.Lines(tmp_path / "lines", keep=lambda line: line != "999")
    assert len(files.read_lines(tmp_path / "lines")) == 1000


def test_of_several_that_create_a_file_one_does(place: str) -> None:
    barrier, got = threading.Barrier(4), []

    def work(n: int) -> None:
        barrier.wait()
        got.append((files.create(f"{place}/lock", str(n)), n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = [n for created, n in got if created]
    assert files.path(f"{place}/lock").read_text() == str(first)


def test_age_remove_and_touch(place: str) -> None:
    files.write(f"{place}/a", "x")
    assert 0 <= files.age(f"{place}/a") + 5 < 65
    files.touch(f"{place}/a", "x")
    files.remove(f"{place}/a")
    files.remove(f"{place}/a")
    with pytest.raises(FileNotFoundError):
        files.age(f"{place}/a")


def test_lines_are_kept_in_order_and_dropped_at_the_start(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BETWEEN", 0.0)
    lines = files.Lines(f"{place}/lines")
    for n in range(5):
        lines.append(str(n))
        if n == 2:
            lines.sync()
    lines.close()
    assert files.read_lines(f"{place}/lines") == list("01234")
    again = files.Lines(f"{place}/lines", keep=lambda line: int(line) < 3)
    again.append("3")
    again.close()
    assert files.path(f"{place}/lines").read_text() == "0\n1\n2\n3\n"


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: pathlib.Path) -> None:
    (tmp_path / "lines").write_text('{"a": 1}\n{"a"')
    assert files.read_lines(tmp_path / "lines") == ['{"a": 1}']
    files.Lines(tmp_path / "lines").append("x")
    assert (tmp_path / "lines").read_text() == '{"a": 1}\nx\n'


def test_lines_of_a_killed_process_are_in_the_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BETWEEN", 0.0)
    lines = files.Lines(f"{bucket}/lines")
    for n in range(4):
        lines.append(str(n))
        if lines._under_way:
            lines._under_way.result()  # and then it is killed: no sync, no close
    assert files.read_lines(f"{bucket}/lines") == list("0123")
    # A kill between the join and the deletion of what was joined: no line is there twice.
    files.write(f"{bucket}/lines", "0\n1\n2\n3\n")
    assert files.read_lines(f"{bucket}/lines") == list("0123")
    files.Lines(f"{bucket}/lines").close()
    assert not files.path(f"{bucket}/lines.parts").exists()
    assert files.path(f"{bucket}/lines").read_text() == "0\n1\n2\n3\n"


def test_a_line_costs_a_bucket_its_own_bytes(
    served: fake_bucket.Bucket, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BETWEEN", 0.0)
    lines = files.Lines(f"{bucket}/lines")
    for _ in range(50):
        lines.append("x" * 100)
        if lines._under_way:
            lines._under_way.result()
    served.written.clear()
    for _ in range(10):
        lines.append("x" * 100)
        lines._under_way.result()
    assert sum(served.written.values()) < 10 * 1000  # with the request around it; not the 50 lines before


def test_what_lies_in_a_bucket_is_copied_once(bucket: str, tmp_path: pathlib.Path) -> None:
    files.write(f"{bucket}/model/a.txt", "one")
    files.write(f"{bucket}/model/deep/b.txt", "two")
    found = files.local(f"{bucket}/model", str(tmp_path))
    assert (found / "a.txt").read_text() + (found / "deep/b.txt").read_text() == "onetwo"
    assert files.local(f"{bucket}/model", str(tmp_path)) == found
    files.write(f"{bucket}/model/a.txt", "other")
    assert (files.local(f"{bucket}/model", str(tmp_path)) / "a.txt").read_text() == "other"
    with pytest.raises(FileNotFoundError, match="no such object"):
        files.local(f"{bucket}/nothing", str(tmp_path))
    assert files.local(tmp_path) == tmp_path


def test_paths() -> None:
    assert str(files.path("gs://bucket/run")) == "gs://bucket/run"
    assert str(files.path("run")) == os.path.abspath("run")
    for name in ("", "  ", "s3://bucket/run"):
        with pytest.raises(ValueError, match="path"):
            files.path(name)


def test_a_folder_is_no_file_nor_below_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    files.require_folder(tmp_path / "new" / "run", "the workdir")
    files.require_folder("gs://bucket/run", "the workdir")
    for folder in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(ValueError, match=r"the workdir \S+ must be a folder, and \S+notes\.txt is a file"):
            files.require_folder(folder, "the workdir")
