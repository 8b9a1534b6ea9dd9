"""Weights to start from or to use, whatever wrote them: a run, Hugging Face's `transformers`, the TF1 reference."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from bert_jax import config, experiment, files
from bert_jax.config import require
from bert_jax.experiment import Experiment, Positions
from bert_jax.model.encoder import kernel_init
from bert_jax.tasks.base import Task
from bert_jax.tasks.choice import Choose
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tagging import Tag
from bert_jax.text import tokenizer
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.weights import checkpoint, huggingface, tf1
from bert_jax.weights.names import Lazy, Pooling, Published

# The reference reads SQuAD in windows of 384 tokens, 128 apart, beside 64 tokens of a question at most. In shorter
# windows these keep their proportions, so that windows overlap.
SQUAD_LENGTH, SQUAD_STRIDE, SQUAD_QUESTION = 384, 128, 64


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a directory of weights holds. The weights themselves are read when `params` is called, or later."""

    origin: Literal["workdir", "huggingface", "tf1"]
    directory: str
    encoder: config.Encoder
    tokenizer: Tokenizer | None  # None: there are weights without a vocabulary
    task: Task | None  # None: an encoder alone
    read: Callable[[], dict[str, Any]]  # the parameters as they lie there
    step: int = 0  # of a workdir, the checkpoint's
    pooling: Pooling | None = None  # of a sentence-transformers directory: how it makes a vector of a text

    @property
    def experiment(self) -> Experiment:
        """The run's own; of published weights, one that has their encoder and task, and nothing to run.

        Its phases then say for which lengths the weights are: the longest, and the windows that the task reads.
        """
        if self.origin == "workdir":
            return experiment.read_config(self.directory)
        lengths = [self.length]
        if isinstance(self.task, Squad) and self.length > SQUAD_LENGTH:
            lengths.append(SQUAD_LENGTH)
        phases = tuple(config.Phase(length=length, steps=1) for length in lengths)
        name = files.path(self.directory).name
        return Experiment(name=name, encoder=self.encoder, task=self.task or Pretrain(), phases=phases)

    @property
    def length(self) -> int:
        """The longest sequence that the weights were trained on, in tokens; later positions are random embeddings.

        Of a run: that of its phases that had begun, and of what it started from. Of published weights: their positions,
        or fewer where the tokenizer's `model_max_length` says so.
        """
        return _length(self.directory, self.step)

    @property
    def scores(self) -> dict[str, Any]:
        """What a run's result.json says; of other weights, and of a run that is not done, nothing."""
        return (experiment.read_result(self.directory) or {}) if self.origin == "workdir" else {}

    def params(
        self, encoder: config.Encoder | None = None, positions: Positions = "same", seed: int = 0
    ) -> dict[str, Any]:
        """The parameters by our names, in nested dicts; a leaf has a shape, and `np.asarray(leaf)` reads it.

        Args:
          encoder: how they shall lie: with its `vocab_multiple`, and its `max_positions`. None: as they do.
          positions: what becomes of the position embeddings where `max_positions` is another, as in `Experiment`.
          seed: of the rows that `positions="fresh"` adds.

        Raises:
          ValueError: where the directory's files are damaged, or `positions` does not lead to `max_positions`.
        """
        tree = jax.tree.map(lambda leaf: leaf, self.read())  # dicts of its own
        encoder = encoder or self.encoder
        embeddings = tree["encoder"]["embeddings"]
        rows = embeddings["word"].shape[0]
        require(
            rows == self.encoder.vocab_rows,
            f"{self.directory}: config.json says {self.encoder.vocab_rows} embeddings, the checkpoint holds {rows}",
        )
        embeddings["word"] = _rows(embeddings["word"], self.encoder.vocab_size, encoder.vocab_rows)
        if "masked_lm" in tree:
            tree["masked_lm"]["bias"] = _rows(tree["masked_lm"]["bias"], self.encoder.vocab_size, encoder.vocab_rows)
        embeddings["position"] = _positions(embeddings["position"], encoder, positions, seed)
        return tree


def find(directory: str) -> str:
    """The directory that is meant where somebody names weights: itself, or what stands for it.

    That is the folder of a file of weights or of a checkpoint's prefix, "~" for one's home, the one snapshot in a
    folder of the hub's cache, and the Transformer of a sentence-transformers directory. Nothing is downloaded.

    Raises:
      ValueError: where there is no such directory, or several are meant.
    """
    path = str(directory)
    if "://" in path:
        return path
    folder = given = pathlib.Path(path).expanduser()
    if folder.is_file() or folder.with_name(folder.name + ".index").is_file():
        folder = folder.parent
    snapshots = sorted(one for one in folder.glob("snapshots/*") if one.is_dir())
    if snapshots and not (folder / "config.json").exists():
        main = folder / "refs" / "main"
        named = folder / "snapshots" / main.read_text().strip() if main.exists() else snapshots[0]
        require(
            named in snapshots and (main.exists() or len(snapshots) == 1),
            f"{folder} holds the snapshots {', '.join(one.name for one in snapshots)}: name one of them",
        )
        folder = named
    inner = sorted(one.parent for one in folder.glob("0_*/config.json"))
    if inner and (folder / "modules.json").exists() and not (folder / "config.json").exists():
        folder = inner[0]
    hint = ""
    if any((folder.parent / name).exists() for name in ("config.json", "bert_config.json")):
        hint = f"; name the directory of the weights, as in {folder.parent}"
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        hint = "; nothing is downloaded: get a model of the hub with `hf download NAME`, and name the folder it prints"
    require(folder.exists(), f"there is no directory {path}{hint}")
    known = ("config.json", "bert_config.json")
    require(
        not given.is_file() or any((folder / name).exists() for name in known),
        f"{path} is a file, and beside it there is neither {' nor '.join(known)}: name the directory of the weights",
    )
    return path if folder == pathlib.Path(path) else str(folder)


def exists(directory: str) -> bool:
    """Whether something lies where somebody names weights."""
    try:
        return bool(files.path(find(directory)).exists())
    except ValueError:
        return False


def open(directory: str, step: int | None = None) -> Pretrained:
    """The weights in `directory`: a run's workdir, a Hugging Face directory, or a TF1 checkpoint's; see `find`.

    `step` is for a workdir: which of its checkpoints; None is the last.

    Raises:
      ValueError: where it is none of these, or its files are missing, damaged or contradict each other.
    """
    directory = find(directory)
    folder = files.path(directory)
    if (folder / "config.json").exists():
        values = config.read_json(folder / "config.json")
        if values.get("is") == Experiment.__name__:
            exp = experiment.read_config(directory)
            require(exp.encoder is not None, f"{folder / 'config.json'} records no encoder")
            assert exp.encoder is not None
            own = folder / "tokenizer"
            vocabulary = tokenizer.load(own) if own.exists() else None
            return Pretrained(
                "workdir",
                directory,
                exp.encoder,
                vocabulary,
                exp.task,
                lambda: checkpoint.read_params(directory, step),
                _last_step(directory) if step is None else step,
            )
        require(step is None, f"{directory} is no workdir of a run: it has no step {step}")
        directory = str(files.local(directory))
        return _published("huggingface", directory, huggingface.read(directory), huggingface.read_tokenizer(directory))
    require(
        (folder / "bert_config.json").exists(),
        f"{directory} is no workdir of a run, no Hugging Face directory and no TF1 checkpoint: it has neither "
        "config.json nor bert_config.json",
    )
    directory = str(files.local(directory))
    return _published("tf1", directory, tf1.read(directory), tf1.read_tokenizer(directory))


def _published(
    origin: Literal["huggingface", "tf1"], directory: str, found: Published, vocabulary: Tokenizer | None
) -> Pretrained:
    if vocabulary is not None:
        require(
            vocabulary.vocab_size <= found.encoder.vocab_size,
            f"{directory}: the vocabulary has {vocabulary.vocab_size} tokens, and the config says "
            f"vocab_size={found.encoder.vocab_size}",
        )
    task = _task(found, _length(directory))
    return Pretrained(origin, directory, found.encoder, vocabulary, task, lambda: found.params, pooling=found.pooling)


def _length(directory: str, step: int | None = None, seen: frozenset[str] = frozenset()) -> int:
    """As `Pretrained.length`, from configs alone; 0 where there is none. `seen` are runs that started from this one."""
    directory = find(directory)
    folder = files.path(directory)
    if (folder / "bert_config.json").exists() and not (folder / "config.json").exists():
        return tf1.read_length(str(files.local(directory)))
    if directory in seen or not (folder / "config.json").exists():
        return 0
    if config.read_json(folder / "config.json").get("is") != Experiment.__name__:
        return huggingface.read_length(str(files.local(directory)))
    exp = experiment.read_config(directory)
    length = max(phase.length for phase in _begun(exp, directory, step))
    known = experiment.start_length(directory)
    if known is not None:
        length = max(length, known)
    elif exp.init_from and not exp.random_init:  # an earlier version did not record it
        with contextlib.suppress(ValueError, OSError):  # it may be damaged by now, as it may be gone
            length = max(length, _length(exp.init_from, exp.init_step, seen | {directory}))
    return min(length, exp.encoder.max_positions) if exp.encoder else length


def start_length(exp: Experiment) -> int | None:
    """The length of the weights that a run starts from, in tokens; None: it starts from none, or they are not there."""
    if not exp.init_from or exp.random_init:
        return None
    with contextlib.suppress(ValueError, OSError):
        return _length(exp.init_from, exp.init_step) or None
    return None


def _begun(exp: Experiment, directory: str, step: int | None) -> list[config.Phase]:
    """The phases that had begun at a run's checkpoint of `step`; None: its last.

    How many steps epochs take is not recorded: a phase after one of epochs counts once the run is done.
    """
    folder = files.path(directory)
    step = _last_step(directory) if step is None else step
    result = config.read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    if step in (0, result.get("step")):  # 0: weights that `convert` brought here, of a run or published
        return list(exp.phases)
    found: list[config.Phase] = []
    start: float = 0
    for phase in exp.phases:
        if start < step:
            found.append(phase)
        start += phase.steps or math.inf
    return found


def _last_step(directory: str) -> int:
    """The step of a run's last checkpoint; 0 where it has none."""
    return max(checkpoint.steps(directory), default=0)


def _task(found: Published, length: int) -> Task | None:
    """The task that published heads belong to, without its data; None for an encoder alone. `length` is theirs."""
    if "classifier" in found.params:  # of one output, a regression
        problem: Any = found.problem_type if found.problem_type else "" if len(found.labels) > 1 else "regression"
        value = problem == "regression" and len(found.labels) == 1  # of one value, which needs no name
        problem = "" if value or problem == "single_label_classification" else problem  # as our own runs have it
        return Classify(train="", dev=("",), labels=() if value else found.labels, problem_type=problem)
    if "tagger" in found.params:
        return Tag(train="", dev=("",), labels=found.labels)
    if "span" in found.params:
        stride, question = min(SQUAD_STRIDE, length // 3), min(SQUAD_QUESTION, length // 3)
        return Squad(train="", dev="", stride=max(1, stride), question=max(1, question))
    if "choice" in found.params:
        return Choose(train="")
    return Pretrain() if "masked_lm" in found.params else None


def _rows(leaf: Any, words: int, rows: int) -> Any:
    """The vocabulary's `words` rows of a table or a bias, and zeros up to `rows`."""
    if leaf.shape[0] == rows:
        return leaf

    def read() -> np.ndarray:
        table = np.zeros((rows, *leaf.shape[1:]), np.float32)
        table[:words] = np.asarray(leaf)[:words]
        return table

    return Lazy((rows, *leaf.shape[1:]), read)


def _positions(leaf: Any, encoder: config.Encoder, choice: Positions, seed: int) -> Any:
    """The position embeddings for `encoder.max_positions`."""
    there, here = leaf.shape[0], encoder.max_positions
    if there == here:
        return leaf
    require(
        choice == "cut" if here < there else choice in ("fresh", "tile", "interpolate"),
        f"the weights have {there} positions and encoder.max_positions is {here}: set --config.init_positions="
        + ("cut" if here < there else "fresh, tile or interpolate")
        + f", not {choice!r}",
    )

    def read() -> np.ndarray:
        table = np.asarray(leaf)
        if choice == "cut":
            return table[:here].copy()
        if choice == "tile":
            return table[np.arange(here) % there]
        if choice == "fresh":
            more = kernel_init(encoder)(jax.random.key(seed), (here - there, table.shape[1]))
            return np.concatenate([table, np.asarray(more)])
        places = np.linspace(0, there - 1, here)  # first on first, last on last
        low = np.minimum(places.astype(int), there - 2)
        share = (places - low)[:, None]
        return ((1 - share) * table[low] + share * table[low + 1]).astype(np.float32)

    return Lazy((here, leaf.shape[1]), read)
