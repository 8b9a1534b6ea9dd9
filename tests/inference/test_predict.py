"""Lines in, JSON lines out: the forms of a line, and what is said of one that has none of them."""

import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import bert_jax
from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.inference import predict
from bert_jax.inference.model import Model
from bert_jax.tasks.classify import Classify
from bert_jax.training import train


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a b\n", {"text": "a b"}),
        ("a\tb\tc\n", {"text": "a", "pair": "b\tc"}),
        ('{"text": "a", "pair": "b", "id": 7}', {"text": "a", "pair": "b", "id": 7}),
    ],
)
def test_a_line_is_fields_parted_by_tabs_or_a_json_object(line: str, wanted: dict) -> None:
    assert predict.parse(1, line, ["text"], ["pair"]) == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("\n", "line 3 is empty"),
        ("{", "line 3: no JSON object"),
        ('{"txt": "a"}', "line 3 needs 'text', as a JSON object or parted by tabs"),
        ('{"text": null}', "line 3 needs 'text'"),
        ('{"text": 3}', "line 3: 'text' must be a text, not 3"),
        ('{"text": ["a"]}', r"line 3: 'text' must be a text, not \[\"a\"\]"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.parse(3, line, ["text"])


@pytest.mark.usefixtures("few_devices")
def test_a_regression_from_file_to_scores(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Trained on pairs, scored by Spearman, and asked for the score of one."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    rows = [{"one": a, "two": b, "label": 5.0 * (a == "a") + (b == "b")} for a in "abcd" for b in "abcd"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows * 8)) + "\n")
    exp = dataclasses.replace(
        tiny,
        encoder=config.Encoder(layers=1, hidden=32, heads=2, vocab_size=12, max_positions=32, init_stddev=0.1),
        vocab=str(tmp_path / "vocab.txt"),
        task=Classify(train="rows.jsonl", dev=("rows.jsonl",), text=("one", "two")),
        phases=(config.Phase(length=8, batch_size=16, epochs=20),),
        optimizer=config.Optimizer(learning_rate=5e-3, warmup=0.1),
        every=config.Every(log=100, evaluate=0, checkpoint=0),
    )
    result = train.run(exp, str(tmp_path / "run"), data_dir=str(tmp_path), quiet=True)
    assert (result["metric"], result["score"]) == ("spearman", result["spearman"])
    assert result["spearman"] > 0.6
    assert "accuracy" not in result
    model = bert_jax.load(str(tmp_path / "run"))
    high, low = (json.loads(line) for line in predict.answers(model, [(1, "a\tb"), (2, '{"text": "c", "pair": "d"}')]))
    assert high["score"] > low["score"] + 2
    assert model.score([("a", "b")]) == pytest.approx([high["score"]], abs=1e-4)
    with pytest.raises(ValueError, match="gives a score, no class"):
        model.classify("a")
    check_embeddings(model)
    check_a_bad_line_is_named_and_the_others_are_answered(functools.partial(predict.answers, model))
    with pytest.raises(ValueError, match="null_threshold is of question answering"):
        list(predict.answers(model, [(1, "a\tb")], null_threshold=0.5))


def check_embeddings(model: Model) -> None:
    """Of each text, by layer: the mean over its own tokens, [CLS] alone, or all of them, whatever else is asked."""
    lines = [(1, "a b"), (2, '{"text": "c", "pair": "d", "id": 7}')]

    def ask(kind: str, layer: int, lines: list = lines) -> list[dict]:
        return [json.loads(line) for line in predict.embeddings(model, lines, kind, layer)]

    alone = model.encode([("c", "d")], layers="all")
    for layer in (0, 1, -1):
        first, second = ask("tokens", layer)
        assert first["pieces"] == ["[CLS]", "a", "b", "[SEP]"]
        assert (second["pieces"], second["id"]) == (["[CLS]", "c", "[SEP]", "d", "[SEP]"], 7)
        wanted = alone.layers[layer, 0, :5]
        np.testing.assert_allclose(second["vectors"], wanted, atol=1e-5)
        np.testing.assert_allclose(ask("mean", layer)[1]["embedding"], wanted.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(ask("cls", layer)[1]["embedding"], wanted[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"there is no layer 2: 0 \(the embeddings\) to 1, or from -1 backwards"):
        ask("mean", 2)
    with pytest.raises(ValueError, match="no vectors 'token': did you mean 'tokens'"):
        ask("token", 0)
    with pytest.raises(ValueError, match="line 3 is empty"):
        ask("mean", 0, [(3, "")])
    check_a_bad_line_is_named_and_the_others_are_answered(functools.partial(predict.embeddings, model, kind="cls"))


def check_a_bad_line_is_named_and_the_others_are_answered(ask: Callable[..., Iterator[str]]) -> None:
    assert len(next(ask([(1, "a\u2028b\x85c")])).splitlines()) == 1
    found = ask([(1, "a b"), (2, ""), (3, "c"), (4, ValueError("line 4: not UTF-8")), (5, '{"text": "a", "pair": 3}')])
    first, second, third, fourth, fifth = (json.loads(next(found)) for _ in range(5))
    assert (first["text"], third["text"]) == ("a b", "c")
    assert set(first) == set(third) != {"text"}
    assert second == {"line": 2, "error": "line 2 is empty: one question a line"}
    assert fourth == {"line": 4, "error": "line 4: not UTF-8"}
    assert fifth == {"line": 5, "error": "line 5: 'pair' must be a text, not 3"}
    with pytest.raises(predict.UnansweredError, match=r"line 2 is empty.*and 2 more lines"):
        next(found)


def lines(content: bytes) -> list:
    return [(n, found if isinstance(found, str) else str(found)) for n, found in predict.numbered(io.BytesIO(content))]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa\tb\n\nc\n",
        b"a\tb\r\n\r\nc\r\n",
        b"a\tb\r\rc\r",
        b"a\tb\n\nc",
        "a\tb\n\nc\n".encode("utf-16"),
        "\ufeffa\tb\r\n\r\nc\r\n".encode("utf-16-be"),
    ],
)
def test_an_input_is_read_as_editors_write_it(content: bytes) -> None:
    assert lines(content) == [(1, "a\tb"), (2, ""), (3, "c")]


def test_a_line_that_is_not_utf_8_is_named_and_the_others_are_read() -> None:
    wanted = "line 2: byte 3 of it is 0xe9, which is not UTF-8; convert the input, for example with iconv"
    assert lines(b"a\rb\ncaf\xe9\nc\n") == [(1, "a\rb"), (2, wanted), (3, "c")]
    assert lines("a b\n".encode("utf-16-le"))[0][1].startswith("line 1: UTF-16 without a byte order mark?")
    assert lines(b"") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "pair": 3}', "line 3: 'pair' must be a text, not 3"),
        ('{"text": "a", "pair": ["b"]}', r"'pair' must be a text, not \[\"b\"\]"),
        ('{"text": ["a", null]}', r"line 3: text\[1\] must be a text, not null"),
        ('{"text": ["a", 3]}', r"line 3: text\[1\] must be a text, not 3"),
        ('{"text": []}', "line 3: 'text' is an empty list"),
        ('{"text": "\\ud83d"}', "line 3: 'text' holds half a surrogate pair"),
        ('{"text": "a", "x": ["\\ud83d"]}', "line 3 holds half a surrogate pair"),
        ('{"text": "a", "x": NaN}', "line 3: no JSON object: NaN is not a value of JSON"),
        ('{"text": "a", "text": "b"}', "line 3: no JSON object: 'text' is there twice"),
        (" {", "line 3: no JSON object"),
    ],
)
def test_every_field_of_a_line_must_be_a_text(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.parse(3, line, ["text"], ["pair"], lists=["text"])


def test_an_optional_field_may_be_null_and_a_byte_order_mark_is_none_of_the_text() -> None:
    assert predict.parse(1, '\ufeff{"text": "a", "pair": null}\r\n', ["text"], ["pair"]) == {"text": "a"}
