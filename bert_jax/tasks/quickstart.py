"""The classification data that every machine has: which library does this sentence of documentation come from?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from bert_jax import files
from bert_jax.config import require
from bert_jax.text import readers

LIBRARIES = ("numpy", "jax", "matplotlib", "stdlib")


def labelled(libraries: Sequence[str], words: range) -> Iterator[tuple[str, str, str]]:
    """(module, sentence, library) for the sentences of a length in `words` that do not name a library."""
    for library in libraries:
        for document in readers.documents([f"python-docs:{library}"]):
            for sentence in readers.sentences(document):
                lower = sentence.lower()
                if len(sentence.split()) in words and not any(name in lower for name in (*libraries, "np.", "jnp")):
                    yield document.name, sentence.replace("\t", " "), library


def write(directory: str, libraries: Sequence[str] = LIBRARIES, *, per_library: int = 1500, seed: int = 0) -> None:
    """Writes train.tsv and dev.tsv (columns sentence, label) with as many sentences of each library.

    A module is wholly in one of the two files, and no sentence is in both.

    Raises:
      ValueError: where a library has too few sentences.
    """
    rng = random.Random(seed)
    found: dict[str, dict[str, str]] = {library: {} for library in libraries}
    for module, sentence, library in labelled(libraries, range(6, 40)):
        found[library].setdefault(sentence, module)
    shared = {s for a in libraries for b in libraries if a != b for s in found[a].keys() & found[b].keys()}
    rows: dict[str, list[str]] = {"train": [], "dev": []}
    for library, sentences in found.items():
        modules = sorted(set(sentences.values()))
        rng.shuffle(modules)
        held = set(modules[: max(1, len(modules) // 4)])
        parts: dict[str, list[str]] = {"train": [], "dev": []}
        for sentence, module in sentences.items():
            if sentence not in shared:
                parts["dev" if module in held else "train"].append(sentence)
        for split, count in (("train", per_library), ("dev", per_library // 4)):
            require(len(parts[split]) >= count // 2, f"{library} has only {len(parts[split])} sentences for {split}")
            chosen = rng.sample(parts[split], min(count, len(parts[split])))
            rows[split] += [f"{sentence}\t{library}" for sentence in chosen]
    for split, lines in rows.items():
        rng.shuffle(lines)
        files.write(files.path(directory) / f"{split}.tsv", "\n".join(["sentence\tlabel", *lines]) + "\n")
