"""What the data of a run are, by content: wherever they lie, and however their paths are written."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from bert_jax import cache, config, experiment
from bert_jax.corpus import store
from bert_jax.experiment import Experiment
from bert_jax.tasks import tables
from bert_jax.text import arrow, decoding, readers, tokenizer
from bert_jax.weights import checkpoint, pretrained

# The files of published weights: of several kinds that lie in one directory, the first is read.
_WEIGHTS = (("*.safetensors",), ("*.bin",), ("*.index", "*.data-*"))


def of(exp: Experiment, data_dir: str = "") -> dict[str, str]:
    """The fingerprint of all that a run's result depends on and its fields only name, by the field that names it:
    "task.corpus", "task.dev.0", "vocab", "init_from".

    A corpus is known by what its manifest says of its sources' contents, its vocabulary and its counts; a task's file
    by what is in it (of an archive, unpacked) and by its name, which says how it is read; a TFDS set by name and
    version; a vocabulary by its pieces; weights by their encoder, their vocabulary and the bytes of their files. What
    is not there, or cannot be read, has no fingerprint: the run itself says what is wrong with it.
    """
    data: dict[str, Callable[[], str]] = {name: functools.partial(_corpus, name) for name in exp.task.corpora()}
    data |= {name: functools.partial(_file, name, data_dir) for name in exp.task.files()}
    fields = {name: value for name, value in config.leaves(config.to_dict(exp)).items() if isinstance(value, str)}
    found = {field: data[name] for field, name in fields.items() if field.startswith("task.") and name in data}
    found |= {f"task: {name}": make for name, make in data.items() if name not in fields.values()}
    found |= {"vocab": lambda: tokenizer.load(exp.vocab).fingerprint[:32], "init_from": lambda: _weights(exp)}
    known = {}
    for field, make in found.items():
        with contextlib.suppress(ValueError, OSError, ImportError):
            if fields.get(field, "-"):
                known[field] = make()
    if "init_from" in known:  # which of its checkpoints is a place, too
        known["init_step"] = known["init_from"]
    return known


def _corpus(directory: str) -> str:
    known = store.read_json(pathlib.Path(directory) / store.MANIFEST)
    sources = [source.get("sha256", source) for source in known["sources"]]
    made = [known.get(name) for name in ("vocabulary", "errors", "field", "counts")]
    if any("sha256" not in source for source in known["sources"]):  # of what is no file: what became of it
        made.append(known.get("checksums"))
    return cache.digest(json.dumps([sources, made], sort_keys=True))


def _file(name: str, data_dir: str) -> str:
    path = tables.path_of(name, data_dir)
    if path.startswith("tfds:"):
        return _tfds(path)
    if arrow.is_source(path):
        return cache.digest(*(f"{part.name}:{_content(str(part))}" for part in arrow.paths(path)))
    return f"{os.path.basename(tables.plain(name))}:{_content(path)}"


_tfds = functools.cache(readers.tfds_version)


def _weights(exp: Experiment) -> str:
    source = pretrained.open(exp.init_from, exp.init_step)
    fields = config.to_dict(source.encoder).items()
    encoder = {name: value for name, value in fields if not experiment.resumable(f"encoder.{name}")}
    parts = [json.dumps(encoder, sort_keys=True), source.tokenizer.fingerprint if source.tokenizer else ""]
    if not exp.random_init:
        folder = epath.Path(source.directory)
        files = list(_trained(folder, exp.init_step) if source.origin == "workdir" else _published(folder))
        config.require(files, f"{folder} holds no weights")
        parts += [f"{path.name} {_content(str(path))}" for path in files]
    return cache.digest(*parts)


def _trained(folder: epath.Path, step: int | None) -> Iterator[epath.Path]:
    """The files of a run's parameters."""
    step = max(checkpoint.steps(folder)) if step is None else step
    yield from _below(folder / "checkpoints" / str(step) / "params")
    if (folder / "frozen").exists():
        yield from _below(folder / "frozen")


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        yield from _below(path) if path.is_dir() else (path,)


def _published(folder: epath.Path) -> Iterator[epath.Path]:
    for patterns in _WEIGHTS:
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        if found:
            yield from found
            return


def _content(path: str) -> str:
    """A name for what is in a file, once for as long as it does not change."""
    if "://" in path:
        remote = epath.Path(path).stat()
        return _hashed(path, remote.length, remote.mtime)
    local = os.stat(path)
    return _hashed(os.path.realpath(path), local.st_size, local.st_mtime_ns)


@functools.cache
def _hashed(path: str, size: int, changed: Any) -> str:
    if tables.plain(path) != path:
        return hashlib.sha256(decoding.decompressed(pathlib.Path(path))).hexdigest()[:32]
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
