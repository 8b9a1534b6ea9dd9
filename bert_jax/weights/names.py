"""What our parameters are called elsewhere and how they lie there: one table, read in both directions.

Published checkpoints hold every layer by itself, and query, key and value apart. Ours are stacked over the layers, and
one kernel holds each head's query, key and value side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from bert_jax import config
from bert_jax.config import require

Kind = Literal["huggingface", "tf1"]

PARTS = ("query", "key", "value")  # in the order in which they lie in a head


class Place(NamedTuple):
    """Where a parameter lies in a published checkpoint."""

    name: str  # {layer} stands for 0, 1, ..., {part} for each of PARTS
    transposed: bool = False  # outputs before inputs, where ours are inputs before outputs


class Row(NamedTuple):
    """A parameter of ours: the shape of one array of it there, in letters (inputs first), and its places."""

    shape: str
    huggingface: Place
    tf1: Place


def _dotted(tf1: str) -> str:
    """Hugging Face kept the reference's names for almost everything, with dots."""
    return tf1.replace("layer_{", "layer.{").replace("/", ".")


def _table(ours: str, shape: str, tf1: str) -> dict[str, Row]:
    return {ours: Row(shape, Place(f"{_dotted(tf1)}.weight"), Place(tf1))}


def _norm(ours: str, tf1: str) -> dict[str, Row]:
    return {
        f"{ours}/scale": Row("D", Place(f"{_dotted(tf1)}.weight"), Place(f"{tf1}/gamma")),
        f"{ours}/bias": Row("D", Place(f"{_dotted(tf1)}.bias"), Place(f"{tf1}/beta")),
    }


def _dense(ours: str, shape: str, tf1: str) -> dict[str, Row]:
    kernel = Place(f"{_dotted(tf1)}.weight", transposed=True), Place(f"{tf1}/kernel")
    bias = Place(f"{_dotted(tf1)}.bias"), Place(f"{tf1}/bias")
    return {f"{ours}/kernel": Row(shape, *kernel), f"{ours}/bias": Row(shape.split()[1], *bias)}


def _output(ours: str, shape: str, huggingface: str, tf1: str) -> dict[str, Row]:
    """The reference makes its output layers by hand, and multiplies by the transposed weights."""
    kernel = Place(f"{huggingface}.weight", transposed=True), Place(f"{tf1}output_weights", transposed=True)
    bias = Place(f"{huggingface}.bias"), Place(f"{tf1}output_bias")
    return {f"{ours}/kernel": Row(shape, *kernel), f"{ours}/bias": Row(shape.split()[1], *bias)}


# The reference has no tagger and no choice: their TF1 names are ours, in its manner.
# Hugging Face calls three heads "classifier"; which one it is, the config's `architectures` say.
PARAMETERS = {
    **_table("encoder/embeddings/word", "V D", "bert/embeddings/word_embeddings"),
    **_table("encoder/embeddings/position", "P D", "bert/embeddings/position_embeddings"),
    **_table("encoder/embeddings/segment", "S D", "bert/embeddings/token_type_embeddings"),
    **_norm("encoder/embeddings/norm", "bert/embeddings/LayerNorm"),
    **_dense("encoder/layers/attention/qkv", "D D", "bert/encoder/layer_{layer}/attention/self/{part}"),
    **_dense("encoder/layers/attention/out", "D D", "bert/encoder/layer_{layer}/attention/output/dense"),
    **_norm("encoder/layers/attention_norm", "bert/encoder/layer_{layer}/attention/output/LayerNorm"),
    **_dense("encoder/layers/inner", "D F", "bert/encoder/layer_{layer}/intermediate/dense"),
    **_dense("encoder/layers/outer", "F D", "bert/encoder/layer_{layer}/output/dense"),
    **_norm("encoder/layers/outer_norm", "bert/encoder/layer_{layer}/output/LayerNorm"),
    **_dense("pooler/dense", "D D", "bert/pooler/dense"),
    **_dense("masked_lm/dense", "D D", "cls/predictions/transform/dense"),
    **_norm("masked_lm/norm", "cls/predictions/transform/LayerNorm"),
    "masked_lm/bias": Row("V", Place("cls.predictions.bias"), Place("cls/predictions/output_bias")),
    **_output("next_sentence/dense", "D 2", "cls.seq_relationship", "cls/seq_relationship/"),
    **_output("classifier/dense", "D C", "classifier", ""),
    **_output("tagger/dense", "D C", "classifier", "cls/tagger/"),
    **_output("span/dense", "D 2", "qa_outputs", "cls/squad/"),
    **_output("choice/dense", "D 1", "classifier", "cls/choice/"),
}

# Modules of which no published checkpoint has any: they stay in workdirs.
UNPUBLISHED = ("bilstm", "mix")

# The sizes of config.json and of bert_config.json, and ours.
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "segments",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "init_stddev",
}
GELU = {"gelu": "erf", "gelu_python": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}

_LETTERS = {
    "V": "vocab_size",
    "D": "hidden_size",
    "F": "intermediate_size",
    "P": "max_position_embeddings",
    "S": "type_vocab_size",
}


@runtime_checkable
class Tensors(Protocol):
    """The named arrays of a checkpoint, their shapes known at once, their values read one by one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> np.ndarray:
        """The array of that name, as float32."""
        ...


PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # what a classifier is for
POOLINGS = ("mean", "cls", "max")  # of a text's vectors, to one


class Pooling(NamedTuple):
    """How a published model makes a vector of a text."""

    how: str  # one of POOLINGS
    normalized: bool  # to a length of one
    lacking: str = ""  # what else it does, which is not done here


class Published(NamedTuple):
    """A published model, read so far as its headers go."""

    encoder: config.Encoder
    params: dict[str, Any]  # nested dicts of `Lazy` arrays, by our names
    labels: tuple[str, ...]  # of its classifier's or tagger's classes; () where it has none
    problem_type: str = ""  # one of PROBLEMS; "" without a classifier
    pooling: Pooling | None = None  # None: nothing says how its vectors make one of a text


class Lazy:
    """A float32 array that is read, anew each time, when NumPy asks for it: `np.asarray(lazy)`."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> None:
        self.shape, self._read = shape, read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read().astype(dtype or self.dtype, copy=False)


def encoder_of(values: Mapping[str, Any], file: str) -> config.Encoder:
    """The encoder that a published config tells of. What it leaves out is as in BERT-Base.

    Raises:
      ValueError: at an activation that BERT has not, or a size that is none; names `file`.
    """
    act = values.get("hidden_act", "gelu")
    require(act in GELU, f"{file}: hidden_act is {act!r}, and this encoder has {', '.join(GELU)}")
    fields = {ours: values[theirs] for theirs, ours in CONFIG.items() if theirs in values}
    try:
        return config.override(config.Encoder(), {**fields, "gelu": GELU[act]})
    except ValueError as error:
        theirs = next((theirs for theirs, ours in CONFIG.items() if str(error).split()[0] == ours != theirs), "")
        raise ValueError(f"{file}: {theirs and f'{theirs}: '}{error}") from None


def config_of(encoder: config.Encoder) -> dict[str, Any]:
    """The sizes of an encoder by their published names; without the activation."""
    return {theirs: getattr(encoder, ours) for theirs, ours in CONFIG.items()}


def trained_length(encoder: config.Encoder, stated: Any) -> int:
    """The longest sequence that published weights are for: all their positions, or the fewer that `stated` says.

    `stated` is what a file has as `model_max_length`: many have none, or a number far above.
    """
    known = isinstance(stated, (int, float)) and not isinstance(stated, bool) and 0 < stated < encoder.max_positions
    return int(stated) if known else encoder.max_positions


def class_labels(params: Mapping[str, Any], listed: Sequence[str] | None, file: str) -> tuple[str, ...]:
    """The names of a classifier's or a tagger's classes: those listed, else LABEL_0 and so on; () without such a head.

    Raises:
      ValueError: where there are more or fewer names than classes; names `file`.
    """
    head = next((params[name] for name in ("classifier", "tagger") if name in params), None)
    if head is None:
        return ()
    classes = head["dense"]["bias"].shape[0]
    if listed is None:
        return tuple(f"LABEL_{i}" for i in range(classes))
    require(len(listed) == classes, f"{file} names {len(listed)} classes, and the classifier has {classes}")
    return tuple(map(str, listed))


def modules(kind: Kind, names: Collection[str]) -> set[str]:
    """The modules (top-level names) of which one of `names`, at least, is a parameter."""
    return {path.split("/")[0] for path in PARAMETERS for _, _, name in _arrays(path, kind, 1) if name in names}


def params(tensors: Tensors, kind: Kind, encoder: config.Encoder, heads: Collection[str]) -> dict[str, Any]:
    """Our parameters of the encoder and `heads` in nested dicts, to be read out of `tensors`.

    Raises:
      ValueError: that lists the tensors that are missing, of another size than `encoder` says, or of no use.
    """
    paths = [path for path in PARAMETERS if path.split("/")[0] in {"encoder", *heads}]
    found = 1 + max((layer for layer, name in _by_layer(kind, tensors.shapes)), default=-1)
    require(
        found == encoder.layers,
        f"the config says num_hidden_layers={encoder.layers}, and the tensors are those of {found} layers",
    )
    problems: list[str] = []
    used: set[str] = set()
    tree: dict[str, Any] = {}
    for path in paths:
        sizes = _sizes(encoder, path, kind, tensors)
        for _, _, name in _arrays(path, kind, encoder.layers):
            used.add(name)
            problems += _compared(path, kind, name, tensors.shapes.get(name), sizes)
        node = tree
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        shape = _shape(path, sizes, encoder.layers)
        node[leaf] = Lazy(shape, lambda path=path, shape=shape: _gather(tensors, path, kind, shape, encoder.heads))
    problems += [
        f"{name} {tensors.shapes[name]} is no tensor of this model" for name in tensors.shapes if name not in used
    ]
    require(not problems, f"{len(problems)} of its tensors do not fit:\n  " + "\n  ".join(problems[:12]))
    return tree


def arrays(tree: Mapping[str, Any], kind: Kind, encoder: config.Encoder) -> Iterator[tuple[str, np.ndarray]]:
    """The published names and arrays of our parameters `tree` (nested dicts), made one by one.

    Raises:
      ValueError: at a parameter without a row in `PARAMETERS`.
    """
    for path, leaf in _leaves(tree):
        require(path in PARAMETERS, f"parameter {path} has no row in names.PARAMETERS: it has no published name")
        whole = np.asarray(leaf)
        place: Place = getattr(PARAMETERS[path], kind)
        for layer, part, name in _arrays(path, kind, encoder.layers):
            view = _view(whole, place, layer, part, encoder.heads)
            rows = view.shape[: len(PARAMETERS[path].shape.split()) - 1]
            array = view.reshape(*rows, -1)
            yield name, np.ascontiguousarray(array.T if place.transposed else array)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _arrays(path: str, kind: Kind, layers: int) -> Iterator[tuple[int, int, str]]:
    """The published arrays of a parameter: layer, part and name."""
    name = getattr(PARAMETERS[path], kind).name
    for layer in range(layers if "{layer}" in name else 1):
        for part in range(len(PARTS) if "{part}" in name else 1):
            yield layer, part, name.format(layer=layer, part=PARTS[part])


def _by_layer(kind: Kind, names: Collection[str]) -> Iterator[tuple[int, str]]:
    """The names that belong to a layer, with its number."""
    prefix = {"huggingface": "bert.encoder.layer.", "tf1": "bert/encoder/layer_"}[kind]
    for name in names:
        number = name.removeprefix(prefix).replace("/", ".").split(".")[0]
        if name.startswith(prefix) and number.isdigit():
            yield int(number), name


def _sizes(encoder: config.Encoder, path: str, kind: Kind, tensors: Tensors) -> dict[str, int]:
    """The size of each letter; C, which no config has, is that of the bias."""
    sizes = {letter: int(getattr(encoder, CONFIG[name])) for letter, name in _LETTERS.items()}
    if "C" in PARAMETERS[path].shape.split():
        bias = path.rpartition("/")[0] + "/bias"
        sizes["C"] = int(np.prod(tensors.shapes.get(getattr(PARAMETERS[bias], kind).name, (1,))))
    return sizes


def _shape(path: str, sizes: Mapping[str, int], layers: int) -> tuple[int, ...]:
    """The shape of a parameter of ours."""
    row = PARAMETERS[path]
    *rows, last = (sizes.get(letter) or int(letter) for letter in row.shape.split())
    parts = len(PARTS) if "{part}" in row.tf1.name else 1
    return (*([layers] if "{layer}" in row.tf1.name else []), *rows, parts * last)


def _compared(
    path: str, kind: Kind, name: str, found: tuple[int, ...] | None, sizes: Mapping[str, int]
) -> Iterator[str]:
    """What is wrong with the shape of a published array; nothing where it is as it should be."""
    letters = PARAMETERS[path].shape.split()
    letters = letters[::-1] if getattr(PARAMETERS[path], kind).transposed else letters
    wanted = tuple(sizes.get(letter) or int(letter) for letter in letters)
    if found is None:
        yield f"{name} {wanted} is missing"
    elif len(found) != len(wanted):
        yield f"{name} is {found}, not {wanted}"
    else:
        for letter, here, there in zip(letters, wanted, found, strict=True):
            if here != there:
                what = f"the config says {_LETTERS[letter]}={here}" if letter in _LETTERS else f"it must be {wanted}"
                yield f"{name} is {found}, and {what}"
                return


def _gather(tensors: Tensors, path: str, kind: Kind, shape: tuple[int, ...], heads: int) -> np.ndarray:
    """A parameter of ours, put together from its published arrays."""
    place: Place = getattr(PARAMETERS[path], kind)
    whole = np.empty(shape, np.float32)
    for layer, part, name in _arrays(path, kind, shape[0]):
        array = tensors.read(name)
        view = _view(whole, place, layer, part, heads)
        view[...] = (array.T if place.transposed else array).reshape(view.shape)
    return whole


def _view(whole: np.ndarray, place: Place, layer: int, part: int, heads: int) -> np.ndarray:
    """Where in our parameter a published array lies: [inputs, outputs], of a part [inputs, H, K]."""
    one = whole[layer] if "{layer}" in place.name else whole
    if "{part}" not in place.name:
        return one
    return one.reshape(*one.shape[:-1], heads, len(PARTS), -1)[..., part, :]
