"""How parameters and batches lie on the mesh: one table from parameter to logical axes, one from those to the mesh.

A parameter without a row, a row without its parameter and a mesh axis used twice are errors: a forgotten row would
otherwise be a silently replicated tensor.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bert_jax import config, trees
from bert_jax.config import require

BATCH = ("data", "fsdp")  # the mesh axes that split a batch's rows

# The mesh axis that splits each logical axis; None is never split.
AXES = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "model",
    "heads": "model",
    "mlp": "model",
    "rows": None,  # small tables and vectors
    "classes": None,
}

# Parameter path -> its logical axes.
PARAMETERS = {
    "encoder/embeddings/word": ("vocab", "embed"),
    "encoder/embeddings/position": ("rows", "embed"),
    "encoder/embeddings/segment": ("rows", "embed"),
    "encoder/embeddings/norm/scale": ("rows",),
    "encoder/embeddings/norm/bias": ("rows",),
    "encoder/layers/attention/qkv/kernel": ("layers", "embed", "heads"),
    "encoder/layers/attention/qkv/bias": ("layers", "heads"),
    "encoder/layers/attention/out/kernel": ("layers", "heads", "embed"),
    "encoder/layers/attention/out/bias": ("layers", "rows"),
    "encoder/layers/attention_norm/scale": ("layers", "rows"),
    "encoder/layers/attention_norm/bias": ("layers", "rows"),
    "encoder/layers/inner/kernel": ("layers", "embed", "mlp"),
    "encoder/layers/inner/bias": ("layers", "mlp"),
    "encoder/layers/outer/kernel": ("layers", "mlp", "embed"),
    "encoder/layers/outer/bias": ("layers", "rows"),
    "encoder/layers/outer_norm/scale": ("layers", "rows"),
    "encoder/layers/outer_norm/bias": ("layers", "rows"),
    "pooler/dense/kernel": ("rows", "embed"),
    "pooler/dense/bias": ("rows",),
    "masked_lm/dense/kernel": ("rows", "embed"),
    "masked_lm/dense/bias": ("rows",),
    "masked_lm/norm/scale": ("rows",),
    "masked_lm/norm/bias": ("rows",),
    "masked_lm/bias": ("vocab",),
    "next_sentence/dense/kernel": ("embed", "classes"),
    "next_sentence/dense/bias": ("classes",),
    "classifier/dense/kernel": ("embed", "classes"),
    "classifier/dense/bias": ("classes",),
    "tagger/dense/kernel": ("embed", "classes"),
    "tagger/dense/bias": ("classes",),
    "span/dense/kernel": ("embed", "classes"),
    "span/dense/bias": ("classes",),
    "choice/dense/kernel": ("embed", "classes"),
    "choice/dense/bias": ("classes",),
    "mix/weights": ("rows",),
    "bilstm/layer_{n}/kernel": ("rows", "embed", "rows"),  # a row for every n
    "bilstm/layer_{n}/recurrent": ("rows", "rows", "rows"),  # every step of the loop reads it whole
    "bilstm/layer_{n}/bias": ("rows", "rows"),
}

# The logical axes of a module's output (of each, where it has several) behind its rows, where the modules in between
# keep what `model` splits. Of all others, only the rows are split.
ACTIVATIONS = {
    "qkv": ("rows", "heads", "rows"),  # [T, H, K] of query, key and value
    "inner": ("rows", "mlp"),
    "masked_lm": ("rows", "vocab"),
}


def make_mesh(shape: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over all devices, -1 resolved; between slices lies the outer part of `data`.

    Raises:
      ValueError: where the axes do not multiply to the number of devices, or these belong to another number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": shape.data, "fsdp": shape.fsdp, "model": shape.model}
    named = math.prod(size for size in sizes.values() if size != -1)
    for name, size in sizes.items():
        if size == -1:
            sizes[name] = len(devices) // named
    require(
        math.prod(sizes.values()) == len(devices),
        f"a mesh of {' x '.join(f'{k}={v}' for k, v in sizes.items())} does not fit {len(devices)} devices: "
        "change --config.mesh.data, .fsdp or .model (-1 takes what is left)",
    )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    require(
        slices == shape.slices,
        f"mesh.slices={shape.slices}, but the devices belong to {slices}: set --config.mesh.slices={slices}",
    )
    # Explicit axes, the default of make_mesh, would have modules name shardings; here the compiler propagates them.
    types = (AxisType.Auto,) * len(sizes)
    if slices == 1:
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)
    require(sizes["data"] % slices == 0, f"mesh.data={sizes['data']} cannot be split over {slices} slices")
    inner = (sizes["data"] // slices, sizes["fsdp"], sizes["model"])
    placed = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices)
    return jax.sharding.Mesh(placed, tuple(sizes), axis_types=types)


def row_of(path: str) -> str:
    """A parameter's path as the table has it: one row serves the numbered layers of a head."""
    return re.sub(r"layer_\d+", "layer_{n}", path)


def parameter_specs(params: Any, table: dict[str, tuple[str, ...]] = PARAMETERS) -> Any:
    """The `PartitionSpec` of each parameter (arrays or shapes), by the table.

    Raises:
      ValueError: at a parameter without a row or of another rank, a row of a module in use without its parameter, or a
        mesh axis used twice in one row.
    """
    found = trees.leaves(params)
    for path, leaf in found.items():
        row = row_of(path)
        require(row in table, f"parameter {path} {leaf.shape} has no row in sharding.PARAMETERS: add one")
        require(len(table[row]) == leaf.ndim, f"parameter {path} is {leaf.shape}, its row says {table[row]}")
        used = [AXES[axis] for axis in table[row] if AXES[axis]]
        require(len(used) == len(set(used)), f"parameter {path}: {table[row]} uses a mesh axis twice: {used}")
    modules, rows = {path.split("/")[0] for path in found}, set(map(row_of, found))
    for row in table:
        require(row.split("/")[0] not in modules or row in rows, f"no parameter for the row {row}: rename it")

    def spec(keys: tuple[Any, ...], _: Any) -> PartitionSpec:
        return PartitionSpec(*map(AXES.get, table[row_of(trees.path_of(keys))]))

    return jax.tree_util.tree_map_with_path(spec, params)


def state_shardings(mesh: jax.sharding.Mesh, state: Any) -> Any:
    """The shardings of a train state (step, params, optimizer): Adam's moments lie as their parameters do.

    Raises:
      ValueError: as `parameter_specs`, and where a parameter's axis is no multiple of the mesh axis that splits it.
    """
    specs = parameter_specs(state.params)
    for (keys, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(specs), strict=True
    ):
        for size, axis in zip(leaf.shape, spec, strict=True):
            parts = mesh.shape[axis] if axis else 1
            require(
                size % parts == 0,
                f"{trees.path_of(keys)} {leaf.shape}: {size} cannot be split over mesh.{axis}={parts}: choose a divisor"
                + (
                    f", or --config.encoder.vocab_multiple={parts}"
                    if "vocab" in PARAMETERS[row_of(trees.path_of(keys))]
                    else ""
                ),
            )
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    moments = state.optimizer._replace(step=replicated, mu=shardings, nu=shardings)
    return state._replace(step=replicated, params=shardings, optimizer=moments)


def gathered(mesh: jax.sharding.Mesh, params: Any) -> Any:
    """The parameters as a step uses them: those outside the layers whole along `fsdp`, gathered once.

    The layers' own are gathered by the compiler where each layer runs, so that no two are whole at a time.
    """
    if mesh.shape["fsdp"] == 1:
        return params

    def gather(keys: tuple[Any, ...], leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if "layers" in PARAMETERS[row_of(trees.path_of(keys))]:
            return leaf
        whole = PartitionSpec(*[None if axis == "fsdp" else axis for axis in spec])
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, whole))

    return jax.tree_util.tree_map_with_path(gather, params, parameter_specs(params))


def activations(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager[Any]:
    """Modules applied within lay their outputs on the mesh: rows over `BATCH`, the other axes as `ACTIVATIONS` says.

    Without it the compiler is free to follow a parameter that `fsdp` splits and to split activations the same way,
    with collectives around every layer; so it gathers the parameter instead. The modules themselves know no mesh.
    """

    def lay(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = next_fun(*args, **kwargs)
        name = context.module.name or type(context.module).__name__
        axes = ACTIVATIONS.get(name, ("rows", "rows"))  # [rows, positions, features]
        spec = PartitionSpec(BATCH, *map(AXES.get, axes))

        def place(leaf: Any) -> Any:
            fits = isinstance(leaf, jax.Array) and leaf.ndim == len(spec)
            require(fits or name not in ACTIVATIONS, f"an output of {name} has not the axes {axes} of its row")
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec)) if fits else leaf

        return jax.tree.map(place, output) if name in ACTIVATIONS else place(output)

    split = mesh.shape["fsdp"] * mesh.shape["model"] > 1  # else only rows are, which nothing can mistake
    return nn.intercept_methods(lay) if split else contextlib.nullcontext()


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows split over `BATCH`, all else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def stacked(shardings: Any) -> Any:
    """The shardings of several such trees side by side, with a leading axis that is never split."""
    return jax.tree.map(lambda one: NamedSharding(one.mesh, PartitionSpec(None, *one.spec)), shardings)
