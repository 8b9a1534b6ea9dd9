"""The tokenizers: the reference's algorithm written out slowly beside the fast one, and what users bring to `load`."""

import functools
import json
import lzma
import pathlib
import pickle
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pydoc_data import topics

import hypothesis
import pytest
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from bert_jax.text import tokenizer, tokenizer_files, vocabularies, words
from tests.conftest import REPOSITORY
from tests.text.test_words import TEXTS, any_text, expected_words

PUBLISHED = ("bert-base-uncased", "bert-base-cased", "bert-base-multilingual-cased", "bert-base-chinese")


def expected_pieces(word: str, vocabulary: dict[str, int]) -> tuple[int, ...]:
    if len(word) > 200:
        return (vocabulary["[UNK]"],)
    ids, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in vocabulary:
                ids.append(vocabulary[piece])
                start = end
                break
        else:
            return (vocabulary["[UNK]"],)
    return tuple(ids)


class Reference:
    """The slow tokenizer over a vocabulary file."""

    def __init__(self, path: pathlib.Path, lower: bool):
        lines = path.read_text(encoding="utf-8").split("\n")
        self.vocabulary = {line: i for i, line in enumerate(lines[:-1])}
        self.lower = lower
        self.pieces = functools.cache(lambda word: expected_pieces(word, self.vocabulary))

    def encode(self, text: str) -> list[int]:
        return [i for word in expected_words(text, self.lower) for i in self.pieces(word)]


# --- WordPiece against it

SMALL = [
    *tokenizer.SPECIAL,
    *"abcdefσςο中.,'",
    "the",
    "un",
    *(f"##{c}" for c in "abcdefσςο"),
    "##able",
    "\ue000",
    "##\u0378",
]


@pytest.fixture(scope="session")
def published(real_data: pathlib.Path) -> dict[str, tuple[tokenizer.Tokenizer, Reference]]:
    found = {}
    for name in PUBLISHED:
        folder = real_data / "vocab" / name
        found[name] = tokenizer.load(folder), Reference(folder / "vocab.txt", "cased" not in name.split("-"))
    return found


def test_by_hand() -> None:
    small = tokenizer.WordPiece(SMALL, lower=True)
    assert small.pieces(small.encode("Unable, the bad cat [MASK]")) == (
        ["un", "##able", ",", "the", "b", "##a", "##d", "[UNK]", "[UNK]", "[UNK]", "[UNK]"]
    )
    assert small.pieces(small.encode("\ue000 a\u0378")) == ["\ue000", "a", "##\u0378"]  # kept, unlike in the library


def test_long_words() -> None:
    small = tokenizer.WordPiece(SMALL, lower=True)
    assert small.encode("a" * 200) == [SMALL.index("a")] + [SMALL.index("##a")] * 199
    assert small.encode("a" * 201) == [small.unk]
    assert small.encode("e\u0301" * 200) == [SMALL.index("e")] + [SMALL.index("##e")] * 199  # counted without accents


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("text", TEXTS)
def test_published_vocabularies(published: dict, name: str, text: str) -> None:
    fast, slow = published[name]
    assert fast.encode(text) == slow.encode(text)
    assert fast.encode_with_offsets(text)[0] == slow.encode(text)


def test_published_specials(published: dict) -> None:
    for fast, slow in published.values():
        assert fast.special == (0, 100, 101, 102, 103)
        assert fast.vocab_size == len(slow.vocabulary)
        assert fast.lower == slow.lower


def lines_of(path: pathlib.Path) -> Iterator[str]:
    """Every line of a file, every string of a JSON file, every line of every file of an archive."""
    if path.name.endswith(".tar.xz"):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                for line in content or ():
                    yield line.decode("utf-8", "replace")
    elif path.suffix == ".json":
        rest = [json.loads(path.read_text(encoding="utf-8"))]
        while rest:
            item = rest.pop()
            if isinstance(item, str):
                yield item
            elif isinstance(item, (dict, list)):
                rest += item.values() if isinstance(item, dict) else item
    else:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rb") as content:
            for line in content:
                yield line.decode("utf-8", "replace")


def check_lines(published: dict, lines: Iterator[str]) -> int:
    """Holds the four vocabularies against the reference on each line; returns how many there were."""
    counted = 0
    for line in lines:
        counted += 1
        by_casing = {lower: expected_words(line, lower) for lower in (True, False)}
        for name, (fast, slow) in published.items():
            expected = [i for word in by_casing[fast.lower] for i in slow.pieces(word)]
            assert fast.encode(line) == expected, (name, line)
    return counted


def test_real_lines(published: dict, real_data: pathlib.Path) -> None:
    rng = random.Random(0)
    lines = []
    for folder in ("flores", "glue/CoLA", "glue/SST-2", "ud_ewt", "zh", "conll2003", "choice"):
        for path in sorted((real_data / folder).rglob("*")):
            if path.is_file() and path.suffix != ".xz":
                found = list(lines_of(path))
                lines += rng.sample(found, min(len(found), 60))
    assert check_lines(published, iter(lines)) > 2000


@pytest.mark.slow
def test_every_real_line(published: dict, real_data: pathlib.Path) -> None:
    counts = {}
    for path in sorted(path for path in real_data.rglob("*") if path.is_file()):
        counts[str(path.relative_to(real_data))] = check_lines(published, lines_of(path))
    print(json.dumps(counts, indent=1), sum(counts.values()), "lines")
    assert sum(counts.values()) > 1_000_000


# --- offsets


@pytest.mark.parametrize("name", PUBLISHED)
def test_offsets_of_real_text(published: dict, name: str) -> None:
    fast, _ = published[name]
    for text in TEXTS:
        ids, spans = fast.encode_with_offsets(text)
        for i, (start, end) in zip(ids, spans, strict=True):
            assert 0 <= start < end <= len(text)
            if i != fast.unk:
                inner = "".join(words.split(text[start:end], fast.lower))
                assert set(fast.pieces([i])[0].removeprefix("##").replace("ς", "σ")) <= set(inner.replace("ς", "σ"))


def test_offsets_by_hand() -> None:
    small = tokenizer.WordPiece([*SMALL, "o", "##k"], lower=True)
    text = " Cafe\u0301, un\u200dable\u4e2dO K"
    ids, spans = small.encode_with_offsets(text)
    assert [(small.pieces([i])[0], text[a:b]) for i, (a, b) in zip(ids, spans, strict=True)] == [
        ("c", "C"),
        ("##a", "a"),
        ("##f", "f"),
        ("##e", "e\u0301"),  # an accent belongs to its letter
        (",", ","),
        ("un", "un"),
        ("##able", "able"),
        ("中", "中"),
        ("o", "O"),
        ("[UNK]", "K"),
    ]


@hypothesis.given(any_text, st.booleans())
@hypothesis.example("x\u302e\U0001d165y", True)  # marks that are kept, and that NFD puts in another order
@hypothesis.settings(max_examples=400, deadline=None)
def test_offsets_of_any_text(text: str, lower: bool) -> None:
    letters = sorted(set("".join(expected_words(text, lower))) - set("".join(SMALL)))
    small = tokenizer.WordPiece([*SMALL, *letters, *(f"##{c}" for c in letters)], lower)
    ids, spans = small.encode_with_offsets(text)
    assert ids == small.encode(text)
    for i, (start, end) in zip(ids, spans, strict=True):
        inner = "".join(words.split(text[start:end], lower)).replace("ς", "σ")
        assert i == small.unk or small.pieces([i])[0].removeprefix("##").replace("ς", "σ") in inner


# --- decoding, saving, loading


def test_decode(published: dict) -> None:
    uncased = published["bert-base-uncased"][0]
    text = "the man (who wasn't there) paid 5%, unaffably."
    assert uncased.decode([uncased.cls, *uncased.encode(text), uncased.sep, uncased.pad]) == text
    assert uncased.decode([uncased.mask, uncased.unk]) == "[MASK] [UNK]"
    chinese = published["bert-base-chinese"][0]
    assert chinese.decode(chinese.encode("你好，世界。")) == "你好，世界。"


def test_continuation() -> None:
    small = tokenizer.WordPiece(SMALL, lower=True)
    assert small.continuation.tolist() == [piece.startswith("##") for piece in SMALL]
    assert not small.continuation[list(small.special)].any()


@pytest.mark.parametrize("name", PUBLISHED)
def test_saved_and_loaded(published: dict, real_data: pathlib.Path, tmp_path: pathlib.Path, name: str) -> None:
    fast, _ = published[name]
    fast.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (real_data / "vocab" / name / "vocab.txt").read_bytes()
    for copy in (tokenizer.load(tmp_path), tokenizer.load(tmp_path / "vocab.txt"), pickle.loads(pickle.dumps(fast))):
        assert copy.fingerprint == fast.fingerprint
        assert copy.encode(TEXTS[0]) == fast.encode(TEXTS[0])


def write(path: pathlib.Path, pieces: list[str]) -> pathlib.Path:
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def test_casing(tmp_path: pathlib.Path) -> None:
    vocab = write(tmp_path / "vocab.txt", [*SMALL, "ℝ"])
    assert tokenizer.load(vocab).lower
    cased = write(tmp_path / "cased.txt", [*SMALL, "The"])
    assert not tokenizer.load(cased).lower
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not tokenizer.load(vocab).lower
    assert tokenizer.load(vocab, lower=True).lower
    fingerprints = {tokenizer.load(vocab, lower=lower).fingerprint for lower in (True, False)}
    assert len(fingerprints | {tokenizer.load(cased).fingerprint}) == 3


def test_windows_line_ends(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*SMALL, ""]).encode())
    assert tokenizer.load(tmp_path).pieces(range(len(SMALL))) == SMALL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"vocab\.txt: the file is empty"),
        (b"[PAD]\n[UNK]\n[CLS]\nthe\n", r"vocab\.txt: no \[SEP\], \[MASK\] in it"),
        (b"\xef\xbb\xbf[PAD]\nabc\xff\n", r"vocab\.txt:2: byte 12 is 0xff, which is not UTF-8"),
        (b"[PAD]\nabc\xff\n", r"vocab\.txt:2: byte 9 is 0xff, which is not UTF-8"),
    ],
)
def test_bad_vocabularies(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tokenizer.load(tmp_path)


def test_vocabularies_as_they_are_found(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lines that are alike the last counts, as in the reference; a blank one is no token, at the end none at all."""
    said: list[str] = []
    monkeypatch.setattr(tokenizer_files.logging, "warning", lambda text, *values: said.append(text % values))
    file = tmp_path / "vocab.txt"
    for content in ("\n".join(SMALL) + "\n\n\n", "\ufeff" + "\n".join(SMALL), "\r".join(SMALL) + "\r"):
        file.write_bytes(content.encode())
        assert tokenizer.load(tmp_path).pieces(range(len(SMALL))) == SMALL
        assert tokenizer.load(tmp_path).vocab_size == len(SMALL)
    assert said == []
    file.write_text("\n".join([*SMALL[:5], "", *SMALL[5:], "the"]) + "\n")
    odd = tokenizer.load(tmp_path)
    assert (odd.vocab_size, odd.encode("the")) == (len(SMALL) + 2, [len(SMALL) + 1])
    assert said == [f"{file}: line 6 is blank; 2 lines of the kind have no token"]
    odd.save(tmp_path / "again")
    assert (tmp_path / "again" / "vocab.txt").read_bytes() == file.read_bytes()


ADDED = [
    {"content": "<url>", "normalized": False, "single_word": False, "special": True},
    {"content": "New-York", "normalized": True, "single_word": True, "special": False},
]


def stated(folder: pathlib.Path, **more: object) -> pathlib.Path:
    """A directory of a published tokenizer: a vocabulary, and what its tokenizer_config.json says."""
    folder.mkdir(exist_ok=True)
    write(folder / "vocab.txt", [*SMALL, "new", "york", "-", "url", "<", ">"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **more}))
    return folder


def test_added_tokens_are_cut_out_of_the_text(tmp_path: pathlib.Path) -> None:
    """By any of the three files; they are kept when it is saved, sent to a process, and of another fingerprint."""
    size = len(SMALL) + 6
    named = {str(size + number): token for number, token in enumerate(ADDED)}
    one = tokenizer.load(stated(tmp_path / "decoder", added_tokens_decoder=named))
    text = "<url>the NEW-york<url> new-yorks<URL>"
    wanted = ["<url>", "the", "New-York", "<url>", "new", "-", "[UNK]", "<", "url", ">"]
    assert one.pieces(one.encode(text)) == wanted
    ids, spans = one.encode_with_offsets(text)
    assert ids == one.encode(text)
    found = [text[start:stop].lower() for start, stop in spans]
    assert found == [*(piece.lower() for piece in wanted[:6]), "yorks", *wanted[7:]]
    one.save(tmp_path / "saved")
    for again in (tokenizer.load(tmp_path / "saved"), pickle.loads(pickle.dumps(one))):
        assert (again.encode(text), again.fingerprint) == (ids, one.fingerprint)
    assert one.fingerprint != tokenizer.load(stated(tmp_path / "without")).fingerprint
    beside = stated(tmp_path / "beside", additional_special_tokens=["<url>"])
    (beside / "added_tokens.json").write_text(json.dumps({"<url>": size, "[MASK]": 4}))
    other = tokenizer.load(beside)
    assert other.pieces(other.encode("the<url> <URL>")) == ["the", "<url>", "<", "url", ">"]
    (beside / "added_tokens.json").write_text(json.dumps({"<url>": size + 3}))
    with pytest.raises(ValueError, match=rf"added token '<url>' has number {size + 3}, and that of vocab.txt is none"):
        tokenizer.load(beside)


def test_accents_may_stay_where_case_goes(tmp_path: pathlib.Path) -> None:
    keeps = tokenizer.load(stated(tmp_path / "a", strip_accents=False))
    assert isinstance(keeps, tokenizer.WordPiece)
    assert (keeps.lower, keeps.strip_accents) == (True, False)
    small = tokenizer.WordPiece([*SMALL, "café", "cafe", "Cafe"], True, strip_accents=False)
    assert small.pieces(small.encode("CAFÉ")) == ["café"]
    other = tokenizer.WordPiece([*SMALL, "café", "cafe", "Cafe"], False, strip_accents=True)
    assert other.pieces(other.encode("Café")) == ["Cafe"]
    assert other.encode_with_offsets("a Café")[1][-1] == (2, 6)
    assert len({small.fingerprint, other.fingerprint, tokenizer.WordPiece(small._pieces, True).fingerprint}) == 3
    keeps.save(tmp_path / "b")
    assert tokenizer.load(tmp_path / "b").fingerprint == keeps.fingerprint


def test_the_longest_word_is_what_the_files_say(tmp_path: pathlib.Path) -> None:
    word = "the" + "s" * 147
    pieces = [*SMALL, "##s"] if "##s" not in SMALL else SMALL
    plain, theirs = tokenizer.WordPiece(pieces, True), tokenizer.WordPiece(pieces, True, longest_word=100)
    assert (theirs.encode(word), theirs.encode("the")) == ([theirs.unk], plain.encode("the"))
    assert plain.unk not in plain.encode(word)
    assert (plain.fingerprint == theirs.fingerprint, plain.rules == theirs.rules) == (True, False)
    assert tokenizer.WordPiece(pieces, True, longest_word=2).fingerprint != plain.fingerprint
    theirs.save(tmp_path)
    assert tokenizer.load(tmp_path).encode(word) == [theirs.unk]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"do_basic_tokenize": False}, "do_basic_tokenize is false"),
        ({"never_split": ["<url>"]}, r"never_split is \['<url>'\]"),
        ({"unk_token": "<url>"}, r"unk_token is '<url>', and here it is \[UNK\]"),
        ({"mask_token": {"content": "<m>"}}, "mask_token is '<m>'"),
        ({"tokenizer_class": "RobertaTokenizerFast"}, "a RobertaTokenizerFast cuts words as no WordPiece"),
    ],
    ids=str,
)
def test_what_a_tokenizer_s_files_say_and_ours_cannot_is_refused(more: dict, said: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=said):
        tokenizer.load(stated(tmp_path, **more))
    stated(tmp_path, never_split=None, unk_token={"content": "[UNK]"}, tokenizer_class="BertTokenizerFast")
    tokenizer.load(tmp_path)


def test_bad_places(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no vocabulary .*nothere"):
        tokenizer.load(tmp_path / "nothere.txt")
    with pytest.raises(FileNotFoundError, match=r"neither a vocab\.txt nor a \*\.model"):
        tokenizer.load(tmp_path)
    (tmp_path / "a.model").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"a\.model: not a SentencePiece model"):
        tokenizer.load(tmp_path)
    (tmp_path / "b.model").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"which of a\.model, b\.model"):
        tokenizer.load(tmp_path)
    write(tmp_path / "vocab.txt", SMALL)
    for content, message in (("[]", "not a JSON object"), ('{"do_lower_case": 1}', "must be true or false, not 1")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            tokenizer.load(tmp_path)


# --- training

SENTENCES = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps, and the fox goes on jumping.",
    "A language model reads the words to the left and the words to the right of the masked word.",
    "Nothing is so painful to the human mind as a great and sudden change; naïve Zoë had no idea.",
]
PROSE = [topics.topics[name][:2000] for name in sorted(topics.topics)[:20]] + SENTENCES * 5


def test_trained_layout() -> None:
    small = vocabularies.train_wordpiece(PROSE, 300)
    assert small.special == (0, 1, 2, 3, 4)
    assert small.vocab_size == 300
    large = vocabularies.train_wordpiece(PROSE, 1000)
    assert large.special == (0, 100, 101, 102, 103)
    assert large.pieces([1, 99]) == ["[unused0]", "[unused98]"]
    assert "the" in large.pieces(large.encode("the"))
    assert large.vocab_size == 1000
    assert large.unk not in large.encode(" ".join(SENTENCES))
    assert vocabularies.train_wordpiece(SENTENCES, 1000).vocab_size < 1000  # the text has no more


def test_trained_cased() -> None:
    cased = vocabularies.train_wordpiece(PROSE, 1000, lower=False)
    assert cased.pieces(cased.encode("The Zoë"))[0] == "The"
    assert cased.unk not in cased.encode("naïve Zoë")


def test_training_is_deterministic() -> None:
    """The same in another process, where hash maps have another order, and with the texts in another order."""
    here = vocabularies.train_wordpiece(PROSE, 300).fingerprint
    assert vocabularies.train_wordpiece(PROSE[::-1], 300).fingerprint == here
    program = "from bert_jax.text import vocabularies; from tests.text.test_tokenizer import PROSE; "
    program += "print(vocabularies.train_wordpiece(PROSE, 300).fingerprint)"
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        assert ran.stdout.strip() == here


def test_coverage() -> None:
    texts = ["a" * 100, "b" * 100, "中", "c"] * 3
    everything = vocabularies.train_wordpiece(texts, 1000, coverage=1.0)
    assert {"a", "b", "c", "中"} <= set(everything.pieces(range(everything.vocab_size)))
    part = vocabularies.train_wordpiece(texts, 1000, coverage=0.99)
    assert not {"c", "中"} & set(part.pieces(range(part.vocab_size)))


def test_bad_training() -> None:
    with pytest.raises(ValueError, match="no words to make a vocabulary of: the input is empty"):
        vocabularies.train_wordpiece(["", " "], 1000)
    with pytest.raises(ValueError, match=r"a vocabulary of 30 has no room: 5 pieces .* Ask for (\d+) or more") as error:
        vocabularies.train_wordpiece(PROSE, 30)
    enough = int(str(error.value).split("Ask for ")[1].split()[0])
    assert vocabularies.train_wordpiece(PROSE, enough).vocab_size == enough
    with pytest.raises(ValueError, match=r"SentencePiece vocabulary of 10: .*smaller than required_chars"):
        vocabularies.train_sentencepiece(PROSE, 10)
    with pytest.raises(ValueError, match=r"SentencePiece vocabulary of 99999: .*too high"):
        vocabularies.train_sentencepiece(PROSE, 99999)
    with pytest.raises(ValueError, match="the input is empty"):
        vocabularies.train_sentencepiece([], 100)
    with pytest.raises(ValueError, match="kind must be unigram or bpe"):
        vocabularies.train_sentencepiece(PROSE, 100, kind="word")
    with pytest.raises(KeyError, match="mine"):
        vocabularies.train_sentencepiece(failing(), 100)


def failing() -> Iterator[str]:
    yield SENTENCES[0]
    raise KeyError("mine")


# --- SentencePiece


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sentencepiece(request: pytest.FixtureRequest) -> tokenizer.SentencePiece:
    return vocabularies.train_sentencepiece(PROSE, 300, kind=request.param)


def test_sentencepiece_round_trip(sentencepiece: tokenizer.SentencePiece, tmp_path: pathlib.Path) -> None:
    assert sentencepiece.special == (0, 1, 2, 3, 4)
    assert sentencepiece.pieces(range(5)) == list(tokenizer.SPECIAL)
    for text in SENTENCES:
        assert sentencepiece.decode(sentencepiece.encode(text)) == text.lower()
    assert sentencepiece.decode([2, *sentencepiece.encode("the fox"), 4, 3, 0]) == "the fox [MASK]"
    sentencepiece.save(tmp_path)
    for copy in (tokenizer.load(tmp_path), pickle.loads(pickle.dumps(sentencepiece))):
        assert copy.fingerprint == sentencepiece.fingerprint
        assert copy.lower
        assert copy.encode(TEXTS[1]) == sentencepiece.encode(TEXTS[1])


def test_sentencepiece_continuation(sentencepiece: tokenizer.SentencePiece) -> None:
    pieces = sentencepiece.pieces(range(sentencepiece.vocab_size))
    assert [not piece.startswith("▁") for piece in pieces[5:]] == sentencepiece.continuation.tolist()[5:]
    assert not sentencepiece.continuation[:5].any()


@hypothesis.given(any_text)
@hypothesis.settings(max_examples=200, deadline=None)
def test_sentencepiece_offsets(text: str) -> None:
    model = trained()
    ids, spans = model.encode_with_offsets(text)
    assert ids == model.encode(text)
    assert not {model.pad, model.cls, model.sep, model.mask} & set(ids)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans)


@functools.cache
def trained() -> tokenizer.SentencePiece:
    return vocabularies.train_sentencepiece(PROSE, 300)


def test_sentencepiece_offsets_by_hand() -> None:
    text = "Zoë 中 İ the\u3000FOX"
    ids, spans = trained().encode_with_offsets(text)
    assert "".join(text[a:b] for a, b in spans) == "Zoë中İtheFOX"
    assert text[spans[-1][0] : spans[-1][1]] == trained().pieces([ids[-1]])[0].strip("▁").upper()


def test_raw_text_gives_no_special_ids() -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(vocabularies.train_sentencepiece(PROSE, 300, lower=False)._model)
    proto.pieces[4].type = proto.SentencePiece.USER_DEFINED  # such a piece is cut out of raw text by the library
    model = tokenizer.SentencePiece(proto.SerializeToString())
    assert model.mask == 4
    ids = model.encode("the [MASK] [CLS] [PAD]")
    assert not set(ids) & {model.pad, model.cls, model.sep, model.mask}


def test_specials_that_a_model_lacks() -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained()._model)
    proto.pieces[2].piece, proto.pieces[4].piece = "<cls>", "<x>"
    count = len(proto.pieces)
    model = tokenizer.SentencePiece(proto.SerializeToString())
    assert model.special == (0, 1, 2, 3, count)
    assert model.vocab_size == len(model.continuation) == count + 1
    assert model.pieces([model.mask]) == ["[MASK]"]


def test_sentencepiece_casing() -> None:
    with pytest.raises(ValueError, match="folds case itself"):
        tokenizer.SentencePiece(trained()._model, lower=False)
    cased = vocabularies.train_sentencepiece(PROSE, 300, lower=False)
    assert not cased.lower
    lowered = tokenizer.SentencePiece(cased._model, lower=True)
    assert lowered.encode("The FOX") == cased.encode("the fox") != cased.encode("The FOX")
    assert lowered.fingerprint != cased.fingerprint


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_vocabulary_is_read_as_editors_write_it(tmp_path: pathlib.Path, encoding: str, end: str) -> None:
    (tmp_path / "vocab.txt").write_bytes((end.join(SMALL) + end).encode(encoding))
    assert tokenizer.load(tmp_path).pieces(range(len(SMALL))) == SMALL
