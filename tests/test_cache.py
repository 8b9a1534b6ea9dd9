"""What is kept: made once, by content; whole or not at all; damaged, it is made again; a full disk is said."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bert_jax import cache
from tests.conftest import REPOSITORY, flip


class Squares:
    """A builder that counts how often it is asked."""

    def __init__(self, count: int = 5) -> None:
        self.count, self.calls = count, 0

    def __call__(self, make: cache.Make) -> None:
        self.calls += 1
        make("squares", (self.count,), np.int32)[:] = np.arange(self.count) ** 2
        make("none", (0, 3), np.float32)


KEY = {"what": "squares", "version": 1, "sizes": (1, 2)}


def entry(folder: pathlib.Path) -> pathlib.Path:
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def test_made_once_for_a_key_and_again_for_another(tmp_path: pathlib.Path) -> None:
    build = Squares()
    for _ in range(2):
        found = cache.arrays(str(tmp_path / "new"), KEY, build)
        np.testing.assert_array_equal(found["squares"], [0, 1, 4, 9, 16])
        assert (found["none"].shape, found["none"].dtype) == ((0, 3), np.float32)
    assert build.calls == 1
    assert isinstance(found["squares"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found["squares"][0] = 1
    cache.arrays(str(tmp_path / "new"), {**KEY, "version": 2}, build)
    assert build.calls == 2


def test_what_fails_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    def fail(make: cache.Make) -> None:
        make("squares", (5,), np.int32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.arrays(str(tmp_path), KEY, fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert cache.arrays(str(tmp_path), KEY, Squares())["squares"][2] == 4


def test_a_killed_process_s_half_is_never_seen(tmp_path: pathlib.Path) -> None:
    """It dies in mid-build; the next one makes everything anew, and nothing of the first is left."""
    code = f"""if True:
        import os
        from bert_jax import cache
        def build(make):
            make("squares", (5,), "int32")[:] = 7
            make("left", (5,), "int32")
            os._exit(9)
        cache.arrays({str(tmp_path)!r}, {KEY!r}, build)"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 9
    assert list(tmp_path.glob("*/left.npy")), "the kill came too late"
    build = Squares()
    assert cache.arrays(str(tmp_path), KEY, build)["squares"].tolist() == [0, 1, 4, 9, 16]
    assert build.calls == 1
    assert sorted(path.name for path in entry(tmp_path).iterdir()) == ["key.json", "none.npy", "squares.npy"]


@pytest.mark.parametrize(
    "damage",
    ["cut", "empty", "header", "flipped", "gone", "key cut", "key gone", "key a list", "another shape", "another key"],
)
def test_what_is_damaged_is_made_again(tmp_path: pathlib.Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    build = Squares()
    cache.arrays(str(tmp_path), KEY, build)
    folder = entry(tmp_path)
    file = folder / ("key.json" if "key" in damage else "squares.npy")
    if "gone" in damage:
        file.unlink()
    elif damage == "another shape":
        np.save(file, np.zeros(3, np.int32))
    elif damage == "another key":
        file.write_text(json.dumps({**json.loads(file.read_text()), "key": {}}))
    elif damage == "key a list":
        file.write_text("[]")
    elif damage == "flipped":
        flip(file, -1)
    else:
        file.write_bytes({"header": b"damaged", "empty": b""}.get(damage, file.read_bytes()[:-4]))
    assert cache.arrays(str(tmp_path), KEY, build)["squares"].tolist() == [0, 1, 4, 9, 16]
    assert build.calls == 2
    assert f"{folder} is damaged: what it keeps is made again" in capsys.readouterr().err


def test_what_an_older_version_kept_has_no_checksums(tmp_path: pathlib.Path) -> None:
    build = Squares()
    cache.arrays(str(tmp_path), KEY, build)
    file = entry(tmp_path) / "key.json"
    known = json.loads(file.read_text())
    known["arrays"] = {name: found[:2] for name, found in known["arrays"].items()}
    file.write_text(json.dumps(known))
    assert cache.arrays(str(tmp_path), KEY, build)["squares"].tolist() == [0, 1, 4, 9, 16]
    assert build.calls == 1


def test_several_processes_build_once(tmp_path: pathlib.Path) -> None:
    code = f"""if True:
        import time
        from bert_jax import cache
        def build(make):
            print("built")
            time.sleep(0.5)
            make("squares", (5,), "int32")[:] = 7
        print(cache.arrays({str(tmp_path)!r}, {KEY!r}, build)["squares"].sum())"""
    start = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    running = [subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = " ".join(process.communicate()[0] for process in running).split()
    assert sorted(said) == ["35", "35", "35", "built"]


def test_a_full_disk_is_said(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"disk of .* is full: 0.0 MB are needed; make room, .*--cache_dir"):
        cache.arrays(str(tmp_path), KEY, Squares())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", ["mkdir", "open", "rename", "write_text"])
def test_a_full_disk_is_said_wherever_it_is_met(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, name, full)
        with pytest.raises(
            OSError, match=rf"disk of {tmp_path} is full: make room, .*--cache_dir.* run the same command"
        ):
            cache.arrays(str(tmp_path), KEY, Squares())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert cache.arrays(str(tmp_path), KEY, Squares())["squares"][2] == 4


def test_the_folder_must_be_local() -> None:
    with pytest.raises(ValueError, match=r"a local folder, not gs://b.*--cache_dir"):
        cache.arrays("gs://b", KEY, Squares())


def test_a_digest_is_of_contents_types_shapes_and_borders() -> None:
    a = np.arange(6, dtype=np.int32)
    contents = [(a,), (a.astype(np.int64),), (a.reshape(2, 3),), (a.reshape(3, 2).T,), (a[:3], a[3:]), (a.tobytes(),)]
    contents += [("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), (), ("",), (a[:0],)]
    assert len({cache.digest(*parts) for parts in contents}) == len(contents)
    assert cache.digest(a[::2]) == cache.digest(np.array([0, 2, 4], np.int32))
    assert cache.digest("é") == cache.digest("é")


def test_the_default_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path))
    assert cache.default_directory() == str(tmp_path)
    cache.arrays("", KEY, Squares())
    assert entry(tmp_path)
    monkeypatch.setenv("BERT_JAX_CACHE", "")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache.default_directory() == "/home/ada/.cache/bert_jax"
