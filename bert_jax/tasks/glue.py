"""The GLUE tasks, a row each: folder and columns of the official files, labels, metrics. A task is `glue("sst2")`."""

from __future__ import annotations

import dataclasses
from typing import Any

from bert_jax.config import nearest, require
from bert_jax.tasks.classify import Classify

BINARY = ("0", "1")
PAIR = ("sentence1", "sentence2")
NLI = ("contradiction", "entailment", "neutral")
ENTAILMENT = ("entailment", "not_entailment")


def _official(folder: str, **fields: Any) -> Classify:
    """A task of the files train.tsv, dev.tsv and test.tsv in a folder, which also names what is submitted."""
    files = {"train": f"{folder}/train.tsv", "dev": (f"{folder}/dev.tsv",), "test": (f"{folder}/test.tsv",)}
    return Classify(**{**files, "submissions": (f"{folder}.tsv",), **fields})


_MNLI = _official(
    "MNLI",
    dev=("MNLI/dev_matched.tsv", "MNLI/dev_mismatched.tsv"),
    test=("MNLI/test_matched.tsv", "MNLI/test_mismatched.tsv"),
    submissions=("MNLI-m.tsv", "MNLI-mm.tsv"),
    text=PAIR,
    label="gold_label",
    labels=NLI,
    unlabelled=("-",),  # where the annotators did not agree, as in the sets' own files and in SNLI's
)

# The first metric is that of the paper's Table 1. CoLA's files but the test have no header; some rows of the official
# QQP lack cells, and are left out as everyone leaves them out.
GLUE = {
    "cola": _official(
        "CoLA",
        labels=BINARY,
        label_names=("unacceptable", "acceptable"),
        columns=("source", "label", "mark", "sentence"),
        metrics=("mcc", "accuracy"),
    ),
    "sst2": _official("SST-2", labels=BINARY, label_names=("negative", "positive")),
    "mrpc": _official(
        "MRPC",
        text=("#1 String", "#2 String"),
        label="Quality",
        labels=BINARY,
        label_names=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
    ),
    "stsb": _official("STS-B", text=PAIR, label="score", bounds=(0.0, 5.0), metrics=("spearman", "pearson")),
    "qqp": _official(
        "QQP",
        text=("question1", "question2"),
        label="is_duplicate",
        labels=BINARY,
        label_names=("not_duplicate", "duplicate"),
        index="id",
        malformed="skip",
        metrics=("f1", "accuracy"),
    ),
    "mnli": _MNLI,
    "qnli": _official("QNLI", text=("question", "sentence"), labels=ENTAILMENT),
    "rte": _official("RTE", text=PAIR, labels=ENTAILMENT),
    "wnli": _official("WNLI", text=PAIR, labels=BINARY, label_names=("not_entailment", "entailment")),
    # The diagnostic set has no training data: a model of MNLI is asked.
    "ax": dataclasses.replace(_MNLI, test=("AX/diagnostic.tsv",), submissions=("AX.tsv",)),
}

# Where TFDS names the two columns of text otherwise. Its labels are our `label_names`.
_TFDS: dict[str, dict[str, Any]] = {
    "mrpc": {"text": PAIR},
    "mnli": {"text": ("premise", "hypothesis")},
    "ax": {"text": ("premise", "hypothesis")},
}


def glue(name: str, tfds: bool = False) -> Classify:
    """The task of that name, from the official files or, with `tfds`, from the data set "glue/NAME" of TFDS.

    Raises:
      ValueError: at a name that is none of GLUE's.
    """
    require(name in GLUE, f"no GLUE task {name!r}: {nearest(name, GLUE)}")
    task = GLUE[name]
    if not tfds:
        return task
    data = "mnli" if name == "ax" else name
    matched = ("_matched", "_mismatched") if data == "mnli" else ("",)
    return dataclasses.replace(
        task,
        train=f"tfds:glue/{data}:train",
        dev=tuple(f"tfds:glue/{data}:validation{suffix}" for suffix in matched),
        test=("tfds:glue/ax:test",) if name == "ax" else tuple(f"tfds:glue/{name}:test{suffix}" for suffix in matched),
        label="label",
        index="idx",
        labels=task.names,
        label_names=(),
        spelled=task.labels,
        **_TFDS.get(name, {}),
    )
