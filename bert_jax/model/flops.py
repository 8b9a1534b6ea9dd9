"""How many floating-point operations a training step needs: what MFU and preflight count by.

Those of the matrix products alone, two for each multiplication and addition; the backward pass has twice those of the
forward. What a program adds to that, by computing again (`encoder.remat`) or for what nobody reads, is not needed and
does not count. With P = 4 D D + 2 D F, the kernels of a layer, the forward pass of a sequence of T tokens takes

    (L - 1) (2 P T + 4 T T D)                                   all layers but the last: kernels; scores and mixing
    + 4 D D T + 2 (P - 2 D D) R + 4 R T D                       the last: keys and values of all T; the rest where read
    + 2 (each head's kernel) x (the positions it reads)         and 2 V D M for the masked LM's logits

where R is how many positions the heads read: M predicted ones and [CLS] in pre-training (M is T - 1 from left to
right), [CLS] alone in classification, all T for spans, tags and what reads a BiLSTM. Scores that a left-to-right model
hides count like the others: a plain program computes them. So a step has about 6 x (parameters in kernels) x tokens,
and 12 L T D x tokens of attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from bert_jax import config

EVERY_TOKEN = ("bilstm", "tagger", "span")  # the heads that read all positions; an LM reads M, the others [CLS]


def of_step(encoder: config.Encoder, params: Mapping[str, Any], sequences: int, length: int, predictions: int) -> float:
    """The operations that one training step needs, forward and backward.

    Args:
      encoder: its sizes.
      params: the module's parameters, arrays or shapes: what heads there are.
      sequences: in the step's whole batch.
      length: T, with padding.
      predictions: M, where there is a language model.
    """
    c, t = encoder, length
    layer = 4 * c.hidden**2 + 2 * c.hidden * c.feed_forward
    heads, read = 0.0, 0
    for name, head in params.items():
        if name == "encoder":
            continue
        positions = predictions if name == "masked_lm" else t if name in EVERY_TOKEN else 1
        leaves = jax.tree_util.tree_leaves_with_path(head)
        kernels = sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key in ("kernel", "recurrent"))
        kernels += c.vocab_size * c.hidden if name == "masked_lm" else 0
        heads += 2 * kernels * positions
        read += positions if name in ("masked_lm", *EVERY_TOKEN) else 0
    read = min(t, read + any(name not in ("encoder", "masked_lm", *EVERY_TOKEN) for name in params))
    last = 4 * c.hidden**2 * t + 2 * (layer - 2 * c.hidden**2) * read + 4 * read * t * c.hidden
    forward = (c.layers - 1) * (2 * layer * t + 4 * t * t * c.hidden) + last + heads
    return 3.0 * sequences * forward
