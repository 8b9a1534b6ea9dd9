"""Learns a vocabulary from text: WordPiece as BERT has it, or a SentencePiece model (unigram or BPE).

    python scripts/build_vocab.py --input=data/wiki*.txt.xz --output=vocab.txt --size=30522
    python scripts/build_vocab.py --input=python-docs --output=vocab.txt --size=8000 --cased
    python scripts/build_vocab.py --input=data/zh,tfds:wiki40b/zh --output=spm.model --size=21128 --kind=unigram

An input is a file (a paragraph a line, a blank line between documents; or JSON lines; .gz, .xz, .bz2 and .zst are read
as they are), a directory, a pattern, tfds:NAME, or python-docs for the documentation in this Python and its packages.
The same input gives the same vocabulary. tokenizer_config.json, written beside it, holds the casing.
"""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator

import rich.console
import rich.progress
from absl import app, flags

from bert_jax import parallel, text, tokenizer, vocabularies

_INPUT = flags.DEFINE_multi(  # type: ignore[call-overload]
    flags.ListParser(),
    flags.CsvListSerializer(","),
    "input",
    None,
    "Files, directories, patterns, tfds:NAME, python-docs; comma between them, or the flag again.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "vocab.txt; for a SentencePiece model NAME.model.", required=True)
_SIZE = flags.DEFINE_integer("size", None, "How many pieces, special ones included.", required=True, lower_bound=6)
_KIND = flags.DEFINE_enum("kind", "wordpiece", ["wordpiece", "unigram", "bpe"], "The last two are SentencePiece's.")
_CASED = flags.DEFINE_bool("cased", False, "Keep upper case and accents.")
_COVERAGE = flags.DEFINE_float(
    "coverage", 0.9999, "Share of the input's characters that get a piece; the knob for Chinese.", 0.0, 1.0
)
_ERRORS = flags.DEFINE_enum(
    "errors", "strict", ["strict", "replace"], "At bytes that are not UTF-8: stop, or drop them."
)
_FIELD = flags.DEFINE_string("field", "text", "Which field of JSON lines and TFDS sets holds the text.")
_MAX_MB = flags.DEFINE_integer("max_mb", 1000, "Read so many millions of characters at most; 0: all.", lower_bound=0)


def _watched(texts: Iterable[str], sample: list[str]) -> Iterator[str]:
    """`texts`, with progress on stderr; every hundredth goes into `sample` too."""
    columns = rich.progress.TextColumn("{task.description}"), rich.progress.TimeElapsedColumn()
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task("reading")
        size = 0
        for number, one in enumerate(texts):
            size += len(one)
            if number % 100 == 0:
                sample.append(one)
                bar.update(task, description=f"read {size / 1e6:,.1f} million characters")
            yield one
        bar.update(task, description=f"read {size / 1e6:,.1f} million characters; learning the vocabulary from them")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"too many arguments: {argv[1:]}; is there a space after a comma, or a pattern unquoted?")
    suffix = ".txt" if _KIND.value == "wordpiece" else ".model"
    if not _OUTPUT.value.endswith(suffix):
        raise app.UsageError(f"--output={_OUTPUT.value} must end in {suffix} for --kind={_KIND.value}")
    sources = list(itertools.chain.from_iterable(_INPUT.value))
    sample: list[str] = []
    try:
        documents = text.documents(sources, errors=_ERRORS.value, field=_FIELD.value)
        split = parallel.parallel_map(text.sentences, documents, len(os.sched_getaffinity(0)))
        sentences = itertools.chain.from_iterable(found for _, found in split)
        texts = _watched(text.at_most(sentences, _MAX_MB.value * 10**6 or sys.maxsize), sample)
        if _KIND.value == "wordpiece":
            vocabulary: tokenizer.Tokenizer = vocabularies.train_wordpiece(
                texts, _SIZE.value, lower=not _CASED.value, coverage=_COVERAGE.value
            )
        else:
            vocabulary = vocabularies.train_sentencepiece(
                texts, _SIZE.value, kind=_KIND.value, lower=not _CASED.value, coverage=_COVERAGE.value
            )
        vocabulary.save(_OUTPUT.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{_OUTPUT.value}: {vocabularies.describe(vocabulary, sample)}")
    if vocabulary.vocab_size < _SIZE.value:
        print(f"the input has no more than these; {_SIZE.value:,} were asked for")
    inputs = ",".join(sources)
    print(f"next: python scripts/build_corpus.py --input={inputs} --vocab={_OUTPUT.value} --output=corpus")


if __name__ == "__main__":
    app.run(main)
