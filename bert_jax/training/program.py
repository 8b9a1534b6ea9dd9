"""An experiment's functions, compiled for a mesh: what begins a run, what a step does, what an evaluation does.

    batch --corrupt--> module --losses--> gradients --clip, Adam--> state

Only the step number is state: batches, masks and dropout are functions of it and of the seed.
"""

from __future__ import annotations

import functools
import math
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.model import flops, losses
from bert_jax.tasks.base import Batch, Pair, Vocabulary
from bert_jax.training import data, hosts, optimizer, sharding

TOGETHER = ("seed", "optimizer.learning_rate")  # in what runs of one program may differ


class State(NamedTuple):
    """All that a checkpoint holds."""

    step: jax.Array  # int32 []: how many steps have been made
    params: Any
    optimizer: Any


class Knobs(NamedTuple):
    """What differs between runs that share a program. An argument, so that each seed needs no compilation of its own.

    Scalars, or arrays [S] of several runs.
    """

    seed: Any  # int32
    learning_rate: Any  # float32


def key(seed: Any, name: str) -> jax.Array:
    """A key of its own for each use of randomness, folded from the one seed."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


class Totals(NamedTuple):
    """What the figures of several steps add up to, on the devices. Arrays [], or [S] of several runs."""

    pairs: dict[str, Pair]
    steps: Any  # int32, how many
    bad: Any  # int32, the first of them whose figures were not all finite, counted from 1; 0: none


class Program:
    """An experiment's functions, compiled for a mesh: `init`, `step`, `evaluate`. Owns no state and reads no data.

    `others` are experiments that train beside it in the same program; `TOGETHER` names the fields in which they may
    differ. `step` then takes and gives states, batches, knobs and figures with a leading axis S, one row for each of
    `experiments`; `join` and `split` go from their states to that and back. All else is of one run at a time.

        state, figures = program.step(state, batch, program.knobs)
    """

    def __init__(
        self,
        exp: Experiment,
        vocabulary: Vocabulary,
        total_steps: int,
        mesh: jax.sharding.Mesh,
        others: Sequence[Experiment] = (),
    ) -> None:
        require(exp.encoder is not None, "resolve the experiment first")
        assert exp.encoder is not None
        self.experiment, self.vocabulary, self.mesh, self.total_steps = exp, vocabulary, mesh, total_steps
        self.experiments = (exp, *others)
        self.module = exp.task.module(exp.encoder)
        self.optimizer = optimizer.make(exp.optimizer, total_steps)
        self.batch_sharding = sharding.batch_sharding(mesh)
        self.abstract = jax.eval_shape(self._init, 0)
        self.shardings = sharding.state_shardings(mesh, self.abstract)
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        states, self.batches_sharding = self.shardings, self.batch_sharding
        if others:
            states, self.batches_sharding = sharding.stacked(states), sharding.stacked(self.batch_sharding)
            count = len(self.experiments)
            self.join = jax.jit(lambda *each: jax.tree.map(lambda *x: jnp.stack(x), *each), out_shardings=states)
            self.split = jax.jit(
                lambda states: tuple(jax.tree.map(operator.itemgetter(n), states) for n in range(count)),
                out_shardings=(self.shardings,) * count,
            )
            self.split_params = jax.jit(
                lambda params: tuple(jax.tree.map(operator.itemgetter(n), params) for n in range(count)),
                out_shardings=(self.shardings.params,) * count,
            )
        seeds, rates = zip(*((one.seed, one.optimizer.learning_rate) for one in self.experiments), strict=True)
        self.knobs = Knobs(np.asarray(seeds, np.int32), np.asarray(rates, np.float32))
        self.knobs = self.knobs if others else jax.tree.map(operator.itemgetter(0), self.knobs)
        self._compiled_init = jax.jit(self._init, out_shardings=self.shardings)
        self.step = jax.jit(
            jax.vmap(self._step) if others else self._step,
            in_shardings=(states, self.batches_sharding, replicated),
            out_shardings=(states, replicated),
            donate_argnums=0,
        )
        # Donated: what the steps' figures add up to stays where it is until it is logged.
        self.add = jax.jit(jax.vmap(_added) if others else _added, donate_argnums=0)
        self.begin = jax.jit(jax.vmap(_begun) if others else _begun)
        self.evaluate_batch = jax.jit(
            self._evaluate,
            in_shardings=(self.shardings.params, self.batch_sharding, replicated),
            out_shardings=replicated,
        )

    @functools.cached_property
    def step_flops(self) -> Callable[[int, int], float]:
        """`step_flops` of the experiment by length and rows, computed once for each: a loop asks at every step."""
        return functools.cache(functools.partial(step_flops, self.experiment, self.abstract.params))

    def init(self, seed: int | None = None) -> State:
        """The state that a run begins with, by default that of the experiment's own seed."""
        return self._compiled_init(self.experiment.seed if seed is None else seed)

    def on_devices(self, value: Any) -> Any:
        """The same NumPy values on every device, so that they need not go there with each call."""
        replicated = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

        def put(leaf: Any) -> jax.Array:
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, replicated, lambda index: array[index])

        return jax.tree.map(put, value)

    def abstract_state(self) -> State:
        """Shapes and shardings, for a checkpoint to be restored onto."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.abstract,
            self.shardings,
        )

    def _corrupt(self, batch: Batch, split: str, seed: Any) -> Batch:
        return self.experiment.task.corrupt(key(seed, f"masks of {split}"), batch, self.vocabulary)

    def _init(self, seed: Any) -> State:
        assert self.experiment.encoder is not None
        spec = self.experiment.task.spec(1, self.experiment.phases[0].length, self.experiment.encoder)
        batch = self._corrupt({name: jnp.zeros(one.shape, one.dtype) for name, one in spec.items()}, "init", seed)
        params = self.module.init(key(seed, "parameters"), batch, train=False)["params"]
        return State(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

    def _loss(
        self, params: Any, batch: Batch, dropout: jax.Array, weights: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, Pair]]:
        """The objective, the sum of the losses' means, and all figures as (sum, weight) pairs.

        With `weights`, those of a batch that this is a part of, its share of that batch's objective.
        """
        params = sharding.gathered(self.mesh, params)
        with sharding.activations(self.mesh):
            outputs: Any = self.module.apply({"params": params}, batch, train=True, rngs={"dropout": dropout})
        parts, figures = self.experiment.task.losses(outputs, batch)
        pairs = [(total, weights[name] if weights else weight) for name, (total, weight) in parts.items()]
        objective = sum(map(losses.mean, pairs), jnp.zeros(()))
        if "share" in batch:  # of a batch in groups of lengths
            objective = objective * batch["share"].mean()
        return objective, {**parts, **figures}

    def _gradients(self, params: Any, batch: Batch, dropout: jax.Array) -> tuple[Any, dict[str, Pair]]:
        """The gradients of the objective, and the figures."""
        shards = self.experiment.optimizer.clip_shards
        if self.experiment.optimizer.accumulate > 1:
            return self._accumulated(params, batch, dropout)
        if shards == 1:
            return jax.grad(self._loss, has_aux=True)(params, batch, dropout)

        def one(shard: Batch, index: jax.Array) -> Any:
            gradients, figures = jax.grad(self._loss, has_aux=True)(params, shard, jax.random.fold_in(dropout, index))
            return optimizer.clip(gradients, self.experiment.optimizer.clip_norm), figures

        # The reference on many cores: each clips its own part's gradient, then they are averaged.
        parts = jax.tree.map(lambda x: x.reshape(shards, x.shape[0] // shards, *x.shape[1:]), batch)
        gradients, figures = jax.vmap(one)(parts, jnp.arange(shards))
        return jax.tree.map(lambda x: x.mean(axis=0), gradients), jax.tree.map(lambda x: x.sum(axis=0), figures)

    def _accumulated(self, params: Any, batch: Batch, dropout: jax.Array) -> tuple[Any, dict[str, Pair]]:
        """`_gradients` in parts: the same sums over the same weights, whatever each part holds of them."""
        count = self.experiment.optimizer.accumulate
        # What a loss weighs does not depend on the outputs' values: no forward pass is needed to know it.
        outputs = jax.eval_shape(lambda: self.module.apply({"params": params}, batch, train=False))
        whole, _ = self.experiment.task.losses(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs), batch)
        weights = {name: weight for name, (_, weight) in whole.items()}

        def part(index: jax.Array, rows: Batch) -> tuple[Any, dict[str, Pair]]:
            return jax.grad(self._loss, has_aux=True)(params, rows, jax.random.fold_in(dropout, index), weights)

        def add(total: Any, one: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, part(*one)), None

        # Every count-th row: each device's rows then take part in every one, and none moves to another device.
        parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)
        one = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, jnp.uint32(0), one))
        return jax.lax.scan(add, zeros, (jnp.arange(count), parts))[0]

    def _step(self, state: State, batch: Batch, knobs: Knobs) -> tuple[State, dict[str, Any]]:
        batch = self._corrupt(batch, "train", knobs.seed)
        dropout = jax.random.fold_in(key(knobs.seed, "dropout"), state.step)
        gradients, figures = self._gradients(state.params, batch, dropout)
        norm = (optax.tree.norm(gradients), jnp.ones(()))
        update = optimizer.make(self.experiment.optimizer, self.total_steps, knobs.learning_rate).update
        updates, moments = update(gradients, state.optimizer, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return State(state.step + 1, params, moments), {**figures, "gradient_norm": norm}

    def _evaluate(self, params: Any, batch: Batch, seed: Any) -> tuple[dict[str, Pair], dict[str, jax.Array]]:
        batch = self._corrupt(batch, "validation", seed)
        params = sharding.gathered(self.mesh, params)
        with sharding.activations(self.mesh):
            outputs: Any = self.module.apply({"params": params}, batch, train=False)
        parts, figures = self.experiment.task.losses(outputs, batch)
        return {**parts, **figures}, self.experiment.task.kept(outputs)

    def evaluate(
        self,
        params: Any,
        batches: data.Batches,
        seed: int | None = None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The figures over every example of a split, each counted once, and what the task keeps of each, in order.

        Arrays of batches of different lengths are filled up with zeros. `interrupt` is called before each batch.
        """
        on_devices = self.on_devices(np.int32(self.experiment.seed if seed is None else seed))
        total: Totals | None = None
        parts: list[Any] = []
        for batch in data.ahead(batches.__getitem__, range(len(batches))):
            interrupt()
            pairs, kept = self.evaluate_batch(params, batch, on_devices)
            total = _add_one(total, pairs) if total else _begin_one(pairs)
            with hosts.within(hosts.PATIENT):
                parts[-1:] = [*jax.device_get(parts[-1:]), kept]  # fetched a step late: the device never waits
        assert total is not None
        with hosts.within(hosts.PATIENT):
            parts, pairs = jax.device_get((parts, total.pairs))
        whole = {}
        for name in parts[0]:
            shape = np.max([part[name].shape[1:] for part in parts], axis=0).astype(int)
            whole[name] = np.zeros((len(batches.source), *shape), parts[0][name].dtype)
            for n, part in enumerate(parts):
                place: Any = (batches.order(n).ids, *map(slice, part[name].shape[1:]))
                whole[name][place] = part[name]  # the rows that fill up the last batch repeat an example
        return means(pairs), whole


def read_by(batch: Mapping[str, Any]) -> Any:
    """Of a batch, or of its spec, what the model reads: tokens, or words where the encoder stays as it is [..., T]."""
    return batch["tokens"] if "tokens" in batch else batch["predicted"]


def step_flops(exp: Experiment, params: Any, length: int, rows: int) -> float:
    """The floating-point operations that a step on `rows` examples of `length` tokens needs, on all devices together.

    See flops.py. 0 of a task whose encoder stays as it is: it is not part of the step.
    """
    assert exp.encoder is not None
    if exp.task.frozen:
        return 0.0
    sequences = math.prod(exp.task.spec(rows, length, exp.encoder)["tokens"].shape[:-1])  # choices are read one by one
    return flops.of_step(exp.encoder, params, sequences, length, exp.task.predicted(length))


def _begun(figures: dict[str, Pair]) -> Totals:
    """Of one step."""
    finite = jnp.stack([jnp.isfinite(total).all() for total, _ in figures.values()]).all()
    return Totals(figures, jnp.int32(1), jnp.where(finite, 0, 1).astype(jnp.int32))


def _added(totals: Totals, figures: dict[str, Pair]) -> Totals:
    one = _begun(figures)
    bad = jnp.where((totals.bad == 0) & (one.bad > 0), totals.steps + 1, totals.bad)
    return Totals(jax.tree.map(jnp.add, totals.pairs, figures), totals.steps + 1, bad)


_add_one, _begin_one = jax.jit(_added, donate_argnums=0), jax.jit(_begun)


def means(figures: Mapping[str, Any]) -> dict[str, float]:
    """The means of (sum, weight) pairs, on the host, with the perplexity of a language model's loss."""
    sums = {name: np.asarray(pair, np.float64) for name, pair in figures.items()}
    counted = {name: pair for name, pair in sums.items() if pair[1] > 0 or pair[0] != 0}  # in a phase without pairs
    values = {name: float(total / max(weight, 1e-5)) for name, (total, weight) in counted.items()}
    for lm in ("mlm", "lm"):
        if f"{lm}_loss" in values:
            values[f"{lm}_perplexity"] = math.exp(min(values[f"{lm}_loss"], 50.0))
    loss = sum(value for name, value in values.items() if name.endswith("loss"))
    return {"loss": loss, **values}


def parameter_count(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
