"""Claims: one holder at a time, whoever dies."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from bert_jax import claims
from bert_jax.claims import claim, holder


def leave(file: pathlib.Path, host: str, process: int, age: float = 0.0) -> None:
    """A claim of somebody else, touched `age` seconds ago."""
    file.write_text(json.dumps({"host": host, "process": process, "id": "theirs"}))
    os.utime(file, (time.time() - age,) * 2)


def test_one_holds_it_and_gives_it_back(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "runs" / "a.claim"
    with claim(file) as ours:
        assert ours
        assert holder(file) == f"{socket.gethostname()}, process {os.getpid()}"
        with claim(file) as again:
            assert not again
        assert file.exists(), "who did not get it took it away"
    assert not file.exists()
    assert holder(file) == ""
    with contextlib.suppress(RuntimeError), claim(file) as ours:
        assert ours
        raise RuntimeError
    assert not file.exists()


def test_a_live_claim_of_another_machine_is_left_alone(tmp_path: pathlib.Path) -> None:
    leave(tmp_path / "c", "elsewhere", 1, age=claims.STALE / 2)
    with claim(tmp_path / "c") as ours:
        assert not ours
    assert holder(tmp_path / "c") == "elsewhere, process 1"


def test_a_stale_claim_is_taken_over(tmp_path: pathlib.Path) -> None:
    leave(tmp_path / "c", "elsewhere", 1, age=claims.STALE + 1)
    assert holder(tmp_path / "c") == ""
    with claim(tmp_path / "c") as ours:
        assert ours
        assert holder(tmp_path / "c") == f"{socket.gethostname()}, process {os.getpid()}"
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path: pathlib.Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leave(tmp_path / "c", socket.gethostname(), dead.pid)
    with claim(tmp_path / "c") as ours:
        assert ours


def test_a_claim_that_is_just_being_written_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "c").write_text("")
    with claim(tmp_path / "c") as ours:
        assert not ours


def test_of_many_that_find_a_stale_claim_one_gets_it(tmp_path: pathlib.Path) -> None:
    for _ in range(20):
        leave(tmp_path / "c", "elsewhere", 1, age=claims.STALE + 1)
        start, end, got = threading.Barrier(8), threading.Barrier(8), []

        def work() -> None:
            start.wait()  # noqa: B023
            with claim(tmp_path / "c") as ours:
                got.append(ours)  # noqa: B023
                end.wait()  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(got) == 1


def test_the_holder_shows_that_it_lives(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with claim(tmp_path / "c"):
        os.utime(tmp_path / "c", (0, 0))
        for _ in range(500):
            if (tmp_path / "c").stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert time.time() - (tmp_path / "c").stat().st_mtime < claims.STALE


def test_who_was_taken_for_dead_leaves_the_new_claim(tmp_path: pathlib.Path) -> None:
    with claim(tmp_path / "c"):
        leave(tmp_path / "c", "elsewhere", 1)
    assert holder(tmp_path / "c") == "elsewhere, process 1"


def test_an_object_store_cannot_say_who_was_first() -> None:
    with pytest.raises(ValueError, match="a claim needs a file system"), claim("gs://bucket/c"):
        pass
