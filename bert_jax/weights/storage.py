"""The tensors of safetensors and PyTorch files, whole or in shards, under the names that BERT's classes give them."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import safetensors

from bert_jax import config
from bert_jax.config import require

WEIGHTS = "model.safetensors"
_PYTORCH, _INDEX = "pytorch_model.bin", ".index.json"
# Other files of weights, which are named where they lie alone.
_OTHERS = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.ckpt*", "*.pt", "*.pth", "*.onnx", "*.gguf")

# Tensors that may be there to no use: buffers that hold 0, 1, 2, ... and 0, 0, 0, ...
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
# Tied tensors that some versions write a second time. Where they are alone, they stand for the first.
_COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_WORDS = "embeddings.word_embeddings.weight"  # every BERT has it, whatever stands before its name
_FLOATS = ("F64", "F32", "F16", "BF16")


@runtime_checkable
class Stored(Protocol):
    """Tensors by the names that they have in their files."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str) -> np.ndarray: ...


def open(folder: pathlib.Path) -> Stored:
    """The tensors in a directory: of safetensors or PyTorch files, in shards or not, the first that are there.

    Raises:
      ValueError: where there are none, or files are missing or damaged; says which.
    """
    for name, kind in ((WEIGHTS, _Safetensors), (_PYTORCH, _PyTorch)):
        if (folder / name).exists():
            return kind({"": folder / name})
        if (folder / f"{name}{_INDEX}").exists():
            return kind(_shards(folder, f"{name}{_INDEX}"))
    found = sorted({path.name for pattern in _OTHERS for path in folder.glob(pattern)})
    beside = f"; {', '.join(found[:5])} lies there, which is not read" if found else ""
    if any(name.endswith((".safetensors", ".bin")) and not name.startswith("adapter") for name in found):
        beside += f": if it is the whole model, rename it to {WEIGHTS} or {_PYTORCH}"
    raise ValueError(
        f"{folder} holds no weights: neither {WEIGHTS} nor {WEIGHTS}{_INDEX} nor {_PYTORCH} nor {_PYTORCH}{_INDEX}"
        f"{beside}"
    )


def _shards(folder: pathlib.Path, index: str) -> dict[str, pathlib.Path]:
    """Each tensor's file, by an index."""
    ending = pathlib.PurePath(index.removesuffix(_INDEX)).suffix
    listed = config.read_json(folder / index).get("weight_map", {})
    require(isinstance(listed, dict), f"{folder / index}: weight_map must give each tensor's file")
    for name, file in listed.items():
        # A file's name alone, by any system's rules: an index must not lead out of its folder.
        plain = isinstance(file, str) and pathlib.PureWindowsPath(file).name == file and file.endswith(ending)
        require(plain, f"{folder / index}: {name} is in {file!r}, which is not the name of a {ending} file beside it")
    missing = sorted({file for file in listed.values() if not (folder / file).exists()})
    require(not missing, f"{folder}: {', '.join(missing)}, which {index} lists, is missing: copy all shards")
    return {name: folder / file for name, file in listed.items()}


def _check_index(files: Mapping[str, pathlib.Path], found: Mapping[str, pathlib.Path]) -> None:
    """That each tensor is in the file that the index promises. An empty name stands for all that its file holds."""
    for name, file in files.items():
        require(not name or found.get(name) == file, f"{file}: tensor {name}, which the index promises, is missing")


class _Safetensors:
    """The tensors of safetensors files: each is opened for one tensor at a time, so that no mapped page is kept."""

    def __init__(self, files: Mapping[str, pathlib.Path]) -> None:
        self._files: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in dict.fromkeys(files.values()):
            with _safetensors_errors(file), safetensors.safe_open(file, "numpy") as handle:
                for name in handle.keys():  # noqa: SIM118 - it is no dict
                    part = handle.get_slice(name)
                    self._files[name] = file
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), str(part.get_dtype())
        _check_index(files, self._files)

    def read(self, name: str) -> np.ndarray:
        file = self._files[name]
        with _safetensors_errors(file), safetensors.safe_open(file, "numpy") as handle:
            return handle.get_tensor(name).astype(np.float32, copy=False)


class _PyTorch:
    """The tensors of PyTorch files, mapped from them."""

    def __init__(self, files: Mapping[str, pathlib.Path]) -> None:
        kinds = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
        self._tensors: dict[str, Any] = {}
        found: dict[str, pathlib.Path] = {}
        for file in dict.fromkeys(files.values()):
            for name, tensor in _state_dict(_loaded(file), file).items():
                self._tensors[name], found[name] = tensor, file
        _check_index(files, found)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}
        self.dtypes = {name: kinds.get(kind, kind) for name, kind in types.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name].detach().float().numpy()


def _loaded(file: pathlib.Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors and plain values: no code of a file is run."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{file} is a PyTorch file, which takes PyTorch to read: pip install torch (or save the model anew "
            f"with a recent `transformers`, which writes {WEIGHTS})"
        ) from None
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of before PyTorch 1.6 cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if "Weights only load failed" in message:
            message = "a whole module, or other Python objects, which are not run: save its state_dict() instead"
        raise ValueError(f"{file} is damaged, or holds more than tensors: {message}") from None


def _state_dict(loaded: Any, file: pathlib.Path) -> dict[str, Any]:
    """The tensors by name in what a file holds: at its top, or under a key, as training scripts save them.

    Raises:
      ValueError: where there are none, or several models; names their keys.
    """
    require(isinstance(loaded, Mapping), f"{file} holds a {type(loaded).__name__}, not tensors by their names")
    top = {name: value for name, value in loaded.items() if hasattr(value, "dtype") and hasattr(value, "shape")}
    if top or not loaded:
        return top
    inner = {name: value for name, value in loaded.items() if isinstance(value, Mapping)}
    models = {name: value for name, value in inner.items() if any(str(key).endswith(_WORDS) for key in value)}
    keys = ", ".join(map(repr, loaded))
    require(bool(models), f"{file} holds {keys}, and no BERT's tensors under any of them")
    require(
        len(models) == 1,
        f"{file} holds several models, under {', '.join(map(repr, models))}: save the one that is meant by itself",
    )
    return _state_dict(next(iter(models.values())), file)


class Canonical:
    """The tensors under the names of `names.PARAMETERS`, whatever version or wrapper wrote them.

    Raises:
      ValueError: at a tensor of another type than float, and where there are two encoders.
    """

    def __init__(self, tensors: Stored) -> None:
        self._tensors = tensors
        self._actual: dict[str, list[str]] = {}  # the tensor, and copies of it
        prefix = _prefix(tensors.shapes)
        for actual in tensors.shapes:
            name = canonical(actual.removeprefix(prefix))
            if name in _BUFFERS:
                continue
            kind = tensors.dtypes[actual]
            require(kind in _FLOATS, f"{actual} is of type {kind}, and weights are one of {', '.join(_FLOATS)}")
            self._actual.setdefault(_COPIES.get(name, name), []).append(actual)
        self.shapes = {name: tensors.shapes[actual[0]] for name, actual in self._actual.items()}

    def read(self, name: str) -> np.ndarray:
        first, *copies = self._actual[name]
        array = self._tensors.read(first)
        for copy in copies:
            require(
                np.array_equal(self._tensors.read(copy), array),
                f"{copy} differs from {first}: here the output is tied to the embeddings, they cannot be two",
            )
        return array


def _prefix(names: Mapping[str, Any]) -> str:
    """What a wrapper (DataParallel, torch.compile, Lightning, a class of one's own) put before the names."""
    found = sorted({name.removesuffix(_WORDS).removesuffix("bert.") for name in names if name.endswith(_WORDS)})
    require(
        len(found) < 2,
        f"there are {len(found)} encoders, under {', '.join(map(repr, found))}: save the one that is meant by itself",
    )
    return found[0] if found else ""


def canonical(name: str) -> str:
    """Old names of LayerNorm's parameters are made new; the encoder's prefix is added where it is left out."""
    if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):
        name = name.removesuffix("gamma").removesuffix("beta") + ("weight" if name.endswith("gamma") else "bias")
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


@contextlib.contextmanager
def _safetensors_errors(file: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is cut off, or no safetensors file ({error}): copy it again") from None
