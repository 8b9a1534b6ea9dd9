"""How fast an epoch of fine-tuning is on this machine: in groups of lengths, padded, and in a plain PyTorch loop.

    python scripts/benchmark_tasks.py --config=experiments/mrpc.py --data_dir=GLUE --vocab=VOCAB --against=torch
    python scripts/benchmark_tasks.py --config=experiments/pos.py --data_dir=UD --vocab=VOCAB --set=phases.0.length=64

The encoder is one of `--size` with random weights; data, batch size and length are the experiment's. "plain" pads all
examples to the phase's length, as the reference does; "torch" is Hugging Face's model of the same size, with the fused
AdamW, clipping, and batches of random examples padded to their longest. All have the same tokens, made beforehand, and
take turns epoch by epoch, each in a process of its own. The first epoch, which compiles, is not counted, but told.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from typing import Any

import benchmark
import jax
import numpy as np
from absl import app, flags

from bert_jax import config, experiment, startup
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Arrays, Context
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.tagging import Tag
from bert_jax.text import tokenizer
from bert_jax.training import data, planning, sharding
from bert_jax.training.program import Program

FLAGS = flags.FLAGS
flags.DEFINE_string("config", "experiments/mrpc.py", "the experiment: its task is Classify or Tag")
flags.DEFINE_string("data_dir", os.environ.get("BERT_JAX_DATA", ""), "the task's official files")
_VOCAB = flags.DEFINE_string("vocab", None, "vocab.txt, or a directory with one", required=True)
flags.DEFINE_integer("lengths", 4, "static lengths of the batches in groups", lower_bound=2)
startup.require_values(_VOCAB)
for name in ("against", "rounds", "set", "size"):  # benchmark.py's, which --help shall list here too
    flags.declare_key_flag(name)


def prepared(file: str, changes: dict[str, str], size: str, vocab: str, data_dir: str) -> tuple[Experiment, Context]:
    vocabulary = tokenizer.load(vocab)
    encoder = config.override(benchmark.encoder_of(size, {}), {"vocab_size": vocabulary.vocab_size})
    exp = config.override(config.override(experiment.load(file), {"encoder": encoder, "phases.0.epochs": 1}), changes)
    return exp, Context(vocabulary, data_dir)


def ours(lengths: int, *asked: Any) -> benchmark.Step:
    """An epoch of this package's steps, fed as a run feeds them."""
    exp, context = prepared(*asked)
    exp = config.override(exp, {"phases.0.lengths": lengths})
    mesh = sharding.make_mesh(exp.mesh)
    # One epoch, again and again: the shuffling differs between epochs, the examples do not.
    (stretch,) = planning.stretches(exp, context, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        program = Program(exp, context.tokenizer, stretch.stop * 1000, mesh)
        state = program.init()

    epochs = 0

    def run() -> object:
        nonlocal state, epochs
        began = time.perf_counter()
        with jax.set_mesh(mesh):
            for batch in data.ahead(stretch.batches.__getitem__, range(stretch.stop)):
                state, figures = program.step(state, batch, program.knobs)
        jax.block_until_ready(figures)
        epochs += 1
        if epochs == 1:
            tokens, _ = planning.tokens_and_flops(exp, state.params, [stretch.lengths])
            print(f"lengths={lengths}: {tokens:,} tokens; first epoch {time.perf_counter() - began:.0f} s")
        return figures

    return run


def hugging_face_torch(*asked: Any) -> benchmark.Step:
    """An epoch of a plain PyTorch loop: random batches, padded to their longest."""
    import torch
    import transformers

    exp, context = prepared(*asked)
    phase, task = exp.phases[0], exp.task
    assert isinstance(task, (Classify, Tag))
    source: Any = task.source("train", phase.length, context)
    assert isinstance(source, Arrays)
    arrays, sizes = source.arrays, source.sizes
    settings = {"attn_implementation": "sdpa", "num_labels": len(task.labels) or 1}
    kind = transformers.BertForSequenceClassification
    if isinstance(task, Tag):
        kind = transformers.BertForTokenClassification
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = kind(benchmark.hugging_face_config(exp.encoder, **settings)).to(device).train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, eps=1e-6, weight_decay=0.01, fused=True)
    labels = np.where(arrays["predicted"], arrays["tags"], -100) if isinstance(task, Tag) else arrays["label"]
    labels = labels.astype(np.float32 if not task.labels else np.int64)
    rng = np.random.default_rng(0)

    def run() -> object:
        order = rng.permutation(len(source))
        for start in range(0, len(order) - phase.batch_size + 1, phase.batch_size):
            ids = order[start : start + phase.batch_size]
            longest = sizes[ids].max()
            one = [arrays[name][ids, :longest].astype(np.int64) for name in ("tokens", "segments", "mask")]
            wanted = labels[ids, :longest] if labels.ndim == 2 else labels[ids]
            tokens, segments, mask, wanted = (torch.from_numpy(x).to(device) for x in (*one, wanted))
            loss = model(input_ids=tokens, token_type_ids=segments, attention_mask=mask, labels=wanted).loss
            last = benchmark.torch_update(model, adam, loss)
        return last

    return run


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Every argument is a flag; --help lists them")
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if not FLAGS.vocab:
        raise app.UsageError("--vocab= is empty: name a vocab.txt, or a directory with one")
    unknown = set(FLAGS.against) - {"torch"}
    if unknown:
        raise app.UsageError(f"--against knows torch, not {', '.join(sorted(unknown))}")
    changes = benchmark.changes_of(FLAGS.set)
    asked = (FLAGS.config, changes, FLAGS.size, FLAGS.vocab, FLAGS.data_dir)
    contenders = {
        "bert_jax": functools.partial(ours, FLAGS.lengths, *asked),
        "plain": functools.partial(ours, 1, *asked),
        **({"torch": functools.partial(hugging_face_torch, *asked)} if "torch" in FLAGS.against else {}),
    }
    try:
        device, times = benchmark.take_turns(contenders, FLAGS.rounds, seconds=1e-6, warm_up=1)  # one epoch a turn
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{FLAGS.config}, {FLAGS.size} on {device}, {FLAGS.rounds} rounds")
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        ratio = "" if name == "bert_jax" else f"   we are {median[name] / median['bert_jax']:.2f} times as fast"
        print(f"  {name:10} {median[name]:8.1f} s an epoch ({min(seconds):.1f} to {max(seconds):.1f}){ratio}")


if __name__ == "__main__":
    startup.run(main)
