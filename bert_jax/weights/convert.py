"""Weights from one form to another: a run's workdir, a Hugging Face directory, a TF1 checkpoint."""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any, Literal, get_args

from absl import logging

from bert_jax import config, experiment, files
from bert_jax.config import nearest, require
from bert_jax.corpus import store
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.tagging import Tag
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.weights import checkpoint, huggingface, names, pretrained, tf1
from bert_jax.weights.pretrained import Pretrained

Form = Literal["workdir", "huggingface", "tf1"]


def convert(source: str, destination: str, to: str | None = None) -> str:
    """Writes the weights in `source`, of whatever form, to the new directory `destination`; returns the form written.

    Without `to`, a workdir becomes a Hugging Face directory, and anything else a workdir. Heads, vocabulary and casing
    go along, and the weights are the same, bit for bit. The directory gets its name once it is complete.

    Raises:
      ValueError: where `destination` exists, `source` cannot be read, or the form has no place for what is in it.
    """
    target = files.path(destination)
    require(to is None or to in get_args(Form), f"no form {to!r}: {nearest(str(to), get_args(Form))}")
    require(not target.exists(), f"{destination} exists: name a new directory, or remove it first")
    found = pretrained.open(source)
    to = to or ("huggingface" if found.origin == "workdir" else "workdir")
    require(found.tokenizer is not None, f"{source} holds no tokenizer: put the vocab.txt of its weights there")
    assert found.tokenizer is not None
    if files.remote(destination) and to == "workdir":  # checkpoints are written there by the library that reads them
        _write_workdir(found, found.tokenizer, destination)
        return to
    beside = None if files.remote(destination) else files.make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=beside) as temporary:
        made = pathlib.Path(temporary) / target.name
        made.mkdir()
        with files.room(target):
            _write(found, found.tokenizer, made, to)
        if files.remote(destination):
            files.upload(made, target)
        else:
            made.rename(target)
    return to


def _write(found: Pretrained, vocabulary: Tokenizer, folder: pathlib.Path, to: str) -> None:
    labels = tuple(getattr(found.task, "names", getattr(found.task, "labels", ())))
    problem = found.task.problem if isinstance(found.task, Classify) else ""
    if found.pooling is not None:
        logging.warning(
            "%s: how it makes a vector of a text is not kept: name it, embed(texts, pooling=%r, normalize=%s)",
            found.directory,
            found.pooling.how,
            found.pooling.normalized,
        )
    if to == "workdir":
        _write_workdir(found, vocabulary, str(folder))
        return
    # The padding of the vocabulary is ours: elsewhere a table has as many rows as there are words.
    encoder = config.override(found.encoder, {"vocab_multiple": 1})
    params = found.params(encoder)
    require(
        params.keys().isdisjoint(names.UNPUBLISHED) and not (found.task and found.task.frozen),
        f"{found.directory} holds what no published BERT has, a BiLSTM or a head on features of a frozen encoder: use "
        "the workdir as it is, or convert the run that its encoder comes from",
    )
    if to == "tf1":
        tf1.write(folder, params, encoder, vocabulary, labels, found.length, problem)
        return
    architecture = huggingface.write(folder, params, encoder, vocabulary, labels, found.length, problem)
    (folder / "README.md").write_text(card(found, architecture), encoding="utf-8")


def _write_workdir(found: Pretrained, vocabulary: Tokenizer, workdir: str) -> None:
    experiment.record(found.experiment, workdir, length=found.length)
    vocabulary.save(files.path(workdir) / "tokenizer")
    checkpoint.write_params(workdir, found.params(), found.step)


_CARD = """---
{front}
---

# {name}

A BERT of {layers} layers, hidden size {hidden}, {heads} heads and {vocab_size:,} embeddings, as `{architecture}`{kind}.

## Usage

```python
{usage}
```

or with bert_jax: `bert_jax.load("DIRECTORY")`, and as a start of other runs `--config.init_from=DIRECTORY`.
"""

# By the class that is written: the hub's name of the task, and what asks the model.
_PIPELINES = {
    "BertForSequenceClassification": ("text-classification", 'ask("a text")'),
    "BertForTokenClassification": ("token-classification", 'ask("Ada Lovelace lived in London.")'),
    "BertForQuestionAnswering": ("question-answering", 'ask(question="Who wrote it?", context="Ada wrote it.")'),
    "BertForPreTraining": ("fill-mask", 'ask("the capital of france is [MASK].")'),
    "BertForMaskedLM": ("fill-mask", 'ask("the capital of france is [MASK].")'),
    "BertModel": ("feature-extraction", 'ask("a text")'),
}
_KINDS = {
    "multi_label_classification": ": each of its labels holds or not by itself, by a sigmoid",
    "regression": ": its outputs are values, not classes",
}

_TRAINING = """
## Data

{data}

## Results

{results}

## Training

    python -m bert_jax --config=EXPERIMENT.py --workdir=RUN
    python scripts/convert.py RUN DIRECTORY

EXPERIMENT.py defines this experiment:

```json
{experiment}
```
"""


def card(found: Pretrained, architecture: str) -> str:
    """The model card of a Hugging Face directory: what the model is, how to use it; of a run, how it was made."""
    sizes = {name: getattr(found.encoder, name) for name in ("layers", "hidden", "heads", "vocab_size")}
    pipeline, ask = _PIPELINES.get(architecture, ("", ""))
    front = ["library_name: transformers", *([f"pipeline_tag: {pipeline}"] if pipeline else [])]
    front += ["# What your data and the weights that you began with allow; the hub's names: apache-2.0, mit, ..."]
    front += ["license: unknown", "tags:", "- bert", "- bert_jax"]
    problem = found.task.problem if isinstance(found.task, Classify) else ""
    text = _CARD.format(
        front="\n".join(front),
        name=found.experiment.name,
        architecture=architecture,
        kind=_KINDS.get(problem, ""),
        usage=_usage(architecture, pipeline, ask, problem),
        **sizes,
    )
    if isinstance(found.task, Tag):
        text += (
            "\nA word's tag is that of its first piece, in training and here: without "
            '`aggregation_strategy="first"` the pieces of a word may get several.\n'
        )
    if found.origin != "workdir":
        return text
    return text + _TRAINING.format(
        data="\n".join(f"- {line}" for line in _data(found.experiment.task)),
        results="\n".join(f"- {name}: {value}" for name, value in found.scores.items()) or "The run was not finished.",
        experiment=json.dumps(config.to_dict(found.experiment), indent=1, ensure_ascii=False),
    )


def _usage(architecture: str, pipeline: str, ask: str, problem: str) -> str:
    """What uses the model by `transformers`."""
    if not pipeline:
        return (
            f"from transformers import AutoTokenizer, {architecture}\n"
            'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")\n'
            f'model = {architecture}.from_pretrained("DIRECTORY")'
        )
    more = ', aggregation_strategy="first"' if pipeline == "token-classification" else ""
    if problem == "multi_label_classification":
        more = ", top_k=None"  # else the most probable label alone
    return f'from transformers import pipeline\nask = pipeline("{pipeline}", model="DIRECTORY"{more})\n{ask}'


def _data(task: Any) -> list[str]:
    """What the task was trained on, by its fields; of a corpus that is still there, what it holds."""
    named = [(name, getattr(task, name)) for name in ("corpus", "train", "dev") if getattr(task, name, "")]
    lines = [f"{name}: `{value}`" for name, value in named]
    manifest = pathlib.Path(getattr(task, "corpus", "")) / store.MANIFEST
    if manifest.exists():
        known = store.read_json(manifest)
        lines += [f"source: {source['name']}" for source in known["sources"]]
        lines += [f"{name}: {known['counts'][name]:,}" for name in ("documents", "sentences", "tokens")]
    return lines
