"""The TPU slices that are sold, by name and shape: the one table that the launcher and preflight ask.

From the maker's pages (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x), read in November 2026. v5e and v6e
lie in a plane, of eight shapes. v4, v5p and TPU7x lie in space: four shapes below a cube of 4x4x4 chips, and above
it whole cubes, AxBxC with A <= B <= C, each a multiple of 4. The maker's tables list the most common of these only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from bert_jax.config import nearest, require

Shape = tuple[int, ...]

_PLANE: tuple[Shape, ...] = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BELOW_A_CUBE: tuple[Shape, ...] = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPUs, as it is sold."""

    name: str  # in a topology, and in chips.py: v5e
    prefix: str  # in an accelerator type: v5litepod
    counted: int  # what an accelerator type counts for a chip
    cubes: int  # the largest slice in cubes of 64 chips; 0: the chips lie in a plane
    runtime: str  # the image of its machines on the TPU API; "": the TPU API does not offer it
    flex_start: bool = False  # whether the TPU API offers it for a limited time


GENERATIONS = {
    one.name: one
    for one in (
        Generation("v4", "v4", 2, 64, "tpu-ubuntu2204-base"),
        Generation("v5e", "v5litepod", 1, 0, "v2-alpha-tpuv5-lite", flex_start=True),
        Generation("v5p", "v5p", 2, 96, "v2-alpha-tpuv5"),
        Generation("v6e", "v6e", 1, 0, "v2-alpha-tpuv6e", flex_start=True),
        Generation("tpu7x", "tpu7x", 2, 144, ""),
    )
}


@functools.cache
def shapes(name: str) -> tuple[Shape, ...]:
    """The shapes in chips that are sold of a generation, small ones first."""
    cubes = GENERATIONS[name].cubes
    if cubes == 0:
        return _PLANE
    whole = [
        (4 * a, 4 * b, 4 * c)
        for a in range(1, cubes + 1)
        for b in range(a, cubes // a + 1)
        for c in range(b, cubes // (a * b) + 1)
    ]
    return (*_BELOW_A_CUBE, *sorted(whole, key=lambda shape: (math.prod(shape), sum(shape))))


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice that is sold. Its text is what the TPU's compiler calls it: v5e:4x4."""

    generation: Generation
    shape: Shape

    def __str__(self) -> str:
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def accelerator(self) -> str:
        """Its accelerator type: v5litepod-16, or v4-32, which counts a chip's two cores."""
        return f"{self.generation.prefix}-{self.generation.counted * self.chips}"

    @property
    def exact(self) -> bool:
        """Whether the accelerator type names no other shape: v4-512 is 4x8x8 or 4x4x16."""
        return [math.prod(shape) for shape in shapes(self.generation.name)].count(self.chips) == 1


def parse(text: str) -> Topology:
    """The slice that a text names: v5e:4x4, or by its accelerator type v5litepod-16, the most compact of its shapes.

    Raises:
      ValueError: nobody sells such a slice; with the nearest ones that are sold.
    """
    form = f"a topology is like v5e:4x4, v4:2x2x4 or v5litepod-16, not {text!r}"
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", text)
    name = match[1] if match else re.split("[:-]", text)[0]
    known = {name: one for one in GENERATIONS.values() for name in (one.name, one.prefix)}
    require(name in known, f"{form}; no TPU is called {name!r}: {nearest(name, known)}")
    require(match, form)
    assert match
    generation, sold = known[name], shapes(known[name].name)
    if match[2]:
        shape = tuple(map(int, match[2].split("x")))
        if shape in sold:
            return Topology(generation, shape)
        wanted = float(math.prod(shape))
    else:
        wanted = int(match[3]) / generation.counted
        fitting = [shape for shape in sold if math.prod(shape) == wanted]
        if fitting:
            return Topology(generation, fitting[0])
    distance = lambda shape: abs(math.log(math.prod(shape) / max(wanted, 0.5)))  # noqa: E731
    near = [Topology(generation, shape) for shape in sorted(sold, key=distance)[:3]]
    raise ValueError(f"nobody sells {text}: the nearest are " + ", ".join(f"{one} ({one.accelerator})" for one in near))
