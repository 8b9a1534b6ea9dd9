"""Knobs: what `override` takes, what it refuses, and in which words."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config, experiment
from bert_jax.config import Encoder, Masking, Optimizer, Phase, override
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain
from tests.conftest import environment

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
        ({"optimizer.learning_rate": "inf"}, "learning_rate must be a finite number, not inf"),
        ({"optimizer.learning_rate": "nan"}, "learning_rate must be a finite number, not nan"),
        ({"optimizer.warmup": float("inf")}, "warmup must be a finite number"),
        ({"phases.0.epochs": "nan", "phases.0.steps": 0}, "epochs must be a finite number"),
        ({"phases.0.steps": -5, "phases.0.epochs": 1}, "below 0 are none"),
        ({"phases.0.batch_size": 0}, "batch_size must be above 0"),
        ({"phases.0.batch_size": "10000000000"}, "batch_size must fit into 32 bits"),
        ({"phases.0.batch_size": 10**9}, r"are 128,000,000,000 tokens, whose numbers alone take 512,000,000,000 bytes"),
        ({"encoder.hidden": 12 * 10**7}, r"would make [\d,]+ parameters, [\d,]+ bytes of float32"),
        ({"encoder.layers": 10**9}, r"would make [\d,]+ parameters, [\d,]+ bytes of float32"),
        ({"encoder.vocab_size": 10**9}, r"would make [\d,]+ parameters, [\d,]+ bytes of float32"),
        ({"encoder.vocab_multiple": 10**9}, r"would make [\d,]+ parameters, [\d,]+ bytes of float32"),
        ({"encoder.max_positions": 2 * 10**9}, r"would make [\d,]+ parameters, [\d,]+ bytes of float32"),
        ({"task.dupe_factor": 10**9}, r"dupe_factor must lie in \[1, 10000\]"),
        ({"seed": 2**31}, "seed must fit into 32 bits"),
        ({"phases": "none"}, "phases"),
        ({"every.keep_every": 15_000}, "every.keep_every must be a multiple of every.checkpoint=10000"),
        ({"every.keep_every": -1}, "every.keep_every must be a multiple of"),
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
        clip_shards=st.sampled_from([1, 2, 8, 64, 256]),  # what divides the batch
    )
)
def test_a_config_survives_json(optimizer: Optimizer) -> None:
    exp = dataclasses.replace(BASE, optimizer=optimizer)
    assert config.from_dict(config.to_dict(exp), experiment.kinds()) == exp


def test_differences_name_the_fields() -> None:
    changed = override(BASE, {"encoder.layers": 2, "phases.0.steps": 5})
    lines = config.differences(config.to_dict(BASE), config.to_dict(changed))
    assert lines == ["encoder.layers: 12, and 2", "phases.0.steps: 1000000, and 5"]


def test_leaves_are_named_by_their_places() -> None:
    found = config.leaves(config.to_dict(Experiment(task=Pretrain(corpus="c"))))
    assert found["task.corpus"] == "c"
    assert found["phases.0.steps"] == 1_000_000
    assert config.leaves({"a": [], "b": [3, {}]}) == {"a": [], "b.0": 3, "b.1": {}}


def test_what_a_run_may_change_goes_by_whole_names() -> None:
    assert all(map(experiment.resumable, ("every", "every.keep_every", "mesh.data", "encoder.scan")))
    assert not any(map(experiment.resumable, ("everything", "meshes.data", "encoder.scanned", "encoder", "seed")))


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
    config.check_types(Files())
    with pytest.raises(ValueError, match=r"dev must be a tuple, with a comma .* not 'dev.tsv'"):
        config.check_types(dataclasses.replace(Files(), dev="dev.tsv"))


# What a file may say, and what is answered. In a process of its own: without the suite's type checks.
WRITTEN = {
    "Encoder(layers='2')": "layers must be int, not '2': write 2, without quotation marks",
    "Encoder(layers=2.0)": "layers must be int, not 2.0: write 2",
    "Encoder(layers=None)": "layers must be int, not None",
    "Encoder(gelu='erff')": "gelu must be one of 'erf', 'tanh', not 'erff' (did you mean 'erf'?",
    "Encoder(scan=1)": "scan must be bool, not 1",
    "Masking(rate='0.2')": "rate must be float, not '0.2': write 0.2, without quotation marks",
    "Optimizer(learning_rate=float('inf'))": "learning_rate must be a finite number, not inf",
    "Optimizer(b1=float('nan'))": "b1 must be a finite number, not nan",
    "Phase(steps='10')": "steps must be int, not '10': write 10",
    "BiLSTM(width=10**9)": "bytes of float32",
    "Features(layers=4)": "layers must be str, not 4",
    "Mesh(data=1.5)": "data must be int, not 1.5",
    "Every(log=True)": "log must be int, not True",
    "Experiment(encoder={'layers': 2})": "encoder must be Encoder, not {'layers': 2}",
    "Experiment(phases=Phase(steps=1))": "phases must be a tuple, with a comma after a single item",
    "Experiment(phases=(1,))": "phases.0 must be Phase, not 1",
    "Experiment(task='Pretrain')": "task must be Task, not 'Pretrain'",
    "Experiment(seed='1')": "seed must be int, not '1': write 1",
    "Pretrain(corpus=3)": "corpus must be str, not 3",
    "Pretrain(dupe_factor=0.5)": "dupe_factor must be int, not 0.5",
    "Pretrain(masking=0.15)": "masking must be Masking, not 0.15",
    "Squad(train='a', dev='b', null_threshold=float('nan'))": "null_threshold must be a finite number",
    "Squad(train='a', dev=('b',))": "dev must be str, not ('b',)",
    "Classify(train='a', dev='b')": "dev must be a tuple",
    "Tag(train='a', dev=(1,))": "dev.0 must be str, not 1",
    "Choose(train=None)": "train must be str, not None",
}


def test_a_wrong_type_in_a_file_is_said_where_it_is_written() -> None:
    code = (
        "import json\nfrom bert_jax.config import *\nfrom bert_jax.experiment import *\nsaid = {}\n"
        f"for text in {list(WRITTEN)!r}:\n"
        "    try:\n        said[text] = repr(eval(text))\n"
        "    except ValueError as error:\n        said[text] = str(error)\n"
        "print(json.dumps(said))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {text: message in said[text] for text, message in WRITTEN.items()} == dict.fromkeys(WRITTEN, True), said


def test_predicted_positions_are_those_of_the_recipe() -> None:
    assert [Masking().predictions(length) for length in (16, 64, 128, 512)] == [3, 10, 20, 76]
    assert Masking(max_predictions=9).predictions(128) == 9
    assert Masking(max_predictions=10**9).predictions(128) == 128


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ("a", "b")),
        ("(a, b,)", ("a", "b")),
        ("('a', \"b\")", ("a", "b")),
        ('[",", "``", "\'\'", "NN"]', (",", "``", "''", "NN")),
        ("',', '``', \"''\", 'NN'", (",", "``", "''", "NN")),
        ('["0", "1"]', ("0", "1")),
        ("0,1", ("0", "1")),
    ],
)
def test_labels_with_commas_and_quotes_can_be_named(text: str, items: tuple[str, ...]) -> None:
    assert override(Labels(), {"names": text}).names == items


def test_a_label_of_quotes_alone_needs_quotes_of_its_own() -> None:
    with pytest.raises(ValueError, match="names: an item of quotes or commas needs quotes of its own"):
        override(Labels(), {"names": "``,'',NN"})


@dataclasses.dataclass(frozen=True)
class Labels:
    names: tuple[str, ...] = ()
