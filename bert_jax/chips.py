"""What accelerators can do and cost: the one table behind MFU and preflight. Edit it: prices change.

Speeds and memory of the TPUs are those of the maker's pages (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x),
read in November 2026: dense bfloat16, and the interconnect one way, which is half of what they call bidirectional; the
bandwidths of TPU7x are remembered. Those of the GPUs are partly from memory, not from the data sheets. Prices are
on-demand list prices in the US as of 2025, of v4, v5e and v5p second hand, of v6e, TPU7x and the GPUs remembered: check
them before you trust a cost. What topologies of a TPU are sold is in topologies.py.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts on one chip, or on what JAX calls a device where a chip is two of them. On CPUs there are none."""

    name: str
    kind: str  # how JAX begins to name it: `device.device_kind`
    flops: float  # bfloat16, per second
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes per second
    interconnect: float  # to its neighbours all together, one way, bytes per second
    price: float  # US dollars per chip and hour, on demand
    devices: int = 1  # of JAX in a chip, each with its share of all above but the price


CHIPS = (
    Chip("v4", "TPU v4", 275e12, 32 * 2.0**30, 1228e9, 300e9, 3.22),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * 2.0**30, 819e9, 200e9, 1.20),
    Chip("v5p", "TPU v5", 459e12, 95e9, 2765e9, 600e9, 4.20),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * 2.0**30, 1638e9, 400e9, 2.70),
    Chip("tpu7x", "TPU7x", 2307e12 / 2, 192 * 2.0**30 / 2, 7380e9 / 2, 600e9 / 2, 12.00, devices=2),
    Chip("h100", "NVIDIA H100", 989e12, 80e9, 3350e9, 450e9, 11.06),
    Chip("h200", "NVIDIA H200", 989e12, 141e9, 4800e9, 450e9, 10.60),
)


def find(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None where the table has no such row. The longest name that fits counts."""
    fitting = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind), default=None)
