"""Documents and sentences: of text files, JSON lines, parquet, TFDS sets and the Python documentation of this machine.

`documents` reads, in a fixed order and bounded memory; `sentences` does the work. Nothing here imports JAX, so a
process that does it starts quickly.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import io
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import sentencex

from bert_jax.config import nearest, require
from bert_jax.text import arrow, decoding, docstrings

Errors = Literal["strict", "replace"]
Sentences = Literal["split", "lines"]

LONGEST = 1 << 20  # characters; a longer document is cut into several, at the end of a line where there is one


@dataclasses.dataclass(frozen=True)
class Document:
    """What a sentence may follow another in: an article, a chapter, a module's documentation."""

    name: str  # where it comes from: "wiki.txt.xz:17" (the line it starts at), "numpy.linalg"
    text: str  # a paragraph a line, or for kind "python" the source code of a module
    kind: Literal["text", "lines", "python"] = "text"  # "lines": each line is a sentence, and is not split


def documents(
    sources: Sequence[str], *, errors: str = "strict", field: str = "text", sentences: str = "split"
) -> Iterator[Document]:
    """The documents of all sources, one after the other; the same sources give the same documents.

    A source is one of:
      a file       `.txt` (a paragraph a line, a blank line between documents) or `.jsonl`/`.json` (an object a line,
                   the document in its `field`; or one array of such objects), plain or compressed with `.gz`, `.xz`,
                   `.bz2` or `.zst`; or `.parquet` or `.arrow`, the document in the column `field`
      a directory  every such file under it, in the order of their paths, as Hugging Face's `datasets` saves them, too;
                   or a pattern like "data/*.txt.xz"
      tfds:NAME    a prepared TFDS data set, or its directory, the document in the feature `field`: "tfds:wiki40b/en",
                   "tfds:/data/my_set/1.0.0", with a split other than train at the end: "tfds:wiki40b/en:validation"
      python-docs  the English documentation in this Python and its packages, a module a document, found without
                   importing them; "python-docs:stdlib,numpy" takes only those top-level packages

    A document above `LONGEST` characters comes in pieces of one name, so a huge file without a blank line or a line end
    is no harm. `errors` is for bytes that are not UTF-8: "replace" reads each as U+FFFD, which WordPiece drops. A byte
    order mark says UTF-16. `sentences` "lines" takes each line as a sentence, as the reference's input has them, where
    "split" finds the sentences of a paragraph.

    Raises:
      FileNotFoundError, ValueError: at the call where a source does not exist or is of no known kind; while reading
        where bytes are not UTF-8, an archive is damaged, a line is no JSON, or a source holds no document at all.
    """
    require(not isinstance(sources, str), f"sources must be a list, not the string {sources!r}")
    require(errors in ("strict", "replace"), f"errors must be strict or replace, not {errors!r}")
    require(sentences in ("split", "lines"), f"sentences must be split or lines, not {sentences!r}")
    require(
        len(sources) > 0 and all(sources),
        "no sources, or an empty one (a comma too many?): name a file, a directory, tfds:NAME or python-docs",
    )
    require(field != "", "field must name the field of JSON lines and TFDS sets that holds the text")
    found = itertools.chain.from_iterable([_never_empty(source, _read(source, errors, field)) for source in sources])
    return map(_in_lines, found) if sentences == "lines" else found


def _in_lines(document: Document) -> Document:
    return document if document.kind == "python" else dataclasses.replace(document, kind="lines")


def sentences(document: Document) -> list[str]:
    """The sentences of a document, in order and without space around them; none for a module without documentation.

    `sentencex` splits, with its rules for English: in the 17 languages of FLORES, joined to one line each, 78 to 89% of
    the sentences come back whole (Thai, which does not mark their ends, has none). A quotation stays in its sentence.
    """
    return split(paragraphs(document), lines=document.kind == "lines")


def paragraphs(document: Document) -> list[str]:
    """What there is to read in a document: its lines, or the English in a module's docstrings."""
    return docstrings.prose(document.text) if document.kind == "python" else document.text.split("\n")


def split(paragraphs: Iterable[str], *, lines: bool = False) -> list[str]:
    """The sentences of paragraphs, as `sentences` gives those of a document; with `lines` each is one."""
    found = paragraphs if lines else itertools.chain.from_iterable(map(_split, paragraphs))
    return [stripped for sentence in found if (stripped := sentence.strip())]


_OPENING = re.compile(r"""(?<![^\s(\[])"(?=\S)""")
_SINGLE_OPENING, _SINGLE_CLOSING = re.compile(r"(?<!\S)'(?=\w)"), re.compile(r"['’](?!\w)")
_UNPAIRED = str.maketrans("“„«「『‘‹([（【" + '"”»」』’›)]）】', "-" * 11 + " " * 11)


def _split(paragraph: str) -> Iterator[str]:
    """Its sentences, with the space between them.

    The library takes all between two quotation marks or brackets as one, so that one too many hides what follows it.
    Hence straight marks get a direction first, and what is too long for a sentence is split as if it had none.
    """
    for sentence in _cut(paragraph, _OPENING.sub("“", paragraph).replace('"', "”")):
        if len(sentence) <= 400:
            yield sentence
        else:
            bare = _SINGLE_CLOSING.sub(" ", _SINGLE_OPENING.sub("-", sentence)).translate(_UNPAIRED)
            yield from _cut(sentence, bare)


# The library's time grows with the square of a paragraph's length. One above `_WINDOW` characters is read in windows;
# a sentence counts if it ends `_MARGIN` before a window's end, so that the library saw what a quotation needs to close.
_WINDOW, _MARGIN = 1 << 14, 1 << 13


def _cut(text: str, twin: str) -> Iterator[str]:
    """`text`, cut where the library cuts `twin`, which is as long."""
    start = at = 0  # of the sentence, and of the window
    while at < len(twin):
        last = at + _WINDOW >= len(twin)
        limit = len(twin) if last else at + _WINDOW - _MARGIN
        end = at
        for sentence in sentencex.segment("en", twin[at : at + _WINDOW]):
            if end + len(sentence) > limit:
                break
            end += len(sentence)
            yield text[start:end]
            start = end
        at = end if end > at else limit  # where no sentence ended, it goes on in the next window
    if start < len(text):
        yield text[start:]


def identity(sources: Sequence[str]) -> list[dict[str, Any]]:
    """Name, size and hash of each file of the sources; of others (python-docs, tfds:...) only the name is known."""
    return [entry for source in sources for entry in _identity(source)]


def _identity(source: str) -> list[dict[str, Any]]:
    path = pathlib.Path(source)
    if path.is_dir():
        found: Iterable[pathlib.Path] = path.rglob("*")
    else:
        found = [path] if path.exists() else map(pathlib.Path, glob.glob(source, recursive=True))
    entries = []
    for file in sorted(file for file in found if file.is_file()):
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        entries.append({"name": file.name, "bytes": file.stat().st_size, "sha256": digest})
    return entries or [{"name": source}]


def label(document: Document) -> str:
    """Tells a document from its neighbours, for `skip`."""
    return f"{document.name} ({len(document.text):,} characters)"


def skip(documents: Iterator[Document], count: int, last: str, directory: str | os.PathLike[str]) -> None:
    """Passes over the first `count` documents, which `directory` holds.

    Raises:
      ValueError: where the last of them has not the label `last`: the input is not what it was.
    """
    skipped = next(itertools.islice(documents, count - 1, None), None)
    found = "the end of the input" if skipped is None else label(skipped)
    require(
        found == last,
        f"the input has changed since the build of {directory} stopped: document {count:,} was {last} and is {found}: "
        "delete the directory and build it again",
    )


def at_most(texts: Iterable[str], size: int) -> Iterator[str]:
    """The first texts, up to `size` characters in all."""
    for text in texts:
        size -= len(text)
        if size < 0:
            return
        yield text


def _never_empty(source: str, found: Iterator[Document]) -> Iterator[Document]:
    first = next(found, None)
    require(first is not None, f"{source}: there is no document in it")
    yield from itertools.chain([first], found)  # type: ignore[list-item]


def _read(source: str, errors: str, field: str) -> Iterator[Document]:
    """The documents of one source. What can be known of it without reading it is checked at once."""
    if source.startswith("tfds:"):
        return _tfds(source, field)
    if source == "python-docs" or source.startswith("python-docs:"):
        return _python_docs(source)
    path = pathlib.Path(source)
    if path.is_dir():
        files = list(_below(path))
        require(bool(files), f"{source}: no text in this directory; {_KNOWN}")
    elif path.exists():
        files = [path]
    else:
        files = sorted(pathlib.Path(match) for match in glob.glob(source, recursive=True))
        if not files:
            raise FileNotFoundError(f"{source}: no such file or directory")
    for file in files:
        require(_kind(file) is not None, f"{file}: do not know how to read it; {_KNOWN}")
    return itertools.chain.from_iterable(_file(file, errors, field) for file in files)


# --- files


_KNOWN = "known are .txt, .jsonl and .json, plain or with .gz, .xz, .bz2 or .zst after it, .parquet and .arrow"


def _kind(path: pathlib.Path) -> tuple[str, str] | None:
    """(".txt", ".json" or ".arrow", compression) by a file's name; None where it is not text that we know."""
    name = path.name.lower()
    compression = pathlib.Path(name).suffix if pathlib.Path(name).suffix in decoding.OPEN else ""
    suffix = pathlib.Path(name.removesuffix(compression)).suffix.replace(".jsonl", ".json")
    if not compression:
        suffix = suffix.replace(".parquet", ".arrow")
    return (suffix, compression) if suffix in (".txt", ".json", ".arrow") else None


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files with text under a folder; of a saved data set those that it names."""
    for file in sorted(folder.rglob("*")):
        saved = (file.parent / "state.json").exists()
        if file.is_file() and _kind(file) and not arrow.is_record(file):
            yield from [file] if not saved or file in arrow.paths(str(file.parent)) else []


def _file(path: pathlib.Path, errors: str, field: str) -> Iterator[Document]:
    kind, compression = _kind(path) or ("", "")
    if kind == ".arrow":
        yield from _arrow(path, errors, field)
        return
    try:
        with decoding.OPEN[compression](path) as stream:
            known = _encoding(path, stream)
        with io.TextIOWrapper(decoding.OPEN[compression](path), encoding=known, errors=errors) as stream:
            yield from _plain(path, stream) if kind == ".txt" else _json_lines(path, stream, errors, field)
    except UnicodeDecodeError:
        raise ValueError(_bad_byte(path, decoding.OPEN[compression], known)) from None
    except decoding.DAMAGED as error:
        raise decoding.damaged(path, error) from None


def _encoding(path: pathlib.Path, stream: Any) -> str:
    try:
        return decoding.encoding(stream.read(4))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _bad_byte(path: pathlib.Path, opener: Callable[[pathlib.Path], Any], encoding: str) -> str:
    """Where the first byte is that has no meaning, found by reading the file again."""
    hint = "Convert the file, or read such bytes as U+FFFD with errors=replace"
    if not encoding.startswith("utf-8"):
        return f"{path}: not {encoding.upper()}, as its byte order mark says. {hint}"
    offset = 0
    with opener(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                offset += len(line.decode().encode())
            except UnicodeDecodeError as error:
                where = f"{path}:{number}: byte {offset + error.start} is {line[error.start]:#04x}, which is not UTF-8"
                return f"{where}. {hint}"
    return f"{path}: not UTF-8"


def _plain(path: pathlib.Path, stream: io.TextIOBase) -> Iterator[Document]:
    for blank, run in itertools.groupby(_lines(stream), key=lambda pair: not pair[1]):
        if not blank:
            number, first = next(run)
            yield from _whole_lines(f"{path}:{number}", itertools.chain([first], (line for _, line in run)))


def _json_lines(path: pathlib.Path, stream: io.TextIOBase, errors: str, field: str) -> Iterator[Document]:
    for name, row in _json_values(path, stream, field):
        if not isinstance(row, dict):
            raise ValueError(f'{name}: expected a JSON object like {{"{field}": "..."}}, not {decoding.shown(row)}')
        yield from _of_row(name, row, errors, field)


def _json_values(path: pathlib.Path, stream: io.TextIOBase, field: str) -> Iterator[tuple[str, Any]]:
    """The objects of JSON lines, or those of one array, with their places."""
    first = True
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        array, first = first and line.lstrip().startswith("["), False
        try:
            found = decoding.json_value(line + stream.read() if array else line)
        except ValueError as error:
            said = f'expected a JSON object like {{"{field}": "..."}}' if not array else "expected an array of objects"
            raise ValueError(f"{path}:{number}: {said}: {error}") from None
        if array:
            yield from ((f"{path}[{place}]", row) for place, row in enumerate(found))
        else:
            yield f"{path}:{number}", found


def _of_row(name: str, row: dict[str, Any], errors: str, field: str) -> Iterator[Document]:
    if field not in row:
        raise ValueError(f"{name}: no field {field!r}: {nearest(field, row)}")
    text = row[field]
    if errors == "replace" and isinstance(text, str):
        text = text.encode("utf-8", "replace").decode()
    try:
        text = decoding.a_text(text, "the field ", repr(field))
    except ValueError as error:
        hint = "; errors=replace reads it as ?" if isinstance(text, str) else ""
        raise ValueError(f"{name}: {error}{hint}") from None
    yield from _whole(name, text)


def _arrow(path: pathlib.Path, errors: str, field: str) -> Iterator[Document]:
    for name, row in arrow.rows(str(path), [field], only=True):
        yield from _of_row(name, row, errors, field)


def _lines(stream: io.TextIOBase) -> Iterator[tuple[int, str]]:
    """The numbered lines without space around them. One above `LONGEST` comes in several, cut at a space."""
    number, rest = 1, ""
    while part := stream.readline(LONGEST):
        line = rest + part
        if part.endswith("\n") or len(part) < LONGEST:
            yield number, line.strip()
            number, rest = number + 1, ""
        else:
            head, _, rest = line.rpartition(" ")
            yield number, (head or line).strip()
            rest = rest if head else ""
    if rest:
        yield number, rest.strip()


def _whole(name: str, text: str) -> Iterator[Document]:
    """A text that is one document, blank lines or not."""
    return _whole_lines(name, (line for _, line in _lines(io.StringIO(text)) if line))


def _whole_lines(name: str, lines: Iterable[str]) -> Iterator[Document]:
    """Lines that are one document: one, or several of up to `LONGEST` characters."""
    held: list[str] = []
    size = 0
    for line in lines:
        if held and size + len(line) > LONGEST:
            yield Document(name, "\n".join(held))
            held, size = [], 0
        held.append(line)
        size += len(line) + 1
    if held:
        yield Document(name, "\n".join(held))


# --- TensorFlow Datasets

_TFDS = re.compile(r"tfds:(?P<name>.+?)(:(?P<split>[A-Za-z_]\w*(\[.*\])?))?")


def _tfds_name(source: str) -> tuple[str, str]:
    """A source's name, or directory, and split."""
    match = _TFDS.fullmatch(source)
    if not match:
        raise ValueError(f"{source}: expected tfds:NAME or tfds:DIRECTORY, and :SPLIT after it where it is not train")
    return match["name"], match["split"] or "train"


def tfds_source(source: str, needed: Sequence[str]) -> tuple[Sequence[Any], Any]:
    """The examples of a prepared data set, by number, and its features by name; read without TensorFlow.

    `source` is tfds:NAME or tfds:DIRECTORY, with :SPLIT after it where it is not train.

    Raises:
      ValueError: where there is no such data set, split, or one of the features `needed`, or it is not prepared.
    """
    name, split = _tfds_name(source)
    builder = _tfds_builder(source)
    require(
        bool(builder.info.splits),
        f"{source}: the data set is not prepared. Once, where TensorFlow is installed (pip install 'bert_jax[data]'): "
        f"tfds build {name} --file_format=array_record",
    )
    features = builder.info.features
    for field in needed:
        require(field in features, f"{source}: no feature {field!r}: {nearest(field, features)}")
    known = list(builder.info.splits)
    require(re.split(r"\W", split)[0] in known, f"{source}: no split {split!r}: {nearest(split, known)}")
    return builder.as_data_source(split), features


def tfds_version(source: str) -> str:
    """A data set's own name, with its version, and the split: "glue/mnli/2.0.0:train", wherever it lies.

    Raises:
      ValueError: where there is no such data set.
    """
    return f"{_tfds_builder(source).info.full_name}:{_tfds_name(source)[1]}"


def _tfds_builder(source: str) -> Any:
    name, _ = _tfds_name(source)
    import tensorflow_datasets as tfds  # slow, and most sources do without

    try:
        directory = "://" in name or os.path.isdir(name)
        return tfds.builder_from_directory(name) if directory else tfds.builder(name)
    except Exception as error:  # one of a dozen kinds, by what is wrong with the name
        raise ValueError(
            f"{source}: no such data set, nor a directory of a prepared one ({str(error).splitlines()[0]})"
        ) from None


def _tfds(source: str, field: str) -> Iterator[Document]:
    rows, _ = tfds_source(source, [field])
    return _tfds_rows(":".join(_tfds_name(source)), rows, field)


def _tfds_rows(name: str, rows: Sequence[dict[str, Any]], field: str) -> Iterator[Document]:
    for number in range(len(rows)):
        text = rows[number][field]
        if not isinstance(text, (bytes, str)):
            raise ValueError(f"{name}: the feature {field!r} is no text but {type(text).__name__}")
        yield from _whole(f"{name}:{number}", text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


# --- the documentation of Python and its packages


def _python_docs(source: str) -> Iterator[Document]:
    wanted = [name for name in source.partition(":")[2].split(",") if name]
    return (Document(name, code, "python") for name, code in docstrings.modules(wanted))
