"""Every experiment file is loaded, traced and held to the paper's sizes."""

import collections
import re

import pytest

from bert_jax import config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.text.tokenizer import WordPiece
from bert_jax.training import planning, sharding
from bert_jax.training.program import Program, parameter_count
from tests.conftest import REPOSITORY

FILES = [file for file in sorted((REPOSITORY / "experiments").glob("*.py")) if "STUDY = " not in file.read_text()]

# Encoder and pooler, as published; 110M, 340M, 4.4M, 11.3M, 29.1M and 41.7M when rounded as the papers round.
PUBLISHED = {
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_medium": 41_373_184,
}


def shapes(exp: Experiment) -> dict:
    """The parameters of an experiment, by eval_shape: nothing is allocated."""
    vocabulary = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"], lower=True)
    mesh = sharding.make_mesh(config.Mesh())
    return Program(exp, vocabulary, 1000, mesh).abstract.params


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_is_traced(file) -> None:
    exp = experiment.load(str(file))
    assert exp.name == file.stem or file.stem == "miniature"
    params = shapes(exp if exp.encoder else override(exp, {"encoder.layers": 12}))
    if file.stem in PUBLISHED:
        counted = {name: params[name] for name in ("encoder", "pooler")}
        assert parameter_count(counted) == PUBLISHED[file.stem]


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "heads"), [("bert_base", 12, 768, 12), ("bert_large", 24, 1024, 16)]
)
def test_base_and_large_are_the_paper_s(name: str, layers: int, hidden: int, heads: int) -> None:
    """Appendix A.2, field by field."""
    exp = experiment.load(str(REPOSITORY / "experiments" / f"{name}.py"))
    assert exp.encoder == config.Encoder(
        layers=layers,
        hidden=hidden,
        heads=heads,
        feed_forward=4 * hidden,
        vocab_size=30522,
        max_positions=512,
        dropout=0.1,
        attention_dropout=0.1,
        gelu="erf",
        dtype="bfloat16",
    )
    assert exp.phases == (
        config.Phase(length=128, batch_size=256, steps=900_000),
        config.Phase(length=512, batch_size=256, steps=100_000),
    )
    assert exp.optimizer == config.Optimizer(
        learning_rate=1e-4,
        warmup=10_000,
        schedule="linear",
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        weight_decay=0.01,
        bias_correction=False,
        clip_norm=1.0,
    )
    assert exp.task == Pretrain(
        corpus="",
        dupe_factor=10,
        masking=config.Masking(rate=0.15, mask=0.8, random=0.1, whole_word=False, dynamic=False),
    )


def test_all_24_miniatures() -> None:
    from experiments.miniature import HIDDEN, LAYERS, miniature

    for layers in LAYERS:
        for hidden in HIDDEN:
            exp = miniature(layers, hidden)
            assert exp.encoder is not None
            assert exp.encoder.heads == hidden // 64
            norms, square = 2 * hidden, hidden * hidden
            embeddings = (30522 + 512 + 2) * hidden + norms
            layer = 12 * square + 13 * hidden  # four squares and biases, two of four times the width, two norms
            params = shapes(exp)
            counted = parameter_count({name: params[name] for name in ("encoder", "pooler")})
            assert counted == embeddings + layers * layer + square + hidden


@pytest.mark.parametrize("name", ["laptop", "h100", "bert_base", "bert_large"])
def test_a_base_says_what_it_takes(name: str) -> None:
    """Tokens and FLOPs in the docstring are those that the code counts."""
    file = REPOSITORY / "experiments" / f"{name}.py"
    exp = experiment.load(str(file))
    lengths = [collections.Counter({phase.length: phase.steps}) for phase in exp.phases]
    tokens, flops = planning.tokens_and_flops(exp, shapes(exp), lengths)
    said = re.search(r"([\d.]+)([MB]) tokens, ([\d.]+e\d+) FLOPs", " ".join(file.read_text().split()))
    assert said is not None
    digits, unit, operations = said.groups()
    assert float(digits) * {"M": 1e6, "B": 1e9}[unit] == pytest.approx(tokens, rel=0.01)
    assert float(operations) == pytest.approx(flops, rel=0.03)


def test_a_file_without_an_experiment_is_said(tmp_path) -> None:
    (tmp_path / "none.py").write_text("EXPERIMENT = 3\n")
    with pytest.raises(ValueError, match="must define EXPERIMENT"):
        experiment.load(str(tmp_path / "none.py"))
    with pytest.raises(ValueError, match="there is no file"):
        experiment.load(str(tmp_path / "absent.py"))
