"""Bytes to text and JSON values: what editors write, and what is said of what is none."""

import pytest

from bert_jax.text import decoding

TEXT = "a é 中\n\nb\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_is_read_as_editors_write_it(encoding: str, end: str) -> None:
    assert decoding.text(TEXT.replace("\n", end).encode(encoding), "f") == TEXT
    assert decoding.text(("\ufeff" + TEXT.replace("\n", end)).encode("utf-16-be"), "f") == TEXT


def test_cr_within_a_line_stays() -> None:
    assert decoding.text(b"a\rb\nc\r\n", "f") == "a\rb\nc\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xe9c\n", r"f:2: byte 3 is 0xe9, which is not UTF-8; convert the file"),
        (b"\xef\xbb\xbfa\nb\xe9c\n", r"f:2: byte 6 is 0xe9, which is not UTF-8"),
        ("a\nb".encode("utf-16") + b"\0", r"f:2: byte 8 is 0x00, which is not UTF-16"),
        ("abc".encode("utf-16-le"), r"f: UTF-16 without a byte order mark\?"),
        ("abc".encode("utf-16-be"), r"f: UTF-16 without a byte order mark\?"),
    ],
)
def test_bytes_without_a_meaning_are_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoding.text(content, "f")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice in one object"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        ("{'a': 1}", "Expecting property name"),
    ],
)
def test_what_is_not_json_is_said(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoding.json_value(source)


def test_nan_is_json_to_python_alone() -> None:
    assert decoding.json_value("[Infinity]") == [float("inf")]
    with pytest.raises(ValueError, match="NaN is not a value of JSON"):
        decoding.json_value("[NaN]", strict=True)
