"""A JAX/Flax laboratory for BERT: pre-training, fine-tuning and the paper's ablations."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from bert_jax.inference.model import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> typing.Any:
    """`bert_jax.load`, imported at its first use: the worker processes of a corpus build need no JAX."""
    if name == "load":
        from bert_jax.inference import model

        return model.load
    raise AttributeError(f"module 'bert_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
