"""Hugging Face directories: config.json, safetensors (whole or in shards) or a PyTorch file, the tokenizer's files."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from absl import logging

from bert_jax import config, tokenizer
from bert_jax.config import require
from bert_jax.tokenizer import Tokenizer, WordPiece
from bert_jax.weights import names
from bert_jax.weights.names import Published

# The classes of `transformers`, and the modules of ours that stand on the encoder in each. The class that is written is
# the first whose modules are all there. An encoder alone may lack its pooler.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "BertForPreTraining": ("pooler", "masked_lm", "next_sentence"),
    "BertForMaskedLM": ("masked_lm",),
    "BertLMHeadModel": ("masked_lm",),  # the same from left to right
    "BertForNextSentencePrediction": ("pooler", "next_sentence"),
    "BertForSequenceClassification": ("pooler", "classifier"),
    "BertForTokenClassification": ("tagger",),
    "BertForQuestionAnswering": ("span",),
    "BertForMultipleChoice": ("pooler", "choice"),
    "BertModel": (),
}
_AMBIGUOUS = ("classifier", "tagger", "choice")  # they share one name there

# Config values that name what this encoder has not, where they are set and differ.
_ONLY: dict[str, Any] = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}

# Tensors that may be there to no use: buffers that hold 0, 1, 2, ... and 0, 0, 0, ...
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
# Tied tensors that some versions write a second time. Where they are alone, they stand for the first.
_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
# What sentence-transformers shall make of a classifier's logits.
IDENTITY = "torch.nn.modules.linear.Identity"

_FLOATS = ("F32", "F16", "BF16")
_SHARD = ".safetensors"
_WEIGHTS, _INDEX, _PYTORCH = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def read(directory: str) -> Published:
    """The model in a directory as `save_pretrained` writes it. Half-precision weights are widened to float32.

    Raises:
      ValueError: at a config that this encoder cannot follow, a file that is missing or damaged, tensors of another
        type than float, and where config and tensors contradict each other; says which.
    """
    folder = pathlib.Path(directory)
    file = str(folder / "config.json")
    values = config.read_json(folder / "config.json")
    for name, only in _ONLY.items():
        value = values.get(name)
        require(not value or value == only, f"{file}: {name} is {value!r}, and this encoder has {only!r} alone")
    encoder = names.encoder_of(values, file)
    if values.get("is_decoder"):  # which sees what is before it alone
        encoder = config.override(encoder, {"direction": "left_to_right", "classify_from": "last"})
    opened = _open(folder)
    try:
        tensors = _Canonical(opened)
        heads = _heads(values, tensors)
        pooled = sorted(heads & {"classifier", "choice", "next_sentence"})
        require(
            encoder.direction == "both" or not pooled,
            f"is_decoder is true, and its {' and '.join(pooled)} reads [CLS], which sees nothing there but itself",
        )
        params = names.params(tensors, "huggingface", encoder, heads)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None
    _check_classifier(values, params, file)
    return Published(encoder, params, _labels(values, params, file))


def read_length(directory: str) -> int:
    """The longest sequence that the weights are for, in tokens: their positions, or the tokenizer's `model_max_length`
    where that is less."""
    folder = pathlib.Path(directory)
    encoder = names.encoder_of(config.read_json(folder / "config.json"), str(folder / "config.json"))
    return names.trained_length(encoder, _tokenizer_config(folder).get("model_max_length"))


def read_tokenizer(directory: str) -> Tokenizer | None:
    """The WordPiece tokenizer of a directory: vocab.txt or tokenizer.json; None where it has neither.

    Casing is that of tokenizer_config.json, which decides in `transformers` too; without one, tokenizer.json's.

    Raises:
      ValueError: at a tokenizer that is not BERT's, or that departs from it where ours cannot follow.
    """
    folder = pathlib.Path(directory)
    stated = _tokenizer_config(folder)
    described = config.read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else {}
    normalizer = described.get("normalizer") or {}
    lower = stated.get("do_lower_case", normalizer.get("lowercase"))
    strip = stated.get("strip_accents", normalizer.get("strip_accents"))
    chinese = stated.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True))
    kind = str(stated.get("tokenizer_class", "BertTokenizer"))
    require("Japanese" not in kind, f"{directory}: a {kind} cuts words as no WordPiece tokenizer here does")
    require(
        strip in (None, lower), f"{directory}: strip_accents={strip} with do_lower_case={lower}: here they are the same"
    )
    require(chinese, f"{directory}: tokenize_chinese_chars is false, and here CJK characters are words by themselves")
    if (folder / "vocab.txt").exists():
        return tokenizer.load(folder / "vocab.txt", lower)
    if not described:
        return None
    model = described.get("model", {})
    require(
        model.get("type") == "WordPiece" and normalizer.get("type") == "BertNormalizer",
        f"{folder / 'tokenizer.json'}: a {model.get('type')} model, and BERT's is a WordPiece with a BertNormalizer",
    )
    index = {**model["vocab"], **{one["content"]: one["id"] for one in described.get("added_tokens", [])}}
    pieces = sorted(index, key=index.__getitem__)
    require(
        [index[piece] for piece in pieces] == list(range(len(pieces))),
        f"{folder / 'tokenizer.json'}: its {len(pieces)} pieces are not numbered from 0 on",
    )
    return WordPiece(pieces, bool(lower))


def write(
    directory: pathlib.Path,
    params: Mapping[str, Any],
    encoder: config.Encoder,
    vocabulary: Tokenizer,
    labels: tuple[str, ...],
    length: int | None = None,
) -> str:
    """Writes what `transformers` loads as it is, by the class that is returned: config, weights, tokenizer.

    `params` are nested dicts of arrays, the vocabulary's rows not padded. What the class has no place for (the pooler
    of a tagger) is left out. `length` is the longest sequence that they were trained on, which the tokenizer then cuts
    to; by default all positions were.

    Raises:
      ValueError: at a SentencePiece vocabulary, for which `transformers` has no BERT tokenizer, and at a head that
        reads the last token, where theirs read the first.
    """
    if not isinstance(vocabulary, WordPiece):
        raise ValueError("a BERT of Hugging Face reads WordPiece, and this model has a SentencePiece vocabulary")
    architecture = next(name for name, heads in ARCHITECTURES.items() if set(heads) <= set(params))
    require(
        encoder.classify_from == "first" or "pooler" not in ARCHITECTURES[architecture],
        f"this model classifies from the last token, and a {architecture} from the first: use the workdir as it is",
    )
    if encoder.direction == "left_to_right" and architecture == "BertForMaskedLM":
        architecture = "BertLMHeadModel"
    kept = {"encoder", *(ARCHITECTURES[architecture] or ("pooler",))}
    # Named as the classes name them: BertModel is the encoder itself, without the prefix.
    tensors = {
        name.removeprefix("bert.") if architecture == "BertModel" else name: array
        for name, array in names.arrays({k: v for k, v in params.items() if k in kept}, "huggingface", encoder)
    }
    values = {
        "architectures": [architecture],
        "model_type": "bert",
        **names.config_of(encoder),
        "hidden_act": {"erf": "gelu", "tanh": "gelu_new"}[encoder.gelu],
        "position_embedding_type": "absolute",
        "is_decoder": encoder.direction == "left_to_right",
        "pad_token_id": vocabulary.pad,
        "torch_dtype": "float32",
    }
    head = next((params[name] for name in ("classifier", "tagger") if name in kept), None)
    if head is not None:
        classes = head["dense"]["bias"].shape[0]
        labels = labels if len(labels) == classes else tuple(f"LABEL_{i}" for i in range(classes))
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    if "classifier" in kept:
        values["problem_type"] = "regression" if classes == 1 else "single_label_classification"
        if classes == 1:  # else sentence-transformers takes the value for a logit, and gives its sigmoid
            values["sentence_transformers"] = {"activation_fn": IDENTITY}
            values["sbert_ce_default_activation_function"] = IDENTITY  # the same, before its version 4
    _write_json(directory / "config.json", values)
    safetensors.numpy.save_file(tensors, directory / _WEIGHTS, metadata={"format": "pt"})
    (directory / _WEIGHTS).chmod((directory / "config.json").stat().st_mode)  # the library lets nobody else read it
    _write_tokenizer(directory, vocabulary, encoder.max_positions if length is None else length)
    return architecture


class _Safetensors:
    """The tensors of safetensors files: each is opened for one tensor at a time, so that no mapped page is kept."""

    def __init__(self, files: Mapping[str, pathlib.Path]) -> None:
        """`files` gives each tensor's file; an empty name stands for all that its file holds."""
        self._files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in dict.fromkeys(files.values()):
            with _safetensors_errors(file), safetensors.safe_open(file, "numpy") as handle:
                for name in handle.keys():  # noqa: SIM118 - it is no dict
                    part = handle.get_slice(name)
                    self._files[name] = file
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), str(part.get_dtype())
        for name, file in files.items():
            require(
                not name or self._files.get(name) == file,
                f"{file}: tensor {name}, which the index promises, is missing",
            )

    def read(self, name: str) -> np.ndarray:
        file = self._files[name]
        with _safetensors_errors(file), safetensors.safe_open(file, "numpy") as handle:
            return handle.get_tensor(name).astype(np.float32, copy=False)


class _PyTorch:
    """The tensors of a pytorch_model.bin, mapped from the file."""

    def __init__(self, file: pathlib.Path) -> None:
        try:
            import torch
        except ImportError:
            raise ValueError(
                f"{file} is a PyTorch file, which takes PyTorch to read: pip install torch (or save the model anew "
                "with a recent `transformers`, which writes model.safetensors)"
            ) from None
        try:
            try:
                found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of before PyTorch 1.6 cannot be mapped
                found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds
            raise ValueError(f"{file} is damaged, or holds more than tensors: {_first_line(error)}") from None
        names = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
        self._tensors = found
        self.shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        self.dtypes = {name: names.get(str(tensor.dtype), str(tensor.dtype)) for name, tensor in found.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name].float().numpy()


class _Canonical:
    """The tensors under the names of `names.PARAMETERS`, whatever version wrote them."""

    def __init__(self, tensors: _Safetensors | _PyTorch) -> None:
        self._tensors = tensors
        self._actual: dict[str, list[str]] = {}  # the tensor, and copies of it
        for actual in tensors.shapes:
            name = _canonical(actual)
            if name in _BUFFERS:
                continue
            kind = tensors.dtypes[actual]
            require(kind in _FLOATS, f"{actual} is of type {kind}, and weights are one of {', '.join(_FLOATS)}")
            self._actual.setdefault(_COPIES.get(name, name), []).append(actual)
        self.shapes = {name: tensors.shapes[actual[0]] for name, actual in self._actual.items()}

    def read(self, name: str) -> np.ndarray:
        first, *copies = self._actual[name]
        array = self._tensors.read(first)
        for copy in copies:
            require(
                np.array_equal(self._tensors.read(copy), array),
                f"{copy} differs from {first}: here the output is tied to the embeddings, they cannot be two",
            )
        return array


def _canonical(name: str) -> str:
    """Old names of LayerNorm's parameters are made new; the encoder's prefix is added where it is left out."""
    if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):
        name = name.removesuffix("gamma").removesuffix("beta") + ("weight" if name.endswith("gamma") else "bias")
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def _open(folder: pathlib.Path) -> _Safetensors | _PyTorch:
    if (folder / _WEIGHTS).exists():
        return _Safetensors({"": folder / _WEIGHTS})
    if (folder / _INDEX).exists():
        listed = config.read_json(folder / _INDEX).get("weight_map", {})
        require(isinstance(listed, dict), f"{folder / _INDEX}: weight_map must give each tensor's file")
        for name, file in listed.items():
            # A file's name alone, by any system's rules: an index must not lead out of its folder.
            plain = isinstance(file, str) and pathlib.PureWindowsPath(file).name == file and file.endswith(_SHARD)
            require(
                plain, f"{folder / _INDEX}: {name} is in {file!r}, which is not the name of a {_SHARD} file beside it"
            )
        missing = sorted({file for file in listed.values() if not (folder / file).exists()})
        require(not missing, f"{folder}: {', '.join(missing)}, which {_INDEX} lists, is missing: copy all shards")
        return _Safetensors({name: folder / file for name, file in listed.items()})
    require((folder / _PYTORCH).exists(), f"{folder} holds no weights: neither {_WEIGHTS} nor {_INDEX} nor {_PYTORCH}")
    return _PyTorch(folder / _PYTORCH)


def _heads(values: Mapping[str, Any], tensors: _Canonical) -> set[str]:
    """The modules on the encoder: those of the class that the config names, and any whose tensors are there."""
    architecture = (values.get("architectures") or ["BertModel"])[0]
    wanted = ARCHITECTURES.get(architecture, ())
    found = names.modules("huggingface", tensors.shapes) - {"encoder"}
    if found & set(_AMBIGUOUS):
        require(
            bool(set(wanted) & set(_AMBIGUOUS)),
            f"config.json's architectures say {architecture}, but there is a classifier.weight: write there whether "
            "it is BertForSequenceClassification, BertForTokenClassification or BertForMultipleChoice",
        )
        found -= set(_AMBIGUOUS)
    return found | set(wanted)


def _labels(values: Mapping[str, Any], params: Mapping[str, Any], file: str) -> tuple[str, ...]:
    numbered = values.get("id2label")
    if numbered is None:
        return names.class_labels(params, None, f"{file}: id2label")
    require(
        isinstance(numbered, dict) and set(numbered) == {str(i) for i in range(len(numbered))},
        f"{file}: id2label must name the classes 0, 1, 2 and so on, not {numbered!r}",
    )
    return names.class_labels(params, [numbered[str(i)] for i in range(len(numbered))], f"{file}: id2label")


def _check_classifier(values: Mapping[str, Any], params: Mapping[str, Any], file: str) -> None:
    """Refuses a classifier whose outputs do not mean what they mean here: logits of classes of which one holds, or of a
    single output a value."""
    if "classifier" not in params:
        return
    outputs = params["classifier"]["dense"]["bias"].shape[0]
    wanted = "regression" if outputs == 1 else "single_label_classification"
    stated = values.get("problem_type")
    require(
        stated in (None, wanted),
        f"{file}: problem_type is {stated!r}, of {outputs} outputs, which is not supported yet: a classifier here "
        "gives one of several classes (single_label_classification), or of one output a value (regression)",
    )
    count = values.get("num_labels", outputs)
    require(count == outputs, f"{file}: num_labels is {count}, and classifier.bias has {outputs}")
    activation = _activation(values)
    require(
        outputs == 1 or activation != "Sigmoid",
        f"{file}: activation_fn is a sigmoid for each of {outputs} classes, so several may hold at once: this is not "
        "supported yet, a classifier here gives one of them",
    )
    if outputs == 1 and activation not in ("", "Identity"):
        logging.warning("%s: scores are given as the model's output, without the %s of activation_fn", file, activation)


def _activation(values: Mapping[str, Any]) -> str:
    """The name of the function that sentence-transformers shall put upon the logits; "": its default."""
    stated = values.get("sentence_transformers")
    named = stated.get("activation_fn") if isinstance(stated, dict) else None
    return str(named or values.get("sbert_ce_default_activation_function") or "").rpartition(".")[2]


def _tokenizer_config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return config.read_json(file) if file.exists() else {}


def _write_tokenizer(directory: pathlib.Path, vocabulary: WordPiece, length: int) -> None:
    """vocab.txt, tokenizer_config.json, special_tokens_map.json and tokenizer.json."""
    vocabulary.save(directory)
    special = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), tokenizer.SPECIAL, strict=True)
    )
    stated = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.lower,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": length,
        **special,
    }
    _write_json(directory / "tokenizer_config.json", stated)
    _write_json(directory / "special_tokens_map.json", special)
    index = {piece: i for i, piece in enumerate(vocabulary.pieces(range(vocabulary.vocab_size)))}
    described = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=tokenizer.MAX_WORD)
    )
    described.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=vocabulary.lower)
    described.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    described.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary.cls), ("[SEP]", vocabulary.sep)],
    )
    described.decoder = tokenizers.decoders.WordPiece()
    described.add_special_tokens(list(tokenizer.SPECIAL))
    described.save(str(directory / "tokenizer.json"))


@contextlib.contextmanager
def _safetensors_errors(file: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is cut off, or no safetensors file ({error}): copy it again") from None


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
