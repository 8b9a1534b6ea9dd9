"""The official scores, held to scikit-learn, scipy and seqeval, and to the SQuAD scripts' published behaviour."""

import warnings

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import seqeval.metrics.sequence_labeling
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.tasks import scores

classes = st.integers(1, 4).flatmap(
    lambda top: st.lists(st.tuples(st.integers(0, top), st.integers(0, top)), min_size=1, max_size=40)
)
values = st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5, width=16)), min_size=3, max_size=40)


def columns(pairs: list) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array(side) for side in zip(*pairs, strict=True))  # type: ignore[return-value]


@given(classes)
def test_scores_of_classes_are_scikit_learn_s(pairs: list) -> None:
    """One class alone, on either side, among them."""
    predicted, expected = columns(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores.accuracy(predicted, expected) == sklearn.metrics.accuracy_score(expected, predicted)
        binary = (predicted == 1, expected == 1)
        wanted = sklearn.metrics.f1_score(binary[1], binary[0], zero_division=0)
        assert scores.f1(predicted, expected) == pytest.approx(wanted)
        wanted = sklearn.metrics.matthews_corrcoef(expected, predicted)
        assert scores.matthews(predicted, expected) == pytest.approx(wanted, abs=1e-9)


@given(values)
def test_correlations_are_scipy_s(pairs: list) -> None:
    """Ties among them; where scipy has no number, a side is constant, and the score is 0."""
    predicted, expected = columns(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mine, theirs in (
            (scores.pearson, scipy.stats.pearsonr),
            (scores.spearman, scipy.stats.spearmanr),
        ):
            wanted = np.nan_to_num(theirs(predicted, expected).statistic)
            assert mine(predicted, expected) == pytest.approx(wanted, abs=1e-6)


def test_a_constant_prediction_is_named() -> None:
    assert scores.constant(np.array([2, 2, 2])) == 1
    assert scores.constant(np.array([2, 2, 1])) == 0
    assert scores.pearson(np.full(7, 0.1), np.arange(7) ** 2) == 0, "its mean is not 0.1"
    assert scores.matthews(np.full(3, 1), np.array([0, 1, 1])) == 0


marks = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])
iobes = st.sampled_from(["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in "XY")])


@given(
    st.lists(st.one_of(st.lists(marks, max_size=12), st.lists(iobes, max_size=12)), min_size=1, max_size=4), st.data()
)
def test_chunks_are_seqeval_s(gold: list[list[str]], data: st.DataObject) -> None:
    """IOB1, IOB2, IOBES and what is none of them: the same chunks, and the same F1."""
    for tags in gold:
        wanted = seqeval.metrics.sequence_labeling.get_entities(tags)
        assert [(c.kind, c.start, c.stop - 1) for c in scores.chunks(tags)] == wanted
    guess = [data.draw(st.lists(iobes, min_size=len(tags), max_size=len(tags))) for tags in gold]
    if not any(gold):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scores.conlleval(guess, gold)
        assert found["f1"] == pytest.approx(seqeval.metrics.f1_score(gold, guess))
        assert found["precision"] == pytest.approx(seqeval.metrics.precision_score(gold, guess))
        assert found["recall"] == pytest.approx(seqeval.metrics.recall_score(gold, guess))
        assert found["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(gold, guess))


def test_chunks_by_hand() -> None:
    """The example of the CoNLL-2003 paper's scheme: B- only where two of a kind meet."""
    tags = ["I-X", "I-X", "B-X", "O", "I-Y", "I-X", "E-X", "I-X"]
    assert scores.chunks(tags) == [("X", 0, 2), ("X", 2, 3), ("Y", 4, 5), ("X", 5, 7), ("X", 7, 8)]
    assert scores.as_iob2(tags) == ["B-X", "I-X", "B-X", "O", "B-Y", "B-X", "I-X", "B-X"]
    with pytest.raises(ValueError, match="sentence 0 has 1 tags, 2 expected"):
        scores.conlleval([["O"]], [["O", "O"]])


@given(st.lists(st.one_of(marks, iobes), max_size=20))
def test_iob2_keeps_the_chunks(tags: list[str]) -> None:
    assert scores.chunks(scores.as_iob2(tags)) == scores.chunks(tags)


@pytest.mark.parametrize(
    ("predicted", "gold", "exact", "f1"),
    [
        ("The Normans!", "normans", 1, 1),  # case, article, punctuation
        ("in the 10th  century", "10th century", 0, 0.8),
        ("a", "the", 1, 0),  # nothing is left of either: equal, and nothing shared
        ("", "x", 0, 0),
        ("x x", "x", 0, 2 / 3),  # a bag, not a set
        ("don't", "dont", 1, 1),
        ("北京大学", "北京", 0, 0),  # without spaces, one token
        ("theatre", "atre", 0, 0),  # "the" is a word, not a prefix
    ],
)
def test_answers_by_hand(predicted: str, gold: str, exact: float, f1: float) -> None:
    assert scores.answer_exact(predicted, gold) == exact
    assert scores.answer_f1(predicted, gold) == pytest.approx(f1)


def test_squad_takes_the_best_gold_and_counts_what_is_missing() -> None:
    golds = {"a": ["x y", "x"], "b": ["z"]}
    assert scores.squad({"a": "X."}, golds) == {"exact": 0.5, "f1": 0.5}
    assert scores.squad({"a": "y", "b": "z"}, golds) == {"exact": 0.5, "f1": pytest.approx((2 / 3 + 1) / 2)}


def test_squad2_thresholds() -> None:
    """Two questions with an answer, two without; the best threshold lets the sure ones through and no other."""
    golds = {"a": ["x"], "b": ["y z"], "c": [], "d": []}
    predicted = {"a": "x", "b": "y", "c": "w", "d": "w"}
    odds = {"a": -5.0, "b": 1.0, "c": 0.5, "d": 3.0}
    figures = scores.squad2(predicted, golds, odds, threshold=0.0)
    assert figures["exact"] == 0.75
    assert figures["f1"] == 0.75
    assert figures["has_answer_exact"] == 0.5
    assert figures["no_answer_exact"] == 1.0
    # Let through in order of odds: a (+1), c (-1), b (+0 exact, +2/3 F1), d (-1).
    assert figures["best_exact"] == 0.75
    assert figures["best_exact_threshold"] == -5.0
    assert figures["best_f1"] == 0.75
    assert figures["best_f1_threshold"] == -5.0
    at_best = scores.squad2(predicted, golds, odds, figures["best_f1_threshold"])
    assert at_best["f1"] == figures["best_f1"]


def test_squad2_s_corner_cases() -> None:
    """A prediction that is missing is left out; one that is normalised to nothing is none; so is such a gold."""
    far = {"a": -9.0, "b": -9.0, "c": -9.0}
    assert scores.squad2({"a": "x"}, {"a": ["x"], "b": ["y"]}, far, 0.0)["exact"] == 1.0
    assert scores.squad2({"a": "the"}, {"a": []}, far, 0.0)["exact"] == 1.0
    assert scores.squad2({"a": ""}, {"a": ["a."]}, far, 0.0)["exact"] == 1.0
    assert scores.squad2({"a": "x"}, {"a": []}, far, 0.0)["f1"] == 0.0
    none = scores.squad2({"a": "x", "b": "y"}, {"a": [], "b": []}, {"a": 1.0, "b": 2.0}, 0.0)
    assert (none["best_f1"], none["best_f1_threshold"]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="no predictions"):
        scores.squad2({}, {"a": ["x"]}, {}, 0.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "x", "y", "x y"]), st.sampled_from([(), ("x",), ("y", "x y")]), st.integers(-3, 3)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_best_threshold_is_found_by_trying_all(rows: list) -> None:
    """Against every threshold there is, with odds that are all different."""
    predicted = {str(n): row[0] for n, row in enumerate(rows)}
    golds = {str(n): row[1] for n, row in enumerate(rows)}
    odds = {str(n): row[2] + n / 100 for n, row in enumerate(rows)}
    found = scores.squad2(predicted, golds, odds, 0.0)
    for name in ("exact", "f1"):
        tried = [scores.squad2(predicted, golds, odds, one)[name] for one in [-99.0, *odds.values()]]
        assert found[f"best_{name}"] == pytest.approx(max(tried))


@pytest.mark.parametrize("marks", ["BIES", "BILU", "BMEW", "BMES"])
def test_every_scheme_marks_the_same_chunks(marks: str) -> None:
    """Two of a kind side by side are two: of one word each, and a longer one after another."""
    begin, inside, end, single = marks
    tags = [f"{single}-X", f"{single}-X", "O", f"{begin}-X", f"{inside}-X", f"{end}-X", f"{single}-X", f"{begin}-X"]
    assert scores.chunks(tags) == [("X", 0, 1), ("X", 1, 2), ("X", 3, 6), ("X", 6, 7), ("X", 7, 8)]
    assert scores.as_iob2(tags) == ["B-X", "B-X", "O", "B-X", "I-X", "I-X", "B-X", "B-X"]
    found = scores.conlleval([[f"{single}-X", "O"]], [[f"{single}-X", f"{single}-X"]])
    assert (found["precision"], found["recall"]) == (1.0, 0.5)


def test_a_tag_without_a_kind_and_marks_that_are_none() -> None:
    assert scores.as_iob2(["B", "I", "O", "I"]) == ["B", "I", "O", "B"]
    for tag in ("X-PER", "PER", "b-PER", "B_PER", "PER-B", "B-", "-PER", "o", ""):
        with pytest.raises(ValueError, match=f"the tag '{tag}' is neither O nor a mark"):
            scores.as_iob2(["O", tag])


def test_macro_f1_is_sklearn_s() -> None:
    expected, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 2, 2, 2])
    assert scores.macro_f1(predicted, expected) == pytest.approx(0.6)
    for seed in range(5):
        a, b = np.random.default_rng(seed).integers(0, 4, (2, 9))
        assert scores.macro_f1(a, b) == pytest.approx(sklearn.metrics.f1_score(b, a, average="macro"))


def test_values_that_spread_less_than_noise_have_collapsed() -> None:
    """500 predictions of 3.641, but for rounding, against labels of 0 to 5."""
    rng = np.random.default_rng(0)
    expected = rng.uniform(0, 5, 500)
    predicted = (3.641 + 1e-4 * rng.standard_normal(500)).astype(np.float32)
    assert (scores.constant(predicted), scores.collapsed(predicted, expected)) == (0.0, 1.0)
    assert scores.collapsed(3.641 + 0.1 * rng.standard_normal(500), expected) == 0.0
    assert scores.collapsed(np.ones(3), np.ones(3)) == 1.0
    assert scores.collapsed(expected, expected) == 0.0
