"""Questions and the windows that their contexts are read in; answers that no span of tokens gives, counted."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.tasks.base import epoch_size
from bert_jax.tasks.windows import Question, Windows, misfits, most_context, read, windows
from bert_jax.text import tokenizer
from bert_jax.text.tokenizer import WordPiece
from bert_jax.training import planning

LETTERS = [chr(ord("a") + n) for n in range(20)]
VOCABULARY = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "?", ".", "##s"], lower=True)


def written(folder: pathlib.Path, *entries: dict, context: str = "c d e d", name: str = "train.json") -> str:
    data = {"data": [{"paragraphs": [{"context": context, "qas": list(entries)}]}]}
    (folder / name).write_text(json.dumps(data))
    return str(folder / name)


def entry(*answers: tuple[str, int], key: str = "q1", **more: object) -> dict:
    golds = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": key, "question": "a?", "answers": golds, **more}


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


def test_a_window_s_most_context_is_that_among_all() -> None:
    question = Question("q", "a b?", " ".join("cdefg" * 20))
    for stride in (1, 3, 7, 20):
        source = Windows([question], length=16, stride=stride, question=64, tokenizer=VOCABULARY)
        best = most_context(source.table[:, 1:3])
        for window, (start, stop) in enumerate(source.table[:, 1:3]):
            assert source.shape(window).most_context.tolist() == (best[start:stop] == window).tolist()


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


def test_an_epoch_counts_questions() -> None:
    """`num_train_steps` of the reference is len(examples) / batch * epochs, its examples the questions of the file."""
    questions = [Question(str(n), "a b?", "c d e f g h i j k") for n in range(10)]
    source = Windows(questions, length=11, stride=3, question=64, tokenizer=VOCABULARY)
    assert (len(source), epoch_size(source)) == (30, 10)
    assert planning.steps_of(config.Phase(length=11, batch_size=4, epochs=3), source) == 7
    assert planning.steps_of(config.Phase(length=11, batch_size=4, steps=5), source) == 5


def test_a_question_is_cut() -> None:
    source = Windows([Question("q", "a b c d", "e f")], length=9, stride=3, question=2, tokenizer=VOCABULARY)
    assert VOCABULARY.pieces(source.batch(np.array([0]))["tokens"][0].tolist())[:4] == ["[CLS]", "a", "b", "[SEP]"]


def test_questions_are_read(tmp_path: pathlib.Path) -> None:
    path = written(
        tmp_path, entry(("d", 2), ("e d", 4)), entry(("x", 0), key="q2", is_impossible=True), entry(key="q3")
    )
    assert [(one.id, one.answers) for one in read(path)] == [("q1", (("d", 2), ("e d", 4))), ("q2", ()), ("q3", ())]


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
