"""The token store: what is in it, that a stop leaves no trace in it, and what each kind of bad input says."""

import errno
import json
import os
import pathlib
import pickle
import random
import signal
import string
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from bert_jax import files
from bert_jax.corpus import building, store
from bert_jax.corpus.building import build
from bert_jax.corpus.store import Corpus
from bert_jax.text import readers
from bert_jax.text.tokenizer import SPECIAL, WordPiece
from tests.conftest import flip

REPOSITORY = pathlib.Path(__file__).parents[2]
LETTERS = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]


@pytest.fixture(scope="module")
def vocabulary():
    return WordPiece([*SPECIAL, "cat", "dog", "the", ".", *LETTERS], lower=True)


@pytest.fixture
def source(tmp_path):
    """Sixty documents of one to nine sentences."""
    words, rng = ["cat", "dog", "the", "house", "zebra", "\u4e2d"], random.Random(0)

    def sentence():
        return " ".join(rng.choices(words, k=rng.randint(1, 8))).capitalize() + "."

    documents = ["\n".join(sentence() for _ in range(rng.randint(1, 9))) for _ in range(60)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents))
    return path


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def until(condition, seconds=20):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"not so after {seconds} s")


def stop_at(monkeypatch, document, error):
    """Makes the build fail when it has appended so many documents, half of the next one in the files."""
    append = building._Writer.append

    def stopping(self, *arguments):
        if self.counts["read"] == document:
            self._files[store.TOKENS].write(b"half a docum")
            raise error
        append(self, *arguments)

    monkeypatch.setattr(building._Writer, "append", stopping)


def test_holds_the_sentences_in_order(source, vocabulary, tmp_path):
    built = build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    documents = list(readers.documents([str(source)]))
    assert built.count("documents") == len(built.documents) - 1 == len(documents) == 60
    for i, document in enumerate(documents):
        expected = [vocabulary.encode(sentence) for sentence in readers.sentences(document)]
        assert [sentence.tolist() for sentence in built.document(i)] == expected
        assert built.name(i) == document.name
    assert built.tokens.dtype == np.uint16
    assert built.count("tokens") == len(built.tokens)
    assert built.count("unknown") == np.sum(built.tokens == vocabulary.unk) > 0
    assert built.count("bytes") == sum(len(document.text.encode()) for document in documents)
    assert built.tokenizer.fingerprint == vocabulary.fingerprint
    assert built.manifest["sources"][0]["name"] == "text.txt"
    assert "60" in store.describe(built)


def test_of_a_module_its_prose_counts_as_text(vocabulary, tmp_path):
    built = build(["python-docs:absl"], vocabulary, tmp_path / "corpus", workers=1)
    modules = list(readers.documents(["python-docs:absl"]))
    prose = sum(len("\n".join(readers.paragraphs(module)).encode()) for module in modules)
    assert built.count("bytes") <= prose < sum(len(module.text) for module in modules)
    assert built.count("bytes") > 2 * built.count("documents")


def test_empty_sentences_and_documents_are_dropped(vocabulary, tmp_path):
    (tmp_path / "a.txt").write_text("cat.\n\u200b\ndog.\n\n\u200b\n\nthe.")
    built = build([str(tmp_path / "a.txt")], vocabulary, tmp_path / "corpus", workers=1)
    assert built.documents.tolist() == [0, 2, 3]
    assert np.all(np.diff(built.sentences) > 0)


def test_any_number_of_workers_writes_the_same_bytes(source, vocabulary, tmp_path):
    for workers in (1, 2):
        build([str(source)], vocabulary, tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1])
def test_a_large_vocabulary_takes_wider_tokens(size, source, tmp_path):
    pieces = [*SPECIAL, *(f"unused{i}" for i in range(size - len(SPECIAL) - 1)), "cat"]
    built = build([str(source)], WordPiece(pieces, lower=True), tmp_path / "corpus", workers=1)
    assert built.tokens.dtype == (np.uint16 if size == 1 << 16 else np.uint32)
    assert built.tokens.max() == size - 1


KILLED = """
import os, pathlib, signal, sys
from bert_jax.corpus import building
from bert_jax.text import tokenizer

source, vocabulary, directory, workers = sys.argv[1:]
append = building._Writer.append

def killing(self, *arguments):
    if self.counts["read"] == 30:
        self.commit()
    if self.counts["read"] == 40:  # ten documents after the commit, and half of another
        self._files["tokens.bin"].write(b"half a docum")
        self._files["tokens.bin"].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, *arguments)

if __name__ == "__main__":
    building._Writer.append = killing
    building.build([source], tokenizer.load(vocabulary), directory, workers=int(workers))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again_the_bytes_are_the_same(workers, source, vocabulary, tmp_path, capsys):
    build([str(source)], vocabulary, tmp_path / "whole", workers=1)
    vocabulary.save(tmp_path / "vocabulary")
    (tmp_path / "killed.py").write_text(KILLED)
    arguments = [str(source), str(tmp_path / "vocabulary"), str(tmp_path / "corpus"), str(workers)]
    child = subprocess.Popen([sys.executable, str(tmp_path / "killed.py"), *arguments], cwd=REPOSITORY, process_group=0)
    assert child.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / "corpus" / "progress.json").read_text())["counts"]["read"] == 30
    with pytest.raises(ValueError, match="half-built corpus: run the same build_corpus command again"):
        Corpus.open(tmp_path / "corpus")
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")
    assert "going on after 30 documents" in capsys.readouterr().err

    def gone():
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(gone)  # no worker survives its parent


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (
            OSError(errno.ENOSPC, "no space"),
            OSError,
            "is full: 25 documents are kept: make room and run the same command",
        ),
        (BrokenProcessPool(), RuntimeError, r"a worker process died after 25 documents \(out of memory\?\): run"),
    ],
    ids=["ctrl-c", "full disk", "dead worker"],
)
def test_stopped_and_run_again_the_bytes_are_the_same(error, kind, message, source, vocabulary, tmp_path, monkeypatch):
    build([str(source)], vocabulary, tmp_path / "whole", workers=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 25, error)
        with pytest.raises(kind, match=message):
            build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert json.loads((tmp_path / "corpus" / "progress.json").read_text())["counts"]["read"] == 25
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_a_complete_corpus_is_left_alone(source, vocabulary, tmp_path, capsys):
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").iterdir()}
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert "already holds this corpus, complete: nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").iterdir()}


@pytest.mark.parametrize("half", [False, True])
def test_another_corpus_is_not_overwritten(half, source, vocabulary, tmp_path, monkeypatch):
    if half:
        with monkeypatch.context() as patch:
            stop_at(patch, 25, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    else:
        build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    before = content(tmp_path / "corpus")
    other = WordPiece([*SPECIAL, *LETTERS], lower=True)
    with pytest.raises(ValueError, match=r"holds another .*corpus; it differs .*\n  vocabulary: .*\nchoose another"):
        build([str(source)], other, tmp_path / "corpus", workers=1)
    source.write_text("another text.")
    with pytest.raises(ValueError, match=r"sources\.0\.bytes: .*\n  sources\.0\.sha256"):
        build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert content(tmp_path / "corpus") == before


def test_an_input_that_changed_after_a_stop_is_noticed(source, vocabulary, tmp_path, monkeypatch):
    documents = list(readers.documents([str(source)]))
    monkeypatch.setattr(readers, "documents", lambda sources, **_: iter(documents))
    with monkeypatch.context() as patch:
        stop_at(patch, 25, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build(["python-docs"], vocabulary, tmp_path / "corpus", workers=1)
    for changed in (documents[1:], documents[:10]):  # as if a package had gone
        monkeypatch.setattr(readers, "documents", lambda sources, changed=changed, **_: iter(changed))
        with pytest.raises(ValueError, match=r"the input has changed since .* stopped: document 25 was .*txt:"):
            build(["python-docs"], vocabulary, tmp_path / "corpus", workers=1)


def test_two_builds_at_once(source, vocabulary, tmp_path):
    (tmp_path / "corpus").mkdir()
    with files.locked(tmp_path / "corpus", ""), pytest.raises(ValueError, match="another process is building"):
        build([str(source)], vocabulary, tmp_path / "corpus", workers=1)


def test_bad_input(source, vocabulary, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        build([str(tmp_path / "missing.txt")], vocabulary, tmp_path / "corpus", workers=1)
    assert not (tmp_path / "corpus").exists()
    with pytest.raises(ValueError, match=r"corpus lies inside the input .*: choose another directory"):
        build([str(tmp_path)], vocabulary, tmp_path / "corpus", workers=1)
    empty = tmp_path / "empty.txt"
    empty.write_text("\u200b")
    with pytest.raises(ValueError, match=r"no text in .*empty\.txt"):
        build([str(empty)], vocabulary, tmp_path / "corpus", workers=1)
    empty.write_text(" \n\n")
    with pytest.raises(ValueError, match=r"empty\.txt: there is no document in it"):
        build([str(empty)], vocabulary, tmp_path / "corpus", workers=1)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("cat.\n\ndog \xe9.".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        build([str(latin)], vocabulary, tmp_path / "strict", workers=1)
    assert build([str(latin)], vocabulary, tmp_path / "replaced", workers=1, errors="replace").count("documents") == 2
    assert build([str(source)], vocabulary, tmp_path / "corpus", workers=1)  # nothing stands in the way


def test_files_of_others_are_not_overwritten(source, vocabulary, tmp_path):
    (tmp_path / "tokens.bin").write_text("mine")
    WordPiece([*SPECIAL, "mine"], lower=True).save(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"is no corpus and holds tokens\.bin, another vocabulary: choose another"):
        build([str(source)], vocabulary, tmp_path, workers=1)
    assert content(tmp_path) == before


def test_a_vocabulary_may_lie_where_the_corpus_goes(source, vocabulary, tmp_path):
    vocabulary.save(tmp_path / "corpus")
    assert build([str(source)], vocabulary, tmp_path / "corpus", workers=1).count("documents") == 60


def test_opening_what_is_no_corpus(source, vocabulary, tmp_path):
    with pytest.raises(ValueError, match=r"holds no corpus \(manifest\.json is missing\): build one with"):
        Corpus.open(tmp_path)
    directory = tmp_path / "corpus"
    built = build([str(source)], vocabulary, directory, workers=1)
    whole = (directory / "manifest.json").read_text()
    with pytest.raises(ValueError, match=r"another vocabulary \(\w{12}\) than the run names \(abcabcabcabc\)"):
        built.check_vocabulary("abc" * 10)
    built.check_vocabulary(vocabulary.fingerprint)
    with open(directory / "tokens.bin", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"is damaged: tokens\.bin has 100 bytes, and its manifest tells of [\d,]+:"):
        Corpus.open(directory)
    (directory / "tokens.bin").unlink()
    with pytest.raises(ValueError, match=r"is damaged: tokens\.bin is missing"):
        Corpus.open(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(ValueError, match="a corpus of format 0, and this version reads format 1: build it again"):
        Corpus.open(directory)
    for damaged in (
        "{",
        "[]",
        "\x00",
        '{"format": 1}',
        whole.replace('"tokens"', '"tokenz"'),
        whole.replace("int16", ""),
    ):
        (directory / "manifest.json").write_text(damaged)
        with pytest.raises(
            ValueError, match=r"manifest\.json is damaged .*: delete .*corpus and build the corpus again"
        ):
            Corpus.open(directory)


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.bin", "documents.bin", "names.txt", "name_ends.bin"])
def test_a_flipped_byte_is_noticed(name, source, vocabulary, tmp_path):
    directory = tmp_path / "corpus"
    build([str(source)], vocabulary, directory, workers=1)
    size = (directory / name).stat().st_size
    for place in (0, size // 2, size - 1):
        flip(directory / name, place)
        with pytest.raises(ValueError, match=rf"is damaged: {name} has not the checksum .* build it again, or take it"):
            Corpus.open(directory)
        assert Corpus.open(directory, verify=False).count("documents") == 60  # what another process has verified
        flip(directory / name, place)
        assert Corpus.open(directory).count("documents") == 60


def test_a_flipped_byte_in_the_vocabulary_is_noticed(source, vocabulary, tmp_path):
    directory = tmp_path / "corpus"
    build([str(source)], vocabulary, directory, workers=1)
    content = (directory / "vocab.txt").read_text()
    (directory / "vocab.txt").write_text(content.replace("dog", "dig"))
    with pytest.raises(ValueError, match=r"vocabulary in .*corpus is not the one that made the corpus: copy that one"):
        _ = Corpus.open(directory).tokenizer


def test_a_corpus_of_an_older_version_has_no_checksums(source, vocabulary, tmp_path):
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    del manifest["checksums"]
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps(manifest))
    flip(tmp_path / "corpus" / "tokens.bin", 0)
    assert Corpus.open(tmp_path / "corpus").count("documents") == 60


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_what_was_damaged_after_a_stop_is_noticed(damage, source, vocabulary, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 25, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    file = tmp_path / "corpus" / "sentences.bin"
    if damage == "flipped":
        flip(file, 30)
    elif damage == "cut":
        os.truncate(file, 50)
    else:
        file.unlink()
    with pytest.raises(ValueError, match=r"sentences\.bin is damaged: .* Delete .*corpus and build the corpus again"):
        build([str(source)], vocabulary, tmp_path / "corpus", workers=1)


def test_a_half_built_corpus_of_an_older_version_goes_on(source, vocabulary, tmp_path, monkeypatch):
    build([str(source)], vocabulary, tmp_path / "whole", workers=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 25, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    record = json.loads((tmp_path / "corpus" / "progress.json").read_text())
    del record["checksums"]
    (tmp_path / "corpus" / "progress.json").write_text(json.dumps(record))
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_damaged_progress_says_so(source, vocabulary, tmp_path):
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    whole = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    (tmp_path / "corpus" / "manifest.json").unlink()
    for damaged in ("", "[]", "null", json.dumps({**whole, "last": "", "counts": {}}), json.dumps(whole)):
        (tmp_path / "corpus" / "progress.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"progress\.json is damaged .*: delete .* and build the corpus again"):
            build([str(source)], vocabulary, tmp_path / "corpus", workers=1)


LIMITED = """
import resource, sys
from bert_jax.corpus import building
from bert_jax.text import tokenizer

source, vocabulary, directory, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
try:
    building.build([source], tokenizer.load(vocabulary), directory, workers=1)
except OSError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("limit", [0, 1500])  # bytes: at the first file, and at the text itself
def test_no_room_is_said_and_harms_nothing(limit, source, vocabulary, tmp_path):
    build([str(source)], vocabulary, tmp_path / "whole", workers=1)
    arguments = [str(source), str(tmp_path / "whole"), str(tmp_path / "corpus"), str(limit)]
    ran = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    assert f"a file in {tmp_path / 'corpus'} may not become larger (ulimit -f): " in ran.stderr
    assert "make room and run the same command again" in ran.stderr
    build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_pickled_by_its_path(source, vocabulary, tmp_path):
    built = build([str(source)], vocabulary, tmp_path / "corpus", workers=1)
    sent = pickle.dumps(built)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).tokens, built.tokens)


def test_workers_import_no_jax():
    code = "import sys, bert_jax.corpus.building, bert_jax.corpus.pairing; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_the_script_builds_describes_and_stops(source, vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocabulary")
    script = [sys.executable, str(REPOSITORY / "scripts" / "build_corpus.py")]
    options = [f"--vocab={tmp_path / 'vocabulary'}", f"--output={tmp_path / 'corpus'}", "--workers=1"]
    os.mkfifo(tmp_path / "endless.txt")
    child = subprocess.Popen(
        [*script, f"--input={tmp_path / 'endless.txt'}", *options], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    endless = os.open(tmp_path / "endless.txt", os.O_RDWR)  # which waits for no reader
    os.write(endless, b"cat.\n\n" * 10)
    until(lambda: (tmp_path / "corpus" / "progress.json").exists())
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=20)
    os.close(endless)
    assert child.returncode == 130
    assert "stopped; what is done is kept: run the same command again" in said

    def run(*arguments):
        return subprocess.run([*script, *arguments], capture_output=True, text=True, cwd=REPOSITORY)

    options[1] = f"--output={tmp_path / 'other'}"
    assert "documents   60" in run(f"--input={source}", *options).stdout
    shown = run(f"--describe={tmp_path / 'other'}").stdout
    assert "is next" in shown
    assert "random B" in shown
    assert "whole: its files have their checksums" in run(f"--verify={tmp_path / 'other'}").stdout
    flip(tmp_path / "other" / "names.txt", 3)
    damaged = run(f"--verify={tmp_path / 'other'}")
    assert damaged.returncode == 1
    assert "is damaged: names.txt" in damaged.stderr
    wrong = run(f"--describe={tmp_path}")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")
    assert "Traceback" not in wrong.stderr


def test_a_line_may_be_a_sentence(tmp_path, vocabulary):
    """Another corpus than that of the same text split; one that does not say was split."""
    (tmp_path / "a.txt").write_text("The cat. The dog.\nDog.\n\nCat.\n")
    lines = build([str(tmp_path / "a.txt")], vocabulary, tmp_path / "lines", workers=1, sentences="lines")
    assert lines.manifest["counts"]["sentences"] == 3
    split = build([str(tmp_path / "a.txt")], vocabulary, tmp_path / "split", workers=1)
    assert split.manifest["counts"]["sentences"] == 4
    with pytest.raises(ValueError, match="sentences"):
        build([str(tmp_path / "a.txt")], vocabulary, tmp_path / "lines", workers=1)
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    del manifest["sentences"]
    (tmp_path / "split" / "manifest.json").write_text(json.dumps(manifest))
    build([str(tmp_path / "a.txt")], vocabulary, tmp_path / "split", workers=1)
