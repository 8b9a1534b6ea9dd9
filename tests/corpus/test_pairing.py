"""The pairing: the reference's rates, its distribution against a plain restatement, splits, index and batches."""

import collections
import dataclasses
import errno
import pathlib
import pickle
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus import pairing
from bert_jax.corpus.building import build
from bert_jax.corpus.pairing import PairExamples, members, pairs, unigram_entropy
from bert_jax.corpus.store import Corpus
from bert_jax.tasks.base import epoch_size
from bert_jax.text import tokenizer
from bert_jax.text.tokenizer import SPECIAL, WordPiece
from tests.conftest import flip


def corpus_of(documents):
    """A corpus in memory, of documents given as the lengths of their sentences; each token its own id."""
    sentences = np.cumsum([0, *(length for document in documents for length in document)])
    counts = {"documents": len(documents), "sentences": len(sentences) - 1, "tokens": int(sentences[-1])}
    return Corpus(
        directory=pathlib.Path("memory"),
        manifest={"counts": counts},
        tokens=np.arange(sentences[-1], dtype=np.uint32),
        sentences=sentences,
        documents=np.cumsum([0, *map(len, documents)]),
    )


def one_pass(corpus, length, number=0, documents=None):
    documents = np.arange(corpus.count("documents")) if documents is None else documents
    return pairs(corpus, documents, 0, corpus.count("documents"), length, np.random.default_rng((0, number)))


def owner(corpus, tokens):
    """The document that a token belongs to."""
    return np.searchsorted(corpus.sentences[corpus.documents], tokens, side="right") - 1


def flat(sentences):
    return [token for sentence in sentences for token in sentence]


def reference(documents, length, rng):
    """The examples of one pass, as (A, B, is random), worked out a sentence at a time; PAPER, section 2, items 2 to 5.

    `documents` are lists of sentences, these lists of tokens.
    """
    room = length - 3
    for number, document in enumerate(documents):
        target = rng.randint(2, room) if rng.random() < 0.1 else room
        waiting = list(document)
        while waiting:
            chunk = []
            while waiting and sum(map(len, chunk)) < target:
                chunk.append(waiting.pop(0))
            size = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            a, rest = flat(chunk[:size]), chunk[size:]
            is_random = not rest or rng.random() < 0.5
            if is_random:
                waiting = rest + waiting
                other = rng.choice([n for n in range(len(documents)) if n != number])
                b = []
                for sentence in documents[other][rng.randrange(len(documents[other])) :]:
                    b += sentence
                    if len(b) >= target - len(a):
                        break
            else:
                b = flat(rest)
            while len(a) + len(b) > room:
                longer = a if len(a) > len(b) else b
                longer.pop(0 if rng.random() < 0.5 else -1)
            yield a, b, is_random


def same_distribution(ours, theirs):
    """The p-value of a chi-squared test on two lists of outcomes, the rare ones taken together."""
    both = collections.Counter(ours) + collections.Counter(theirs)
    table = np.array([[sample.count(key) for key in both if both[key] >= 20] for sample in (ours, theirs)])
    rest = [[len(ours) - table[0].sum()], [len(theirs) - table[1].sum()]]
    table = np.append(table, rest, axis=1) if np.sum(rest) >= 20 else table
    return scipy.stats.chi2_contingency(table).pvalue


def test_the_distribution_is_that_of_a_plain_restatement():
    lengths = [[3, 4, 2, 6, 1], [30], [5, 5, 5, 5], [1, 2, 1, 9], [2, 2]]
    corpus, passes = corpus_of(lengths), 3000
    documents = [[sentence.tolist() for sentence in corpus.document(i)] for i in range(len(lengths))]
    rng = random.Random(0)
    theirs = [(a[0], len(a), b[0], len(b), r) for _ in range(passes) for a, b, r in reference(documents, 15, rng)]
    ours = [row for number in range(passes) for row in one_pass(corpus, 15, number).tolist()]
    assert len(ours) == pytest.approx(len(theirs), rel=0.01)
    for part in (slice(0, 2), slice(2, 4), slice(1, 4, 2), slice(0, 5, 4), slice(3, 5)):
        assert same_distribution([row[part] for row in ours], [row[part] for row in theirs]) > 1e-3, part


def test_rates():
    # Sentences of one token: nothing needs truncation, so that lengths show the target.
    corpus = corpus_of([[1] * 600] * 1500)
    rows = one_pass(corpus, 67)
    follows = rows[~rows["is_random"]]
    assert rows["is_random"].mean() == pytest.approx(0.5, abs=0.005)  # hardly a chunk here has a single sentence
    target = np.zeros(1500, int)
    np.maximum.at(target, owner(corpus, follows["a_start"]), follows["a_length"] + follows["b_length"])
    assert (target < 64).mean() == pytest.approx(0.1 * 62 / 63, abs=0.025)  # three standard deviations
    quarters = np.histogram(target[target < 64], [2, 18, 33, 49, 64])[0]
    assert scipy.stats.chisquare(quarters, quarters.sum() * np.array([16, 15, 16, 15]) / 62).pvalue > 1e-3
    full = follows["a_length"][follows["a_length"] + follows["b_length"] == 64]
    assert scipy.stats.chisquare(np.bincount(full, minlength=64)[1:]).pvalue > 1e-3  # uniform in 1 .. 63


def test_not_next_is_above_one_half_because_of_single_sentences():
    corpus = corpus_of([[70] * 6] * 500)  # at 128 a chunk has two sentences, and the last one is alone after a random B
    rate = np.mean([one_pass(corpus, 128, number)["is_random"].mean() for number in range(5)])
    assert 0.53 < rate < 0.75
    assert one_pass(corpus_of([[200] * 6] * 50), 128)["is_random"].all()


def test_sentences_that_a_random_b_displaced_are_used_again():
    corpus = corpus_of([[1] * 300] * 20)
    rows = one_pass(corpus, 32)
    follows = ~rows["is_random"]
    used = np.where(follows, rows["a_length"] + rows["b_length"], rows["a_length"])
    order = np.argsort(rows["a_start"])
    assert np.array_equal(rows["a_start"][order], np.cumsum([0, *used[order][:-1]]))  # each token once, none left out
    assert used.sum() == 6000


def test_truncation_drops_from_the_front_and_the_back_alike():
    corpus = corpus_of([[300]] * 3000)
    rows = one_pass(corpus, 128)
    assert set(zip(rows["a_length"].tolist(), rows["b_length"].tolist(), strict=True)) == {(63, 62)}
    for start, dropped in (("a_start", 237), ("b_start", 238)):
        front = rows[start] % 300
        assert front.mean() == pytest.approx(dropped / 2, abs=0.5)
        assert front.var() == pytest.approx(dropped / 4, rel=0.1)  # a coin for each token, not for each span


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40))
def test_how_much_each_span_loses(a, b, room):
    left = [a, b]
    while sum(left) > room:
        left[0 if left[0] > left[1] else 1] -= 1
    dropped = pairing._excess(np.array([a]), np.array([b]), room)
    assert [a - dropped[0][0], b - dropped[1][0]] == left


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=2, max_size=12),
    st.integers(5, 64),
    st.integers(0, 1000),
)
def test_every_example_is_whole_and_rightly_labelled(documents, length, number):
    corpus = corpus_of(documents)
    rows = one_pass(corpus, length, number)
    a_end, b_end = rows["a_start"] + rows["a_length"], rows["b_start"] + rows["b_length"]
    assert min(rows["a_length"].min(), rows["b_length"].min()) >= 1
    assert (rows["a_length"] + rows["b_length"]).max() <= length - 3
    a, b = owner(corpus, rows["a_start"]), owner(corpus, rows["b_start"])
    assert np.array_equal(a, owner(corpus, a_end - 1))  # a span lies in one document
    assert np.array_equal(b, owner(corpus, b_end - 1))
    assert np.array_equal(rows["is_random"], a != b)
    assert np.all(rows["is_random"] | (a_end <= rows["b_start"]))
    assert set(a.tolist()) == set(range(len(documents)))  # each document begins somewhere


def test_a_small_corpus_is_never_mislabelled():
    corpus = corpus_of([[1] * 5, [1] * 60_000])  # ten draws hit one's own document once in a thousand
    rows = one_pass(corpus, 16)
    assert rows["is_random"].sum() > 3000
    assert np.array_equal(rows["is_random"], owner(corpus, rows["a_start"]) != owner(corpus, rows["b_start"]))


def test_blocks_divide_the_documents(monkeypatch):
    monkeypatch.setattr(pairing, "BLOCK", 10)
    corpus = corpus_of([[1] * n for n in (1, 25, 3, 3, 3, 3, 12, 1, 9, 1, 1)])
    blocks = list(pairing._blocks(corpus))
    assert len(blocks) > 3
    assert [document for first, last in blocks for document in range(first, last)] == list(range(11))


@pytest.mark.parametrize(
    ("documents", "share", "expected"), [(4, 0.01, 2), (1000, 0.01, 10), (3, 0.01, 0), (9, 0.0, 0)]
)
def test_how_many_documents_are_held_out(documents, share, expected):
    assert pairing.held_out(corpus_of([[5]] * documents), share, 0).sum() == expected


def test_splits_share_no_document():
    corpus = corpus_of([[3] * 20] * 50)
    train, validation = (members(corpus, split, 0.1, 0) for split in ("train", "validation"))
    assert sorted([*train, *validation]) == list(range(50))
    assert len(validation) == 5
    assert not np.array_equal(members(corpus, "validation", 0.1, 1), validation)
    for split in (train, validation):
        for length in (8, 32):
            rows = one_pass(corpus, length, documents=split)
            for start in ("a_start", "b_start"):
                assert set(owner(corpus, rows[start]).tolist()) <= set(split.tolist())


@pytest.mark.parametrize(("documents", "split"), [(1, "train"), (3, "validation")])
def test_too_few_documents(documents, split):
    with pytest.raises(ValueError, match=r"needs 2 documents or more, .* split of memory has \d .* with a blank line"):
        PairExamples(corpus_of([[5] * 9] * documents), length=16, passes=1, seed=0, split=split)


def test_sentences_of_one_document_follow_one_another_and_leave_nothing_out():
    corpus = corpus_of([[5, 9, 4, 7], [3, 3], [30], [6, 2, 8, 1, 9, 9, 2]])
    split = np.arange(4)
    rows = pairs(corpus, split, 0, 4, 20, np.random.default_rng(0), paired=False)
    assert not rows["is_random"].any()
    assert (rows["b_length"] == -1).all()
    covered = np.zeros(corpus.count("tokens"), int)
    for row in rows:
        place = slice(row["a_start"], row["a_start"] + row["a_length"])
        covered[place] += 1
        assert 0 < row["a_length"] <= 18
        first, last = (np.searchsorted(corpus.sentences, at, side="right") - 1 for at in (place.start, place.stop - 1))
        assert np.searchsorted(corpus.documents, first, side="right") == np.searchsorted(
            corpus.documents, last, side="right"
        )
    assert covered.max() == 1
    assert covered.sum() == corpus.count("tokens") - 12  # of the sentence that is longer than an example


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus on disk: forty documents of up to twenty sentences."""
    folder, rng = tmp_path_factory.mktemp("small"), random.Random(0)
    words = [f"w{letter}" for letter in "abcdefgh"]
    documents = [
        "\n".join(" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(rng.randint(1, 20)))
        for _ in range(40)
    ]
    (folder / "text.txt").write_text("\n\n".join(documents))
    return build([str(folder / "text.txt")], WordPiece([*SPECIAL, *words], lower=True), folder / "corpus", workers=1)


def test_an_epoch_is_a_pass(small):
    """However often the documents are paired anew before the first pairs come again."""
    three, one = (PairExamples(small, length=32, passes=passes, seed=0) for passes in (3, 1))
    assert epoch_size(three) == pytest.approx(len(three) / 3, abs=0.5)
    assert epoch_size(one) == len(one) == pytest.approx(epoch_size(three), rel=0.1)


def test_the_layout_of_a_batch(small):
    source = PairExamples(small, length=32, passes=3, seed=0)
    ids = np.array([len(source) - 1, 5, 5, *range(len(source) // 2)])
    batch, special = source.batch(ids), small.tokenizer
    assert not batch["mask"].all()
    for i, row in enumerate(source.rows(ids)):
        a = small.tokens[row["a_start"] :][: row["a_length"]].tolist()
        b = small.tokens[row["b_start"] :][: row["b_length"]].tolist()
        tokens = [special.cls, *a, special.sep, *b, special.sep]
        padding = 32 - len(tokens)
        assert batch["tokens"][i].tolist() == tokens + [special.pad] * padding
        assert batch["segments"][i].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * padding
        assert batch["mask"][i].tolist() == [True] * len(tokens) + [False] * padding
        assert batch["next_sentence"][i] == row["is_random"]
    assert batch["id"].tolist() == ids.tolist()
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "segments": "int32",
        "mask": "bool",
        "next_sentence": "int32",
        "id": "int64",
    }


def test_the_layout_of_a_batch_without_pairs(small):
    examples = PairExamples(small, length=32, passes=1, seed=0, heldout=0.2, paired=False)
    batch = examples.batch(np.arange(len(examples)))
    special = small.tokenizer
    assert (batch["tokens"][:, 0] == special.cls).all()
    assert ((batch["tokens"] == special.sep).sum(axis=1) == 1).all()
    last = batch["mask"].sum(axis=1) - 1
    assert (np.take_along_axis(batch["tokens"], last[:, None], 1) == special.sep).all()
    assert not batch["segments"].any()
    assert not batch["next_sentence"].any()
    for row, tokens, size in zip(examples.rows(np.arange(len(examples))), batch["tokens"], last, strict=True):
        stored = small.tokens[row["a_start"] : row["a_start"] + row["a_length"]]
        np.testing.assert_array_equal(tokens[1:size], stored)


def test_a_single_document_is_enough_without_pairs():
    one = corpus_of([[4, 4, 4]])
    with pytest.raises(ValueError, match="2 documents or more"):
        members(one, "train", 0.0, 0)
    assert members(one, "train", 0.0, 0, paired=False).tolist() == [0]


def test_passes_follow_one_another_and_differ(small):
    three, one = (PairExamples(small, length=32, passes=passes, seed=0) for passes in (3, 1))
    assert len(three) > 2 * len(one)
    rows = three.rows(np.arange(len(three)))
    assert np.array_equal(rows[: len(one)], one.rows(np.arange(len(one))))
    assert not np.array_equal(rows[len(one) : 2 * len(one)], rows[: len(one)])
    assert len(PairExamples(small, length=32, passes=3, seed=0, split="validation")) < len(one)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, "):
        one.batch(np.array([len(one)]))


def test_an_index_is_made_once(small, monkeypatch, capsys):
    first = PairExamples(small, length=40, passes=2, seed=0)
    monkeypatch.setattr(pairing, "_write", lambda *_: pytest.fail("made again"))
    sent = pickle.dumps(PairExamples(small, length=40, passes=2, seed=0))
    assert len(sent) < 1000  # the path, no content
    again = pickle.loads(sent)
    ids = np.arange(len(first))
    assert np.array_equal(first.rows(ids), again.rows(ids))
    for other in ({"length": 41}, {"seed": 1}, {"heldout": 0.2}, {"passes": 3}):
        with pytest.raises(pytest.fail.Exception):
            PairExamples(small, **{"length": 40, "passes": 2, "seed": 0, **other})


def test_a_corpus_that_may_only_be_read(small, tmp_path, monkeypatch):
    mkdir = pathlib.Path.mkdir

    def refuse(self, *arguments, **options):
        if self == small.directory / "index":
            raise PermissionError(errno.EACCES, "may not")
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("LOGNAME", "ada")
    assert len(PairExamples(small, length=44, passes=1, seed=0)) > 0
    (found,) = tmp_path.rglob("train-length44-*.npy")
    monkeypatch.setattr("os.getuid", lambda: found.stat().st_uid + 1)  # as if the folder were somebody else's
    with pytest.raises(PermissionError, match="may be written neither to"):
        PairExamples(small, length=44, passes=1, seed=0)


@pytest.mark.parametrize(
    "damage", ["first row", "last row", "header", "checksum", "cut", "cut in the checksum", "empty"]
)
def test_a_damaged_index_is_made_again(damage, small, capsys):
    def made():
        return PairExamples(small, length=46, passes=1, seed=0)

    expected = made().rows(np.arange(20))
    (file,) = (small.directory / "index").glob("train-length46-*.npy")
    content = file.read_bytes()
    places = {"first row": 128, "last row": len(content) - 12, "header": 20, "checksum": len(content) - 1}
    if damage in places:
        flip(file, places[damage])
    else:
        file.write_bytes(content[: {"cut": -40, "cut in the checksum": -3, "empty": 0}[damage]])
    assert pairing.damaged(small) == [file]
    assert f"{file.name}, damaged" in pairing.describe(small)
    assert np.array_equal(made().rows(np.arange(20)), expected)
    assert f"{file} is damaged: the example index is made again" in capsys.readouterr().err
    assert file.read_bytes() == content
    assert pairing.damaged(small) == []


def test_an_index_of_an_older_version_has_no_checksum(small, monkeypatch):
    examples = PairExamples(small, length=47, passes=1, seed=0)
    (file,) = (small.directory / "index").glob("train-length47-*.npy")
    file.write_bytes(file.read_bytes()[: -len(pairing.CHECKED) - 4])
    monkeypatch.setattr(pairing, "_write", lambda *_: pytest.fail("made again"))
    assert len(PairExamples(small, length=47, passes=1, seed=0)) == len(examples)


def test_a_full_disk_leaves_no_half_index(small, monkeypatch):
    def full(file, *_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(pairing, "_write", full)
    with pytest.raises(OSError, match=r"disk of .*index is full: make room for the example index and run"):
        PairExamples(small, length=45, passes=1, seed=0)
    assert not [path for path in (small.directory / "index").iterdir() if "length45" in path.name]


@pytest.mark.parametrize(
    ("name", "value"), [("length", 4), ("passes", 0), ("seed", -1), ("heldout", 0.6), ("split", "x")]
)
def test_impossible_arguments(name, value, small):
    with pytest.raises(ValueError, match=name):
        PairExamples(small, **{"length": 32, "passes": 1, "seed": 0, name: value})


def test_unigram_entropy_reads_its_own_split_alone(small):
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, which):
            read.append(small.tokens[which])
            return read[-1]

    unigram_entropy(dataclasses.replace(small, tokens=small.tokens.view(Watched)), "validation", 0.1, 0)
    held = [
        sentence for document in members(small, "validation", 0.1, 0).tolist() for sentence in small.document(document)
    ]
    assert sum(map(len, read)) == sum(map(len, held)) < 0.3 * small.count("tokens")


def test_unigram_entropy(small, tmp_path):
    # Half of the held-out tokens of one kind, a quarter of each of two others.
    (tmp_path / "text.txt").write_text("\n\n".join(["wa wb wa wc"] * 8))
    even = build([str(tmp_path / "text.txt")], small.tokenizer, tmp_path / "corpus", workers=1)
    for split in ("train", "validation"):
        assert unigram_entropy(even, split, 0.25, 0) == pytest.approx(1.5 * np.log(2))
    chosen = members(small, "validation", 0.1, 0).tolist()
    tokens = np.concatenate([sentence for document in chosen for sentence in small.document(document)])
    expected = scipy.stats.entropy(np.bincount(tokens))
    assert unigram_entropy(small, "validation", 0.1, 0) == pytest.approx(expected)


def test_real_text(real_data, tmp_path):
    """Rates that the reference's algorithm gives on ordinary text."""
    vocabulary = tokenizer.load(real_data / "vocab" / "bert-base-uncased" / "vocab.txt")
    source = real_data / "ud_ewt" / "en_ewt-ud-dev.conllu"
    sentences = [
        line.removeprefix("# text = ") for line in source.read_text().splitlines() if line.startswith("# text = ")
    ]
    documents = ["\n".join(sentences[i : i + 40]) for i in range(0, len(sentences), 40)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    corpus = build([str(tmp_path / "text.txt")], vocabulary, tmp_path / "corpus", workers=1)
    assert corpus.count("unknown") / corpus.count("tokens") < 0.002
    source = PairExamples(corpus, length=128, passes=4, seed=0)
    batch = source.batch(np.arange(len(source)))
    assert 0.5 < batch["next_sentence"].mean() < 0.6
    assert 0.75 < batch["mask"].mean() < 1
    assert 5 < unigram_entropy(corpus, "train", 0.01, 0) < 7
