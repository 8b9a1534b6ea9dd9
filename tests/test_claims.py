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

from bert_jax import claims, files
from bert_jax.claims import claim, holder
from tests.conftest import environment


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


def holding(folder: pathlib.Path, name: str = "c") -> subprocess.Popen[str]:
    """Another process that holds a claim until it is killed."""
    program = (
        "import sys, time; from bert_jax import claims; ours = claims.acquire(sys.argv[1]); "
        "print(ours is not None, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / name)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    return process


def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path: pathlib.Path) -> None:
    process = holding(tmp_path)
    with claim(tmp_path / "c") as ours:
        assert not ours
    with pytest.raises(ValueError, match=f"another process works on the run: .*process {process.pid}. Stop it"):
        claims.acquire_or_wait(tmp_path / "c", "the run", print)
    process.kill()
    process.wait()
    assert holder(tmp_path / "c") == ""
    claims.acquire_or_wait(tmp_path / "c", "the run", print).release()
    with claim(tmp_path / "c") as ours:
        assert ours


def test_a_process_of_another_container_is_judged_by_its_heartbeat(tmp_path: pathlib.Path) -> None:
    """It may have this machine's name and a number that here is nobody's."""
    process = holding(tmp_path)
    process.kill()
    process.wait()
    found = json.loads((tmp_path / "c").read_text())
    for other in ({**found, "processes": "another"}, {"host": found["host"], "process": found["process"]}):
        (tmp_path / "c").write_text(json.dumps(other))
        with claim(tmp_path / "c") as ours:
            assert not ours
        os.utime(tmp_path / "c", (time.time() - claims.STALE - 1,) * 2)
        with claim(tmp_path / "c") as ours:
            assert ours
    # A number that was given out again does not make a dead owner alive.
    (tmp_path / "c").write_text(json.dumps({**found, "process": os.getpid()}))
    with claim(tmp_path / "c") as ours:
        assert ours


@pytest.mark.parametrize("content", ['{"other": 1}', "[1]", "3", '"x"', "{"])
def test_a_file_that_is_not_a_claim(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "c").write_text(content)
    with claim(tmp_path / "c") as ours:
        assert not ours
    os.utime(tmp_path / "c", (time.time() - claims.STALE - 1,) * 2)
    assert holder(tmp_path / "c") == ""
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


def test_the_heartbeat_leaves_the_claim_of_another_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sleep, in which another process took over."""
    monkeypatch.setattr(claims, "BEAT", 0.01)
    ours = claims.acquire(tmp_path / "c")
    assert ours
    leave(tmp_path / "c", "elsewhere", 1, age=50)
    for _ in range(500):
        if ours.lost:
            break
        time.sleep(0.01)
    assert ours.lost
    assert time.time() - (tmp_path / "c").stat().st_mtime > 40
    ours.release()
    assert holder(tmp_path / "c") == "elsewhere, process 1"


def test_a_claim_that_may_be_abandoned_is_waited_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.05)
    leave(tmp_path / "c", "elsewhere", 1, age=claims.STALE - 0.3)
    said: list[str] = []
    claims.acquire_or_wait(tmp_path / "c", "the run", said.append).release()
    assert len(said) == 1
    assert "elsewhere, process 1 may still work on the run" in said[0]


def test_a_claim_whose_heart_beats_is_not_waited_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.05)
    leave(tmp_path / "c", "elsewhere", 1, age=50)
    with pytest.raises(ValueError, match="another process works on the run: elsewhere, process 1"):
        claims.acquire_or_wait(tmp_path / "c", "the run", lambda _: os.utime(tmp_path / "c"))


def test_a_claim_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(f"{bucket}/c") as ours, claim(f"{bucket}/c") as again:
        assert ours
        assert not again
        assert holder(f"{bucket}/c") == f"{socket.gethostname()}, process {os.getpid()}"
    assert holder(f"{bucket}/c") == ""
    files.write(f"{bucket}/c", json.dumps({"host": "elsewhere", "process": 1}))
    with claim(f"{bucket}/c") as ours:
        assert not ours
    monkeypatch.setattr(claims, "STALE", -60.0)
    with claim(f"{bucket}/c") as ours:
        assert ours
