"""Bytes of files to text and JSON values: archives, encodings, line ends. What is wrong is named, with its line."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from bert_jax.config import require


class _Zstd(io.RawIOBase):
    """The contents of a .zst file, all its frames. The library's own reader ends silently where a file is cut short."""

    def __init__(self, path: pathlib.Path):
        self._chunks, self._held = self._decompressed(path), b""

    @staticmethod
    def _decompressed(path: pathlib.Path) -> Iterator[bytes]:
        frame = None
        with path.open("rb") as file:
            while data := file.read(1 << 17):
                while data:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(data)
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame:
            raise EOFError("the file ended within a frame")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._held = chunk
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count


# How a file is opened, by the ending that says how it is compressed.
OPEN: dict[str, Callable[[pathlib.Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": lambda path: io.BufferedReader(_Zstd(path), 1 << 17),
}
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


def decompressed(path: pathlib.Path) -> bytes:
    """A file's content, of an archive (.gz, .xz, .bz2, .zst) what is in it.

    Raises:
      ValueError: where the archive is damaged.
    """
    try:
        with OPEN[path.suffix if path.suffix in OPEN else ""](path) as stream:
            return stream.read()
    except DAMAGED as error:
        raise damaged(path, error) from None


def damaged(path: pathlib.Path, error: Exception) -> Exception:
    """What to raise: an error of the disk, not of the archive, as it is."""
    if isinstance(error, OSError) and error.errno:
        return error
    return ValueError(f"{path}: the archive is damaged or cut short ({error})")


# A file says its encoding by a byte order mark. That of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding(start: bytes) -> str:
    """The encoding of a file, by its first four bytes: what a byte order mark says, else UTF-8.

    Raises:
      ValueError: UTF-16 without a mark, of which every other byte is 0.
    """
    require(
        not (len(start) >= 4 and start[:4].count(0) == 2 and start[0:4:2].count(0) in (0, 2)),
        "UTF-16 without a byte order mark? Convert the file to UTF-8, for example with iconv",
    )
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def text(content: bytes, name: object) -> str:
    """What a file holds, line ends made "\\n" (CR alone where the file has no other), a byte order mark left out.

    Raises:
      ValueError: that names the file, the line and the byte that has no meaning in its encoding.
    """
    try:
        known = encoding(content[:4])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        found = content.decode(known)
    except UnicodeDecodeError as error:
        shown = "UTF-8" if known.startswith("utf-8") else known.upper()
        # utf-8-sig counts from after the mark.
        start = error.start + (len(codecs.BOM_UTF8) if known == "utf-8-sig" and len(error.object) < len(content) else 0)
        line = content[:start].decode(known, "replace").count("\n") + 1
        raise ValueError(
            f"{name}:{line}: byte {start} is {content[start]:#04x}, which is not {shown}; "
            "convert the file, for example with iconv"
        ) from None
    return lines(found)


def lines(content: str) -> str:
    """The same with "\\n" at the end of each line: a file of one kind of line end alone may have CR, as old ones do."""
    return content.replace("\r\n", "\n") if "\n" in content else content.replace("\r", "\n")


def json_value(source: str, *, strict: bool = False) -> Any:
    """The JSON value that a text is; `strict` refuses NaN and Infinity, which Python reads and JSON does not have.

    Raises:
      ValueError: it is none, an object has a name twice, or the nesting is too deep.
    """
    try:
        return json.loads(source, object_pairs_hook=_distinct, parse_constant=_refused if strict else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice in one object")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not a value of JSON")


def a_text(value: Any, *what: object) -> str:
    """`value`, which must be a text.

    Raises:
      ValueError: that says `what`, whose parts are put together only then, must be one; or that it holds half a
        surrogate pair, which is not a character: no file can hold it but as an escape in JSON.
    """
    if not isinstance(value, str):
        raise ValueError(f"{''.join(map(str, what))} must be a text, not {shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            said = f"{''.join(map(str, what))} holds half a surrogate pair, {value[error.start]!r}"
            raise ValueError(said) from None
    return value


def shown(value: Any) -> str:
    """A JSON value, for messages."""
    try:
        return json.dumps(value)[:80]
    except (TypeError, ValueError):
        return repr(value)[:80]
