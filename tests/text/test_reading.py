"""Reading for a vocabulary: its parts are the text, wherever it was stopped, and the command ends as undisturbed."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bert_jax.text import readers, reading
from tests.conftest import REPOSITORY, flip

SENTENCES = [
    [f"Sentence {i} of text {j}.", "The cat sat on the mat.", "And so on."] for j in range(40) for i in [j % 7]
]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART", 500)
    monkeypatch.setattr(reading, "SAMPLE", 10)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(map("\n".join, SENTENCES)))
    return str(file)


def read(source: str, folder: pathlib.Path, reduce=list, **more) -> list[int]:
    with reading.opened(folder):
        return list(reading.read([source], folder, reduce, what="sentences", workers=1, **more))


def contents(folder: pathlib.Path) -> list[str]:
    return list(itertools.chain.from_iterable(content for content, _ in reading.contents(folder)))


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("most", [0, 10, 501, 1000, 10**9])
def test_the_parts_are_the_text(source: str, tmp_path: pathlib.Path, most: int) -> None:
    sizes = read(source, tmp_path / "parts", most=most)
    expected = list(readers.at_most(itertools.chain.from_iterable(SENTENCES), most))
    assert contents(tmp_path / "parts") == expected
    assert sizes == sorted(sizes)
    assert sizes[-1] == sum(map(len, expected))
    parts = list(reading.contents(tmp_path / "parts"))
    assert all(sample == part[::10] for part, sample in parts)
    assert len(parts) > 3 or most <= 1000


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_stopped_it_goes_on_after_the_last_whole_part(source: str, tmp_path: pathlib.Path, stop: int, capsys) -> None:
    read(source, tmp_path / "whole")
    seen: list[str] = []

    def stopping(sentences: list[str]) -> list[str]:
        if len(files(tmp_path / "parts")) == stop + bool(stop):  # with the record
            raise KeyboardInterrupt
        return sentences

    def watching(sentences: list[str]) -> list[str]:
        seen.extend(sentences)
        return sentences

    with pytest.raises(KeyboardInterrupt):
        read(source, tmp_path / "parts", stopping)
    before = contents(tmp_path / "parts") if stop else []
    read(source, tmp_path / "parts", watching)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert before + seen == contents(tmp_path / "whole")
    assert ("going on after" in capsys.readouterr().err) == (stop > 0)
    read(source, tmp_path / "parts", lambda _: pytest.fail("read again"))  # it is all there


def test_a_damaged_part_is_read_anew(source: str, tmp_path: pathlib.Path, capsys) -> None:
    read(source, tmp_path / "parts")
    whole = files(tmp_path / "parts")
    flip(tmp_path / "parts" / "00001.json", 20)
    read(source, tmp_path / "parts")
    assert "00001.json is damaged: reading anew from there" in capsys.readouterr().err
    (tmp_path / "parts" / "00002.json").unlink()
    read(source, tmp_path / "parts")
    (tmp_path / "parts" / "progress.json").write_text("[]")
    read(source, tmp_path / "parts")
    assert files(tmp_path / "parts") == whole


def test_of_another_input_it_is_read_anew(source: str, tmp_path: pathlib.Path, capsys) -> None:
    read(source, tmp_path / "parts")
    pathlib.Path(source).write_text("Another text.")
    read(source, tmp_path / "parts")
    assert contents(tmp_path / "parts") == ["Another text."]
    assert "parts of another input, or damaged ones: reading anew" in capsys.readouterr().err


def test_one_at_a_time(source: str, tmp_path: pathlib.Path) -> None:
    with reading.opened(tmp_path / "parts"), pytest.raises(ValueError, match=r"another process reads into .*parts"):
        read(source, tmp_path / "parts")


BUILD = """
import os, runpy, signal, sys
from bert_jax import files
from bert_jax.text import reading

reading.PART, reading.SAMPLE = 500, 10
if (left := int(sys.argv.pop(1))) >= 0:  # writes before the kill
    write = files.write_json

    def killing(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    files.write_json = killing
sys.argv[0] = "scripts/build_vocab.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("name", "size"), [("vocab.txt", 60), ("spm.model", 40)])
def test_the_command_killed_and_run_again_gives_the_same_vocabulary(
    name: str, size: int, source: str, tmp_path: pathlib.Path
) -> None:
    def build(folder: str, writes: int) -> subprocess.CompletedProcess[str]:
        flags = [f"--input={source}", f"--output={tmp_path / folder / name}", f"--size={size}", "--workers=1"]
        flags += ["--kind=unigram"] * name.endswith("model")
        command = [sys.executable, "-c", BUILD, str(writes), *flags]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)

    assert build("whole", -1).returncode == 0
    for writes in (3, 0):  # a part with its record, and the next without; then at once
        assert build("killed", writes).returncode == -signal.SIGKILL
    again = build("killed", -1)
    assert again.returncode == 0, again.stderr
    assert "going on after" in again.stderr
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert sorted(files(tmp_path / "whole")) == sorted(["tokenizer_config.json", name])  # the parts are gone
