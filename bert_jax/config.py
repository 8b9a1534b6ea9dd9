"""The knobs: frozen dataclasses that check themselves, and `override`, the one way to change them.

Every default is what the reference implementation does; a field whose default departs from it does not exist.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from bert_jax import files

T = TypeVar("T")


def require(condition: object, message: str) -> None:
    """Raises `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def check_types(config: Any, path: str = "") -> None:
    """Checks each field of a config, and of the configs in it, against its annotation: see `check`.

    Raises:
      ValueError: that names the field, from `path` on, and says what was probably meant.
    """
    for name, kind in field_kinds(type(config)).items():  # type: ignore[arg-type]
        check(getattr(config, name), kind, path + name)


def check(value: Any, kind: Any, name: str) -> None:
    """Checks that `value`, the field `name`, is of the annotated type `kind`.

    Numbers must be finite, and integers fit into 32 bits: shapes, steps and seeds are counted so on devices. A float
    may be written as an integer, a tuple as a list.

    Raises:
      ValueError: that names the field, and says what was probably meant.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if origin in _UNIONS:
        if not any(_fits(value, option) for option in args):
            options = [option for option in args if option is not type(None)]
            if len(options) == 1 and value is not None:
                check(value, options[0], name)
            raise ValueError(_expected(value, kind, name))
    elif origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{name} must be a tuple, with a comma after a single item, not {_short(value)}")
        kinds = [args[0]] * len(value) if args[1:] == (Ellipsis,) else list(args)
        if len(kinds) != len(value):
            raise ValueError(_expected(value, kind, name))
        for index, (item, item_kind) in enumerate(zip(value, kinds, strict=True)):
            check(item, item_kind, f"{name}.{index}")
    elif origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise ValueError(_expected(value, kind, name))
    elif not isinstance(value, _INSTANCES.get(kind, origin or kind)) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(_expected(value, kind, name))
    elif isinstance(value, int) and not -_INT32 <= value < _INT32:
        raise ValueError(f"{name} must fit into 32 bits, below {_INT32:,}; it is {value:,}")
    elif dataclasses.is_dataclass(value):
        check_types(value, f"{name}.")


_UNIONS = (typing.Union, types.UnionType)
_INSTANCES: dict[Any, Any] = {float: (float, int)}  # what may stand where an annotation says so
_INT32 = 2**31
# Far more than any BERT has had (Megatron-LM's: 4 billion). More is a slip of the pen, and cannot be allocated.
_MOST_PARAMETERS = 2**37


def _fits(value: Any, kind: Any) -> bool:
    try:
        check(value, kind, "")
    except ValueError:
        return False
    return True


def _expected(value: Any, kind: Any, name: str) -> str:
    """What is wrong with a field, and the nearest value that would be right."""
    text = f"{name} must be {_spell(kind)}, not {_short(value)}"
    if typing.get_origin(kind) is Literal:
        return text + (f" ({nearest(value, typing.get_args(kind))})" if isinstance(value, str) else "")
    for option in (kind, *typing.get_args(kind)) if isinstance(value, str) else ():
        with contextlib.suppress(KeyError, TypeError, ValueError):  # TypeError: that of a function cannot be hashed
            return f"{text}: write {_SPELLINGS[option](value)!r}, without quotation marks"
    return f"{text}: write {int(value)}" if isinstance(value, float) and kind is int and value.is_integer() else text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


@functools.cache
def field_kinds(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name.

    Raises:
      ValueError: where an annotation names what its module does not.
    """
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise ValueError(
            f"{kind.__name__}: {error}; import what the fields' types name, not for type checkers alone"
        ) from None
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def require_size(what: str, parameters: int) -> None:
    """Refuses what nothing could hold, before it is allocated. `parameters` is how many there would be, or more.

    Raises:
      ValueError: that says how many bytes they would take.
    """
    require(
        parameters <= _MOST_PARAMETERS,
        f"{what} would make {parameters:,} parameters, {4 * parameters:,} bytes of float32; at most "
        f"{_MOST_PARAMETERS:,} are taken",
    )


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
        check_types(self)
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
        require(
            self.vocab_rows < _INT32, f"vocab_size, up to a multiple of vocab_multiple, is {self.vocab_rows:,} rows"
        )
        sizes = ", ".join(
            f"{name}={getattr(self, name)}"
            for name in ("layers", "hidden", "feed_forward", "vocab_size", "max_positions", "segments")
        )
        require_size(f"an encoder of {sizes}", self.parameters)

    @property
    def parameters(self) -> int:
        """How many numbers its matrices hold: the parameters but for biases and LayerNorm."""
        tables = self.vocab_rows + self.max_positions + self.segments
        return self.hidden * (tables + self.layers * (4 * self.hidden + 2 * self.feed_forward))

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
        check_types(self)
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
            return min(self.max_predictions, length)
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
        check_types(self)
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
        check_types(self)
        _positive(length=self.length, batch_size=self.batch_size, lengths=self.lengths)
        require(
            (self.steps > 0) != (self.epochs > 0),
            f"a phase needs steps or epochs above 0, and not both: steps={self.steps}, epochs={self.epochs}",
        )
        require(self.steps >= 0 and self.epochs >= 0, f"steps={self.steps}, epochs={self.epochs}: below 0 are none")
        tokens = self.batch_size * self.length
        require(
            tokens < _INT32,
            f"batch_size={self.batch_size} of length={self.length} are {tokens:,} tokens, whose numbers alone take "
            f"{4 * tokens:,} bytes; a batch has fewer than {_INT32:,}",
        )


@dataclasses.dataclass(frozen=True)
class BiLSTM:
    """A bidirectional LSTM between an encoder and a head (paper, sections 5.1 and 5.3)."""

    layers: int = 2
    width: int = 768  # of each direction; the paper's "768-dimensional" does not say whether of each or of both
    dropout: float = 0.1  # of what one layer gives the next; the paper names none, and has 0.1 everywhere else

    def __post_init__(self) -> None:
        check_types(self)
        _positive(layers=self.layers, width=self.width)
        _probability("dropout", self.dropout)
        require_size(f"a BiLSTM of layers={self.layers}, width={self.width}", 16 * self.layers * self.width**2)


FEATURES = ("embeddings", "second_to_last", "last", "sum_last_four", "concat_last_four", "sum_all")


@dataclasses.dataclass(frozen=True)
class Features:
    """Which hidden states of a frozen encoder a head reads (paper, section 5.3 and Table 7)."""

    layers: str = "concat_last_four"  # one of FEATURES, or a layer by its number: 0 the embeddings, 1 the first
    words: int = 128  # of one sequence; a longer sentence is read in parts
    dtype: Literal["float32", "float16"] = "float32"  # how they are kept on disk

    def __post_init__(self) -> None:
        check_types(self)
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
        check_types(self)
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
    keep: int = 3  # checkpoints, the newest
    keep_every: int = 0  # those whose step is a multiple of it stay as well; 0: none do

    def __post_init__(self) -> None:
        check_types(self)
        _positive(log=self.log, keep=self.keep)
        require(self.evaluate >= 0 and self.checkpoint >= 0, "every.evaluate and every.checkpoint must be 0 or more")
        require(
            self.keep_every >= 0 and self.keep_every % (self.checkpoint or self.keep_every or 1) == 0,
            f"every.keep_every must be a multiple of every.checkpoint={self.checkpoint}, or 0, not {self.keep_every}",
        )


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
    kinds = field_kinds(type(config))  # type: ignore[arg-type]
    fields = list(kinds)
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
    if origin in _UNIONS:
        if value is None or (isinstance(value, str) and value.lower() == "none" and type(None) in args):
            check(None, kind, name)
            return None
        return parse(value, next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        if isinstance(value, str):
            value = _items(value, name)
        fixed = args[1:] != (Ellipsis,)
        if not isinstance(value, (tuple, list)) or (fixed and len(args) != len(value)):
            raise ValueError(f"{name} must be {_spell(kind)}, not {_short(value)}")
        kinds = args if fixed else [args[0]] * len(value)
        return tuple(parse(v, k, f"{name}.{i}") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if isinstance(value, str) and kind in (bool, int, float):
        try:
            value = _SPELLINGS[kind](value)
        except (KeyError, ValueError):
            raise ValueError(f"{name} must be {_spell(kind)}, not {_short(value)}") from None
    check(value, kind, name)
    return float(value) if kind is float else value


def _items(text: str, name: str) -> tuple[Any, ...]:
    """The items of a tuple as a flag gives it: parted by commas, or as a list of JSON or Python with each in quotes,
    which may hold commas and quotes themselves."""
    if "'" in text or '"' in text:
        with contextlib.suppress(ValueError, SyntaxError):
            found = ast.literal_eval(text if text.lstrip().startswith(("(", "[")) else f"({text},)")
            if isinstance(found, (tuple, list)):
                return tuple(found)
    parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    require(
        all(part.strip("'\"") for part in parts),
        f'{name}: an item of quotes or commas needs quotes of its own, as in \'[",", "``"]\', not {_short(text)}',
    )
    return tuple(part.strip("'\"") for part in parts)


_SPELLINGS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    int: lambda text: int(text.replace("_", "")),
    float: float,
}


def _spell(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def spelled(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(spelled, value))})"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


class Verbatim:
    """A config whose class is not known here: `values` is what `to_dict` made of it, and makes of it again."""

    values: Mapping[str, Any]


def to_dict(config: Any) -> Any:
    """A config as plain JSON values. A dataclass carries its class's name under "is", so that it can be rebuilt."""
    if isinstance(config, Verbatim):
        return dict(config.values)
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
      ValueError: at a class or a field that this version does not know, or a value that is not of its field's type; it
        names the field.
    """
    if isinstance(values, list):
        return tuple(from_dict(value, kinds) for value in values)
    if not isinstance(values, dict):
        return values
    name = values.get("is")
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"no config class {_short(name)}: {nearest(str(name), kinds)}")
    types_of = field_kinds(kinds[name])
    read = {}
    for field, value in values.items():
        if field == "is":
            continue
        require(field in types_of, f"{name} has no field {field!r}: {nearest(field, types_of)}")
        try:
            read[field] = from_dict(value, kinds)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        check(read[field], types_of[field], field)  # before the class sees it
        if types_of[field] is float:
            read[field] = float(read[field])
    lacking = [field.name for field in dataclasses.fields(kinds[name]) if not has_default(field)]
    lacking = [field for field in lacking if field not in read]
    require(not lacking, f"{name} lacks a value of {', '.join(lacking)}")
    return kinds[name](**read)


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass need not be given this field."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def read_json(path: str | os.PathLike[str], cure: str = "") -> dict[str, Any]:
    """The JSON object in a file. `cure` is what to do where there is none, for the message.

    Raises:
      ValueError: where it holds none.
    """
    cure = cure and f"; {cure}"
    try:
        values = json.loads(files.path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is no JSON: {error}{cure}") from None
    require(isinstance(values, dict), f"{path} is damaged: a JSON object is expected{cure}")
    return values


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    """The leaves of what `to_dict` gives, by dotted name: {"encoder.layers": 12, ...}."""
    if not isinstance(values, (dict, list)) or not values:
        return {path: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    each = (leaves(value, f"{path}.{key}" if path else str(key)) for key, value in items)
    return {name: value for one in each for name, value in one.items()}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The fields in which two `to_dict` results differ, a line each: "encoder.layers: 2, and 12"."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in {**a, **b} for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}.{i}")]
    return [] if a == b else [f"{path}: {a!r}, and {b!r}"]
