"""Multiple choice: rows by hand, a share held out, bad files, the files at hand, and a run."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

import bert_jax
from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.inference import predict
from bert_jax.tasks.base import Context
from bert_jax.tasks.choice import Choice, Choices, Choose
from bert_jax.text.tokenizer import WordPiece
from bert_jax.training import train

LETTERS = [chr(ord("a") + n) for n in range(12)]
VOCABULARY = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS], lower=True)
CODAH = Choose(
    train="choice/codah/full_data.tsv",
    context="prompt",
    start="",
    columns=("category", "prompt", "ending0", "ending1", "ending2", "ending3", "label"),
)
COSMOS = Choose(
    train="",
    dev="choice/cosmosqa/valid.csv",
    context="context",
    start="question",
    endings=("answer0", "answer1", "answer2", "answer3"),
)
TWO = Choose(train="train.csv", dev="dev.csv", endings=("ending0", "ending1"))


def test_each_ending_is_read_with_the_context() -> None:
    source = Choices([Choice("a b", ("c d", "e"), 1)], 8, VOCABULARY)
    batch = source.batch(np.array([0, 0]))
    assert {name: array.shape for name, array in batch.items()} == {
        "label": (2,),
        "tokens": (2, 2, 8),
        "segments": (2, 2, 8),
        "mask": (2, 2, 8),
    }
    pieces = [" ".join(VOCABULARY.pieces(row)) for row in batch["tokens"][0].tolist()]
    assert pieces == ["[CLS] a b [SEP] c d [SEP] [PAD]", "[CLS] a b [SEP] e [SEP] [PAD] [PAD]"]
    assert batch["segments"][0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,label\n"


def test_swag_s_columns(tmp_path: pathlib.Path) -> None:
    """The second sentence's beginning stands before each of its endings."""
    (tmp_path / "f.csv").write_text(HEADER + '0,v,1,"A, b. C","A, b.",C,gold,"d, e.",f.,1\n')
    assert TWO.read(str(tmp_path / "f.csv")) == [Choice("A, b.", ("C d, e.", "C f."), 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "0,v,1,s,a,b,gold,c,d,2\n",
            r"f.csv:2: label must be the number of the right ending, 0 to 1, not '2'",
        ),
        (HEADER + "0,v,1,s,a,b,gold,c,d\n", r"f.csv:2: 10 columns expected .*, 9 found"),
        (HEADER.replace("sent1", "sent3"), r"f.csv:1: no column 'sent1': did you mean"),
    ],
)
def test_a_bad_file_is_said(text: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        TWO.read(str(tmp_path / "f.csv"))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two columns"):
        dataclasses.replace(TWO, endings=("a",))
    with pytest.raises(ValueError, match="heldout must lie in"):
        dataclasses.replace(TWO, heldout=1.0)


def test_a_share_is_held_out(real_data: pathlib.Path) -> None:
    """Every row of a set without an official split is in one of the two parts, the same in runs of any seed."""
    rows = CODAH.read(str(real_data / CODAH.train))
    assert len(rows) == 2_776
    sizes = []
    for seed in (0, 1):
        context = Context(VOCABULARY, str(real_data), seed)
        parts = [CODAH.source(split, 8, context) for split in ("train", "validation")]
        labels = [part.arrays["label"] for part in parts]  # type: ignore[attr-defined]
        sizes.append([len(labels[0]), len(labels[1]), int(labels[1].sum())])
    assert sizes[0] == sizes[1]
    assert sizes[0][:2] == [2_221, 555]


def test_cosmosqa_s_file(real_data: pathlib.Path) -> None:
    rows = COSMOS.read(str(real_data / COSMOS.dev))
    assert len(rows) == 2_985
    assert {row.label for row in rows} == {0, 1, 2, 3}


def test_figures_by_hand() -> None:
    source = Choices([Choice("a", ("b", "c"), label) for label in (0, 1, 1)], 6, VOCABULARY)
    figures = TWO.score(source, {"logits": np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])})
    assert figures == {"accuracy": pytest.approx(2 / 3), "constant": 0.0, "majority": pytest.approx(2 / 3)}
    assert TWO.predictions("test", source, {"logits": np.eye(3, 2)}, {}) == {"test.txt": "0\n1\n0\n"}


@pytest.mark.usefixtures("few_devices")
def test_a_run_from_file_to_choices(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Trained to choose the ending that is "a" or "b"."""
    VOCABULARY.save(tmp_path / "vocab.txt")
    rng = np.random.default_rng(0)
    for name, count in (("train", 480), ("dev", 60), ("test", 9)):
        lines = []
        for number in range(count):
            first, other = rng.choice(["a", "b"]), rng.choice(["c", "d", "e"])
            endings = [first, other] if number % 2 == 0 else [other, first]
            lines.append(f"{number},v,1,s,h,g,gold,{','.join(endings)},{number % 2}\n")
        (tmp_path / f"{name}.csv").write_text(HEADER + "".join(lines))
    exp = dataclasses.replace(
        tiny,
        encoder=config.Encoder(layers=2, hidden=32, heads=2, vocab_size=40, max_positions=32, init_stddev=0.1),
        vocab=str(tmp_path / "vocab.txt"),
        task=dataclasses.replace(TWO, test="test.csv"),
        phases=(config.Phase(length=8, batch_size=16, epochs=15),),
        optimizer=config.Optimizer(learning_rate=5e-3, warmup=0.1),
        every=config.Every(log=100, evaluate=0, checkpoint=0),
        predict=True,
    )
    result = train.run(exp, str(tmp_path / "run"), data_dir=str(tmp_path), quiet=True)
    assert result["score"] == result["accuracy"] > 0.9
    assert result["tokens"] == 450 * 16 * 2 * 8, "those of all endings"
    assert (tmp_path / "run" / "predictions" / "test.txt").read_text().split() == [str(n % 2) for n in range(9)]
    model = bert_jax.load(str(tmp_path / "run"))
    chosen = model.choose([("h", ["g a", "g d"]), ("h", ["g e", "g b"])])
    assert [one.choice for one in chosen] == [0, 1]
    assert sum(chosen[0].probabilities) == pytest.approx(1)
    ask = [(1, json.dumps({"context": "h", "endings": ["g c", "g a"]})), (2, "h\tg b\tg d\tg e")]
    assert [json.loads(line)["choice"] for line in predict.answers(model, ask)] == [1, 0]
    found = predict.answers(model, [ask[0], (2, "c\tg c")])
    assert json.loads(next(found))["choice"] == 1, "what stands before a bad line"
    assert json.loads(next(found)) == {"line": 2, "error": "line 2 needs two endings or more"}
    with pytest.raises(predict.UnansweredError, match="line 2 needs two endings"):
        next(found)
