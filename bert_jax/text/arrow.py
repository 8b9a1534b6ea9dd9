"""Rows of parquet and Arrow files, and of the folders that Hugging Face's `datasets` saves or the hub's clones hold."""

from __future__ import annotations

import glob
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bert_jax import files
from bert_jax.config import nearest, require
from bert_jax.text import decoding

SUFFIXES = (".parquet", ".arrow")
# What such a folder holds beside rows.
_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def is_source(path: str) -> bool:
    """Whether a path is of this kind: a file or a pattern by its ending, or a folder."""
    return path.lower().endswith(SUFFIXES) or os.path.isdir(path)


def is_record(file: pathlib.Path) -> bool:
    """Whether a file only says what lies beside it, or is a copy that `datasets` made for itself."""
    return file.name in _RECORDS or (file.suffix == ".arrow" and file.name.startswith("cache-"))


def paths(path: str) -> list[pathlib.Path]:
    """The files of a source, in their order.

    A source is a file, a pattern ("emotion/data/train-*.parquet"), or a folder with the rows of one split: what
    `save_to_disk` wrote of a data set ("saved/train"), or a folder of parquet files.

    Raises:
      ValueError: there is no such file, or a folder holds several splits, which the message lists.
    """
    if not os.path.isdir(path):
        if "://" in path:
            return [files.local(path)]
        # A file's name may hold what a pattern uses.
        found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        require(bool(found), f"there is no file {path}")
        return [pathlib.Path(file) for file in found]
    folder = pathlib.Path(path)
    if (folder / "state.json").exists():
        state = _object(folder / "state.json")
        require(
            not (state.get("_indices_data_files") or state.get("_indices_files")),
            f"{path}: its rows are picked by an index: save it again after flatten_indices()",
        )
        return [folder / entry["filename"] for entry in state.get("_data_files", [])]
    if (folder / "dataset_dict.json").exists():
        splits = [os.path.join(path, name) for name in _object(folder / "dataset_dict.json").get("splits", [])]
        raise ValueError(f"{path} holds several splits: name one, {' or '.join(splits)}")
    shards = sorted(file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}") if not is_record(file))
    require(bool(shards), f"{path}: a folder without parquet or Arrow files; name the file itself")
    splits = list(dict.fromkeys(re.sub(r"(\d+-of-\d+|\d+)(?=\.\w+$)", "*", str(file)) for file in shards))
    require(len(splits) == 1, f"{path} holds several splits: name one, {' or '.join(splits)}")
    return shards


def rows(path: str, needed: Sequence[str], *, only: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a source (see `paths`), each with its place, "FILE[NUMBER]"; `only` reads the columns `needed` alone.

    A class is its name in the data set's own list of labels, or "" where it is hidden (-1).

    Raises:
      ValueError: that names the file and what is wrong with it: it is damaged, or lacks a column.
    """
    import pyarrow  # slow, and most sources do without

    for file in paths(path):
        try:
            number = 0
            for names, batch in _batches(file, needed, only):
                for row in batch.to_pylist():
                    yield f"{file}[{number}]", {key: _named(value, names.get(key)) for key, value in row.items()}
                    number += 1
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{file}: no {file.suffix[1:]} file, or a damaged one ({said})") from None


def _batches(file: pathlib.Path, needed: Sequence[str], only: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """Parts of a file as tables, with the features that `datasets` notes of its columns."""
    import pyarrow.ipc
    import pyarrow.parquet

    if file.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(file) as content:
            features = _features(content.schema_arrow, file, needed)
            for batch in content.iter_batches(1000, columns=list(needed) if only else None):
                yield features, batch
        return
    with pyarrow.memory_map(str(file)) as mapped:
        try:
            stream = pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:  # `datasets` writes streams, others write files
            mapped.seek(0)
            whole = pyarrow.ipc.open_file(mapped)
            features, batches = (
                _features(whole.schema, file, needed),
                (whole.get_batch(n) for n in range(whole.num_record_batches)),
            )
        else:
            features, batches = _features(stream.schema, file, needed), iter(stream)
        for batch in batches:
            yield features, batch.select(list(needed)) if only else batch


def _features(schema: Any, file: pathlib.Path, needed: Sequence[str]) -> dict[str, Any]:
    for name in needed:
        require(name in schema.names, f"{file}: no column {name!r}: {nearest(name, schema.names)}")
    require(len(set(schema.names)) == len(schema.names), f"{file}: two columns have one name: {schema.names}")
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _named(value: Any, feature: Any) -> Any:
    """A value with the names of classes for their numbers."""
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(value, int):
        names = feature.get("names", [])
        return names[value] if 0 <= value < len(names) else "" if value < 0 else value
    if isinstance(value, list):
        inner = feature.get("feature") if isinstance(feature, dict) else feature[0] if feature else None
        return [_named(item, inner) for item in value] if inner else value
    return value


def _object(file: pathlib.Path) -> dict[str, Any]:
    try:
        found = decoding.json_value(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: no JSON: {error}") from None
    require(isinstance(found, dict), f"{file}: a JSON object is expected")
    return found
