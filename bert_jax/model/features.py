"""Hidden states of an encoder that stays as it is: computed once, kept on disk, layer by layer (paper, section 5.3)."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bert_jax import cache, config
from bert_jax.cache import Make
from bert_jax.model.encoder import Bert, check_inputs

VERSION = 1  # of this code's output: to be raised when the numbers that it gives change
TOKENS = 4096  # of one batch, padding included

# What an encoder is made of that changes no hidden state, or that its weights tell.
_FREE = ("dropout", "attention_dropout", "dropout_rng", "init_stddev", "scan", "remat", "vocab_multiple")


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """An encoder that is not trained, and its parameters."""

    config: config.Encoder
    params: Any  # "embeddings" and "layers", as arrays or what `np.asarray` takes

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What its hidden states follow from: the weights' contents, and the fields that say what is made of them."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        named = [part for keys, leaf in leaves for part in (jax.tree_util.keystr(keys), np.asarray(leaf))]
        fields = dataclasses.asdict(self.config)
        return {"weights": cache.digest(*named), **{k: v for k, v in fields.items() if k not in _FREE}}


def vectors(
    frozen: Frozen,
    arrays: Mapping[str, np.ndarray],
    layers: Sequence[int],
    *,
    dtype: str = "float32",
    cache_dir: str | None = None,
    quiet: bool = True,
) -> list[Float[np.ndarray, "W D"]]:
    """For each of `layers`, in ascending order, its vectors at the W places where `predicted` is True, row by row.

    Each layer is kept by itself, so that every choice of layers finds what another one left; those that are missing
    come of one run of the encoder. On one device, in batches of `TOKENS` tokens, rows of like length together: what
    padding there is changes the last bits of a float at most.

    Args:
      frozen: the encoder. Layer 0 is the embeddings' output, layer n that of its n-th layer.
      arrays: tokens, segments, mask and predicted [N, T].
      layers: numbers from 0 to the encoder's number of layers.
      dtype: float32 is exact, float16 half the size.
      cache_dir: as in `cache.arrays`; None keeps nothing, the vectors are in memory.
      quiet: no progress on stderr.
    """
    shape = (int(arrays["predicted"].sum()), frozen.config.hidden)
    if cache_dir is None:
        found = {layer: np.empty(shape, dtype) for layer in layers}
        _fill(frozen, arrays, found, quiet)
        return [found[layer] for layer in layers]
    key = {
        "is": "features",
        "version": VERSION,
        "encoder": frozen.fingerprint,
        "inputs": cache.digest(*(arrays[name] for name in ("tokens", "segments", "mask", "predicted"))),
        "dtype": dtype,
    }

    def keep(rest: Sequence[int], missing: dict[int, np.ndarray]) -> None:
        """Opens an entry for each of `rest` that is missing, one within the other; the innermost call fills them."""
        if not rest:
            if missing:
                _fill(frozen, arrays, missing, quiet)
            return
        opened = False

        def build(make: Make) -> None:
            nonlocal opened
            opened = True
            keep(rest[1:], {**missing, rest[0]: make("vectors", shape, dtype)})

        cache.arrays(cache_dir, {**key, "layer": rest[0]}, build)
        if not opened:
            keep(rest[1:], missing)

    def lost(make: Make) -> None:
        raise OSError(f"the cache {cache_dir or cache.default_directory()} was changed while it was read: start again")

    keep(sorted(layers), {})
    return [cache.arrays(cache_dir, {**key, "layer": layer}, lost)["vectors"] for layer in layers]


def _fill(frozen: Frozen, arrays: Mapping[str, np.ndarray], into: Mapping[int, np.ndarray], quiet: bool) -> None:
    """Runs the encoder over all rows; writes each layer's vectors at the predicted places to their own place `into`."""
    check_inputs(frozen.config, arrays)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), frozen.params)
    layers = tuple(sorted(into))
    counts = arrays["predicted"].sum(axis=1)
    ends = np.cumsum(counts)
    began = said = time.monotonic()
    done = 0
    for rows, length in _batches(arrays["mask"]):
        predicted = arrays["predicted"][rows, :length]
        most = -(-int(counts[rows].max()) // 16) * 16  # few shapes, few compilations
        at = np.zeros((len(rows), most), np.int32)
        there = np.arange(most)[None] < counts[rows][:, None]
        at[there] = np.nonzero(predicted)[1]
        given = (arrays[name][rows, :length] for name in ("tokens", "segments", "mask"))
        states = np.asarray(_states(frozen.config, layers, params, *given, at))
        for row, number in enumerate(rows):
            if row > 0 and number == rows[row - 1]:
                continue  # the last row of a batch that is not full stands there again and again
            place = slice(ends[number] - counts[number], ends[number])
            for layer, state in zip(layers, states, strict=True):
                into[layer][place] = state[row, : counts[number]]
            done += 1
        if not quiet and time.monotonic() - said > 10:
            said = time.monotonic()
            left = (said - began) / done * (len(counts) - done)
            print(f"features: {done:,} of {len(counts):,}  left {left // 60:.0f}:{left % 60:02.0f}", file=sys.stderr)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states(
    encoder: config.Encoder,
    layers: tuple[int, ...],
    params: Any,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    at: Int[Array, "B M"],
) -> Float[Array, "S B M D"]:
    """The hidden states of those layers at those places, float32, without dropout."""
    encoded: Any = Bert(encoder).apply({"params": params}, tokens, segments, mask, all_layers=True)
    states = encoded.layers
    return jnp.stack([jnp.take_along_axis(states[n], at[:, :, None], axis=1) for n in layers]).astype(jnp.float32)


def _batches(mask: Bool[np.ndarray, "N T"]) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of like length, and the length that they are cut to; a batch that is not full repeats its last row."""
    sizes = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)
    order = np.argsort(sizes, kind="stable")
    start = 0
    while start < len(order):
        length = min(-(-int(sizes[order[start]]) // 32) * 32, mask.shape[1])
        same = int(np.searchsorted(sizes[order], length, side="right"))
        count = max(1, TOKENS // length)
        rows = order[start : min(same, start + count)]
        yield np.concatenate([rows, np.repeat(rows[-1:], count - len(rows))]), length
        start += len(rows)
