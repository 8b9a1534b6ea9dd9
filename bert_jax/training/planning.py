"""What a run is made of, before any step: its encoder and vocabulary, its phases with their data, what they take."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config, experiment, files
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.model.encoder import Bert, check_inputs
from bert_jax.model.features import Frozen
from bert_jax.tasks.base import Context, Source, epoch_size
from bert_jax.text import tokenizer
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.training import data
from bert_jax.training.program import key, read_by, step_flops
from bert_jax.weights import checkpoint, pretrained


class Stretch(NamedTuple):
    """A phase on the run's own count of steps, [start, stop), with its data."""

    phase: config.Phase
    start: int
    stop: int
    batches: data.Batches
    validation: dict[str, data.Batches]  # by split

    @property
    def lengths(self) -> collections.Counter[int]:
        """How many of its batches have each length."""
        return batch_lengths(self.phase, self.stop - self.start, self.batches)


def batch_lengths(phase: config.Phase, steps: int, batches: data.Batches) -> collections.Counter[int]:
    """How many of a phase's batches have each length. `batches` are asked where they are grouped by length alone."""
    if phase.lengths == 1:
        return collections.Counter({phase.length: steps})
    return collections.Counter(int(batches.order(n).length) for n in range(steps))


def tokens_and_flops(exp: Experiment, params: Any, lengths: Sequence[collections.Counter[int]]) -> tuple[int, float]:
    """Tokens, padding included, and FLOPs (see flops.py) of the phases whose batches have these lengths."""
    assert exp.encoder is not None
    tokens, total = 0, 0.0
    for phase, counts in zip(exp.phases, lengths, strict=True):
        for length, count in counts.items():
            tokens += count * math.prod(read_by(exp.task.spec(phase.batch_size, length, exp.encoder)).shape)
            total += count * step_flops(exp, params, length, phase.batch_size)
    return tokens, total


def steps_of(phase: config.Phase, source: Source) -> int:
    """The steps of a phase; where it names epochs, by the reference's floor, of questions, sentences, rows."""
    return phase.steps or max(1, int(phase.epochs * epoch_size(source) / phase.batch_size))


def resolve(exp: Experiment, workdir: str = "") -> Experiment:
    """The experiment with its encoder filled in from the workdir (a run that goes on) or from `init_from`.

    Raises:
      ValueError: where there is no encoder, or it has another shape than the weights that it starts from.
    """
    if exp.encoder is None and workdir and (files.path(workdir) / "config.json").exists():
        return dataclasses.replace(exp, encoder=experiment.read_config(workdir).encoder)
    require(
        exp.encoder is not None or exp.init_from != "",
        "this experiment names no encoder: take it from a pre-training run with --config.init_from=WORKDIR, or name a "
        "size with --config.encoder.layers=2 and so on",
    )
    if exp.init_from == "":
        return exp
    source = pretrained.open(exp.init_from).encoder
    if exp.encoder is None:
        return dataclasses.replace(exp, encoder=source)
    free = ["dropout", "attention_dropout", "dropout_rng", "dtype", "scan", "remat", "init_stddev", "vocab_multiple"]
    free += ["classify_from"]
    free += ["max_positions"] if exp.init_positions != "same" else []
    changed = config.differences(config.to_dict(source), config.to_dict(exp.encoder))
    changed = [line for line in changed if line.split(":")[0] not in free]
    hint = "; --config.init_positions says what shall become of the positions" if "max_pos" in str(changed) else ""
    require(
        not changed, f"the encoder differs from init_from={exp.init_from} (there, here): {'; '.join(changed)}{hint}"
    )
    return exp


def configured(exp: Experiment, changes: Mapping[str, Any], workdir: str = "") -> Experiment:
    """`exp` with a command line's changes; those of an encoder that it takes from `init_from` are changes of that one.

    Raises:
      ValueError: as `config.override` and `resolve`, and where the workdir cannot be a folder.
    """
    if workdir:
        files.require_folder(workdir, "the workdir")
    return experiment.changed(exp, changes, lambda one: resolve(one, workdir).encoder if one.init_from else None)


def find_tokenizer(exp: Experiment, workdir: str = "") -> Tokenizer:
    """The tokenizer of a run: its own copy, `vocab`, the corpus's, or that of `init_from`; those there are must agree.

    Raises:
      ValueError: where there is none, two differ, or it has more tokens than the encoder has embeddings.
    """
    found = {}
    if workdir:
        with contextlib.suppress(FileNotFoundError):  # it begins, or was killed before it wrote it
            found["the workdir"] = tokenizer.load(files.path(workdir) / "tokenizer")
    if exp.init_from and pretrained.exists(exp.init_from):  # a run that goes on may have lost it
        source = pretrained.open(exp.init_from).tokenizer
        if source is not None:
            found["init_from"] = source
    if exp.vocab:
        found["vocab"] = tokenizer.load(exp.vocab)
    bound = exp.task.tokenizer()
    if bound is not None:
        found["the task's corpus"] = bound
    require(bool(found), "no vocabulary: name one with --config.vocab=vocab.txt")
    require(
        len({one.fingerprint for one in found.values()}) == 1,
        f"the vocabularies of {' and '.join(found)} differ: weights and data must share one. Build the corpus "
        "again with the vocabulary that the run names, or name that of the corpus",
    )
    chosen = next(iter(found.values()))
    assert exp.encoder is not None
    require(
        chosen.vocab_size <= exp.encoder.vocab_size,
        f"the vocabulary has {chosen.vocab_size} tokens, the embedding only {exp.encoder.vocab_size}: set "
        f"--config.encoder.vocab_size={chosen.vocab_size}",
    )
    return chosen


def stretches(
    exp: Experiment,
    context: Context,
    place: jax.sharding.NamedSharding,
    sources: dict[Any, Source] | None = None,
) -> list[Stretch]:
    """The phases with their data, on the run's own count of steps. `sources` are those that were read already."""
    sources = {} if sources is None else sources
    found: list[Stretch] = []
    for index, phase in enumerate(exp.phases):
        source = source_of(exp, "train", phase.length, context, sources)
        steps = steps_of(phase, source)
        batches = batches_of(source, exp, phase, place, seed=exp.seed, phase_index=index, steps=steps)
        validation = evaluated(exp.task.validation(), exp, phase, context, place, sources)
        start = found[-1].stop if found else 0
        found.append(Stretch(phase, start, start + steps, batches, validation))
    return found


def evaluated(
    splits: tuple[str, ...],
    exp: Experiment,
    phase: config.Phase,
    context: Context,
    place: jax.sharding.NamedSharding,
    sources: dict[Any, Source],
) -> dict[str, data.Batches]:
    """The batches of those splits, each example once."""
    found = {split: source_of(exp, split, phase.length, context, sources) for split in splits}
    return {split: batches_of(source, exp, phase, place, shuffle=False) for split, source in found.items()}


def source_of(exp: Experiment, split: str, length: int, context: Context, sources: dict[Any, Source]) -> Source:
    """A split's examples, read once for all runs that share them."""
    which = split, length, context.seed if exp.task.seeded or own_features(exp) else 0
    if which not in sources:
        sources[which] = exp.task.source(split, length, context)
    return sources[which]


def own_features(exp: Experiment) -> bool:
    """Whether each seed has a frozen encoder of its own: a random one."""
    return exp.task.frozen and (exp.random_init or not exp.init_from)


def batches_of(
    source: Source, exp: Experiment, phase: config.Phase, place: jax.sharding.NamedSharding, **more: Any
) -> data.Batches:
    """A source's batches in a phase, grouped by length where it says so.

    Raises:
      ValueError: where the encoder's tables have no row for the ids of an example.
    """
    assert exp.encoder is not None
    more["check"] = functools.partial(check_inputs, exp.encoder)
    if phase.lengths > 1:
        spec = functools.partial(exp.task.spec, encoder=exp.encoder)
        return data.Grouped(source, phase.batch_size, place, spec, phase.lengths, **more)
    more.pop("steps", None)
    return data.Batches(source, phase.batch_size, place, **more)


def frozen_encoder(exp: Experiment, workdir: str = "") -> Frozen | None:
    """The encoder of a task that does not train it: the workdir's copy, else that of `init_from`, else a random one.

    None where the task trains it.
    """
    if not exp.task.frozen:
        return None
    assert exp.encoder is not None
    params = checkpoint.read_frozen(workdir) if workdir else None
    if params is None and exp.init_from and not exp.random_init:
        source = pretrained.open(exp.init_from, exp.init_step)
        params = source.params(exp.encoder, exp.init_positions, exp.seed)["encoder"]
    if params is None:
        row = jnp.zeros((1, 1), jnp.int32)
        params = jax.jit(Bert(exp.encoder).init)(key(exp.seed, "parameters"), row, row, row == 0)["params"]
    return Frozen(exp.encoder, jax.tree.map(np.asarray, params))
