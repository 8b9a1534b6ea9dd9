"""Words: the reference's algorithm written out slowly beside the fast one."""

import functools
import sys
import unicodedata
from collections.abc import Sequence

import hypothesis
import pytest
from hypothesis import strategies as st

from bert_jax.text import words

TEXTS = [
    "John Johanson's house, it's unaffable! (don't) U.S.A. 3.14% e-mail@x.org $5 `tick` ^hat a_b ~x",
    "Crème brûlée À LA Ångström ŒUVRE straße İstanbul ıspanak ﬁne ǅ ﬀ cafe\u0301 e\u0323\u0302 ở",
    "ΟΔΟΣ ΟΔΟΣ. ΑΣ ΑΣΑ ΑΣ\u0301 ΑΣ\u200dΒ ΑΣ\x01Β Σ ΣΣ σας ᾳ ᾼ",
    "Привет, МИР! Ёлка й и\u0306 Ї",
    "مُحَمَّدٌ قال: «أهلاً»؟ ـــ ۱۲۳",
    "ภาษาไทย กำลัง น้ำ ๑๒๓",
    "中文，和English混合。𠀀𪜀𫝀𫠠㐀豈丽 々〆〇",
    "日本語のテキスト、カタカナとﾊﾝｶｸ。が か\u3099",
    "한국어 텍스트 \u1112\u1161\u11ab",
    "हिन्दी में लिखा है। क़ क\u093c",
    "שָׁלוֹם עולם ״כן״ ־",
    "👩‍👩‍👧‍👦 ❤️ ☎\ufe0e 🇩🇪 👍🏽 #️⃣",
    "\x00a\x01b\x7fc\u0085d\u00ade\u200bf\u200eg\ufeffh\ufffdi\x0bj\x0ck\x1cl\x1fm",
    "a\tb\nc\rd\u00a0e\u1680f\u2003g\u202fh\u205fi\u3000j\u2028k\u2029l",
    "private \ue000\uf8ff \U000f0000 unassigned \u0378\u0530 noncharacter \uffff\U0010ffff lone \ud800 half",
    "\u0301 \u0301x x\u0301\u0301 \u302e\u302f \U0001d165\U0001d16e e\u302f\u0323x \u0903",
    "[MASK] [CLS]text[SEP] [unused1] <S> ##ing ## # [UNK]",
    "w" * 200 + " " + "w" * 201 + " ok " + "é" * 200 + " " + "é" * 201 + " " + "e\u0301" * 200,
    "ℝ Ω K Å \u1fef \u037e \u2329 \u00b4 ª ½ Ⅷ ⑧",
    "",
    " \n ",
]


# --- the reference's algorithm, from PAPER item 17, a character at a time


@functools.cache
def kind(char: str) -> str:
    """What the cleaning step sees in a character."""
    if char in " \t\n\r" or unicodedata.category(char) == "Zs":
        return "space"
    if char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
        return "dropped"
    code = ord(char)
    chinese = (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )
    return "chinese" if chinese else "other"


@functools.cache
def is_punctuation(char: str) -> bool:
    return char in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(char)[0] == "P"


def expected_words(text: str, lower: bool) -> list[str]:
    spelling = {"space": " ", "dropped": "", "chinese": " {} ", "other": "{}"}
    cleaned = [spelling[kind(char)].format(char) for char in text]
    result = []
    for word in "".join(cleaned).split():
        if lower:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(char for char in decomposed if unicodedata.category(char) != "Mn")
        current = ""
        for char in word:
            if is_punctuation(char):
                result += [current, char]
                current = ""
            else:
                current += char
        result.append(current)
    return " ".join(result).split()


NASTY = sorted(set("".join(TEXTS)) - {"\ud800"})
any_text = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from(NASTY), max_size=40),
    st.text(st.characters(categories=("Lu", "Ll", "Lt", "Lo", "Mn", "Mc", "Cf", "Cn", "Co", "Nl")), max_size=20),
)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_words_are_the_references(text: str, lower: bool) -> None:
    assert words.split(text, lower) == expected_words(text, lower)


@hypothesis.given(any_text, st.booleans())
@hypothesis.settings(max_examples=400, deadline=None)
def test_words_of_any_text(text: str, lower: bool) -> None:
    assert words.split(text, lower) == expected_words(text, lower)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param(
            [*range(0x3410), *range(0x9FF0, 0xA100), *range(0xF8F0, 0x10400), *range(0x1F300, 0x1FB00)], id="some"
        ),
        pytest.param(range(sys.maxunicode + 1), id="all", marks=pytest.mark.slow),
    ],
)
def test_words_of_every_character(codes: Sequence[int]) -> None:
    """Each alone between two letters."""
    for start in range(0, len(codes), 4096):
        text = " ".join(f"x{chr(code)}Y" for code in codes[start : start + 4096])
        for lower in (True, False):
            assert words.split(text, lower) == expected_words(text, lower)


def test_by_hand() -> None:
    assert words.split("Crème brûlée, ΟΔΟΣ!", lower=True) == ["creme", "brulee", ",", "οδος", "!"]
    assert words.split("Crème 中a", lower=False) == ["Crème", "中", "a"]


def test_memory_stays_bounded() -> None:
    squares = words.Memo(lambda x: x * x, limit=3)
    assert [squares[i] for i in range(10)] == [i * i for i in range(10)]
    assert len(squares) <= 3


def test_marks_are_decomposed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFD of a letter's marks takes the square of their number: 160,000 of two classes took 14 s."""
    sizes = []
    normalize = unicodedata.normalize

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(unicodedata, name)

        def normalize(self, form: str, text: str) -> str:
            sizes.append(len(text))
            return normalize(form, text)

    monkeypatch.setattr(words, "unicodedata", Counting())
    for marks in ("\u0301\u0316", "\u302e\U0001d165", "\u302e\u0901\U0001d165\u0323"):
        text = "a" + marks * 50 + "é"
        wanted = "".join(c for c in normalize("NFD", text) if unicodedata.category(c) != "Mn")
        assert words.split(text, lower=True) == [wanted]
    assert max(sizes) == 1
