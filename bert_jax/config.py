"""The knobs: frozen dataclasses that check themselves, and `override`, the one way to change them.

Every default is what the reference implementation does; a field whose default departs from it does not exist.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from etils import epath

T = TypeVar("T")


def require(condition: object, message: str) -> None:
    """Raises `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_tuples(config: Any) -> None:
    """Raises `ValueError` where one value stands for a tuple: ("dev.tsv") is a text, ("dev.tsv",) a tuple of one."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        fits = typing.get_origin(kind) is not tuple or isinstance(value, (tuple, list))
        require(fits, f"{name} must be a tuple, with a comma after a single item, not {value!r}")


def _probability(name: str, value: float | int) -> None:
    require(0.0 <= value <= 1.0, f"{name} must lie in [0, 1], not {value}")


def _positive(**values: float | int) -> None:
    for name, value in values.items():
        require(value > 0, f"{name} must be above 0, not {value}")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The size and the arithmetic of a BERT encoder (paper, section 3). The defaults are BERT-Base, uncased."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    feed_forward: int = 0  # width of the inner layer; 0 means 4 * hidden, as everywhere in the paper
    vocab_size: int = 30522
    vocab_multiple: int = 1  # the tables' rows are padded to a multiple of it (`vocab_rows`), to suit a chip or a mesh
    max_positions: int = 512
    segments: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    gelu: Literal["erf", "tanh"] = "erf"  # erf at the release of the paper; later reference code has tanh
    layer_norm_eps: float = 1e-12
    init_stddev: float = 0.02  # of a normal distribution cut at two sigma
    # What a token attends to: all tokens, or those before it and itself (paper, section 5.1). Goes with the weights.
    direction: Literal["both", "left_to_right"] = "both"
    # Whose hidden state stands for the whole: the first token's, [CLS], as in the paper; or the last one's, a [SEP],
    # which is the only one that has seen all where `direction` is left_to_right. There [CLS] has seen nothing.
    classify_from: Literal["first", "last"] = "first"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are always float32
    dropout_rng: Literal["hash", "threefry"] = "hash"  # where dropout's bits come from: see dropout.py
    scan: bool = True  # one compiled layer, looped over; False unrolls it: slower to compile, faster to run
    # What the backward pass computes again, to keep less until then. "elementwise": all but matrix products, softmax;
    # next to free. "attention": scores and softmax too, whose memory grows with T * T. "layer": everything but
    # each layer's input, for a third more FLOPs.
    remat: Literal["none", "elementwise", "attention", "layer"] = "none"

    def __post_init__(self) -> None:
        if self.feed_forward == 0:
            object.__setattr__(self, "feed_forward", 4 * self.hidden)
        _positive(layers=self.layers, hidden=self.hidden, heads=self.heads, feed_forward=self.feed_forward)
        _positive(vocab_size=self.vocab_size, vocab_multiple=self.vocab_multiple)
        _positive(max_positions=self.max_positions, segments=self.segments)
        _positive(layer_norm_eps=self.layer_norm_eps, init_stddev=self.init_stddev)
        _probability("dropout", self.dropout)
        _probability("attention_dropout", self.attention_dropout)
        require(
            self.hidden % self.heads == 0,
            f"hidden must be a multiple of heads, not {self.hidden} over {self.heads} heads",
        )
        require(
            self.direction == "both" or self.classify_from == "last",
            "from left to right [CLS] sees nothing but itself: set encoder.classify_from=last too",
        )

    @property
    def vocab_rows(self) -> int:
        """V, the rows of the word embeddings: `vocab_size` and what pads it."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class Masking:
    """How the masked LM corrupts its input (paper, section 3.1 and appendix C.2)."""

    rate: float = 0.15  # of the tokens, [CLS] and [SEP] included in the count
    max_predictions: int = 0  # the most positions of one sequence; 0 means 0.15 of the length, as in the paper
    mask: float = 0.8  # share of the chosen tokens that become [MASK]
    random: float = 0.1  # share that becomes a random token; the rest stays what it was
    whole_word: bool = False  # choose whole words instead of single pieces
    dynamic: bool = False  # fresh masks at each visit of an example; False: the masks of its first visit

    def __post_init__(self) -> None:
        require(0.0 < self.rate < 1.0, f"rate must lie in (0, 1), not {self.rate}")
        require(self.max_predictions >= 0, f"max_predictions must be 0 or more, not {self.max_predictions}")
        _probability("mask", self.mask)
        _probability("random", self.random)
        require(self.mask + self.random <= 1 + 1e-9, f"mask + random must not exceed 1: {self.mask} + {self.random}")

    def predictions(self, length: int) -> int:
        """M, the predicted positions that a sequence of `length` tokens has room for.

        The published recipe sets it by hand: 20 at 128 is the rate times the length rounded up, 76 at 512 rounded down.
        """
        if self.max_predictions:
            return self.max_predictions
        if self.rate == 0.15 and length == 512:
            return 76
        return math.ceil(self.rate * length - 1e-9)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam as the reference has it: decoupled decay, no bias correction, linear warm-up and linear decay."""

    learning_rate: float = 1e-4
    warmup: float | int = 10_000  # steps, or a share of all steps where below 1
    schedule: Literal["linear", "constant"] = "linear"  # what follows the warm-up
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01  # not on biases and LayerNorm
    bias_correction: bool = False  # without, step 10 is 6.5 times as long, 100 3.2, 1000 1.3 (of b2 0.999)
    clip_norm: float = 1.0  # of the gradient's global norm; 0 means no clipping
    clip_shards: int = 1  # clip each of so many equal parts of the batch by itself, as the reference did per core
    accumulate: int = 1  # make the gradient from so many equal parts of the batch, one after the other: less memory

    def __post_init__(self) -> None:
        _positive(learning_rate=self.learning_rate, eps=self.eps)
        _positive(clip_shards=self.clip_shards, accumulate=self.accumulate)
        require(self.clip_shards == 1 or self.accumulate == 1, "clip_shards and accumulate cannot both exceed 1")
        require(self.warmup >= 0, f"warmup must be 0 or more, not {self.warmup}")
        require(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"b1 and b2 must lie in [0, 1), not {self.b1} and {self.b2}")
        require(self.weight_decay >= 0, f"weight_decay must be 0 or more, not {self.weight_decay}")
        require(self.clip_norm >= 0, f"clip_norm must be 0 or more, not {self.clip_norm}")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training at one sequence length and one batch size: `steps` of it, or `epochs` over the data."""

    length: int = 128
    batch_size: int = 256  # of all hosts together
    steps: int = 0
    epochs: float | int = 0  # of questions, sentences, rows, as the reference counts them; of a corpus, passes over it
    lengths: int = 1  # static lengths of batches; above 1, examples of about one length share a batch: data.Grouped

    def __post_init__(self) -> None:
        _positive(length=self.length, batch_size=self.batch_size, lengths=self.lengths)
        require(
            (self.steps > 0) != (self.epochs > 0),
            f"a phase needs steps or epochs above 0, and not both: steps={self.steps}, epochs={self.epochs}",
        )


@dataclasses.dataclass(frozen=True)
class BiLSTM:
    """A bidirectional LSTM between an encoder and a head (paper, sections 5.1 and 5.3)."""

    layers: int = 2
    width: int = 768  # of each direction; the paper's "768-dimensional" does not say whether of each or of both
    dropout: float = 0.1  # of what one layer gives the next; the paper names none, and has 0.1 everywhere else

    def __post_init__(self) -> None:
        _positive(layers=self.layers, width=self.width)
        _probability("dropout", self.dropout)


FEATURES = ("embeddings", "second_to_last", "last", "sum_last_four", "concat_last_four", "sum_all")


@dataclasses.dataclass(frozen=True)
class Features:
    """Which hidden states of a frozen encoder a head reads (paper, section 5.3 and Table 7)."""

    layers: str = "concat_last_four"  # one of FEATURES, or a layer by its number: 0 the embeddings, 1 the first
    words: int = 128  # of one sequence; a longer sentence is read in parts
    dtype: Literal["float32", "float16"] = "float32"  # how they are kept on disk

    def __post_init__(self) -> None:
        _positive(words=self.words)
        known = self.layers in FEATURES or self.layers.isdecimal()
        require(known, f"layers must be a number or a choice, not {self.layers!r}: {nearest(self.layers, FEATURES)}")

    def numbers(self, layers: int) -> tuple[int, ...]:
        """The layers that an encoder of so many gives for this, 0 being the embeddings' output.

        Raises:
          ValueError: where it has too few.
        """
        ranges = {
            "embeddings": (0, 1),
            "second_to_last": (layers - 1, layers),
            "last": (layers, layers + 1),
            "sum_last_four": (layers - 3, layers + 1),
            "concat_last_four": (layers - 3, layers + 1),
            "sum_all": (1, layers + 1),
        }
        first, stop = ranges[self.layers] if self.layers in FEATURES else (int(self.layers), int(self.layers) + 1)
        lowest = 1 if self.layers.endswith("four") else 0
        require(
            lowest <= first and stop <= layers + 1,
            f"the encoder has {layers} layers: features.layers={self.layers} is not to be had of it",
        )
        return tuple(range(first, stop))

    @property
    def summed(self) -> bool:
        """Whether the layers are added up, by learned weights; several are else put side by side."""
        return self.layers.startswith("sum")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices share what: `data` splits the batch, `fsdp` batch and parameters, `model` the layers' width.

    One of them may be -1: all devices that the other two leave. Of several `slices`, which only a data center's network
    connects, each holds the whole of `fsdp` and `model` and its share of `data`: gradients alone go between them.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        _positive(slices=self.slices)
        for name, value in (("data", self.data), ("fsdp", self.fsdp), ("model", self.model)):
            require(value == -1 or value > 0, f"mesh.{name} must be above 0, or -1 for the rest, not {value}")
        require([self.data, self.fsdp, self.model].count(-1) <= 1, "only one axis of the mesh may be -1")


@dataclasses.dataclass(frozen=True)
class Every:
    """How often, in steps. 0 means only at the end; otherwise there is also an evaluation before the first."""

    log: int = 100
    evaluate: int = 10_000
    checkpoint: int = 10_000
    keep: int = 3  # checkpoints

    def __post_init__(self) -> None:
        _positive(log=self.log, keep=self.keep)
        require(self.evaluate >= 0 and self.checkpoint >= 0, "every.evaluate and every.checkpoint must be 0 or more")


def nearest(name: str, names: Iterable[str]) -> str:
    """A half sentence that names what was probably meant: "did you mean 'x'? there is: a, b, x"."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return (f"did you mean {close[0]!r}? " if close else "") + "there is: " + ", ".join(names)


def override(config: T, changes: Mapping[str, Any]) -> T:
    """`config` with fields replaced by dotted name, every `__post_init__` check run again.

    Values are Python values or their text as a flag gives it: "24", "1e-4", "true", "none", "(1, 2)". An index reaches
    into a tuple: "phases.0.steps". A field derived by default (`feed_forward`) follows the field that it derives from.

    Raises:
      ValueError: at a name that does not exist (with the nearest one that does), a value of the wrong type, or one that
        a check refuses.

    Example:
      >>> override(Encoder(), {"layers": 24, "hidden": "1024", "heads": 16}).feed_forward
      4096
    """
    grouped: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        grouped.setdefault(head, {})[rest] = value
    if isinstance(config, tuple):
        items = list(config)
        for head, inner in grouped.items():
            require(head.isdigit() and int(head) < len(items), f"{head!r} is no index of a tuple of {len(items)}")
            items[int(head)] = _changed(items[int(head)], inner, type(items[int(head)]), head)
        return typing.cast(T, tuple(items))
    require(dataclasses.is_dataclass(config), f"a {type(config).__name__} has no fields to override: {list(changes)}")
    kinds = typing.get_type_hints(type(config))
    fields = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    replaced = {}
    for head, inner in grouped.items():
        require(head in fields, f"{type(config).__name__} has no field {head!r}: {nearest(head, fields)}")
        replaced[head] = _changed(getattr(config, head), inner, kinds[head], head)
    if isinstance(config, Encoder) and "hidden" in replaced and config.feed_forward == 4 * config.hidden:
        replaced.setdefault("feed_forward", 0)
    return dataclasses.replace(config, **replaced)  # type: ignore[type-var]


def split_flags(argv: Sequence[str], prefix: str = "config.") -> tuple[list[str], dict[str, str]]:
    """Takes the --config.a.b=VALUE flags out of a command line: absl cannot know them before the file is read.

    Raises:
      ValueError: at one without a value.
    """
    rest, changes = [], {}
    for argument in argv:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith(prefix):
            if not equals:
                raise ValueError(f"{argument} needs a value: {argument}=VALUE")
            changes[name.removeprefix(prefix)] = value
        else:
            rest.append(argument)
    return rest, changes


def _changed(value: Any, inner: dict[str, Any], kind: Any, name: str) -> Any:
    """One field's new value, from {"": new} (replace it whole) or {"sub.field": new} (change it inside)."""
    if "" in inner:
        require(len(inner) == 1, f"{name!r} is set whole and in part")
        return parse(inner[""], kind, name)
    if value is None:  # an optional config that is not there yet starts from its defaults
        value = next(k for k in typing.get_args(kind) if dataclasses.is_dataclass(k))()  # type: ignore[operator]
    try:
        return override(value, inner)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def parse(value: Any, kind: Any, name: str) -> Any:
    """`value`, or the text of one, as the annotated type `kind`; a `ValueError` names `name` where it is none."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    expected = f"{name} must be {_spell(kind)}, not {value!r}"
    if kind is Any:
        return value
    if origin is Literal:
        require(value in args, f"{expected}" + (f" ({nearest(value, args)})" if isinstance(value, str) else ""))
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            require(type(None) in args, expected)
            return None
        return parse(value, next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        if isinstance(value, str):
            value = tuple(part.strip().strip("'\"") for part in value.strip("()[] ").split(",") if part.strip())
        require(isinstance(value, (tuple, list)), expected)
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        require(len(kinds) == len(value), expected)
        return tuple(parse(v, k, f"{name}.{i}") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if isinstance(value, str) and kind in (bool, int, float):
        try:
            if kind is bool:
                return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            return int(value.replace("_", "")) if kind is int else float(value)
        except (KeyError, ValueError):
            raise ValueError(expected) from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool):
        raise ValueError(expected)
    require(not isinstance(kind, type) or isinstance(value, kind), expected)
    return value


def _spell(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def to_dict(config: Any) -> Any:
    """A config as plain JSON values. A dataclass carries its class's name under "is", so that it can be rebuilt."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        inner = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"is": type(config).__name__, **inner}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    require(config is None or isinstance(config, (str, int, float, bool)), f"no JSON for a {type(config).__name__}")
    return config


def from_dict(values: Any, kinds: Mapping[str, type]) -> Any:
    """The config that `to_dict` wrote, its checks run again. `kinds` maps the names under "is" to dataclasses.

    Raises:
      ValueError: at a class or a field that this version does not know.
    """
    if isinstance(values, list):
        return tuple(from_dict(value, kinds) for value in values)
    if not isinstance(values, dict):
        return values
    require(values.get("is") in kinds, f"no config class {values.get('is')!r}: {nearest(str(values.get('is')), kinds)}")
    kind = kinds[values["is"]]
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        require(name in [*known, "is"], f"{kind.__name__} has no field {name!r}: {nearest(name, known)}")
    return kind(**{name: from_dict(value, kinds) for name, value in values.items() if name != "is"})


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: where it holds none.
    """
    try:
        values = json.loads(epath.Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON: {error}") from None
    require(isinstance(values, dict), f"{path} is damaged: a JSON object is expected")
    return values


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The fields in which two `to_dict` results differ, a line each: "encoder.layers: 2, and 12"."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in {**a, **b} for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}.{i}")]
    return [] if a == b else [f"{path}: {a!r}, and {b!r}"]
