"""Tokenises text into a corpus for pre-training: each token once, in flat files that training maps into memory.

    python scripts/build_corpus.py --input=data/wiki*.txt.xz,data/books --vocab=vocab.txt --output=corpus
    python scripts/build_corpus.py --input=python-docs --vocab=vocab.txt --output=corpus
    python scripts/build_corpus.py --describe=corpus
    python scripts/build_corpus.py --verify=corpus

An input is a file (a paragraph a line, a blank line between documents; or JSON lines; .gz, .xz, .bz2 and .zst are read
as they are; or parquet), a directory, a pattern, tfds:NAME, or python-docs for the documentation in this Python and its
packages. With --sentences=lines a line is a sentence, as in the reference's input.
All cores work, memory stays bounded. Stopped or killed, the same command goes on where it was; complete, it says so.
The files have checksums, which whatever opens the corpus holds them against; --verify does only that.
"""

import itertools
import signal
import sys
from typing import Any

from absl import app, flags

from bert_jax import startup
from bert_jax.corpus import building, pairing, store
from bert_jax.text import readers, tokenizer

_INPUT = flags.DEFINE_multi(  # type: ignore[call-overload]
    flags.ListParser(),
    flags.CsvListSerializer(","),
    "input",
    None,
    "Files, directories, patterns, tfds:NAME, python-docs; comma between them",
)
_VOCAB = flags.DEFINE_string("vocab", "vocab.txt", "vocab.txt, a SentencePiece model, or a directory with one.")
_OUTPUT = flags.DEFINE_string("output", None, "The directory of the corpus.")
_CASED = flags.DEFINE_bool("cased", None, "Keep upper case; default: as the vocabulary has it.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes; default: one for each core.", lower_bound=1, upper_bound=1024
)
_ERRORS = flags.DEFINE_enum(
    "errors", "strict", ["strict", "replace"], "At bytes that are not UTF-8: stop, or drop them."
)
_FIELD = flags.DEFINE_string("field", "text", "Which field of JSON lines and TFDS sets holds the text.")
_SENTENCES = flags.DEFINE_enum(
    "sentences", "split", ["split", "lines"], "Split paragraphs into sentences, or take each line as one."
)
_DESCRIBE = flags.DEFINE_string("describe", None, "Only show what the corpus in this directory holds.")
_VERIFY = flags.DEFINE_string(
    "verify", None, "Only read the corpus in this directory and its example indexes, and say whether they are whole."
)


def _verify(directory: str) -> None:
    """Says what is damaged, and then ends with an error."""
    found = store.Corpus.open(directory)
    vocabulary = found.tokenizer.vocab_size
    damaged = pairing.damaged(found)
    if damaged:
        names = ", ".join(map(str, damaged))
        sys.exit(f"error: damaged example indexes: {names}. Delete them; a run that needs one makes it again")
    if "checksums" in found.manifest:
        print(f"{directory} is whole: its files have their checksums, the vocabulary its {vocabulary:,} pieces")
    else:
        print(f"{directory} was built by a version that wrote no checksums; its files have the right sizes")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"too many arguments: {argv[1:]}; is there a space after a comma, or a pattern unquoted?")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    only: list[Any] = [flag.value for flag in (_DESCRIBE, _VERIFY) if flag.value is not None]
    build: list[Any] = [flag.value for flag in (_INPUT, _OUTPUT) if flag.value is not None]
    if (len(only), len(build)) not in ((0, 2), (1, 0)) or not all(only + build):
        raise app.UsageError("give --input=... and --output=DIR, or --describe=DIR alone, or --verify=DIR alone")
    if not _VOCAB.value:
        raise app.UsageError("--vocab= is empty: name a vocab.txt, a SentencePiece model, or a directory with one")
    try:
        if _DESCRIBE.value:
            found = store.Corpus.open(_DESCRIBE.value)
            print(store.describe(found), pairing.describe(found), sep="\n")
        elif _VERIFY.value:
            _verify(_VERIFY.value)
        else:
            vocabulary = tokenizer.load(_VOCAB.value, None if _CASED.value is None else not _CASED.value)
            errors: readers.Errors = "replace" if _ERRORS.value == "replace" else "strict"
            given, output = build
            reading: dict[str, Any] = {"workers": _WORKERS.value, "errors": errors, "field": _FIELD.value}
            reading["sentences"] = _SENTENCES.value
            found = building.build(list(itertools.chain.from_iterable(given)), vocabulary, output, **reading)
            print(store.describe(found))
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept: run the same command again, it goes on from there", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    startup.run(main)
