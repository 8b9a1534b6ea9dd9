"""A loaded model with its weights as one program, which JAX runs without this package: `jax.export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export as jax_export

from bert_jax.config import nearest, require
from bert_jax.inference.model import Model
from bert_jax.model import encoder, heads
from bert_jax.tasks.choice import Choose

# What a program gives: the last layer's states, the mean of those of a row's tokens, that of [CLS]; or what heads give.
What: TypeAlias = Literal["hidden", "mean", "cls", "heads"]
PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    model: Model, what: str | None = None, batch_size: int | None = None, platforms: Sequence[str] = PLATFORMS
) -> bytes:
    """The model's forward pass with its weights, as `jax.export.deserialize` reads it.

    The program is called with tokens int32, segments int32 and mask bool, [B, T] each (of a choice [B, N, T]); mask is
    True where there is a token. B, N and T are free, T up to `model.length`, which is not checked against the table of
    words. A text's tokens are `[CLS] ... [SEP]`, as `model.tokenizer` or the vocabulary's own library makes them.

    Args:
      model: as `bert_jax.load` gives it.
      what: "hidden", float32 [B, T, D]; "mean" or "cls" of them, float32 [B, D], as `Model.embed`; "heads", a dict as
        `Model.outputs`, whose `mlm_logits` are here of all tokens, [B, T, V]. None: the heads, where there are any.
      batch_size: where B shall be fixed.
      platforms: which it is made for.

    Raises:
      ValueError: where the model has no heads, or its heads read the states of a frozen encoder; without flatbuffers.

    Example:
      >>> path.write_bytes(exporting.export(bert_jax.load("run")))   # doctest: +SKIP
      >>> jax.export.deserialize(bytearray(path.read_bytes())).call(tokens, segments, mask)   # doctest: +SKIP
    """
    module = heads.module_of(model.config, model.params)
    what = what or ("hidden" if module is None else "heads")
    require(what in get_args(What), f"an export is not of {what!r}: {nearest(what, get_args(What))}")
    frozen = model.experiment.task.frozen
    require(what != "heads" or not frozen, "its heads read a frozen encoder's states: export these, what='hidden'")
    require(what != "heads" or module, "this model has no heads: export what='hidden', 'mean' or 'cls'")
    choice = what == "heads" and isinstance(model.experiment.task, Choose)
    sizes = f"{'b' if batch_size is None else batch_size}{', n' * choice}, t"
    shape = jax_export.symbolic_shape(sizes, constraints=(f"t <= {model.length}",))
    batch = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.int32, jnp.bool_)]
    program = jax_export.export(jax.jit(_program(model, module, what)), platforms=platforms)(*batch)
    try:
        return bytes(program.serialize())
    except ImportError:
        raise ValueError("what JAX exports it writes with flatbuffers: pip install flatbuffers") from None


def _program(model: Model, module: nn.Module | None, what: str) -> Callable[..., Any]:
    """A function of tokens, segments and mask; the weights are constants in it."""

    def outputs(tokens: jax.Array, segments: jax.Array, mask: jax.Array) -> Any:
        assert module is not None
        batch = {"tokens": tokens, "segments": segments, "mask": mask}
        if isinstance(module, heads.PreTraining):  # predicts where it is asked to: everywhere
            batch["positions"] = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        return module.apply({"params": model.params}, batch, train=False)

    def states(tokens: jax.Array, segments: jax.Array, mask: jax.Array) -> jax.Array:
        params = {"params": model.params["encoder"]}
        encoded: Any = encoder.Bert(model.config).apply(params, tokens, segments, mask)
        hidden = encoded.hidden.astype(jnp.float32)
        if what == "hidden":
            return hidden
        if what == "cls":
            return hidden[:, 0]
        weights = mask[:, :, None].astype(jnp.float32)
        return (hidden * weights).sum(axis=1) / weights.sum(axis=1)

    return outputs if what == "heads" else states
