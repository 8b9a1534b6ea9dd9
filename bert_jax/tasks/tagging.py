"""A tag for each word: named entities, parts of speech (paper, section 5.3), from CoNLL columns and CoNLL-U.

A word's tag is predicted at its first token. Every word of a file is predicted exactly once, in one window; the rest of
a window is context: with `document`, the text around the sentence, which is the paper's "maximal document context".

With `features` the encoder is not trained. It reads every window once, and what is learned, a BiLSTM or the classifier
alone, reads its vectors: one for each word, a sequence for each sentence.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import config
from bert_jax.config import check_types, require
from bert_jax.model import features, heads, losses
from bert_jax.model.features import Frozen
from bert_jax.tasks import columns as files
from bert_jax.tasks import scores, tables
from bert_jax.tasks.base import Arrays, Batch, Context, Outputs, Pair, Source, Task, inputs
from bert_jax.text.tokenizer import Tokenizer

CONLL2003 = ("O", *(f"{mark}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for mark in "BI"))
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)


@dataclasses.dataclass(frozen=True)
class Tag(Task):
    """A tag for each word of files in columns. Columns are counted from 1, as their documentations count them.

    Tabs part the columns where each line has one, else white space does; a blank line ends a sentence; comments are
    left out, and of CoNLL-U multiword tokens and empty nodes. A document begins at `-DOCSTART-` (CoNLL-2003),
    `#begin document` (CoNLL-2012) or `# newdoc` (CoNLL-U). See `files.in_columns`.

    With `rows`, two names, a row is a sentence: one column has its words, the other its tags, parted by white space or
    in lists. Files are then those that `tables.read` reads, with a header or the names `columns`.
    """

    train: str
    dev: tuple[str, ...]  # the first is what counts; the figures of others carry their names
    labels: tuple[str, ...] = CONLL2003
    word: int = 1
    label: int = 4
    rows: tuple[str, ...] = ()  # the columns of words and of tags, where a row is a sentence
    columns: tuple[str, ...] = ()  # of such files without a header line
    scheme: Literal["iob2", "as is"] = "iob2"  # how tags mark chunks to the model: IOB1, IOBES, BILOU... are rewritten
    document: bool = True  # a sentence is read with the text around it
    metrics: tuple[str, ...] = ("f1",)  # or accuracy; the first is what counts
    features: config.Features | None = None  # what a frozen encoder gives of each word; None: the encoder is trained
    bilstm: config.BiLSTM | None = None  # between encoder and classifier; over tokens, or over a sentence's features

    fresh: ClassVar[tuple[str, ...]] = ("tagger", "bilstm", "mix")

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.labels) > 1, f"tagging needs at least two labels, not {self.labels}")
        require(len(set(self.labels)) == len(self.labels), f"a label is named twice: {self.labels}")
        require(len(self.dev) > 0, "dev must name a file")
        require(self.word > 0 and self.label > 0, "word and label are numbers of columns, counted from 1")
        require(len(self.rows) in (0, 2), f"rows must name two columns, of words and of tags, not {self.rows}")
        require(bool(self.rows) or not self.columns, "columns are the names of rows: name two of them in rows")
        for name in self.metrics:
            require(name in ("f1", "accuracy"), f"tags are scored by f1 or accuracy, not by {name!r}")
        splits = ("train", *self.validation())
        require(len(set(splits)) == len(splits), f"two files have one name: {', '.join(splits)}")

    @property
    def frozen(self) -> bool:
        return self.features is not None

    @property
    def metric(self) -> str:
        return (*self.metrics, "f1")[0]

    def validation(self) -> tuple[str, ...]:
        return ("validation", *map(tables.stem, self.dev[1:]))

    def files(self) -> tuple[str, ...]:
        return (self.train, *self.dev)

    def source(self, split: str, length: int, context: Context) -> Source:
        names = {"train": self.train, **dict(zip(self.validation(), self.dev, strict=True))}
        documents = self.read(tables.path_of(names[split], context.data_dir))
        sentences = self.sentences(documents, length, context.tokenizer)
        if context.frozen is None:
            return sentences
        return self.words(sentences, context.frozen, cache_dir=context.cache_dir, quiet=context.quiet)

    def sentences(self, documents: Sequence[Sequence[Sentence]], length: int, tokenizer: Tokenizer) -> Sentences:
        """The windows of at most `length` tokens in which the encoder reads those documents."""
        words = self.features.words if self.features else length
        return Sentences(documents, self.labels, length, tokenizer, document=self.document, words=words)

    def words(self, sentences: Sentences, frozen: Frozen, *, cache_dir: str | None = None, quiet: bool = True) -> Words:
        """The same with the frozen encoder's vectors instead of tokens; `cache_dir` as in `features.vectors`."""
        assert self.features is not None
        layers = self.features.numbers(frozen.config.layers)
        vectors = features.vectors(
            frozen, sentences.arrays, layers, dtype=self.features.dtype, cache_dir=cache_dir, quiet=quiet
        )
        return Words(sentences, vectors, min(sentences.arrays["tokens"].shape[1], self.features.words))

    def read(self, path: str) -> list[list[Sentence]]:
        """The documents of a file, each a list of sentences; all of one document, where `document` asks for no marks.

        Raises:
          ValueError: that names file and line, what was expected and what stands there.
        """
        documents: list[list[Sentence]] = [[]]
        marked = False
        blocks: Iterator[files.Block | None]
        if self.rows:
            blocks = files.in_rows(path, self.rows, self.columns)
        else:
            blocks = files.in_columns(path, self.word, self.label)
        for block in blocks:
            if block is None:
                documents.append([])
                marked = True
            else:
                documents[-1].append(Sentence(tuple(block.words), tuple(self._tags(block))))
        documents = [document for document in documents if document]
        require(bool(documents), f"{path}: no sentences")
        require(
            marked or not self.document,
            f"{path} marks no documents (-DOCSTART-, #begin document, # newdoc), so a sentence's context is not known: "
            "set task.document=false",
        )
        return documents

    def _tags(self, block: files.Block) -> list[str]:
        """The tags of a sentence, in the scheme of the labels.

        Raises:
          ValueError: that says where a tag stands that is none, as it stands there.
        """
        if self.scheme == "iob2":
            for number, tag in enumerate(block.tags):
                try:
                    scores.check_tag(tag)
                except ValueError as error:
                    raise ValueError(f"{block.where(number)}: {error}") from None
        tags = scores.as_iob2(block.tags) if self.scheme == "iob2" else block.tags
        for number, (word, written, tag) in enumerate(zip(block.words, block.tags, tags, strict=True)):
            if tag not in self.labels:
                read = "" if tag == written else f", in IOB2 {tag!r},"
                said = f"tag {written!r} of {word!r}{read} is none of {', '.join(self.labels)}"
                raise ValueError(f"{block.where(number)}: {said}; name all in task.labels")
        return tags

    def spec(self, batch_size: int, length: int, encoder: config.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
        row = (batch_size, min(length, self.features.words) if self.features else length)
        more = {"tags": (row, jnp.int32), "predicted": (row, jnp.bool_)}
        if self.features is None:
            return inputs(*row, **more)
        vectors = (*row, len(self.features.numbers(encoder.layers)), encoder.hidden)
        found = inputs(*row, **more, features=(vectors, jnp.dtype(self.features.dtype)))
        return {name: one for name, one in found.items() if name not in ("tokens", "segments", "mask")}

    def module(self, encoder: config.Encoder) -> nn.Module:
        if self.features is None:
            return heads.Tagging(encoder, len(self.labels), self.bilstm)
        return heads.FeatureTagging(encoder, len(self.labels), self.features.summed, self.bilstm)

    def losses(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[dict[str, Pair], dict[str, Pair]]:
        weights = batch["predicted"] * batch["weight"][:, None]
        answer = (outputs["logits"], batch["tags"], weights)
        return {"tag_loss": losses.cross_entropy(*answer)}, {"accuracy": losses.accuracy(*answer)}

    def kept(self, outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"tags": jnp.argmax(outputs["logits"], axis=-1)}

    def score(self, source: Sentences | Words, outputs: Outputs) -> dict[str, float]:
        """Precision, recall and F1 of chunks where the tags mark some, and the accuracy of tags (conlleval); the share
        of the commonest tag, and whether all predictions are one."""
        predicted, expected = source.tags(outputs["tags"]), [sentence.tags for sentence in source.sentences]
        figures = scores.conlleval(predicted, expected)
        if "f1" not in self.metrics:
            figures = {"accuracy": figures["accuracy"]}
        counted = collections.Counter(tag for tags in expected for tag in tags)
        figures["majority"] = max(counted.values()) / counted.total()
        return {**figures, "constant": float(len({tag for tags in predicted for tag in tags}) == 1)}

    def predictions(
        self, split: str, source: Sentences | Words, outputs: Outputs, scores: Mapping[str, float]
    ) -> dict[str, str]:
        """What conlleval reads: word, expected tag and predicted tag, a blank line after each sentence.

        White space in a word is "_" there, as an empty word is: the script counts columns by it.
        """
        lines = []
        for sentence, tags in zip(source.sentences, source.tags(outputs["tags"]), strict=True):
            words = ["".join("_" if char.isspace() else char for char in word) or "_" for word in sentence.words]
            lines += [" ".join(row) for row in zip(words, sentence.tags, tags, strict=True)]
            lines.append("")
        return {f"{split}.txt": "\n".join(lines) + "\n"}


class Sentence(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]


class Sentences(Arrays):
    """[CLS] context, words, context [SEP], padded: the examples of a file, in its order.

    tokens, segments and mask [N, T]; predicted [N, T], True at the first tokens of the words that the window is for;
    tags [N, T], the class there.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[Sentence]],
        labels: Sequence[str],
        length: int,
        tokenizer: Tokenizer,
        *,
        document: bool,
        words: int | None = None,
    ) -> None:
        """`words` is the most that one window is for; by default as many as there is room for."""
        self.sentences = [sentence for one in documents for sentence in one]
        self.labels = labels
        numbers = {label: number for number, label in enumerate(labels)}
        room = length - 2
        require(room > 0, f"length {length} leaves no room for a word")
        scopes = documents if document else [[sentence] for sentence in self.sentences]
        windows = [window for scope in scopes for window in _windows(scope, room, words or room, tokenizer)]
        shape = (len(windows), length)
        tokens = np.full(shape, tokenizer.pad, np.int32)
        tags, mask, predicted = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
        for row, (pieces, places, names) in enumerate(windows):
            end = len(pieces) + 2
            tokens[row, :end], mask[row, :end] = [tokenizer.cls, *pieces, tokenizer.sep], True
            at = np.asarray(places) + 1
            predicted[row, at], tags[row, at] = True, [numbers[name] for name in names]
        super().__init__(tokens=tokens, segments=np.zeros_like(tokens), mask=mask, tags=tags, predicted=predicted)

    @property
    def epoch_size(self) -> int:
        """Sentences of the file, in however many parts they are read and whatever stands around them."""
        return len(self.sentences)

    @property
    def terms(self) -> np.ndarray:
        return self.arrays["predicted"].sum(axis=1)

    def tags(self, classes: np.ndarray) -> list[list[str]]:
        """The tags of each sentence, from the classes of all places [N, up to T]."""
        return self.spelled(classes[self.arrays["predicted"][:, : classes.shape[1]]])

    def spelled(self, classes: np.ndarray) -> list[list[str]]:
        """The tags of each sentence, from the classes [words]: windows and words are in order."""
        found = iter(classes.tolist())
        return [[self.labels[next(found)] for _ in sentence.words] for sentence in self.sentences]


class Words:
    """The words that windows are for, a row a window, by S layers' vectors of a frozen encoder.

    features [N, W, S, D], as the layers are kept; predicted [N, W], True where there is a word; tags [N, W]. A row's
    size, and how many terms its loss is a mean over, is its number of words.
    """

    def __init__(self, windows: Sentences, layers: Sequence[np.ndarray], width: int) -> None:
        """`layers` hold each [words, D], in order; `width` is W."""
        self.windows, self.layers = windows, layers
        self.sentences = windows.sentences
        self.sizes = self.terms = windows.arrays["predicted"].sum(axis=1)
        self.ends = np.cumsum(self.sizes)
        predicted = np.arange(width)[None] < self.sizes[:, None]
        tags = np.zeros(predicted.shape, np.int32)
        tags[predicted] = windows.arrays["tags"][windows.arrays["predicted"]]
        self.arrays = {"tags": tags, "predicted": predicted}

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def epoch_size(self) -> int:
        return self.windows.epoch_size

    def batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: array[ids] for name, array in self.arrays.items()}
        first = self.layers[0]
        vectors = np.zeros((*found["predicted"].shape, len(self.layers), first.shape[1]), first.dtype)
        for row, (end, there) in enumerate(zip(self.ends[ids], found["predicted"], strict=True)):
            count = int(there.sum())
            for number, layer in enumerate(self.layers):
                vectors[row, :count, number] = layer[end - count : end]
        return {**found, "features": vectors}

    def tags(self, classes: np.ndarray) -> list[list[str]]:
        """As those of `Sentences`, from the classes [N, up to W]."""
        return self.windows.spelled(classes[self.arrays["predicted"][:, : classes.shape[1]]])


def _windows(
    scope: Sequence[Sentence], room: int, most_words: int, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int], list[str]]]:
    """For each sentence of a text that may be read together: (tokens, places of its words' first tokens, their tags).

    A sentence above `room` tokens, or `most_words` words, is cut into as many parts of about the same size as it needs,
    each with a window of its own. What room a part leaves is given to the text before and after it, alike where there
    is enough of both.
    """
    # A word of no tokens, as one of control characters alone, is unknown; one above the room is cut.
    cut = [[(tokenizer.encode(word) or [tokenizer.unk])[:room] for word in sentence.words] for sentence in scope]
    text = [token for words in cut for word in words for token in word]
    end = 0
    for sentence, words in zip(scope, cut, strict=True):
        total = sum(map(len, words))
        most = -(-total // -(-total // room))  # tokens of a part
        some = -(-len(words) // -(-len(words) // most_words))  # words of a part
        low = 0
        while low < len(words):
            high, start, places = low, end, []
            while high < min(len(words), low + some) and (high == low or end - start + len(words[high]) <= most):
                places.append(end)
                end += len(words[high])
                high += 1
            spare = room - (end - start)
            before = min(start, max(spare // 2, spare - (len(text) - end)))
            after = min(len(text) - end, spare - before)
            pieces = text[start - before : end + after]
            yield pieces, [place - (start - before) for place in places], list(sentence.tags[low:high])
            low = high
