"""The parameter table is strict, covers Adam's moments, and is ready for model parallelism."""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.sharding import PartitionSpec

from bert_jax import config
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tpu import collectives, preflight
from bert_jax.tpu.collectives import Collective
from bert_jax.training import describe, planning, sharding, train
from bert_jax.training.program import Program

PARAMS = {"next_sentence": {"dense": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}}}


def test_a_parameter_s_axes_come_from_its_row() -> None:
    specs = sharding.parameter_specs(PARAMS)
    assert specs["next_sentence"]["dense"]["kernel"] == PartitionSpec("fsdp", None)


def test_a_parameter_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probe/kernel .* has no row in sharding\.PARAMETERS"):
        sharding.parameter_specs({**PARAMS, "probe": {"kernel": jnp.zeros(3)}})


def test_a_row_without_its_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter for the row next_sentence/dense/bias"):
        sharding.parameter_specs({"next_sentence": {"dense": {"kernel": jnp.zeros((4, 2))}}})


def test_a_row_of_another_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="is \\(4,\\), its row says"):
        sharding.parameter_specs({"next_sentence": {"dense": {"kernel": jnp.zeros(4), "bias": jnp.zeros(2)}}})


def test_a_mesh_axis_used_twice_is_refused() -> None:
    table = {"next_sentence/dense/kernel": ("embed", "embed"), "next_sentence/dense/bias": ("classes",)}
    with pytest.raises(ValueError, match="uses a mesh axis twice: \\['fsdp', 'fsdp'\\]"):
        sharding.parameter_specs(PARAMS, table)


def test_the_moments_lie_as_their_parameters(tiny: Experiment) -> None:
    vocabulary = planning.find_tokenizer(tiny)
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        program = Program(tiny, vocabulary, 10, mesh)
        state = program.init()
    inner = state.params["encoder"]["layers"]["inner"]["kernel"]
    assert inner.sharding.spec == PartitionSpec(None, "fsdp", "model")
    for moment in (state.optimizer.mu, state.optimizer.nu):
        assert moment["encoder"]["layers"]["inner"]["kernel"].sharding == inner.sharding
    assert state.optimizer.step.sharding.is_fully_replicated


def test_what_does_not_divide_is_said(tiny: Experiment) -> None:
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=3), jax.devices()[:6])
    with pytest.raises(ValueError, match=r"16 cannot be split over mesh\.fsdp=3"):
        Program(tiny, planning.find_tokenizer(tiny), 10, mesh)


def test_the_rest_of_the_devices_and_too_many() -> None:
    assert dict(sharding.make_mesh(config.Mesh(data=-1, fsdp=2)).shape) == {"data": 4, "fsdp": 2, "model": 1}
    with pytest.raises(ValueError, match="data=3 x fsdp=1 x model=1 does not fit 8 devices"):
        sharding.make_mesh(config.Mesh(data=3))
    with pytest.raises(ValueError, match="only one axis of the mesh may be -1"):
        dataclasses.replace(config.Mesh(), fsdp=-1)


def test_slices_must_be_those_of_the_devices() -> None:
    with pytest.raises(ValueError, match=r"mesh\.slices=2, but the devices belong to 1: set --config\.mesh\.slices=1"):
        sharding.make_mesh(config.Mesh(slices=2))


# What a step sends, asserted from the text that the compiler gives.

SIZE = {"encoder.layers": 2, "encoder.scan": False, "encoder.vocab_size": 320}
PHASE = config.Phase(length=16, batch_size=16, steps=1)


@functools.cache
def sent(exp: Experiment) -> list[Collective]:
    count = exp.mesh.data * exp.mesh.fsdp * exp.mesh.model
    compiled = preflight.compile_step(exp, PHASE, jax.devices()[:count])
    return collectives.parse(compiled.as_text())


def on(tiny: Experiment, data: int, fsdp: int, model: int) -> Experiment:
    return override(tiny, {**SIZE, "mesh": config.Mesh(data, fsdp, model)})


def rank(shape: str) -> int:
    return 0 if "[]" in shape else shape.count(",") + 1


def state(exp: Experiment) -> train.State:
    count = exp.mesh.data * exp.mesh.fsdp * exp.mesh.model
    mesh = sharding.make_mesh(exp.mesh, jax.devices()[:count])
    return Program(exp, describe.Placeholder(320), 1, mesh).abstract_state()


def test_data_parallelism_sums_each_gradient_once(tiny: Experiment) -> None:
    """And the tied word table's once for each of its two uses."""
    exp = on(tiny, 8, 1, 1)
    assert {one.kind for one in sent(exp)} == {"all-reduce"}
    shapes = [shape for one in sent(exp) for shape in one.shapes if rank(shape)]
    params = state(exp).params
    table = params["encoder"]["embeddings"]["word"]
    # In a sequence of half the length, half the position embeddings have no gradient to sum.
    idle = params["encoder"]["embeddings"]["position"].size // 2
    wanted = sum(p.size for p in jax.tree.leaves(params)) + table.size - idle
    assert sum(map(collectives.size, shapes)) == 4 * wanted
    assert (
        sum(1 for one in sent(exp) for shape in one.shapes if not rank(shape)) <= 8
    )  # four figures, each a sum and a weight


def test_fsdp_moves_parameters_and_no_activations(tiny: Experiment) -> None:
    exp = on(tiny, 1, 8, 1)
    assert {one.kind for one in sent(exp)} == {"all-reduce", "all-gather"}
    qkv = {"f32[16,2,8]", "f32[16,2,3,8]"}  # a third of that kernel, and the whole: heads apart
    assert {shape for one in sent(exp) for shape in one.shapes if rank(shape) > 2} == qkv
    assert exp.encoder
    kernels = [shape for one in sent(exp) for shape in one.shapes if one.kind == "all-gather"]
    for kernel in ("f32[16,2,3,8]", "f32[16,16]", "f32[16,64]", "f32[64,16]"):
        assert kernels.count(kernel) >= exp.encoder.layers, "each layer's is gathered"
    assert kernels.count("f32[320,16]") == 1, "the word table once for both of its uses"


def test_fsdp_divides_the_memory_of_the_state(tiny: Experiment) -> None:
    """Of all that the table splits: norms and biases stay whole."""

    def matrices(parts: int) -> int:
        leaves = [leaf for leaf in jax.tree.leaves(state(on(tiny, 1, parts, 1))) if "fsdp" in leaf.sharding.spec]
        assert sum(leaf.size for leaf in leaves) > 0.9 * 3 * 13000
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)

    whole = matrices(1)
    assert [whole / matrices(parts) for parts in (2, 4, 8)] == [2, 4, 8]


def test_tensor_parallelism_sums_twice_per_layer_and_pass(tiny: Experiment) -> None:
    exp = on(tiny, 1, 1, 2)
    assert {one.kind for one in sent(exp)} == {"all-reduce"}
    activations = [one for one in sent(exp) if any(rank(shape) == 3 and "320" not in shape for shape in one.shapes)]
    layers = [one.source for one in activations if "Layer" in one.source]
    forward = [source for source in layers if "transpose" not in source]
    assert len(forward) == 2 * exp.encoder.layers
    assert len(layers) == 4 * exp.encoder.layers
    # Besides: the look-up of words that another device holds; the gradient of the masked LM's input.
    others = [one.source for one in activations if "Layer" not in one.source]
    assert sorted("embeddings" in source for source in others if "dot_general" in source or "_take" in source) == [
        False,
        True,
    ]


def test_all_three_together_move_nothing_else(tiny: Experiment) -> None:
    assert {one.kind for one in sent(on(tiny, 2, 2, 2))} == {"all-reduce", "all-gather"}


def constraints(jaxpr: Jaxpr) -> Iterator[tuple[tuple[int, ...], PartitionSpec]]:
    """The shape and the spec of each array that a program lays on the mesh."""
    for one in jaxpr.eqns:
        if one.primitive.name == "sharding_constraint":
            yield one.outvars[0].aval.shape, one.params["sharding"].spec
        for inner in jaxprs_in_params(one.params):
            yield from constraints(inner)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder.scan": True},
        {"encoder.remat": "layer"},
        {"encoder.vocab_size": 319, "encoder.vocab_multiple": 32},
        {
            "task.objective": "left_to_right",
            "encoder.direction": "left_to_right",
            "encoder.classify_from": "last",
        },
    ],
)
def test_every_row_of_the_activations_is_used(tiny: Experiment, changes: dict) -> None:
    """As a row of the parameters must have its parameter."""
    exp = override(on(tiny, 1, 2, 2), changes)
    mesh = sharding.make_mesh(exp.mesh, jax.devices()[:4])
    program = Program(exp, describe.Placeholder(319), 1, mesh)
    batch = exp.task.spec(8, 16, exp.encoder)
    batch = jax.eval_shape(lambda b: program._corrupt(b, "train", 0), batch)
    with jax.set_mesh(mesh):
        traced = jax.make_jaxpr(program._loss)(program.abstract.params, batch, jax.random.key(0))
    laid = {(shape[2:], spec) for shape, spec in constraints(traced.jaxpr) if spec[0] == sharding.BATCH}
    widths = {"qkv": (2, 8), "inner": (64,), "masked_lm": (320,)}
    rows = {
        name: (widths[name], PartitionSpec(sharding.BATCH, *map(sharding.AXES.get, axes)))
        for name, axes in sharding.ACTIVATIONS.items()
    }
    assert {one for one in laid if "model" in one[1]} == set(rows.values())


def test_an_output_that_its_row_does_not_fit_is_refused(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sharding.ACTIVATIONS, "qkv", ("rows", "heads"))
    with pytest.raises(ValueError, match=r"an output of qkv has not the axes \('rows', 'heads'\) of its row"):
        preflight.compile_step(on(tiny, 1, 1, 2), PHASE, jax.devices()[:2])


def test_every_mesh_computes_the_same(tiny: Experiment) -> None:
    exp = override(on(tiny, 1, 1, 1), {"encoder.dropout": 0.1, "encoder.attention_dropout": 0.1})
    rng = np.random.default_rng(0)
    batch = {name: np.zeros(one.shape, one.dtype) for name, one in exp.task.spec(16, 16, exp.encoder).items()}
    batch |= {"id": np.arange(16, dtype=np.int32), "tokens": rng.integers(110, 320, (16, 16)).astype(np.int32)}
    batch |= {"mask": np.ones((16, 16), bool), "weight": np.ones(16, np.float32)}

    def figures(mesh: config.Mesh) -> dict:
        devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.model]
        placed = sharding.make_mesh(mesh, devices)
        with jax.set_mesh(placed):
            program = Program(override(exp, {"mesh": mesh}), describe.Placeholder(320), 10, placed)
            after, figures = program.step(program.init(), jax.device_put(batch, program.batch_sharding), program.knobs)
            weight = np.asarray(after.optimizer.mu["encoder"]["layers"]["inner"]["kernel"])
        return {**{name: np.asarray(pair[0] / pair[1]) for name, pair in figures.items()}, "weight": weight}

    alone = figures(config.Mesh(1))
    for mesh in (config.Mesh(8), config.Mesh(1, 8), config.Mesh(2, 2, 2)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), figures(mesh), alone)
