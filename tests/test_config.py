"""Knobs: what `override` takes, what it refuses, and in which words."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config, experiment
from bert_jax.config import Encoder, Masking, Optimizer, Phase, override
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

BASE = Experiment(encoder=Encoder())


def test_text_and_values_mean_the_same() -> None:
    by_text = override(BASE, {"encoder.layers": "24", "optimizer.learning_rate": "2e-5", "encoder.scan": "false"})
    by_value = override(BASE, {"encoder.layers": 24, "encoder.scan": False})
    assert by_text.encoder == by_value.encoder
    assert by_text.optimizer.learning_rate == 2e-5


def test_a_tuple_s_item_by_index_and_a_task_s_field() -> None:
    changed = override(BASE, {"phases.0.steps": "7", "task.masking.rate": "0.4", "task.corpus": "c"})
    assert changed.phases == (Phase(steps=7),)
    assert changed.task == Pretrain(corpus="c", masking=Masking(rate=0.4))


def test_feed_forward_follows_hidden_unless_it_was_chosen() -> None:
    assert override(Encoder(), {"hidden": 1024, "heads": 16}).feed_forward == 4096
    assert override(Encoder(feed_forward=100), {"hidden": 1024, "heads": 16}).feed_forward == 100


def test_an_absent_encoder_starts_from_its_defaults() -> None:
    changed = override(Experiment(), {"encoder.layers": 2, "encoder.hidden": 128, "encoder.heads": 2})
    assert changed.encoder == Encoder(layers=2, hidden=128, heads=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.layer": 3}, "did you mean 'layers'"),
        ({"optimiser.learning_rate": 1}, "did you mean 'optimizer'"),
        ({"encoder.layers": "two"}, "layers must be int, not 'two'"),
        ({"encoder.layers": 2.5}, "layers must be int, not 2.5"),
        ({"encoder.layers": True}, "layers must be int, not True"),
        ({"encoder.gelu": "relu"}, "one of 'erf', 'tanh'"),
        ({"encoder.heads": 5}, "hidden must be a multiple of heads"),
        ({"encoder.dropout": "1.5"}, "dropout must lie in"),
        ({"phases.3.steps": 1}, "no index of a tuple of 1"),
        ({"phases.0.epochs": 2.0}, "steps or epochs above 0, and not both"),
        ({"task.masking.mask": 0.95}, "mask \\+ random must not exceed 1"),
        ({"encoder.scan": "maybe"}, "scan must be bool"),
        ({"encoder.layers.x": 1}, "has no fields to override"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(BASE, changes)


def test_a_phase_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="max_positions"):
        override(BASE, {"phases.0.length": 1024})


@given(
    st.builds(
        Optimizer,
        learning_rate=st.floats(1e-7, 1.0),
        warmup=st.integers(0, 10**6).map(float),
        bias_correction=st.booleans(),
        clip_shards=st.integers(1, 64),
    )
)
def test_a_config_survives_json(optimizer: Optimizer) -> None:
    exp = dataclasses.replace(BASE, optimizer=optimizer)
    assert config.from_dict(config.to_dict(exp), experiment.kinds()) == exp


def test_differences_name_the_fields() -> None:
    changed = override(BASE, {"encoder.layers": 2, "phases.0.steps": 5})
    lines = config.differences(config.to_dict(BASE), config.to_dict(changed))
    assert lines == ["encoder.layers: 12, and 2", "phases.0.steps: 1000000, and 5"]


def test_an_unknown_class_or_field_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="no config class 'Encodr': did you mean 'Encoder'"):
        config.from_dict({"is": "Encodr"}, experiment.kinds())
    with pytest.raises(ValueError, match="no field 'layerz': did you mean 'layers'"):
        config.from_dict({"is": "Encoder", "layerz": 2}, experiment.kinds())


@dataclasses.dataclass(frozen=True)
class Files:
    dev: tuple[str, ...] = ("dev.tsv",)
    train: str = "train.tsv"


def test_a_text_is_no_tuple() -> None:
    """Where a task is written without a comma. (The suite's own type checks would refuse such a task before.)"""
    config.require_tuples(Files())
    with pytest.raises(ValueError, match=r"dev must be a tuple, with a comma .* not 'dev.tsv'"):
        config.require_tuples(dataclasses.replace(Files(), dev="dev.tsv"))


def test_predicted_positions_are_those_of_the_recipe() -> None:
    assert [Masking().predictions(length) for length in (16, 64, 128, 512)] == [3, 10, 20, 76]
    assert Masking(max_predictions=9).predictions(128) == 9
