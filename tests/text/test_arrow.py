"""Parquet and Arrow files, and folders as Hugging Face's `datasets` writes them (made here by hand), through every
reader."""

import json
import pathlib
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from bert_jax.experiment import Experiment
from bert_jax.tasks import tables, windows
from bert_jax.tasks.classify import Classify, Example
from bert_jax.tasks.tagging import Sentence, Tag
from bert_jax.text import arrow, readers
from bert_jax.training import fingerprints

LABEL = {"names": ["neg", "pos"], "_type": "ClassLabel"}


def table(columns: dict[str, list], **features: Any) -> pyarrow.Table:
    """With the note on features that `datasets` leaves in a schema."""
    found = pyarrow.table(columns)
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


ROWS = table({"sentence": ["x", "y z"], "label": [1, 0], "idx": [7, 8]}, label=LABEL)
TASK = Classify(train="", dev=("d",), labels=("neg", "pos"), index="idx")


def parquet(path: pathlib.Path, rows: pyarrow.Table) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(rows, path)
    return str(path)


def saved(folder: pathlib.Path, *shards: pyarrow.Table, stream: bool = True, **state: Any) -> str:
    """As `save_to_disk` leaves a split."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(str(folder / name), rows.schema) as file:
            file.write_table(rows)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-0123.arrow").write_bytes(b"not read")
    return str(folder)


def test_classes_have_their_names(tmp_path: pathlib.Path) -> None:
    wanted = [Example(("x",), 1, "7"), Example(("y z",), 0, "8")]
    assert TASK.read(parquet(tmp_path / "a.parquet", ROWS)) == wanted
    assert TASK.read(saved(tmp_path / "saved" / "train", ROWS)) == wanted
    assert TASK.read(saved(tmp_path / "file" / "train", ROWS, stream=False)) == wanted
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", ROWS)
    parquet(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", ROWS)
    assert TASK.read(str(tmp_path / "hub")) == TASK.read(str(tmp_path / "hub/data/train-*.parquet")) == wanted * 2
    hidden = table({"sentence": ["x"], "label": [-1]}, label=LABEL)
    assert tables.read(parquet(tmp_path / "h.parquet", hidden), ["label"])[0].cells["label"] == ""
    assert tables.is_there(str(tmp_path / "hub/data/train-*.parquet"))
    assert not tables.is_there(str(tmp_path / "hub/data/test-*.parquet"))
    assert tables.stem("hub/data/train-*.parquet") == tables.stem("saved/train/") == "train"
    assert tables.stem("data/test-00000-of-00001.parquet") == "test"


def test_what_is_wrong_is_named(tmp_path: pathlib.Path) -> None:
    several = tmp_path / "several"
    saved(several / "train", ROWS)
    saved(several / "test", ROWS)
    (several / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", ROWS)
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", ROWS)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.arrow").write_bytes(b"x" * 100)
    (tmp_path / "empty").mkdir()
    null = parquet(tmp_path / "null.parquet", table({"sentence": ["x", None], "label": [1, 1]}, label=LABEL))
    for path, message in {
        str(several): r"several holds several splits: name one, .*several/train or .*several/test",
        str(tmp_path / "hub"): r"hub holds several splits: name one, .*data/test-\*.parquet or .*data/train-\*.parquet",
        str(tmp_path / "bad.parquet"): r"bad.parquet: no parquet file, or a damaged one",
        str(tmp_path / "bad.arrow"): r"bad.arrow: no arrow file, or a damaged one",
        str(tmp_path / "none-*.parquet"): r"there is no file .*none-\*.parquet",
        str(tmp_path / "empty"): r"empty: a folder without parquet",
        saved(tmp_path / "picked", ROWS, _indices_data_files=[{"filename": "i.arrow"}]): "flatten_indices",
        null: r"null.parquet\[1\]: sentence must be a text, not null",
    }.items():
        with pytest.raises(ValueError, match=message):
            TASK.read(path)
    with pytest.raises(ValueError, match=r"a.parquet: no column 'sentense': did you mean 'sentence'"):
        tables.read(parquet(tmp_path / "a.parquet", ROWS), ["sentense"])


def test_as_text(tmp_path: pathlib.Path) -> None:
    rows = table({"text": ["One. Two.", "Three."], "id": [1, 2]})
    path = parquet(tmp_path / "a.parquet", rows)
    assert [(d.name, d.text) for d in readers.documents([path])] == [
        (f"{path}[0]", "One. Two."),
        (f"{path}[1]", "Three."),
    ]
    folder = saved(tmp_path / "saved" / "train", rows, rows)
    assert [d.text for d in readers.documents([str(tmp_path / "saved")])] == ["One. Two.", "Three."] * 2
    assert len(readers.identity([folder])) == 5
    with pytest.raises(ValueError, match=r"a.parquet: no column 'body': there is: text, id"):
        list(readers.documents([path], field="body"))
    with pytest.raises(ValueError, match=r"a.parquet\[0\]: the field 'id' must be a text, not 1"):
        list(readers.documents([path], field="id"))


def test_as_questions_and_as_tags(tmp_path: pathlib.Path) -> None:
    answers = [{"text": ["b"], "answer_start": [2]}, {"text": [], "answer_start": []}]
    rows = table({"id": ["q", "r"], "question": ["?", "?"], "context": ["a b", "c"], "answers": answers})
    found = list(windows.read(parquet(tmp_path / "q.parquet", rows)))
    assert [(one.id, one.context, one.answers) for one in found] == [("q", "a b", (("b", 2),)), ("r", "c", ())]
    tags = {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "Sequence"}
    path = parquet(tmp_path / "t.parquet", table({"tokens": [["a", "b c"]], "ner_tags": [[1, 0]]}, ner_tags=tags))
    task = Tag(train="", dev=("d",), labels=("O", "B-X"), rows=("tokens", "ner_tags"), document=False)
    assert task.read(path) == [[Sentence(("a", "b c"), ("B-X", "O"))]]


def test_a_folder_is_known_by_its_rows(tmp_path: pathlib.Path, tiny: Experiment) -> None:
    import dataclasses

    saved(tmp_path / "a" / "train", ROWS)
    saved(tmp_path / "b" / "train", ROWS)
    saved(tmp_path / "c" / "train", ROWS.slice(1))
    task = Classify(train="train", dev=("train",), labels=("neg", "pos"))
    found = [fingerprints.of(dataclasses.replace(tiny, task=task), str(tmp_path / name)) for name in "abc"]
    assert found[0]["task.train"] == found[1]["task.train"] != found[2]["task.train"]
    assert not arrow.is_source(str(tmp_path / "a" / "train" / "state.json"))
