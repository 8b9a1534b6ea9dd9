"""Trees of parameters by the paths of their leaves: "encoder/embeddings/word"."""

from __future__ import annotations

import functools
from typing import Any

import jax

path_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
