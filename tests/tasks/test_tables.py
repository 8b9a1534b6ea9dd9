"""Rows of files: the formats, what is published oddly, and what is wrong with a file, by file and line."""

import bz2
import gzip
import json
import lzma
import pathlib

import pytest

from bert_jax import experiment
from bert_jax.tasks import tables
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.tasks.windows import Question
from bert_jax.text import readers


def write(folder: pathlib.Path, text: str | bytes, name: str = "file.tsv") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def cells(path: str, *needed: str, **how: object) -> list[tuple[str, ...]]:
    rows = tables.read(path, needed, **how)  # type: ignore[arg-type]
    return [tuple(row.cells[name] for name in needed) for row in rows]


def test_a_tsv_is_read_as_it_is_published(tmp_path: pathlib.Path) -> None:
    """A byte order mark, Windows line ends, lone quotes, a line separator in a text, an empty last line."""
    path = write(tmp_path, '\ufeffa\tb\r\nan "odd quote\t1\r\nline\u2028break\t0\r\n\r\n')
    assert cells(path, "b", "a") == [("1", 'an "odd quote'), ("0", "line\u2028break")]
    assert [row.place for row in tables.read(path, ["a"])] == [f"{path}:2", f"{path}:3"]


def test_a_csv_has_quoted_cells(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, 'a,b\n"x, ""y""\nz",1\nw,2\n', "file.csv")
    assert cells(path, "a", "b") == [('x, "y"\nz', "1"), ("w", "2")]
    assert [row.place for row in tables.read(path, ["a"])] == [f"{path}:2", f"{path}:4"]


def test_json_lines(tmp_path: pathlib.Path) -> None:
    lines = [{"a": "x\ty", "b": 1, "c": True}, {"b": 2.5, "a": "z"}]
    path = write(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "file.jsonl")
    assert cells(path, "a", "b") == [("x\ty", "1"), ("z", "2.5")]


def test_a_file_without_a_header_names_its_columns_elsewhere(tmp_path: pathlib.Path) -> None:
    """A first line that holds the columns' names is a header all the same: CoLA's test file has one."""
    bare, headed = write(tmp_path, "1\tx\n0\ty\n"), write(tmp_path, "id\ta\n7\tz\n", "headed.tsv")
    assert cells(bare, "a", columns=("b", "a")) == [("x",), ("y",)]
    assert cells(headed, "a", columns=("b", "a")) == [("z",)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.tsv", "a\tb\ngood\t1\nbad\n", r"f.tsv:3: 2 columns expected \(a, b\), 1 found: 'bad'"),
        ("f.tsv", "a\tb\nx\ty\t1\n", r"f.tsv:2: 2 columns expected .*, 3 found: 'x \| y \| 1'"),
        ("f.tsv", "aa\tb\nx\t1\n", r"f.tsv:1: no column 'a': did you mean 'aa'\?"),
        ("f.tsv", "a\tb\n", "no rows after the header"),
        ("f.tsv", "", r"f.tsv: no rows"),
        ("f.tsv", b"a\tb\nx\xff\t1\n", r"f.tsv:2: byte 5 is 0xff, which is not UTF-8"),
        ("f.csv", 'a,b\nx,1\n"y,2\nz,3\n', r"f.csv:3: unexpected end of data: is a quote left open"),
        ("f.csv", 'a,b\n"x"y,1\n', r"f.csv:2: .*: is a quote left open or not doubled"),
        ("f.jsonl", '{"a": 1, "b": 2}\n{"a": 1\n', r"f.jsonl:2: no JSON object"),
        ("f.jsonl", '{"a": 1, "bb": 2}\n', r"f.jsonl:1: no field 'b': did you mean 'bb'"),
        ("f.jsonl", "[1]\n", r"f.jsonl\[0\]: a JSON object is expected, not 1"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: pathlib.Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.read(write(tmp_path, text, name), ["a", "b"])


def test_malformed_rows_may_be_skipped_and_are_counted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(tables.logging, "warning", lambda text, *values: said.append(text % values))
    path = write(tmp_path, "a\tb\nx\t1\nbad\ny\t2\nworse\n")
    assert cells(path, "a", malformed="skip") == [("x",), ("y",)]
    assert said == [f"{path}: 2 malformed rows skipped, the first in line 3"]


def test_a_missing_file_asks_for_the_data_dir(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="--data_dir must name the folder"):
        tables.read(str(tmp_path / "absent.tsv"), ["a"])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("MNLI/dev_mismatched.tsv", "dev_mismatched"),
        ("tfds:glue/mnli:validation_mismatched", "validation_mismatched"),
        ("eng.testb", "eng.testb"),
        ("en-ud-train.conllu.xz", "en-ud-train"),
        ("/data/a.b.jsonl", "a.b"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert tables.stem(name) == stem


def test_paths_are_relative_to_the_data_dir() -> None:
    assert tables.path_of("a/b.tsv", "data") == "data/a/b.tsv"
    assert tables.path_of("/a/b.tsv", "data") == "/a/b.tsv"
    assert tables.path_of("tfds:a:b", "data") == "tfds:a:b"


def test_an_archive_stands_in_for_a_file_that_is_not_there(tmp_path: pathlib.Path) -> None:
    for ending, module in ((".gz", gzip), (".xz", lzma), (".bz2", bz2)):
        with module.open(tmp_path / f"rows.csv{ending}", "wb") as file:
            file.write(b'a,b\n"x, y",1\n')
        path = tables.path_of("rows.csv", str(tmp_path))
        assert path == str(tmp_path / f"rows.csv{ending}")
        assert [row.cells for row in tables.read(path, ["a"])] == [{"a": "x, y", "b": "1"}]
        (tmp_path / f"rows.csv{ending}").unlink()
    (tmp_path / "rows.csv").write_text("a\n1\n")
    (tmp_path / "rows.csv.xz").write_bytes(b"")
    assert tables.path_of("rows.csv", str(tmp_path)) == str(tmp_path / "rows.csv")


class Counted(str):
    """A name that counts the messages that it is put into."""

    times = 0

    def __format__(self, spec: str) -> str:
        Counted.times += 1
        return super().__format__(spec)


def test_messages_are_built_for_bad_data_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They took longer than the reading itself: the nearest of a line's fields, all labels of a word's.

    A few about a file are no matter; none is there for each of its 50 lines.
    """
    name = Counted("train")
    monkeypatch.setattr(tables, "read_text", lambda _: "a B-X\n" * 50)
    tag = Tag(train="", dev=("",), labels=("O", "B-X", "I-X"), label=2, document=False)
    assert len(tag.read(name)[0][0].words) == 50
    questions = [Question("q", "a?", "b c", (("c", 2),))] * 50
    assert Squad(train="", dev="").located(questions, name, train=True) == questions

    row = tables.Row(name, {"sentence": "a", "label": "1", "sent1": "b", "sent2": "c", "end": "d"})
    monkeypatch.setattr(tables, "read", lambda *_, **__: [row] * 50)
    for labels in (("0", "1"), ()):
        assert Classify(train="", dev=("",), labels=labels).read("")[49].label == 1
    assert Choose(train="", endings=("end", "sent1")).read("")[49].label == 1

    monkeypatch.undo()
    for reader in (tables, readers):
        monkeypatch.setattr(reader, "nearest", lambda *_: f"{name}")
    path = write(tmp_path, (json.dumps({"text": "a b"}) + "\n") * 50, "file.jsonl")
    assert len(cells(path, "text")) == len(list(readers.documents([path]))) == 50
    assert Counted.times < 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("null", "a must be a text, not null"),
        ("NaN", "a must be a text, not NaN"),
        ("3", "a must be a text, not 3"),
        ('["x"]', r"a must be a text, not \[\"x\"\]"),
        ('{"x": 1}', r"a must be a text, not \{\"x\": 1\}"),
        ('"\\ud83d"', "a holds half a surrogate pair"),
        ('"x", "a": "y"', "no JSON object: 'a' is there twice"),
    ],
)
def test_a_text_of_json_is_a_text(tmp_path: pathlib.Path, value: str, message: str) -> None:
    path = write(tmp_path, '{"a": "x", "b": 1}\n\n{"a": ' + value + ', "b": 1}\n', "f.jsonl")
    with pytest.raises(ValueError, match=rf"f.jsonl:3: {message}"):
        tables.read(path, ["a", "b"], texts=["a"])


def test_other_values_are_cells(tmp_path: pathlib.Path) -> None:
    """Null is an empty cell; what is not read is no matter."""
    path = write(tmp_path, '{"a": null, "b": true, "c": [1, "x"], "d": NaN}\n', "f.jsonl")
    assert tables.read(path, ["a"])[0].cells == {"a": "", "b": "true", "c": '[1, "x"]', "d": "NaN"}


def test_an_array_of_rows(tmp_path: pathlib.Path) -> None:
    rows = [{"a": "x", "b": 1}, {"a": "y", "b": 2}]
    for indent in (None, 1):
        path = write(tmp_path, json.dumps(rows, indent=indent), "f.json")
        assert cells(path, "a", "b") == [("x", "1"), ("y", "2")]
    assert [row.place for row in tables.read(path, ["a"])] == [f"{path}[0]", f"{path}[1]"]
    with pytest.raises(ValueError, match=r"f.json:1: no JSON object: .* \(rows are an object a line, or one array"):
        tables.read(write(tmp_path, json.dumps({"data": rows}, indent=1), "f.json"), ["a"])


def test_cells_of_any_length_names_in_capitals_and_other_encodings(tmp_path: pathlib.Path) -> None:
    long = "word " * 60_000
    assert cells(write(tmp_path, f"a,b\n{long},1\n", "F.CSV"), "a") == [(long,)]
    assert cells(write(tmp_path, "a\tb\né\t1\n".encode("utf-16"), "f.tsv"), "a", "b") == [("é", "1")]
    assert cells(write(tmp_path, b"a\tb\rx\t1\ry\t2\r", "f.tsv"), "a", "b") == [("x", "1"), ("y", "2")]


def test_two_columns_of_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    """But for columns without a name, which some programs leave."""
    with pytest.raises(ValueError, match=r"f.tsv:1: two columns have the name 'b'"):
        tables.read(write(tmp_path, "a\tb\tb\nx\t1\t2\n", "f.tsv"), ["a"])
    assert cells(write(tmp_path, "a\t\t\nx\t1\t2\n", "f.tsv"), "a") == [("x",)]


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(tables.logging, "warning", lambda text, *values: said.append(text % values))
    path = write(tmp_path, "sentence\tlabel\nx\t-\ny\t1\nz\t\n")
    task = Classify(train="", dev=("d",), labels=("0", "1"), unlabelled=("-", ""))
    assert [one.texts for one in task.read(path)] == [("y",)]
    assert said == [f"{path}: 2 of 3 rows have no label and are left out"]
    value = Classify(train="", dev=("d",), unlabelled=("-", ""))
    assert [one.label for one in value.read(path)] == [1.0]
    with pytest.raises(ValueError, match=r"file.tsv:2: label '-' is none of 0, 1; .*task.unlabelled"):
        Classify(train="", dev=("d",), labels=("0", "1")).read(path)
    with pytest.raises(ValueError, match="none of 1 rows has a label"):
        task.read(write(tmp_path, "sentence\tlabel\nx\t-\n"))
    rows = write(tmp_path, "sent1\tend0\tend1\tlabel\na\tb\tc\t-1\na\tb\tc\t1\n")
    choose = Choose(train="", context="sent1", start="", endings=("end0", "end1"), unlabelled=("-1",))
    assert [one.label for one in choose.read(rows)] == [1]


def test_snli_s_own_files_are_read(tmp_path: pathlib.Path) -> None:
    """As published: the annotators' labels beside the gold one, which is "-" where they do not agree."""
    row = {"annotator_labels": ["neutral"], "captionID": "1", "pairID": "1r1n", "sentence1": "A.", "sentence2": "B."}
    rows = [{**row, "gold_label": gold} for gold in ("neutral", "-", "entailment", "contradiction")]
    path = write(tmp_path, "".join(json.dumps(one) + "\n" for one in rows), "snli_1.0_dev.jsonl")
    task = experiment.load("snli").task
    assert isinstance(task, Classify)
    assert [(one.texts, task.labels[int(one.label)]) for one in task.read(path)] == [
        (("A.", "B."), label) for label in ("neutral", "entailment", "contradiction")
    ]
