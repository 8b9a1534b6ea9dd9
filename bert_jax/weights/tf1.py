"""Google's TF1 checkpoints: bert_config.json, vocab.txt, bert_model.ckpt.*; TensorFlow is imported at the first one."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from bert_jax import config
from bert_jax.config import nearest, require
from bert_jax.text import tokenizer
from bert_jax.text.tokenizer import Tokenizer, WordPiece
from bert_jax.weights import names
from bert_jax.weights.names import Published

CHECKPOINT = "bert_model.ckpt"


def read(directory: str) -> Published:
    """The model of a directory as the reference publishes it.

    bert_config.json says "gelu" for the exact one of the release and for the later code's tanh approximation alike: it
    is read as the exact one, unless the file has a "gelu_approximation" of "tanh", which `write` adds.

    Raises:
      ValueError: without TensorFlow, at a file that is missing or damaged, and where config and checkpoint contradict
        each other; says which.
    """
    folder = pathlib.Path(directory)
    file = folder / "bert_config.json"
    values = config.read_json(file)
    encoder = _encoder(values, file)
    tensors = _Checkpoint(_checkpoint(folder))
    heads = names.modules("tf1", tensors.shapes) - {"encoder"}
    try:
        params = names.params(tensors, "tf1", encoder, heads)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None
    problem = values.get("problem_type", "")
    require(
        problem in ("", *names.PROBLEMS), f"{file}: problem_type is {problem!r}: {nearest(problem, names.PROBLEMS)}"
    )
    return Published(encoder, params, names.class_labels(params, values.get("labels"), f"{file}: labels"), problem)


def read_length(directory: str) -> int:
    """The longest sequence that the weights are for, in tokens: their positions, or the fewer that `write` stated."""
    file = pathlib.Path(directory) / "bert_config.json"
    values = config.read_json(file)
    return names.trained_length(_encoder(values, file), values.get("model_max_length"))


def _encoder(values: Mapping[str, Any], file: pathlib.Path) -> config.Encoder:
    act = "gelu_new" if values.get("gelu_approximation") == "tanh" else values.get("hidden_act", "gelu")
    return names.encoder_of({**values, "hidden_act": act}, str(file))


def read_tokenizer(directory: str) -> Tokenizer | None:
    """The tokenizer of vocab.txt or of a SentencePiece model; None without one.

    Its casing, which the reference leaves to a flag, is that of its pieces, where no file says it.
    """
    folder = pathlib.Path(directory)
    return tokenizer.load(folder) if (folder / "vocab.txt").exists() or [*folder.glob("*.model")] else None


def write(
    directory: pathlib.Path,
    params: Mapping[str, Any],
    encoder: config.Encoder,
    vocabulary: Tokenizer,
    labels: tuple[str, ...],
    length: int | None = None,
    problem_type: str = "",
) -> None:
    """Writes bert_config.json, vocab.txt and the checkpoint; the other arguments are those of `huggingface.write`.

    Raises:
      ValueError: without TensorFlow, and at what the reference has not: SentencePiece, another LayerNorm epsilon, a
        left-to-right model.
    """
    require(
        isinstance(vocabulary, WordPiece),
        "the reference reads WordPiece, and this model has a SentencePiece vocabulary",
    )
    require(
        encoder.layer_norm_eps == 1e-12,
        f"layer_norm_eps is {encoder.layer_norm_eps}, and the reference has 1e-12 alone",
    )
    require(
        encoder.direction == "both" and encoder.classify_from == "first",
        "the reference reads in both directions and classifies from the first token, this model does not",
    )
    tensorflow = _tensorflow()
    values = {name: value for name, value in names.config_of(encoder).items() if name != "layer_norm_eps"}
    values |= {"hidden_act": "gelu", "gelu_approximation": "tanh" if encoder.gelu == "tanh" else "none"}
    if labels:
        values["labels"] = list(labels)
    if problem_type:
        values["problem_type"] = problem_type
    if length is not None and length < encoder.max_positions:
        values["model_max_length"] = length
    (directory / "bert_config.json").write_text(
        json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    vocabulary.save(directory)
    found = dict(names.arrays(params, "tf1", encoder))
    tensorflow.raw_ops.SaveV2(
        prefix=str(directory / CHECKPOINT),
        tensor_names=list(found),
        shape_and_slices=[""] * len(found),
        tensors=list(found.values()),
    )


class _Checkpoint:
    """The variables of a TF1 checkpoint, but for what only training needs."""

    def __init__(self, prefix: pathlib.Path) -> None:
        tensorflow = _tensorflow()
        try:
            self._reader = tensorflow.train.load_checkpoint(str(prefix))
        except (tensorflow.errors.OpError, ValueError) as error:
            raise ValueError(f"{prefix}.* cannot be read ({_first_line(error)}): copy its files again") from None
        self._file = prefix
        shapes = {name: tuple(shape) for name, shape in self._reader.get_variable_to_shape_map().items()}
        kinds = self._reader.get_variable_to_dtype_map()
        self._actual = weights(shapes, str(prefix))
        self.shapes = {name: shapes[actual] for name, actual in self._actual.items()}
        for name in self._actual.values():
            kind = kinds[name].name
            require(kind in ("float64", "float32", "float16", "bfloat16"), f"{prefix}: {name} is of type {kind}")

    def read(self, name: str) -> np.ndarray:
        try:
            return self._reader.get_tensor(self._actual[name]).astype(np.float32, copy=False)
        except Exception as error:  # TensorFlow's, or a RuntimeError, by where the file is damaged
            raise ValueError(f"{self._file}.*: {name} cannot be read ({_first_line(error)}): copy it again") from None


def weights(shapes: Mapping[str, tuple[int, ...]], file: str) -> dict[str, str]:
    """Of a checkpoint's variables those that are weights, by the reference's names; and what they are called there.

    Left out is what any optimizer keeps beside: its slots and moving averages are named after the variable that they
    belong to (".../kernel/adam_m", ".../kernel/ExponentialMovingAverage"), and steps, powers of betas and loss scales
    are scalars. What a wrapper put before all names is taken off.

    Raises:
      ValueError: where there are two encoders.
    """
    words = "bert/embeddings/word_embeddings"
    prefixes = sorted(name.removesuffix(words) for name in shapes if name.endswith(words))
    require(len(prefixes) < 2, f"{file}: there are {len(prefixes)} encoders, under {prefixes}: keep the one meant")
    prefix = prefixes[0] if prefixes else ""
    averages = [name for name in shapes if name.rpartition("/")[2] == "ExponentialMovingAverage"]
    if averages:
        logging.warning(
            "%s: %d moving averages lie beside the weights, which are taken as they are", file, len(averages)
        )
    found = [name for name, shape in shapes.items() if shape and name.rpartition("/")[0] not in shapes]
    return {name.removeprefix(prefix): name for name in found}


def _checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """The one checkpoint of a directory."""
    found = sorted(path.name.removesuffix(".index") for path in folder.glob("*.index"))
    found = [CHECKPOINT] if CHECKPOINT in found else found
    require(bool(found), f"{folder} holds a bert_config.json, but no checkpoint: {CHECKPOINT}.index is missing")
    require(len(found) == 1, f"{folder}: which of {', '.join(found)}? leave one of them there")
    # Of a directory TensorFlow would read whatever files, anywhere, a text file in it names.
    require(not (folder / found[0]).is_dir(), f"{folder / found[0]} is a directory, and must be a checkpoint's prefix")
    return folder / found[0]


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it tells of every accelerator that it does not find
    try:
        import tensorflow
    except ImportError:
        raise ValueError("a TF1 checkpoint takes TensorFlow: pip install 'bert_jax[tf]'") from None
    return tensorflow


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
