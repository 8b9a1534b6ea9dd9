"""Question answering: candidates and the null threshold by hand; what a file may hold; from a file to answers."""

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
from bert_jax.tasks.squad import NO_CANDIDATE, Squad
from bert_jax.tasks.windows import Question, Windows, read
from bert_jax.training import train
from tests.tasks.test_windows import LETTERS, VOCABULARY, entry, written

TASK = Squad(train="train.json", dev="dev.json")


def logits(source: Windows, *peaks: tuple[int, int, float, float]) -> dict[str, np.ndarray]:
    """Logits of 0, but for (window, place, start, end)."""
    found = {side: np.zeros((len(source), source.length)) for side in ("start", "end")}
    for window, place, start, end in peaks:
        found["start"][window, place], found["end"][window, place] = start, end
    return found


def one(context: str, length: int = 32, **how: int) -> Windows:
    return Windows([Question("q", "a?", context)], length, how.get("stride", 128), 64, VOCABULARY)


def test_the_best_span_is_the_text_between_the_original_characters() -> None:
    """With accents, capitals and spaces as they stand."""
    source = one("  C  ÓS é")
    assert VOCABULARY.pieces(source.batch(np.array([0]))["tokens"][0].tolist())[4:8] == ["c", "o", "##s", "e"]
    answer = TASK.decode(source, logits(source, (0, 4, 5.0, 0.0), (0, 6, 0.0, 4.0)))["q"]
    assert answer.candidates[0][:5] == ("C  ÓS", 2, 7, 5.0, 4.0)
    assert sum(c.probability for c in answer.candidates) == pytest.approx(1)


def test_what_cannot_be_an_answer() -> None:
    """A start in the question, an end before the start, one too far, and a start that has more context elsewhere."""
    source = one("c d e f g h")  # at places 4 to 9
    wild = logits(source, (0, 1, 9.0, 9.0), (0, 5, 5.0, 0.0), (0, 4, 0.0, 7.0), (0, 9, 0.0, 4.0), (0, 6, 0.0, 3.0))
    assert TASK.decode(source, wild)["q"].candidates[0].text == "d e f g h"
    short = dataclasses.replace(TASK, answer=4)
    assert short.decode(source, wild)["q"].candidates[0].text == "d e"
    split = one("c d e f g h i", length=10, stride=3)  # two windows: c to g, f to i
    assert split.table[:, 1:3].tolist() == [[0, 5], [3, 7]]
    edge = logits(split, (0, 8, 9.0, 0.0), (1, 5, 3.0, 3.0))  # g at the end of the first, and in the second
    assert TASK.decode(split, edge)["q"].candidates[0].text == "g"
    assert TASK.decode(split, edge)["q"].candidates[0].start_logit == 3.0


def test_candidates_are_different_texts_best_first() -> None:
    source = one("c d c")
    answer = TASK.decode(source, logits(source, (0, 4, 3.0, 3.0), (0, 6, 2.0, 2.0)))["q"]
    texts = [c.text for c in answer.candidates]
    assert texts[:2] == ["c", "c d c"]
    assert len(set(texts)) == len(texts) == 5
    assert [c.score for c in answer.candidates] == sorted((c.score for c in answer.candidates), reverse=True)
    few = dataclasses.replace(TASK, best=2).decode(source, logits(source, (0, 4, 3.0, 3.0), (0, 6, 2.0, 2.0)))["q"]
    assert len(few.candidates) == 2
    empty = one("")
    assert [c.text for c in TASK.decode(empty, logits(empty))["q"].candidates] == ["empty"]


def test_no_answer_is_the_lowest_null_of_all_windows() -> None:
    task = dataclasses.replace(TASK, unanswerable=True)
    source = one("c d e f g h i", length=9, stride=3)
    answer = task.decode(source, logits(source, (0, 0, 4.0, 4.0), (1, 0, 1.0, 2.0), (1, 6, 1.0, 1.5)))["q"]
    assert answer.candidates[0]._replace(probability=0.0) == ("", 0, 0, 1.0, 2.0, 0.0)
    assert answer.null_odds == pytest.approx(3.0 - 2.5)
    assert (answer.text(0.0), answer.text(0.5), answer.text(None)) == ("", "h", "h")
    nothing = one("")
    found = task.decode(nothing, logits(nothing))["q"]
    assert (found.null_odds, found.text(0.0)) == (NO_CANDIDATE, "")


def test_figures_by_hand() -> None:
    """Two questions on one context; in SQuAD 2.0 the odds of no answer are far above those of any, so all are one."""
    questions = [Question("p", "a?", "c d", (("c", 0),)), Question("q", "b?", "c d", (("c d", 0),))]
    source = Windows(questions, 16, 128, 64, VOCABULARY)
    outputs = logits(source, (0, 4, 2.0, 2.0), (1, 4, 2.0, 2.0))
    assert TASK.score(source, outputs) == {"exact": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2), "constant": 1.0}
    without = Windows([questions[0], Question("q", "b?", "c d")], 16, 128, 64, VOCABULARY)
    task = dataclasses.replace(TASK, unanswerable=True)
    figures = task.score(without, logits(without, (0, 4, 2.0, 2.0), (1, 0, 9.0, 9.0)))
    assert (figures["best_f1"], figures["exact"], figures["constant"]) == (1.0, 1.0, 0.0)
    collapsed = task.score(without, logits(without, (0, 0, 9.0, 9.0), (1, 0, 8.0, 8.0), (0, 5, 1.0, 1.0)))
    assert (collapsed["best_f1"], collapsed["constant"]) == (0.5, 1.0)


def test_the_reference_s_files(tmp_path: pathlib.Path) -> None:
    """Names and fields as the reference writes them; the threshold tuned on dev decides predictions.json."""
    task = dataclasses.replace(TASK, unanswerable=True)
    source = one("c d")
    outputs = logits(source, (0, 0, 1.0, 1.0), (0, 4, 1.0, 0.5))
    files = task.predictions("validation", source, outputs, {"best_f1_threshold": 0.5})
    assert list(files) == ["predictions.json", "nbest_predictions.json", "null_odds.json"]
    assert json.loads(files["predictions.json"]) == {"q": "c"}
    assert json.loads(files["null_odds.json"]) == {"q": 0.5}
    best = json.loads(files["nbest_predictions.json"])["q"][0]
    assert list(best) == ["text", "probability", "start_logit", "end_logit"]
    strict = dataclasses.replace(task, null_threshold=0.25)
    assert json.loads(strict.predictions("test", source, outputs, {})["test_predictions.json"]) == {"q": ""}
    assert list(TASK.predictions("validation", source, outputs, {})) == ["predictions.json", "nbest_predictions.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"train.json: no JSON"),
        ('{"dat": []}', r"train.json: not SQuAD's form, data > paragraphs > context.*'data' is expected, there is dat"),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "a"}]}]}]}',
            r"train.json: data\[0\].paragraphs\[0\].qas\[0\]: .*'id' is expected, there is question",
        ),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": "x", "question": "a", "answers": []}]}]}]}',
            r"train.json: data\[0\].paragraphs\[0\]: .*'context' is expected, there is qas",
        ),
        ('{"data": []}', "train.json: no questions"),
        ('{"data": 3}', "not SQuAD's form"),
    ],
)
def test_a_bad_file_is_said(content: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        TASK.source("train", 16, Context(VOCABULARY, str(tmp_path)))


def test_an_answer_that_is_not_at_its_offset(tmp_path: pathlib.Path) -> None:
    context = Context(VOCABULARY, str(tmp_path))
    written(tmp_path, entry(("d", 3)), entry(("x", 0), key="q2"), entry(("c", 0), key="q3"))
    (tmp_path / "dev.json").write_text((tmp_path / "train.json").read_text())
    with pytest.raises(
        ValueError, match=r"train.json: question q1: the answer 'd' is not at its offset 3, there is ' '"
    ):
        TASK.source("train", 16, context)
    skip = dataclasses.replace(TASK, misplaced="skip")
    assert [one.id for one in skip.source("train", 16, context).questions] == ["q3"]
    validation = skip.source("validation", 16, context)
    assert [one.id for one in validation.questions] == ["q1", "q2", "q3"], "all are scored"
    assert validation.table[:, 3:].tolist() == [[0, 0], [0, 0], [4, 4]]
    move = dataclasses.replace(TASK, misplaced="relocate")
    assert [one.answers for one in move.source("train", 16, context).questions] == [(("d", 2),), (("c", 0),)]


def test_a_question_without_an_answer_needs_the_switch(tmp_path: pathlib.Path) -> None:
    context = Context(VOCABULARY, str(tmp_path))
    written(tmp_path, entry())
    with pytest.raises(ValueError, match=r"question q1 has no answer: a set like SQuAD 2.0 needs task.unanswerable"):
        TASK.source("train", 16, context)
    source = dataclasses.replace(TASK, unanswerable=True).source("train", 16, context)
    assert source.table[:, 3:].tolist() == [[0, 0]]


@pytest.mark.usefixtures("few_devices")
@pytest.mark.parametrize("unanswerable", [False, True])
def test_a_run_from_file_to_answers(tiny: Experiment, tmp_path: pathlib.Path, unanswerable: bool) -> None:
    """Trained to find the letter "k"; the files written say what the scores say."""
    VOCABULARY.save(tmp_path / "vocab.txt")
    rng = np.random.default_rng(0)
    for name, count in (("train.json", 400), ("dev.json", 50)):
        data = []
        for number in range(count):
            entry = {"id": f"{name}{number}", "question": "b?", "answers": []}
            letters = rng.permutation(LETTERS[1:7])[:4]
            if not (unanswerable and number % 2):
                letters[number % 4] = "k"
                entry["answers"] = [{"text": "k", "answer_start": 2 * (number % 4)}]
            context = " ".join(letters)
            data.append({"paragraphs": [{"context": context, "qas": [entry]}]})
        (tmp_path / name).write_text(json.dumps({"data": data}))
    exp = dataclasses.replace(
        tiny,
        encoder=config.Encoder(layers=2, hidden=32, heads=2, vocab_size=40, max_positions=32, init_stddev=0.1),
        vocab=str(tmp_path / "vocab.txt"),
        task=dataclasses.replace(TASK, unanswerable=unanswerable),
        phases=(config.Phase(length=12, batch_size=16, epochs=24),),
        optimizer=config.Optimizer(learning_rate=5e-3, warmup=0.1),
        every=config.Every(log=100, evaluate=0, checkpoint=0),
        predict=True,
    )
    result = train.run(exp, str(tmp_path / "run"), data_dir=str(tmp_path), quiet=True)
    assert result["metric"] == ("best_f1" if unanswerable else "f1")
    assert result["score"] > 0.9
    written = json.loads((tmp_path / "run" / "predictions" / "predictions.json").read_text())
    golds = {one.id: [text for text, _ in one.answers] for one in read(str(tmp_path / "dev.json"))}
    right = np.mean([text == (golds[key] or [""])[0] for key, text in written.items()])
    assert right == pytest.approx(result["best_exact" if unanswerable else "exact"], abs=0.05)
    model = bert_jax.load(str(tmp_path / "run"))
    (answer,) = model.answer([("b?", "b  K d c")])
    assert answer.candidates[0][:3] == ("K", 3, 4)
    lines = [(1, "b?\tb  K d c\n"), (2, '{"question": "f?", "context": "b k c"}')]
    first, second = (json.loads(line) for line in predict.answers(model, lines, null_threshold=-1e9))
    assert first["answer"] == "", "no odds are as low as that"
    assert "null_odds" in second
    first = json.loads(next(predict.answers(model, lines[:1])))
    assert unanswerable or (first["answer"], first["start"], first["end"]) == ("K", 3, 4)
    assert ("null_odds" in first) == unanswerable
    assert model.null_threshold == (result["best_f1_threshold"] if unanswerable else 0.0)
    model.scores["best_f1_threshold"] = -1e9
    (tuned,) = (json.loads(line)["answer"] for line in predict.answers(model, lines[:1]))
    assert tuned == ("" if unanswerable else "K"), "the model's own threshold holds where none is given"
    with pytest.raises(ValueError, match="line 1 needs 'question' and 'context'"):
        list(predict.answers(model, [(1, "d?")]))


def test_two_questions_of_one_id_are_refused_where_they_are_scored(tmp_path: pathlib.Path) -> None:
    context = Context(VOCABULARY, str(tmp_path))
    written(tmp_path, entry(("c", 0)), entry(("c", 0)))
    for name in ("dev.json", "test.json"):
        (tmp_path / name).write_text((tmp_path / "train.json").read_text())
    assert len(TASK.source("train", 16, context)) == 2
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=r"(dev|test).json: two questions have the id 'q1'"):
            dataclasses.replace(TASK, test="test.json").source(split, 16, context)


def test_an_empty_answer_is_none(tmp_path: pathlib.Path) -> None:
    context = Context(VOCABULARY, str(tmp_path))
    written(tmp_path, entry(("", -1)), entry(("", 0), ("c", 0), key="q2"))
    found = dataclasses.replace(TASK, unanswerable=True).source("train", 16, context).questions
    assert [one.answers for one in found] == [(), (("c", 0),)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, r"f.json: question q: question must be a text, not null"),
        ({"question": ["a"]}, r"question must be a text, not \[\"a\"\]"),
        ({"question": "\ud83d"}, r"question holds half a surrogate pair"),
        ({"id": None}, r"f.json: data\[0\].paragraphs\[0\].qas\[0\].id must be a text or a number, not null"),
        ({"answers": "c"}, r"question q: answers must be a list, not \"c\""),
        ({"answers": [{"text": 3, "answer_start": 0}]}, r"answers\[0\].text must be a text, not 3"),
        (
            {"answers": [{"text": "c", "answer_start": "0"}]},
            r"answers\[0\].answer_start must be a number of characters",
        ),
        ({"answers": [{"text": "c", "answer_start": float("nan")}]}, r"answer_start must be a number .*, not NaN"),
        ({"answers": [{"text": "c"}]}, r"answers\[0\]: not SQuAD's form, .*'answer_start' is expected"),
        ({"is_impossible": "no"}, r"is_impossible must be true or false, not \"no\""),
    ],
)
def test_a_value_of_another_kind_is_named(tmp_path: pathlib.Path, change: dict, message: str) -> None:
    question = {"id": "q", "question": "a?", "answers": [], **change}
    (tmp_path / "f.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [question]}]}]}))
    with pytest.raises(ValueError, match=message):
        list(read(str(tmp_path / "f.json")))
    (tmp_path / "g.json").write_text('{"data": [{"paragraphs": [{"context": null, "qas": [{}]}]}]}')
    with pytest.raises(ValueError, match=r"g.json: data\[0\].paragraphs\[0\].context must be a text, not null"):
        list(read(str(tmp_path / "g.json")))
