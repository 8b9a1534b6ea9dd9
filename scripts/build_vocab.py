"""Learns a vocabulary from text: WordPiece as BERT has it, or a SentencePiece model (unigram or BPE).

    python scripts/build_vocab.py --input=data/wiki*.txt.xz --output=vocab.txt --size=30522
    python scripts/build_vocab.py --input=python-docs --output=vocab.txt --size=8000 --cased
    python scripts/build_vocab.py --input=data/zh,tfds:wiki40b/zh --output=spm.model --size=21128 --kind=unigram

An input is a file (a paragraph a line, a blank line between documents; or JSON lines; .gz, .xz, .bz2 and .zst are read
as they are; or parquet), a directory, a pattern, tfds:NAME, or python-docs for the documentation in this Python and its
packages. With --sentences=lines a line is a sentence, as in the reference's input.
The same input gives the same vocabulary. tokenizer_config.json, written beside it, holds the casing.

All cores read. Stopped or killed, the same command goes on: what was read is kept in OUTPUT.parts (counts of words, for
SentencePiece the sentences themselves) until the vocabulary is there; learning the pieces from it begins anew.
"""

import itertools
import pathlib
import shutil
import signal
import sys
from collections.abc import Iterable

import rich.console
import rich.progress
from absl import app, flags

from bert_jax import files, startup
from bert_jax.text import reading, tokenizer, vocabularies

_INPUT = flags.DEFINE_multi(  # type: ignore[call-overload]
    flags.ListParser(),
    flags.CsvListSerializer(","),
    "input",
    None,
    "Files, directories, patterns, tfds:NAME, python-docs; comma between them",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "vocab.txt; for a SentencePiece model NAME.model.", required=True)
_SIZE = flags.DEFINE_integer(
    "size",
    None,
    "How many pieces, special ones included.",
    required=True,
    lower_bound=6,
    upper_bound=vocabularies.LARGEST,
)
_KIND = flags.DEFINE_enum("kind", "wordpiece", ["wordpiece", "unigram", "bpe"], "The last two are SentencePiece's.")
_CASED = flags.DEFINE_bool("cased", False, "Keep upper case and accents.")
_COVERAGE = flags.DEFINE_float(
    "coverage", 0.9999, "Share of the input's characters that get a piece; the knob for Chinese.", 0.0, 1.0
)
_ERRORS = flags.DEFINE_enum(
    "errors", "strict", ["strict", "replace"], "At bytes that are not UTF-8: stop, or drop them."
)
_FIELD = flags.DEFINE_string("field", "text", "Which field of JSON lines and TFDS sets holds the text.")
_SENTENCES = flags.DEFINE_enum(
    "sentences", "split", ["split", "lines"], "Split paragraphs into sentences, or take each line as one."
)
_MAX_MB = flags.DEFINE_integer("max_mb", 1000, "Read so many millions of characters at most; 0: all.", lower_bound=0)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes that read; default: one for each core.", lower_bound=1, upper_bound=1024
)


def _read(sources: list[str], folder: pathlib.Path) -> None:
    """Reads the sources into the folder, with progress on stderr."""
    words = _KIND.value == "wordpiece"
    columns = rich.progress.TextColumn("{task.description}"), rich.progress.TimeElapsedColumn()
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task("reading")
        parts = reading.read(
            sources,
            folder,
            (lambda texts: vocabularies.count_words(texts, not _CASED.value)) if words else list,
            what=f"words, {'cased' if _CASED.value else 'lower case'}" if words else "sentences",
            workers=_WORKERS.value,
            most=_MAX_MB.value * 10**6 or sys.maxsize,
            errors="replace" if _ERRORS.value == "replace" else "strict",
            field=_FIELD.value,
            sentences="lines" if _SENTENCES.value == "lines" else "split",
        )
        for size in parts:
            bar.update(task, description=f"read {size / 1e6:,.1f} million characters")
        bar.update(task, description=f"{bar.tasks[0].description}; learning the vocabulary from them")


def _learned(folder: pathlib.Path) -> tokenizer.Tokenizer:
    lower, coverage = not _CASED.value, _COVERAGE.value
    contents = (content for content, _ in reading.contents(folder))
    if _KIND.value == "wordpiece":
        return vocabularies.wordpiece_of(vocabularies.added(contents), _SIZE.value, lower=lower, coverage=coverage)
    texts: Iterable[str] = itertools.chain.from_iterable(contents)
    return vocabularies.train_sentencepiece(texts, _SIZE.value, kind=_KIND.value, lower=lower, coverage=coverage)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"too many arguments: {argv[1:]}; is there a space after a comma, or a pattern unquoted?")
    suffix = ".txt" if _KIND.value == "wordpiece" else ".model"
    output = pathlib.Path(_OUTPUT.value)
    if output.suffix != suffix:
        raise app.UsageError(f"--output={output} must be a file that ends in {suffix}, for --kind={_KIND.value}")
    if output.is_dir():
        raise app.UsageError(f"--output={output} is a directory: name a file that ends in {suffix}")
    if not 0 < _COVERAGE.value <= 1:
        raise app.UsageError(f"--coverage={_COVERAGE.value} must lie above 0, and at 1 at most")
    sources = list(itertools.chain.from_iterable(_INPUT.value))
    folder = output.with_name(output.name + ".parts")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with reading.opened(folder):
            _read(sources, folder)
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, signal.SIG_DFL)  # the libraries that learn hear nothing of Python's own
            vocabulary = _learned(folder)
            with files.room(
                output.parent, f"what was read is kept in {folder}: make room and run the same command again"
            ):
                vocabulary.save(output)
            sample = [text for _, texts in reading.contents(folder) for text in texts]
            shutil.rmtree(folder)
    except KeyboardInterrupt:
        print("\nstopped; what was read is kept: run the same command again, it goes on from there", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{output}: {vocabularies.describe(vocabulary, sample)}")
    if vocabulary.vocab_size < _SIZE.value:
        print(f"the input has no more than these; {_SIZE.value:,} were asked for")
    inputs = ",".join(sources)
    lines = " --sentences=lines" if _SENTENCES.value == "lines" else ""
    print(f"next: python scripts/build_corpus.py --input={inputs} --vocab={output} --output=corpus{lines}")


if __name__ == "__main__":
    startup.run(main)
