"""Lines in, JSON lines out: the forms of a line, and what is said of one that has none of them."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import bert_jax
from bert_jax import config, predict, train
from bert_jax.experiment import Experiment
from bert_jax.model import Model
from bert_jax.tasks.classify import Classify


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
        ('{"text": 3}', "line 3 needs 'text'"),
        ('{"text": ["a"]}', "line 3 needs 'text'"),
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
    check_what_stands_before_a_bad_line_is_answered(functools.partial(predict.answers, model))


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
    check_what_stands_before_a_bad_line_is_answered(functools.partial(predict.embeddings, model, kind="cls"))


def check_what_stands_before_a_bad_line_is_answered(ask: Callable[..., Iterator[str]]) -> None:
    found = ask([(1, "a b"), (2, ""), (3, "c")])
    assert json.loads(next(found))["text"] == "a b"
    with pytest.raises(ValueError, match="line 2 is empty"):
        next(found)
