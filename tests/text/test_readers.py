"""Documents and sentences: each kind of source, and what is said of a bad one."""

import bz2
import gzip
import json
import lzma
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import zstandard
from array_record.python import array_record_module

from bert_jax.text import readers
from bert_jax.text.readers import Document
from tests.conftest import REPOSITORY

POEM = "One. Two?\nThree.\n\n\n  Four: naïve 中文。\n"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def write(path: pathlib.Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(*sources: str, errors: str = "strict", field: str = "text") -> list[Document]:
    return list(readers.documents(list(sources), errors=errors, field=field))


# --- files


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_plain(tmp_path: pathlib.Path, suffix: str) -> None:
    source = write(tmp_path / f"a.txt{suffix}", COMPRESSIONS[suffix](POEM.encode()))
    assert read(source) == [
        Document(f"{source}:1", "One. Two?\nThree."),
        Document(f"{source}:5", "Four: naïve 中文。"),
    ]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines(tmp_path: pathlib.Path, name: str, suffix: str) -> None:
    rows = [{"text": POEM, "id": 1}, {"text": " "}, {"text": "half \ud83d\ude00 \u2028 of it"}]
    content = "\n".join(map(json.dumps, rows)) + "\n\n"
    source = write(tmp_path / (name + suffix), COMPRESSIONS[suffix](content.encode()))
    assert read(source) == [
        Document(f"{source}:1", "One. Two?\nThree.\nFour: naïve 中文。"),
        Document(f"{source}:3", "half 😀 \u2028 of it"),
    ]


def test_another_field(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"body": "one", "text": "two"}')
    assert [document.text for document in read(source, field="body")] == ["one"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_archives_of_several_parts(tmp_path: pathlib.Path, suffix: str) -> None:
    """What parallel compressors write; a reader that stops after the first part loses the rest silently."""
    parts = b"".join(COMPRESSIONS[suffix](part.encode()) for part in ("one\n\n", "two\n\n", "three"))
    source = write(tmp_path / f"a.txt{suffix}", parts)
    assert [document.text for document in read(source)] == ["one", "two", "three"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_damaged_archives(tmp_path: pathlib.Path, suffix: str) -> None:
    whole = COMPRESSIONS[suffix]("".join(f"line {i * i}\n\n" for i in range(3000)).encode())
    for content in (whole[:-20], whole[: len(whole) // 2], b"no archive"):
        source = write(tmp_path / f"a.txt{suffix}", content)
        with pytest.raises(ValueError, match=rf"a\.txt\{suffix}: the archive is damaged or cut short \(.+\)"):
            read(source)


def test_directories_and_patterns(tmp_path: pathlib.Path) -> None:
    for name in ("b.txt", "a/z.txt.gz", "a/b/y.jsonl", "notes.md"):
        content = '{"text": "a/b/y.jsonl"}' if name.endswith("jsonl") else name
        write(tmp_path / name, COMPRESSIONS[".gz" if name.endswith("gz") else ""](content.encode()))
    assert [document.text for document in read(str(tmp_path))] == ["a/b/y.jsonl", "a/z.txt.gz", "b.txt"]
    assert [document.text for document in read(str(tmp_path / "**/*.txt*"))] == ["a/z.txt.gz", "b.txt"]
    assert len(read(str(tmp_path / "b.txt"), str(tmp_path / "b.txt"))) == 2


def test_line_ends_and_marks(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n \t\r\nthree\xe2\x80\xa8still three")
    assert [document.text for document in read(source)] == ["one\ntwo", "three\u2028still three"]


def test_long_documents_are_cut(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST", 50)
    lines = [f"line {i} é" for i in range(40)]
    found = read(write(tmp_path / "a.txt", "\n".join(lines)))
    assert all(len(document.text) <= 50 for document in found)
    assert "\n".join(document.text for document in found).split("\n") == lines
    assert len({document.name for document in found}) == 1
    words = [f"w{i}" for i in range(300)]
    exactly = " ".join(words).ljust(1400, "x")  # the file ends where a piece does
    for content in (" ".join(words), " ".join(words) + "\n", " ".join(words) + "\nand", exactly):
        found = read(write(tmp_path / "a.txt", content))
        assert " ".join(document.text for document in found).split() == content.split()
        assert max(len(document.text) for document in found) < 100
    assert "".join(document.text for document in read(write(tmp_path / "a.txt", "x" * 1234))) == "x" * 1234
    rows = read(write(tmp_path / "a.jsonl", json.dumps({"text": "\n".join(lines)})))
    assert "\n".join(document.text for document in rows).split("\n") == lines


def test_reading_is_lazy(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "a.txt", "one\n\n" * 100_000 + "\xff")
    found = readers.documents([source])
    assert next(found).text == "one"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_not_utf8(tmp_path: pathlib.Path, suffix: str) -> None:
    content = b"fine\n\n" + "é".encode() * 100_000 + b"\nbad \xe9t\xe9\n"
    source = write(tmp_path / f"a.txt{suffix}", COMPRESSIONS[suffix](content))
    with pytest.raises(ValueError, match=r"a\.txt.*:4: byte 200011 is 0xe9, which is not UTF-8\. .*errors=replace"):
        read(source)
    assert read(source, errors="replace")[-1].text.endswith("bad \ufffdt\ufffd")
    cut = write(tmp_path / "cut.txt", "中".encode()[:2])
    with pytest.raises(ValueError, match=r"cut\.txt:1: byte 0 is 0xe4"):
        read(cut)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r'expected a JSON object like \{"text": "..."\}: Expecting .*column 13'),
        ('["text"]', r"expected a JSON object like .*, not \[\"text\"\]"),
        ('{"txt": "a"}', r"no field 'text': did you mean 'txt'\? there is: txt"),
        ('{"text": null}', r"the field 'text' must be a text, not null"),
        ('{"text": "\\ud800"}', r".* holds half a surrogate pair"),
    ],
)
def test_bad_json(tmp_path: pathlib.Path, line: str, message: str) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "good"}\n' + line)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: " + message):
        read(source)


def test_half_a_surrogate_pair_replaced(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "a \\ud800 b"}')
    assert readers.sentences(read(source, errors="replace")[0]) == ["a ? b"]


def test_bad_sources(tmp_path: pathlib.Path) -> None:
    """Seen at the call, before anything is read."""
    good = write(tmp_path / "good.txt", "good")
    for name in ("a.txt.lz4", "a.tsv", "a.gz"):
        with pytest.raises(ValueError, match=rf"{name}: do not know how to read it; known are \.txt"):
            readers.documents([good, write(tmp_path / name, "a")])
    with pytest.raises(FileNotFoundError, match="nothere: no such file or directory"):
        readers.documents([good, str(tmp_path / "nothere")])
    with pytest.raises(FileNotFoundError, match=r"\*\.xml: no such file"):
        readers.documents([str(tmp_path / "*.xml")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no text in this directory"):
        readers.documents([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="no sources"):
        readers.documents([])
    with pytest.raises(ValueError, match="must be a list, not the string"):
        readers.documents(good)
    with pytest.raises(ValueError, match="errors must be strict or replace, not 'ignore'"):
        readers.documents([good], errors="ignore")


def test_no_document(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"blank\.txt: there is no document in it"):
        read(write(tmp_path / "blank.txt", " \n\n\t\n"))


# --- TensorFlow Datasets


def prepared(folder: pathlib.Path, texts: list[str]) -> str:
    """A data set as `tfds build --file_format=array_record` leaves it, made without TensorFlow."""

    def field(number: int, content: bytes) -> bytes:  # of a protocol buffer; sizes below 128
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    folder.mkdir(parents=True)
    writer = array_record_module.ArrayRecordWriter(
        str(folder / "mini-train.array_record-00000-of-00001"), "group_size:1"
    )
    for one in texts:  # tf.train.Example: features { feature { key, value { bytes_list { value } } } }
        entry = field(1, b"text") + field(2, field(1, field(1, one.encode())))
        writer.write(field(1, field(1, entry)))
    writer.close()
    kind = "tensorflow_datasets.core.features."
    features = {
        "pythonClassName": kind + "features_dict.FeaturesDict",
        "featuresDict": {"features": {"text": {"pythonClassName": kind + "text_feature.Text", "text": {}}}},
    }
    split = {
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(len(texts))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": "mini", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(folder)


def test_tfds(tmp_path: pathlib.Path) -> None:
    folder = prepared(tmp_path / "mini" / "1.0.0", ["One. Two.\n\nThree.", "四。"])
    assert read(f"tfds:{folder}") == [
        Document(f"{folder}:train:0", "One. Two.\nThree."),
        Document(f"{folder}:train:1", "四。"),
    ]
    assert [document.text for document in read(f"tfds:{folder}:train[1:]")] == ["四。"]
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match="no split 'tests': there is: train"):
        read(f"tfds:{folder}:tests")
    with pytest.raises(ValueError, match="no feature 'txt': did you mean 'text'"):
        read(f"tfds:{folder}", field="txt")
    with pytest.raises(ValueError, match=r"is not prepared. .*tfds build ag_news_subset --file_format=array_record"):
        read("tfds:ag_news_subset")
    with pytest.raises(ValueError, match="no such data set, nor a directory of a prepared one"):
        read("tfds:nosuchset")
    with pytest.raises(ValueError, match="expected tfds:NAME or tfds:DIRECTORY"):
        read("tfds:")


@pytest.mark.parametrize(
    ("source", "name", "split"),
    [
        ("tfds:wiki40b/en", "wiki40b/en", None),
        ("tfds:wiki40b/en:validation", "wiki40b/en", "validation"),
        ("tfds:c4/en:3.0.1", "c4/en:3.0.1", None),
        ("tfds:c4/en:3.0.1:train[:1%]", "c4/en:3.0.1", "train[:1%]"),
        ("tfds:gs://bucket/mini/1.0.0:test", "gs://bucket/mini/1.0.0", "test"),
    ],
)
def test_tfds_names(source: str, name: str, split: str | None) -> None:
    match = readers._TFDS.fullmatch(source)
    assert match is not None
    assert (match["name"], match["split"]) == (name, split)


# --- sentences


def test_sentences() -> None:
    english = 'Mr. Smith paid $3.5 million to the U.S. army. "No! Never!" he said. Fig. 3 shows it\n\nHeading'
    chinese, hindi = "他来了。你好！真的吗？“是的。”他说。", "नमस्ते। यह ठीक है।"
    document = Document("d", "\n".join([english, chinese, hindi]))
    assert readers.sentences(document) == [
        "Mr. Smith paid $3.5 million to the U.S. army.",
        '"No! Never!" he said.',
        "Fig. 3 shows it",
        "Heading",
        "他来了。",
        "你好！",
        "真的吗？",
        "“是的。”",
        "他说。",
        "नमस्ते।",
        "यह ठीक है।",
    ]


def test_sentences_lose_no_text(real_data: pathlib.Path) -> None:
    for path in sorted((real_data / "flores").glob("*.dev")):
        content = path.read_text(encoding="utf-8")
        document = Document("d", " ".join(content.split("\n")))
        assert "".join("".join(readers.sentences(document)).split()) == "".join(content.split())


@pytest.mark.parametrize(
    "language", ["eng_Latn", "deu_Latn", "fra_Latn", "rus_Cyrl", "hin_Deva", "kor_Hang", "zho_Hans"]
)
def test_sentences_of_flores(real_data: pathlib.Path, language: str) -> None:
    """All of a language on one line, where some quotation mark is left open: it must not hide what comes after it."""
    content = (real_data / "flores" / f"{language}.dev").read_text(encoding="utf-8")
    lines = [line.strip() for line in content.split("\n") if line.strip()]
    found = readers.sentences(Document("d", ("" if language.startswith("zho") else " ").join(lines)))
    assert len(set(found) & set(lines)) > 0.75 * len(lines)


def test_at_most() -> None:
    assert list(readers.at_most(["abc", "de", "f"], 5)) == ["abc", "de"]
    assert list(readers.at_most(["abc"], 2)) == []


# --- the script


@pytest.mark.parametrize("more", [(), ("--kind=bpe", "--cased")])
def test_build_vocab(tmp_path: pathlib.Path, more: tuple[str, ...]) -> None:
    output = tmp_path / "out" / ("spm.model" if more else "vocab.txt")
    ran = build_vocab(
        "--input=python-docs:pathlib", f"--input={write(tmp_path / 'a.txt', POEM * 50)}", f"--output={output}", *more
    )
    assert ran.returncode == 1
    assert "no package 'pathlib'" in ran.stderr
    ran = build_vocab("--input=python-docs:absl", f"--input={tmp_path / 'a.txt'}", f"--output={output}", *more)
    assert ran.returncode == 0, ran.stderr
    assert "500 pieces" in ran.stdout
    assert "next: python scripts/build_corpus.py --input=python-docs:absl," in ran.stdout
    from bert_jax.text import tokenizer

    built = tokenizer.load(output)
    assert built.vocab_size == 500
    assert built.lower is not bool(more)
    assert built.unk not in built.encode("the value of a flag")


def build_vocab(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/build_vocab.py", "--size=500", "--coverage=0.999", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_utf_16_and_an_array_of_documents(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "a.txt.gz", gzip.compress("é. 中\r\n\r\nb".encode("utf-16")))
    assert [document.text for document in read(source)] == ["é. 中", "b"]
    bad = write(tmp_path / "b.txt", "a".encode("utf-16") + b"\0")
    with pytest.raises(ValueError, match=r"b\.txt: not UTF-16, as its byte order mark says"):
        read(bad)
    array = write(tmp_path / "c.json", json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert read(array) == [Document(f"{array}[0]", "a"), Document(f"{array}[1]", "b")]
    with pytest.raises(ValueError, match=r"d.json\[1\]: the field 'text' must be a text, not 3"):
        read(write(tmp_path / "d.json", '[{"text": "a"}, {"text": 3}]'))


def test_a_line_may_be_a_sentence(tmp_path: pathlib.Path) -> None:
    """The reference's input: no line is split, a blank one ends a document."""
    source = write(tmp_path / "a.txt", "One. Two.\n Three \n\nFour.\n")
    found = list(readers.documents([source], sentences="lines"))
    assert [readers.sentences(document) for document in found] == [["One. Two.", "Three"], ["Four."]]
    assert [readers.sentences(document) for document in read(source)] == [["One.", "Two.", "Three"], ["Four."]]
    with pytest.raises(ValueError, match="sentences must be split or lines, not 'line'"):
        readers.documents([source], sentences="line")


def test_the_splitter_never_reads_more_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time grows with the square of what it reads: 160,000 characters of quotes that never close took 38 s."""
    sizes = []
    segment = readers.sentencex.segment
    monkeypatch.setattr(readers.sentencex, "segment", lambda name, part: sizes.append(len(part)) or segment(name, part))
    for paragraph in (' "a' * 13_000, '"so it was. and on it went. ' * 1500, "中" * 40_000, "It is so. " * 4000):
        found = readers.split([paragraph])
        assert "".join(found).replace(" ", "") == paragraph.replace(" ", "")
    assert found == ["It is so."] * 4000
    assert readers.split(["中" * 40_000]) == ["中" * 40_000], "without an end it is one sentence"
    assert max(sizes) <= readers._WINDOW
