"""What the files of a tokenizer say beside its pieces, as the reference, `transformers` and `tokenizers` write them.

vocab.txt has the pieces; tokenizer_config.json, special_tokens_map.json, added_tokens.json and tokenizer.json say how
text is cut. All that they state is followed, or refused by its name.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from bert_jax.config import require
from bert_jax.text import decoding

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # what they are called in these files

# Tokenizers of `transformers` that cut as BERT's. All others cut otherwise, whatever lies beside them.
_WORDPIECE = re.compile(
    r"((Distil|Mobile|Squeeze|Conv|Retri)?Bert|Electra|LayoutLM(v2)?|Lxmert|Funnel|Realm|DPR\w+|PreTrained)"
    r"Tokenizer(Fast)?"
)


class Added(NamedTuple):
    """A token that is cut out of the text before words are, wherever its content stands there."""

    content: str
    folds: bool = False  # in any case, where the text is lower-cased
    word: bool = False  # not within a word


class Stated(NamedTuple):
    """What the files of a directory say. None: they do not."""

    lower: bool | None = None
    strip_accents: bool | None = None
    longest_word: int | None = None  # characters; a longer word is [UNK]
    added: Mapping[int, Added] = {}
    pieces: list[str] | None = None  # those of tokenizer.json


def read(folder: pathlib.Path) -> Stated:
    """What the files in `folder` say of a WordPiece tokenizer.

    Casing is that of tokenizer_config.json, which decides in `transformers` too; where it names no tokenizer of BERT's
    (PreTrainedTokenizerFast) or states none, that of tokenizer.json.

    Raises:
      ValueError: at a tokenizer that departs from BERT's where ours cannot follow; names the file and the field.
    """
    file = folder / "tokenizer_config.json"
    config, described = _json(file), _json(folder / "tokenizer.json")
    lower = config.get("do_lower_case")
    require(lower is None or isinstance(lower, bool), f"{file}: do_lower_case must be true or false, not {lower!r}")
    _check_config(config, file)
    _check_specials(config, file)
    _check_specials(_json(folder / "special_tokens_map.json"), folder / "special_tokens_map.json")
    _check_described(described, folder / "tokenizer.json")
    normalizer = described.get("normalizer") or {}
    fields = {"lower": ("do_lower_case", "lowercase"), "strip_accents": ("strip_accents", "strip_accents")}
    first, second = config, normalizer
    if str(config.get("tokenizer_class")).startswith("PreTrained"):
        first, second = normalizer, config
    found: dict[str, Any] = {}
    for ours, theirs in fields.items():
        values = [one.get(theirs[one is normalizer]) for one in (first, second)]
        found[ours] = next((value for value in values if value is not None), None)
    model = described.get("model", {})
    longest = model.get("max_input_chars_per_word", config.get("max_input_chars_per_word"))
    index, added = _vocabulary(model, described, folder), _added(folder, config, described)
    return Stated(**found, longest_word=longest, added=added, pieces=index)


def kind_of(file: pathlib.Path) -> Any:
    """The model of a tokenizer.json: "WordPiece", "Unigram" and so on."""
    return (_json(file).get("model") or {}).get("type")


def read_casing(folder: pathlib.Path) -> bool | None:
    """Whether a SentencePiece model there shall have its text lower-cased; None: it decides by itself.

    Raises:
      ValueError: at a tokenizer_config.json that names a class which does more to text or numbers than the model says.
    """
    file = folder / "tokenizer_config.json"
    config = _json(file)
    kind, lower = config.get("tokenizer_class"), config.get("do_lower_case")
    require(
        kind in (None, "BertTokenizer", "BertTokenizerFast", "BertGenerationTokenizer"),
        f"{file}: a {kind} does more to text and its pieces' numbers than a SentencePiece model says",
    )
    require(lower is None or isinstance(lower, bool), f"{file}: do_lower_case must be true or false, not {lower!r}")
    return lower


def lines(content: bytes, file: pathlib.Path) -> list[str]:
    """The pieces of a vocab.txt, a line each. A byte order mark, and blank lines at the end, are left out.

    Repeated and blank lines keep their numbers, as elsewhere, with a warning: of those that are alike the last counts.

    Raises:
      ValueError: where it is not UTF-8; names the line.
    """
    require(bool(content), f"{file}: the file is empty")
    pieces = decoding.text(content, file).split("\n")
    while pieces and not pieces[-1]:
        pieces.pop()
    index = {piece: number for number, piece in enumerate(pieces)}
    odd = [number for number, piece in enumerate(pieces) if not piece or index[piece] != number]
    if odd:
        piece = pieces[odd[0]]
        why = f"is {piece!r}, as line {index[piece] + 1} is, which counts" if piece else "is blank"
        logging.warning("%s: line %d %s; %d lines of the kind have no token", file, odd[0] + 1, why, len(odd))
    return pieces


def with_added(pieces: Sequence[str], added: Mapping[int, Added], file: pathlib.Path) -> list[str]:
    """The pieces of `file`, and the added tokens that come after them.

    Raises:
      ValueError: where an added token has the number of another piece, or of none that follows.
    """
    found = list(pieces)
    for number, token in sorted(added.items()):
        if number == len(found):
            found.append(token.content)
        there = found[number] if number < len(found) else f"none: it ends at {len(found) - 1}"
        require(
            there == token.content,
            f"{file.parent}: the added token {token.content!r} has number {number}, and that of {file.name} is {there}",
        )
    return found


def _check_config(config: Mapping[str, Any], file: pathlib.Path) -> None:
    kind = config.get("tokenizer_class") or "BertTokenizer"
    require(_WORDPIECE.fullmatch(str(kind)), f"{file}: a {kind} cuts words as no WordPiece tokenizer here does")
    require(
        config.get("tokenize_chinese_chars") is not False,
        f"{file}: tokenize_chinese_chars is false, and here CJK characters are words by themselves",
    )
    require(
        config.get("do_basic_tokenize") is not False,
        f"{file}: do_basic_tokenize is false, and here text is always cut into words at white space and punctuation",
    )
    uncut = [token for token in config.get("never_split") or () if token not in SPECIAL]
    require(not uncut, f"{file}: never_split is {uncut}, and here words are always cut at punctuation")


def _check_specials(values: Mapping[str, Any], file: pathlib.Path) -> None:
    for role, token in zip(ROLES, SPECIAL, strict=True):
        stated = values.get(role)
        stated = stated.get("content") if isinstance(stated, dict) else stated
        require(stated in (None, token), f"{file}: {role} is {stated!r}, and here it is {token}")


def _check_described(described: Mapping[str, Any], file: pathlib.Path) -> None:
    """That tokenizer.json has BERT's normaliser, pre-tokenizer, model and frame; one that is not there has all."""
    if not described:
        return
    model, normalizer = described.get("model") or {}, described.get("normalizer") or {}
    require(
        model.get("type") == "WordPiece" and normalizer.get("type") == "BertNormalizer",
        f"{file}: a {model.get('type')} model with the normalizer {normalizer.get('type')}, and BERT's is a WordPiece "
        "with a BertNormalizer",
    )
    inner = (
        ("normalizer.clean_text", normalizer.get("clean_text", True), True),
        ("normalizer.handle_chinese_chars", normalizer.get("handle_chinese_chars", True), True),
        ("pre_tokenizer.type", (described.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix", "##"), "##"),
        ("model.unk_token", model.get("unk_token", "[UNK]"), "[UNK]"),
    )
    for name, value, only in inner:
        require(value == only, f"{file}: {name} is {value!r}, and here it is {only!r}")
    frame = described.get("post_processor") or {}
    single = [
        (part.get("SpecialToken") or part.get("Sequence") or {}).get("id")
        for part in frame.get("single", ())
        if isinstance(part, dict)
    ]
    if frame.get("type") == "BertProcessing":
        single = [frame.get("cls", [""])[0], "A", frame.get("sep", [""])[0]]
    require(
        single == ["[CLS]", "A", "[SEP]"], f"{file}: post_processor puts a text into {single}, not into [CLS] A [SEP]"
    )


def _vocabulary(model: Mapping[str, Any], described: Mapping[str, Any], folder: pathlib.Path) -> list[str] | None:
    """The pieces of tokenizer.json. Those of a vocab.txt beside it must be the same."""
    if not described:
        return None
    file, written = folder / "tokenizer.json", folder / "vocab.txt"
    index = {**model["vocab"], **{one["content"]: one["id"] for one in described.get("added_tokens", [])}}
    if written.exists():
        pieces = lines(written.read_bytes(), written)
        other = {piece: number for number, piece in enumerate(pieces) if piece}
        differing = [piece for piece, number in other.items() if index.get(piece, number) != number]
        differing += [piece for piece in model["vocab"] if piece and piece not in other]
        require(
            not differing,
            f"{file} and {written.name} differ, as in {(differing or [''])[0]!r}: `transformers` reads the one or the "
            "other, by the class that is asked; leave the right one there",
        )
        return pieces
    pieces = sorted(index, key=index.__getitem__)
    require(
        [index[piece] for piece in pieces] == list(range(len(pieces))),
        f"{file}: its {len(pieces)} pieces are not numbered from 0 on",
    )
    return pieces


def _added(folder: pathlib.Path, config: Mapping[str, Any], described: Mapping[str, Any]) -> dict[int, Added]:
    """The tokens that any of the files adds, by their number, but for BERT's own five."""
    special = _json(folder / "special_tokens_map.json").get("additional_special_tokens") or ()
    special = [*special, *(config.get("additional_special_tokens") or ())]
    names = [str(token["content"] if isinstance(token, dict) else token) for token in special]
    listed = [
        {"content": content, "id": number, "normalized": content not in names}
        for content, number in _json(folder / "added_tokens.json").items()
    ]
    listed += [{**token, "id": int(number)} for number, token in (config.get("added_tokens_decoder") or {}).items()]
    listed += described.get("added_tokens") or []
    return {
        int(token["id"]): Added(token["content"], bool(token.get("normalized")), bool(token.get("single_word")))
        for token in listed
        if token["content"] not in SPECIAL and token["content"]
    }


def _json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no such file."""
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_bytes())
    except ValueError:
        values = None
    require(isinstance(values, dict), f"{file}: not a JSON object")
    return values
