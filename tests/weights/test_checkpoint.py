"""Checkpoints on disk: a changed byte is noticed, damage is told from other errors, and where they lie."""

from __future__ import annotations

import asyncio
import pathlib
import random
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import files
from bert_jax.weights import checkpoint
from bert_jax.weights.checkpoint import Checkpoints, checksum
from tests.weights.test_weights import assert_equal


class State(NamedTuple):
    step: Any
    params: Any
    optimizer: Any


def state(rows: int = 1, columns: int = 1) -> State:
    """A state of random numbers on a mesh of `rows` x `columns` of the eight devices; where both are 1, of one."""
    mesh = jax.make_mesh((rows, columns), ("data", "model"), devices=jax.devices()[: rows * columns])
    rng = np.random.default_rng(0)

    def place(array: Any, *axes: str | None) -> jax.Array:
        return jax.device_put(array, jax.NamedSharding(mesh, jax.P(*axes)))

    def params() -> Any:
        kernel = rng.normal(size=(64, 32)).astype(np.float32)
        scale = rng.normal(size=32).astype(np.float32)
        return {"encoder": {"kernel": place(kernel, "data", "model")}, "pooler": {"scale": place(scale, "model")}}

    step = place(np.int32(3))
    return State(step, params(), {"mu": params(), "nu": params(), "count": step})


def abstract(of: State) -> State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), of)


def restore(workdir: pathlib.Path, onto: State) -> State:
    checkpoints = Checkpoints(str(workdir))
    try:
        return checkpoints.restore(3, abstract(onto))
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of checkpoints 1 and 3, written by eight devices."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(str(workdir))
    for step in (1, 3):
        assert checkpoints.save(step, state(4, 2))
    checkpoints.close()
    return workdir


def files_of(workdir: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in (workdir / "checkpoints" / "3").rglob("*") if path.is_file())


def same_or_damage(read: Any, wanted: Any, directory: str) -> bool:
    """Whether what is read is said to be damaged; else it is as `wanted`."""
    try:
        found = read()
    except ValueError as error:
        assert directory in str(error)  # noqa: PT017 - what is not raised is checked as well
        assert "damaged: delete that directory" in str(error)  # noqa: PT017
        assert "step 1" in str(error)  # noqa: PT017
        return True
    assert_equal(found, wanted)
    return False


def both_damaged(workdir: pathlib.Path) -> list[bool]:
    """Of both ways to read a checkpoint."""
    directory, wanted = f"{workdir}/checkpoints/3", state()
    whole = same_or_damage(lambda: restore(workdir, wanted)._replace(step=None), wanted._replace(step=None), directory)
    return [whole, same_or_damage(lambda: checkpoint.read_params(str(workdir)), wanted.params, directory)]


def test_a_changed_byte_anywhere_is_noticed_or_harmless(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In each file of a checkpoint in turn; in the arrays' at several places."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    rng, arrays = random.Random(0), set()
    for file in files_of(tmp_path):
        whole, large = file.read_bytes(), file.stat().st_size > 4000
        for _ in range(6 if large else 1):
            place = rng.randrange(len(whole))
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            if any(both_damaged(tmp_path)) and large:
                arrays.add(file.relative_to(tmp_path).parts[2])
        file.write_bytes(whole)
    assert arrays == {"params", "optimizer"}


@pytest.mark.parametrize("cut", [True, False])
def test_a_missing_or_cut_file_is_damage(saved: pathlib.Path, tmp_path: pathlib.Path, cut: bool) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    damaged = 0
    for file in files_of(tmp_path):
        whole = file.read_bytes()
        if cut:
            file.write_bytes(whole[: len(whole) // 2])
        else:
            file.unlink()
        damaged += both_damaged(tmp_path)[0]
        file.write_bytes(whole)
    assert damaged > 4


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_another_mesh_verifies_the_same_checksums(saved: pathlib.Path, shape: tuple[int, int]) -> None:
    onto = state(*shape)
    found = restore(saved, onto)
    assert_equal(found, onto)
    assert found.params["encoder"]["kernel"].sharding == onto.params["encoder"]["kernel"].sharding


def test_a_checkpoint_without_checksums_is_read(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As earlier versions wrote it."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "checksums")
    assert_equal(restore(tmp_path, state()).params, state().params)
    assert_equal(checkpoint.read_params(str(tmp_path)), state().params)


def test_weights_alone_are_verified(tmp_path: pathlib.Path) -> None:
    """Those that a conversion wrote, or a frozen encoder."""
    checkpoint.write_params(str(tmp_path), {"encoder": {"kernel": np.random.default_rng(0).normal(size=(99, 99))}})
    (file,) = (file for file in tmp_path.rglob("d/*") if file.stat().st_size > 9000)
    whole = file.read_bytes()
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:])
    with pytest.raises(ValueError, match=r"checkpoints/0: .*damaged: delete that directory; there is none before it"):
        checkpoint.read_params(str(tmp_path))


def test_other_parameters_are_named(saved: pathlib.Path) -> None:
    onto = state()
    onto = onto._replace(params={**onto.params, "pooler": {"scale": jnp.zeros(33)}})
    with pytest.raises(ValueError, match=r"holds other parameters .* pooler/scale is \(32,\) there, \(33,\) here"):
        restore(saved, onto)


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


@pytest.mark.parametrize(
    ("inner", "kind"),
    [
        (OUT_OF_MEMORY, jax.errors.JaxRuntimeError),
        (MemoryError("no room"), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (asyncio.CancelledError(), asyncio.CancelledError),
        (PermissionError(13, "Permission denied", "manifest"), OSError),
        (TimeoutError("timed out"), OSError),
        (ConnectionResetError(104, "reset by peer"), OSError),
        (OSError(5, "Input/output error"), OSError),
        (ValueError('UNAVAILABLE: Error opening "zarr" driver'), OSError),
        (ValueError("PERMISSION_DENIED: Error reading local file"), OSError),
        (RuntimeError("a fault of the program"), RuntimeError),
    ],
)
def test_what_is_no_damage_brings_no_advice_to_delete(
    saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch, inner: BaseException, kind: type
) -> None:
    """Raised where Orbax reads an array, which it wraps in an error of its own."""
    from orbax.checkpoint._src.serialization import serialization

    async def fail(**_: Any) -> None:
        raise inner

    def fail_whole(*_: Any, **__: Any) -> None:
        raise Exception("a page of text") from inner

    monkeypatch.setattr(serialization, "_read_shard", fail)
    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, "restore", fail_whole)
    for read in (lambda: restore(saved, state()), lambda: checkpoint.read_params(str(saved))):
        with pytest.raises(kind) as raised:
            read()
        assert "delete" not in str(raised.value)
        assert str(inner) in str(raised.value)


@pytest.mark.parametrize("text", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_before_any_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise ValueError(f"RESOURCE_EXHAUSTED: Failed to write 3067904 bytes to file 30: {text}")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(OSError, match=r"is full; no checkpoint is complete yet\. Make room and run the same command"):
        checkpoints.save(1, state())
    with pytest.raises(OSError, match=r"the disk of .* is full"):
        checkpoint.write_params(str(tmp_path), {"a": np.zeros(3)})


@settings(max_examples=30)
@given(st.sampled_from(["float32", "bfloat16", "int32", "bool", "uint8", "float16"]), st.integers(0, 3), st.data())
def test_checksums_are_the_same_on_host_and_devices(dtype: str, rank: int, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    array = np.random.default_rng(rank).integers(0, 2 if dtype == "bool" else 99, shape).astype(jnp.dtype(dtype))
    (on_device,) = checkpoint._on_devices([jnp.asarray(array)])
    assert int(on_device) == checksum(array)


def test_checksums_know_values_and_places() -> None:
    array = np.random.default_rng(0).normal(size=(70, 1000)).astype(np.float32)  # more than a part of the loop
    whole = checksum(array)
    assert checksum(array[:, :500]) != whole
    for place in ((0, 0), (69, 999), (33, 5)):
        changed = array.copy()
        changed[place] = np.nextafter(changed[place], np.float32(9))
        assert checksum(changed) != whole
    assert checksum(array[::-1]) != whole
    assert checksum(np.asarray(0.0, np.float32)) != checksum(np.asarray(-0.0, np.float32))


def test_paths_are_made_absolute_where_they_are_local(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(files.path("run")) == str(tmp_path / "run")
    assert files.path("gs://bucket/run").parts[-2:] == ("bucket", "run")
    assert str(files.path("gs://bucket/run")) == "gs://bucket/run"
