"""Question answering: windows, the best context, candidates and the null threshold by hand; what a file may hold."""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bert_jax
from bert_jax import config, predict, tokenizer, train
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Context
from bert_jax.tasks.squad import NO_CANDIDATE, Question, Squad, Windows, misfits, most_context, read, windows
from bert_jax.tokenizer import WordPiece

LETTERS = [chr(ord("a") + n) for n in range(20)]
VOCABULARY = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "?", ".", "##s"], lower=True)
TASK = Squad(train="train.json", dev="dev.json")


@given(st.integers(0, 500), st.integers(1, 100), st.integers(1, 150))
def test_windows_cover_everything(tokens: int, room: int, stride: int) -> None:
    """Every token is in a window, none is longer than the room, and only the last reaches the end."""
    found = windows(tokens, room, stride)
    assert {place for start, stop in found for place in range(start, stop)} == set(range(tokens))
    assert all(stop - start <= room for start, stop in found)
    assert [stop for _, stop in found].count(tokens) == 1
    assert all(b[0] - a[0] == min(stride, room) for a, b in itertools.pairwise(found))


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 80))
def test_a_token_is_scored_in_the_window_where_it_has_the_most_context(tokens: int, room: int, stride: int) -> None:
    """Against the reference's definition, window by window."""
    spans = windows(tokens, room, stride)
    found = most_context(np.array(spans))
    assert len(found) == tokens
    for place in range(tokens):
        marks = [
            min(place - start, stop - 1 - place) + 0.01 * (stop - start) if start <= place < stop else -1
            for start, stop in spans
        ]
        assert found[place] == marks.index(max(marks))


def test_a_window_by_hand() -> None:
    """Nine tokens in windows of five, four apart; the answer "f g" is whole in the second only."""
    question = Question("q", "a b?", "c d e f g h i j k", (("f g", 6),))
    source = Windows([question], length=11, stride=3, question=64, tokenizer=VOCABULARY)
    assert source.table.tolist() == [[0, 0, 5, 8, 9], [0, 3, 8, 5, 6], [0, 6, 9, 0, 0]]
    across = question._replace(answers=(("g h", 8),))  # "g" ends the first window
    table = Windows([across], length=11, stride=3, question=64, tokenizer=VOCABULARY).table
    assert table[:, 3:].tolist() == [[0, 0], [6, 7], [0, 0]]
    batch = source.batch(np.array([0, 2]))
    pieces = [VOCABULARY.pieces(row) for row in batch["tokens"].tolist()]
    assert pieces[0] == ["[CLS]", "a", "b", "?", "[SEP]", "c", "d", "e", "f", "g", "[SEP]"]
    assert pieces[1] == ["[CLS]", "a", "b", "?", "[SEP]", "i", "j", "k", "[SEP]", "[PAD]", "[PAD]"]
    np.testing.assert_array_equal(batch["segments"], [[0] * 5 + [1] * 6, [0] * 5 + [1] * 4 + [0] * 2])
    np.testing.assert_array_equal(batch["mask"].sum(axis=1), [11, 9])
    assert source.shape(0).most_context.tolist() == [True, True, True, True, False]
    assert source.shape(1).most_context.tolist() == [False, True, True, True, False]
    assert source.shape(2).most_context.tolist() == [False, True, True]
    with pytest.raises(ValueError, match="leaves no room for a context beside a question of 3 tokens"):
        Windows([question], length=6, stride=3, question=64, tokenizer=VOCABULARY)


def test_a_question_is_cut() -> None:
    source = Windows([Question("q", "a b c d", "e f")], length=9, stride=3, question=2, tokenizer=VOCABULARY)
    assert VOCABULARY.pieces(source.batch(np.array([0]))["tokens"][0].tolist())[:4] == ["[CLS]", "a", "b", "[SEP]"]


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


def written(folder: pathlib.Path, *entries: dict, context: str = "c d e d", name: str = "train.json") -> str:
    data = {"data": [{"paragraphs": [{"context": context, "qas": list(entries)}]}]}
    (folder / name).write_text(json.dumps(data))
    return str(folder / name)


def entry(*answers: tuple[str, int], key: str = "q1", **more: object) -> dict:
    golds = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": key, "question": "a?", "answers": golds, **more}


def test_questions_are_read(tmp_path: pathlib.Path) -> None:
    path = written(
        tmp_path, entry(("d", 2), ("e d", 4)), entry(("x", 0), key="q2", is_impossible=True), entry(key="q3")
    )
    assert [(one.id, one.answers) for one in read(path)] == [("q1", (("d", 2), ("e d", 4))), ("q2", ()), ("q3", ())]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"train.json: no JSON"),
        ('{"dat": []}', r"train.json: not SQuAD's form, data > paragraphs > context.*no 'data'"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "a"}]}]}]}', "no 'id'"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": "x", "question": "a", "answers": []}]}]}]}',
            "train.json: question x: .*no 'context'",
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


# Questions; and of the different answers: those that come back exactly from their tokens; those that have white space
# or an invisible character at an end; those that begin or end within a token, which no model of tokens can point at
# ("2" of "27"); those that are not at their offset.
COUNTS = {
    "squad/dev-v1.1.json": (10_570, 18_154, 0, 62, 0),
    "squad/train-v1.1.json": (15_243, 15_171, 0, 72, 0),
    "squad/new_wiki-v1.1.json": (7_938, 14_199, 1, 40, 0),
    "squad/train-v2.0.json": (5_452, 4_610, 0, 11, 0),
    "squad/dev-v2.0.json": (1_407, 1_127, 0, 3, 0),
    "zh/cmrc2018_dev.json": (3_219, 3_995, 10, 2, 181),
    "zh/cmrc2018_trial.json": (1_002, 994, 3, 0, 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", COUNTS)
def test_answers_come_back_from_their_tokens(real_data: pathlib.Path, file: str) -> None:
    vocabulary = tokenizer.load(
        real_data / "vocab" / ("bert-base-chinese" if file.startswith("zh") else "bert-base-uncased")
    )
    questions = list(read(str(real_data / file)))
    found = list(misfits(questions, vocabulary))
    reasons = [one.reason for one in found]
    invisible, within, misplaced = map(reasons.count, ("invisible ends", "within a token", "not at its offset"))
    exact = sum(len(set(one.answers)) for one in questions) - len(found)
    assert (len(questions), exact, invisible, within, misplaced) == COUNTS[file]
    for one in found:
        assert one.reason == "not at its offset" or one.found.strip() in one.answer or one.answer in one.found


def test_misfits_by_hand() -> None:
    golds = (("a b", 0), (" b", 1), ("x", 4), ("c", 0), ("c", -3), ("\u200b", 7))
    found = [one[1:] for one in misfits([Question("q", "a?", "a b c  \u200b", golds)], VOCABULARY)]
    assert found == [
        (" b", "invisible ends", "b"),
        ("x", "not at its offset", "c"),
        ("c", "not at its offset", "a"),
        ("c", "not at its offset", ""),
        ("\u200b", "invisible ends", ""),
    ]
    whole = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cx", "a", "b"], lower=True)
    within = misfits([Question("q", "a?", "a b cx", (("c", 4), ("x", 5), ("cx", 4)))], whole)
    assert [one[1:] for one in within] == [("c", "within a token", "cx"), ("x", "within a token", "cx")]


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
    assert first["answer"] == ("" if unanswerable else "K"), "no odds are as low as that"
    assert unanswerable or (first["start"], first["end"]) == (3, 4)
    assert ("null_odds" in second) == unanswerable
    assert model.null_threshold == (result["best_f1_threshold"] if unanswerable else 0.0)
    model.scores["best_f1_threshold"] = -1e9
    (tuned,) = (json.loads(line)["answer"] for line in predict.answers(model, lines[:1]))
    assert tuned == ("" if unanswerable else "K"), "the model's own threshold holds where none is given"
    with pytest.raises(ValueError, match="line 1 needs 'question' and 'context'"):
        list(predict.answers(model, [(1, "d?")]))
