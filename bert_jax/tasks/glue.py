"""The GLUE tasks, a row each: folder and columns of the official files. A task is `glue("sst2")`."""

from __future__ import annotations

from bert_jax.config import nearest, require
from bert_jax.tasks.classify import Classify

GLUE = {
    "sst2": Classify(train="SST-2/train.tsv", dev="SST-2/dev.tsv", text=("sentence",), labels=("0", "1")),
}


def glue(name: str) -> Classify:
    """The task of that name. Raises `ValueError` at an unknown one."""
    require(name in GLUE, f"no GLUE task {name!r}: {nearest(name, GLUE)}")
    return GLUE[name]
