"""Hugging Face directories: config.json, safetensors (whole or in shards) or a PyTorch file, the tokenizer's files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import safetensors.numpy
import tokenizers
from absl import logging

from bert_jax import config
from bert_jax.config import require
from bert_jax.text import tokenizer, tokenizer_files
from bert_jax.text.tokenizer import Tokenizer, WordPiece
from bert_jax.weights import names, storage
from bert_jax.weights.names import Pooling, Published
from bert_jax.weights.storage import Canonical

# The classes of `transformers`, and the modules of ours that stand on the encoder in each. The class that is written is
# the first whose modules are all there: a fine-tuned head goes before those of pre-training. An encoder alone may lack
# its pooler.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "BertForSequenceClassification": ("pooler", "classifier"),
    "BertForTokenClassification": ("tagger",),
    "BertForQuestionAnswering": ("span",),
    "BertForMultipleChoice": ("pooler", "choice"),
    "BertForPreTraining": ("pooler", "masked_lm", "next_sentence"),
    "BertForMaskedLM": ("masked_lm",),
    "BertLMHeadModel": ("masked_lm",),  # the same from left to right
    "BertForNextSentencePrediction": ("pooler", "next_sentence"),
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

# What sentence-transformers shall make of a classifier's logits.
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"


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
    opened = storage.open(folder)
    try:
        tensors = Canonical(opened)
        heads = _heads(values, tensors)
        pooled = sorted(heads & {"classifier", "choice", "next_sentence"})
        require(
            encoder.direction == "both" or not pooled,
            f"is_decoder is true, and its {' and '.join(pooled)} reads [CLS], which sees nothing there but itself",
        )
        params = names.params(tensors, "huggingface", encoder, heads)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None
    dropout = values.get("classifier_dropout")
    if dropout not in (None, encoder.dropout):
        logging.warning("%s: classifier_dropout=%s is not followed: a new head has hidden_dropout_prob", file, dropout)
    problem = _problem_type(values, params, file)
    return Published(encoder, params, _labels(values, params, file), problem, read_pooling(folder))


def read_length(directory: str) -> int:
    """The longest sequence that the weights are for, in tokens: their positions, or the tokenizer's `model_max_length`
    where that is less."""
    folder = pathlib.Path(directory)
    encoder = names.encoder_of(config.read_json(folder / "config.json"), str(folder / "config.json"))
    stated = _sentence_config(folder).get("max_seq_length")  # it goes before all else, as there
    stated = _tokenizer_config(folder).get("model_max_length") if stated is None else stated
    return names.trained_length(encoder, stated)


def read_pooling(folder: pathlib.Path) -> Pooling | None:
    """How sentence-transformers makes a vector of a text, by its files in `folder` or above it; None without them.

    What `Model.embed` cannot do like it, the result says.
    """
    listed = next((one / "modules.json" for one in (folder, folder.parent) if (one / "modules.json").exists()), None)
    if listed is None:
        return None
    modules = json.loads(listed.read_bytes())
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"{listed}: a list of modules is expected")
    if listed.parent != folder and folder.name not in [module.get("path") for module in modules]:
        return None  # of something else that lies above
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    problems = [f"a module {kind}" for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    stated: dict[str, Any] = {}
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Pooling":
            inner = str(module.get("path"))
            require(
                pathlib.PureWindowsPath(inner).name == inner, f"{listed}: {inner!r} is not the name of a folder there"
            )
            stated = config.read_json(listed.parent / inner / "config.json")
    modes = [name for name, on in stated.items() if name.startswith("pooling_mode_") and on is True]
    modes = [_POOLINGS.get(name.removeprefix("pooling_mode_"), name) for name in modes]
    modes = modes or [str(stated.get("pooling_mode", "mean"))]
    if len(modes) > 1 or modes[0] not in names.POOLINGS:
        problems.append(f"pooling by {' and '.join(modes)}")
    prompt = listed.parent / "config_sentence_transformers.json"
    if prompt.exists() and config.read_json(prompt).get("default_prompt_name"):
        problems.append("default_prompt_name, a prompt before each text")
    if _sentence_config(folder).get("do_lower_case"):
        found = read_tokenizer(str(folder))
        problems += [] if found is None or found.lower else ["do_lower_case, with a cased vocabulary"]
    return Pooling(modes[0], "Normalize" in kinds, f"{listed.parent}: {', '.join(problems)}" if problems else "")


# What sentence-transformers calls them.
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}


def _sentence_config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "sentence_bert_config.json"
    return config.read_json(file) if file.exists() else {}


def read_tokenizer(directory: str) -> Tokenizer | None:
    """The tokenizer of a directory: vocab.txt, tokenizer.json or a SentencePiece model; None where it has none.

    Raises:
      ValueError: at a tokenizer that is not BERT's, or that departs from it where ours cannot follow.
    """
    folder = pathlib.Path(directory)
    if not any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")) and not [*folder.glob("*.model")]:
        return None
    found = tokenizer.load(folder)
    stated = _tokenizer_config(folder)
    inputs = stated.get("model_input_names") or (["token_type_ids"], [])["Distil" in str(stated.get("tokenizer_class"))]
    if "token_type_ids" not in inputs:
        logging.warning(
            "%s: its tokenizer gives no token_type_ids, so in `transformers` both texts of a pair have segment 0; here "
            "the second has segment 1",
            directory,
        )
    if isinstance(found, WordPiece) and not found.lower and tokenizer_files.read(folder).lower is None:
        logging.warning(
            "%s: no file says do_lower_case; the vocabulary is cased, so text is read as it is (`transformers` would "
            "lower-case it)",
            directory,
        )
    return found


def write(
    directory: pathlib.Path,
    params: Mapping[str, Any],
    encoder: config.Encoder,
    vocabulary: Tokenizer,
    labels: tuple[str, ...],
    length: int | None = None,
    problem_type: str = "",
) -> str:
    """Writes what `transformers` loads as it is, by the class that is returned: config, weights, tokenizer.

    `params` are nested dicts of arrays, the vocabulary's rows not padded. What the class has no place for (the pooler
    of a tagger) is left out. `length` is the longest sequence that they were trained on, which the tokenizer then cuts
    to; by default all positions were. `problem_type` is what a classifier's outputs mean; "": of one output a value, of
    several classes.

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
    dropped = sorted(set(params) - kept)
    if dropped:
        logging.warning("a %s has no place for %s: left out", architecture, " and ".join(dropped))
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
        problem_type = problem_type or ("regression" if classes == 1 else "single_label_classification")
        values["problem_type"] = problem_type
        activation = SIGMOID if problem_type == "multi_label_classification" else IDENTITY
        if classes == 1 or activation == SIGMOID:  # its own defaults: the sigmoid of one output, else the logits
            values["sentence_transformers"] = {"activation_fn": activation}
            values["sbert_ce_default_activation_function"] = activation  # the same, before its version 4
    _write_json(directory / "config.json", values)
    safetensors.numpy.save_file(tensors, directory / storage.WEIGHTS, metadata={"format": "pt"})
    (directory / storage.WEIGHTS).chmod(
        (directory / "config.json").stat().st_mode
    )  # the library lets nobody else read it
    _write_tokenizer(directory, vocabulary, encoder.max_positions if length is None else length)
    return architecture


def _heads(values: Mapping[str, Any], tensors: Canonical) -> set[str]:
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
    """The names of the classes: those of id2label, however it is written, else of label2id, else LABEL_0 and so on."""
    numbered, named = values.get("id2label"), values.get("label2id")
    listed: list[Any] | None = None
    if numbered is not None:
        listed = _in_order(numbered)
        require(listed is not None, f"{file}: id2label must name the classes 0, 1, 2 and so on, not {_short(numbered)}")
        other = _in_order(named) if named else None
        unnamed = other == [f"LABEL_{i}" for i in range(len(other or ()))]  # as the library fills it in
        if other not in (None, listed) and not unnamed:
            logging.warning("%s: label2id is %s, which contradicts id2label, which is taken", file, _short(named))
    elif named is not None:
        listed = _in_order(named)
        require(listed is not None, f"{file}: label2id must give the classes 0, 1, 2 and so on, not {_short(named)}")
    texts = None if listed is None else ["" if label is None else str(label) for label in listed]
    found = names.class_labels(params, texts, f"{file}: {'id2label' if numbered is not None else 'label2id'}")
    own = tuple(
        f"LABEL_{i}" if not label.strip() else label if found.index(label) == i else f"{label}_{i}"
        for i, label in enumerate(found)
    )
    if own != found:
        logging.warning("%s: the names of its classes are %s, of which some are blank or alike: %s", file, found, own)
    return own


def _in_order(labels: Any) -> list[Any] | None:
    """The names of the classes 0, 1, 2, ... of a list, of names by number, or of numbers by name; None: it has gaps."""
    if isinstance(labels, list):
        return labels
    if not isinstance(labels, dict):
        return None
    for pairs in (labels.items(), [(number, name) for name, number in labels.items()]):
        try:
            numbers = {int(number): name for number, name in pairs}
        except (TypeError, ValueError):
            continue
        if len(numbers) == len(labels) and set(numbers) == set(range(len(numbers))):
            return [numbers[i] for i in range(len(numbers))]
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _problem_type(values: Mapping[str, Any], params: Mapping[str, Any], file: str) -> str:
    """What a classifier's outputs mean, by `transformers`' word; "" without one. See `Classify.problem_type`.

    Without a statement several outputs are classes, and one a value: a sigmoid where the config names that function.
    """
    if "classifier" not in params:
        return ""
    outputs = params["classifier"]["dense"]["bias"].shape[0]
    stated, activation = values.get("problem_type"), _activation(values)
    require(
        stated in (None, *names.PROBLEMS),
        f"{file}: problem_type is {stated!r}, and there is {', '.join(names.PROBLEMS)}",
    )
    require(
        outputs > 1 or stated != "single_label_classification",
        f"{file}: problem_type is {stated!r}, of {outputs} outputs: one of several classes takes two or more",
    )
    count = values.get("num_labels", outputs)
    require(count == outputs, f"{file}: num_labels is {count}, and classifier.bias has {outputs}")
    if stated is None:
        if activation == "Sigmoid":
            return "multi_label_classification"
        stated = "regression" if outputs == 1 else "single_label_classification"
    follows = {"multi_label_classification": "Sigmoid", "single_label_classification": "Softmax"}.get(stated)
    if activation not in ("", "Identity", follows):
        logging.warning(
            "%s: activation_fn is %s, which is not followed: problem_type is %s, and its outputs are read as such",
            file,
            activation,
            stated,
        )
    return str(stated)


def _activation(values: Mapping[str, Any]) -> str:
    """The name of the function that sentence-transformers shall put upon the logits; "": its default."""
    stated = values.get("sentence_transformers")
    named = stated.get("activation_fn") if isinstance(stated, dict) else None
    return str(named or values.get("sbert_ce_default_activation_function") or "").rpartition(".")[2]


def _tokenizer_config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return config.read_json(file) if file.exists() else {}


_SPECIAL_TOKEN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def _write_tokenizer(directory: pathlib.Path, vocabulary: WordPiece, length: int) -> None:
    """vocab.txt, tokenizer_config.json, special_tokens_map.json and tokenizer.json."""
    vocabulary.save(directory)
    special = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), tokenizer.SPECIAL, strict=True)
    )
    stated: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.lower,
        "strip_accents": None if vocabulary.strip_accents == vocabulary.lower else vocabulary.strip_accents,
        "tokenize_chinese_chars": True,
        "model_max_length": length,
        **special,
    }
    added = {one["content"]: one for one in vocabulary.added_tokens().values()}
    if added:
        five = zip(vocabulary.special, tokenizer.SPECIAL, strict=True)
        stated["added_tokens_decoder"] = {
            **{str(number): _SPECIAL_TOKEN | {"content": content} for number, content in five},
            **vocabulary.added_tokens(),
        }
    _write_json(directory / "tokenizer_config.json", stated)
    _write_json(directory / "special_tokens_map.json", special)
    index = {piece: i for i, piece in enumerate(vocabulary.pieces(range(vocabulary.vocab_size))) if piece}
    described = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=vocabulary.longest_word)
    )
    described.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=vocabulary.lower, strip_accents=stated["strip_accents"]
    )
    described.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    described.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary.cls), ("[SEP]", vocabulary.sep)],
    )
    described.decoder = tokenizers.decoders.WordPiece()
    described.add_special_tokens(list(tokenizer.SPECIAL))
    for token in (tokenizers.AddedToken(**one) for one in added.values()):
        (described.add_special_tokens if token.special else described.add_tokens)([token])
    described.save(str(directory / "tokenizer.json"))


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
