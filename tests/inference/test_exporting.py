"""A model as one program: the same numbers in a process that knows nothing of this package, at any size."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from bert_jax.inference import exporting
from bert_jax.tasks.choice import Choose
from tests.inference.test_model import CLASSES, made
from tests.weights.test_weights import batch

KINDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "none": ((), None),
    "masked LM": (("masked_lm",), None),
    "classes": (("pooler", "classifier"), CLASSES),
    "choice": (("pooler", "choice"), Choose(train="")),
}
ELSEWHERE = """
import json, pathlib, sys
import jax, numpy as np
for name in ("classes", "vectors"):
    program = jax.export.deserialize(bytearray(pathlib.Path(name).read_bytes()))
    for size in ("16", "9"):
        given = np.load(size + ".npz")
        found = program.call(given["tokens"], given["segments"], given["mask"])
        np.save(f"{name}-{size}.npy", found["logits"] if name == "classes" else found)
assert not any(name.startswith("bert_jax") for name in sys.modules)
"""


@pytest.mark.parametrize("kind", ["none", "masked LM", "choice"])
def test_a_program_gives_what_the_model_gives(kind: str) -> None:
    """Of any number of rows and tokens, whatever the head."""
    model = made(*KINDS[kind])
    program = jax.export.deserialize(bytearray(exporting.export(model, platforms=("cpu",))))
    rows = batch(3, 11, 40)
    if kind == "choice":
        rows = {name: np.stack([value, value[::-1]], axis=1) for name, value in rows.items()}
    found: Any = program.call(rows["tokens"], rows["segments"], rows["mask"])
    if kind == "none":
        np.testing.assert_allclose(
            found, model._states(model.params["encoder"], **inputs(rows), layers=(2,))[0], atol=1e-5
        )
        return
    wanted = model.outputs(rows)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def inputs(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: rows[name] for name in ("tokens", "segments", "mask")}


def test_another_process_needs_jax_alone(tmp_path: pathlib.Path) -> None:
    model = made(*KINDS["classes"])
    (tmp_path / "classes").write_bytes(exporting.export(model))
    (tmp_path / "vectors").write_bytes(exporting.export(model, "mean", platforms=("cpu", "tpu")))
    given = {length: batch(length - 7, length, 40) for length in (16, 9)}
    for length, rows in given.items():
        np.savez(tmp_path / f"{length}.npz", **inputs(rows))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    for length, rows in given.items():
        logits = np.load(tmp_path / f"classes-{length}.npy")
        np.testing.assert_allclose(logits, model.outputs(rows)["logits"], atol=1e-5)
        vectors = np.load(tmp_path / f"vectors-{length}.npy")
        wanted = model._pooled(model.params["encoder"], **inputs(rows), layer=model.config.layers, pooling="mean")
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_what_cannot_be_exported_is_said() -> None:
    with pytest.raises(ValueError, match="this model has no heads"):
        exporting.export(made(()), "heads")
    with pytest.raises(ValueError, match="an export is not of 'head': did you mean"):
        exporting.export(made(()), "head")
    fixed = jax.export.deserialize(bytearray(exporting.export(made(()), "cls", batch_size=2, platforms=("cpu",))))
    assert [str(one) for one in fixed.in_avals[0].shape] == ["2", "t"]
    with pytest.raises(ValueError, match="t"):
        fixed.call(*inputs(batch(2, 17, 40)).values())
