"""The GLUE tasks: the table against the paper, the files as they are published, and their submissions."""

import pathlib

import pytest

from bert_jax.tasks.glue import GLUE, glue

# Table 1 of the paper and the GLUE leaderboard.
METRICS = {
    "cola": "mcc",
    "sst2": "accuracy",
    "mrpc": "f1",
    "stsb": "spearman",
    "qqp": "f1",
    "mnli": "accuracy",
    "qnli": "accuracy",
    "rte": "accuracy",
    "wnli": "accuracy",
    "ax": "accuracy",
}


def test_each_task_has_its_metric() -> None:
    assert {name: task.metric for name, task in GLUE.items()} == METRICS
    with pytest.raises(ValueError, match="did you mean 'sst2'"):
        glue("sst-2")


def test_the_submission_s_files() -> None:
    """Eleven files, by the names that the server knows."""
    names = {name for task in GLUE.values() for name in task.submissions}
    assert names == {
        *("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"),
        *("QNLI.tsv", "RTE.tsv", "WNLI.tsv", "AX.tsv"),
    }
    assert all(len(task.test) == len(task.submissions) for task in GLUE.values())


@pytest.mark.parametrize("name", GLUE)
def test_tfds_has_the_same_tasks(name: str) -> None:
    """Its own names of columns and labels; what is submitted is spelled as ever."""
    ours, theirs = glue(name), glue(name, tfds=True)
    assert (theirs.metrics, theirs.submissions, theirs.spelled) == (ours.metrics, ours.submissions, ours.labels)
    assert len(theirs.dev) == len(ours.dev)
    assert len(theirs.labels) == len(ours.labels)
    assert theirs.validation()[1:] == (("validation_mismatched",) if name in ("mnli", "ax") else ())


COUNTS = {
    ("cola", "CoLA/train.tsv"): 8_551,
    ("cola", "CoLA/dev.tsv"): 1_043,
    ("sst2", "SST-2/train.tsv"): 67_349,
    ("sst2", "SST-2/dev.tsv"): 872,
    ("mrpc", "MRPC/train.tsv"): 3_668,
    ("mrpc", "MRPC/dev.tsv"): 408,
    ("stsb", "STS-B/train.tsv"): 5_749,
    ("stsb", "STS-B/dev.tsv"): 1_500,
    ("qqp", "QQP/train.tsv"): 18_995,
    ("qqp", "QQP/dev.tsv"): 23_496,
    ("mnli", "MNLI/train.tsv"): 47_948,
    ("mnli", "MNLI/dev_matched.tsv"): 9_815,
    ("mnli", "MNLI/dev_litl.tsv"): 7_361,
    ("qnli", "QNLI/train.tsv"): 29_394,
    ("qnli", "QNLI/dev.tsv"): 5_463,
    ("rte", "RTE/train.tsv"): 2_490,
    ("rte", "RTE/dev.tsv"): 277,
    ("wnli", "WNLI/train.tsv"): 635,
    ("wnli", "WNLI/dev.tsv"): 71,
}
TESTS = {
    "cola": 1_063,
    "sst2": 1_821,
    "mrpc": 1_725,
    "stsb": 1_379,
    "qnli": 5_463,
    "rte": 3_000,
    "wnli": 146,
    "ax": 1_104,
}


@pytest.mark.parametrize(("name", "file"), COUNTS)
def test_every_row_of_the_official_files_is_read(real_data: pathlib.Path, name: str, file: str) -> None:
    rows = glue(name).read(str(real_data / "glue" / file))
    assert len(rows) == COUNTS[name, file]
    assert all(all(row.texts) for row in rows)
    if glue(name).labels:
        assert {row.label for row in rows} == set(range(len(glue(name).labels)))
    else:
        assert (min(row.label for row in rows), max(row.label for row in rows)) == (0, 5)


@pytest.mark.parametrize("name", TESTS)
def test_every_row_of_the_test_files_is_read(real_data: pathlib.Path, name: str) -> None:
    """With its index, which is what a submission is by."""
    rows = glue(name).read(str(real_data / "glue" / glue(name).test[0]), labelled=False)
    assert [row.index for row in rows] == [str(n) for n in range(TESTS[name])]
