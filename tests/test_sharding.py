"""The parameter table is strict, covers Adam's moments, and is ready for model parallelism."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from bert_jax import config, sharding, train
from bert_jax.experiment import Experiment

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
    vocabulary = train.find_tokenizer(tiny)
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        program = train.Program(tiny, vocabulary, 10, mesh)
        state = program.init()
    inner = state.params["encoder"]["layers"]["inner"]["kernel"]
    assert inner.sharding.spec == PartitionSpec(None, "fsdp", "model")
    for moment in (state.optimizer.mu, state.optimizer.nu):
        assert moment["encoder"]["layers"]["inner"]["kernel"].sharding == inner.sharding
    assert state.optimizer.step.sharding.is_fully_replicated


def test_what_does_not_divide_is_said(tiny: Experiment) -> None:
    mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=3), jax.devices()[:6])
    with pytest.raises(ValueError, match=r"16 cannot be split over mesh\.fsdp=3"):
        train.Program(tiny, train.find_tokenizer(tiny), 10, mesh)


def test_the_rest_of_the_devices_and_too_many() -> None:
    assert dict(sharding.make_mesh(config.Mesh(data=-1, fsdp=2)).shape) == {"data": 4, "fsdp": 2, "model": 1}
    with pytest.raises(ValueError, match="data=3 x fsdp=1 x model=1 does not fit 8 devices"):
        sharding.make_mesh(config.Mesh(data=3))
    with pytest.raises(ValueError, match="only one axis of the mesh may be -1"):
        dataclasses.replace(config.Mesh(), fsdp=-1)
