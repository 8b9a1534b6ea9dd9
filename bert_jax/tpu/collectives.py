"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f64": 64, "s64": 64, "u64": 64}


class Collective(NamedTuple):
    """One operation between devices, run `times` in each execution of the program."""

    kind: str  # one of KINDS
    shapes: tuple[str, ...]  # what it gives, as "f32[768,3072]"
    group: int  # how many devices take part with one another
    times: int
    source: str  # the path of the operation that asked for it

    @property
    def bytes(self) -> int:
        """Of the result on one device: for "reduce-scatter" of one part."""
        return sum(size(shape) for shape in self.shapes)

    @property
    def sent(self) -> float:
        """Bytes that a device sends, at the least, each time: what a ring does."""
        share = (self.group - 1) / self.group
        factor = {
            "all-reduce": 2 * share,
            "reduce-scatter": float(self.group - 1),
            "collective-permute": 1.0,
        }.get(self.kind, share)
        return factor * self.bytes


def size(shape: str) -> int:
    """The bytes of "f32[768,3072]"."""
    kind, _, dims = shape.rstrip("]").partition("[")
    return math.prod(map(int, filter(None, dims.split(",")))) * _BITS.get(kind, 32) // 8


def parse(text: str) -> list[Collective]:
    """The collectives of a compiled program's text (`compiled.as_text()`), those in loops as often as these run.

    The TPU's compiler spreads one collective over the fusions that it runs beside: they bear one channel's number, and
    count once.
    """
    found: dict[tuple[str, str], tuple[str, Collective]] = {}  # by kind and channel, with the computation it stands in
    callers: dict[str, tuple[str, int]] = {}  # of each computation: who runs it, and how often
    inside = ""
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        inside = header[1] if header else inside
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for name in re.findall(r"(?:calls|body|condition|to_apply|called_computations)=\{?%?([\w.-]+)", line):
            callers[name] = inside, int(trips[1]) if trips else 1
        match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
        if match:
            result, kind, start = match.groups()
            shapes = re.findall(r"\b[a-z]+\d*\[[\d,]*\]", re.sub(r"\{[^{}]*\}", "", result))
            if start and kind == "all-gather":  # what goes in, then what comes out
                shapes = shapes[len(shapes) // 2 :]
            if start and kind == "collective-permute":
                shapes = shapes[1:2]
            channel, source = re.search(r"channel_id=(\d+)", line), re.search(r'op_name="([^"]*)"', line)
            one = Collective(kind, tuple(shapes), _group(line), 1, source[1] if source else "")
            found.setdefault((kind, channel[1] if channel else line), (inside, one))

    def runs(name: str) -> int:
        caller, times = callers.get(name, ("", 1))
        return times * runs(caller) if caller else times

    return [one._replace(times=runs(place)) for place, one in found.values()]


def _group(line: str) -> int:
    """How many devices a collective's groups have, in each of the ways in which XLA writes them."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if tiled:
        return int(tiled[1])
    mesh = re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    return 2
