"""Whether a run fits a TPU pod, and what it would take: its train steps compiled by the TPU's compiler, without a TPU.

for each phase:  Program.step --libtpu--> memory, collectives, FLOPs, bytes --chips.py--> roofline, hours, cost
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import rich.console
import rich.table
from jax.experimental.topologies import get_topology_desc

from bert_jax import chips, config
from bert_jax.config import require
from bert_jax.experiment import Experiment
from bert_jax.tpu import collectives, topologies
from bert_jax.training import sharding
from bert_jax.training.describe import Placeholder
from bert_jax.training.program import Program, step_flops

Say: TypeAlias = Callable[[str], None]  # how progress is shown


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one step does on one chip, as its compiler counts."""

    flops: float
    bytes: float  # read and written


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase's train step on one device of the pod: a chip, or half a TPU7x. Bytes unless said otherwise."""

    length: int
    batch_size: int
    steps: int  # 0: counted in epochs, whose length the data decides
    fits: bool
    needed: float  # memory, all in all; of a step that does not fit, as the compiler says
    available: float
    parameters: float
    optimizer: float
    activations: float  # and all else that a step needs for a while
    collectives: dict[str, dict[str, float]]  # by kind: how many there are, and the bytes that a chip sends for them
    model_flops: float  # what the step needs (flops.py): a chip's share
    compiled: Cost | None  # None where the step does not fit, or the cost was not asked for
    compute_seconds: float  # at the chip's peak
    memory_seconds: float
    network_seconds: float
    hours: float  # at least
    dollars: float

    @property
    def step_seconds(self) -> float:
        """The roofline: none of the three can take less, and at best they overlap."""
        return max(self.compute_seconds, self.memory_seconds, self.network_seconds)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found."""

    name: str
    chip: str
    count: int  # chips
    devices: int  # of JAX in a chip: the phases' figures are of one
    changes: dict[str, str]  # of the experiment, that make it fit: none where it fits as it is, or nothing helps
    phases: tuple[Phase, ...]

    @property
    def fits(self) -> bool:
        return all(phase.fits for phase in self.phases)


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """Descriptions of a pod's devices, to compile for: of "v5e:8x8", "v4:2x2x4", "v5litepod-16" (topologies.py).

    Raises:
      ValueError: where nobody sells such a slice, or libtpu is not installed or does not know it.
    """
    pod = topologies.parse(topology)
    # No TPU is looked for or held: one that works here is left in peace.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    require(has_compiler(), "the TPU's compiler is not installed: pip install 'bert_jax[tpu]'")
    require(
        pod.generation.name != "tpu7x" or jax.__version_info__ >= (0, 12),
        f"the TPU's compiler that goes with JAX {jax.__version__} crashes on programs for tpu7x: take Python 3.12 or "
        "later and JAX 0.12",
    )
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if pod.generation.name == "v4":
        more["chip_config_name"] = "megacore"  # the two cores of a chip are one device
    if pod.shape[0] * pod.shape[1] < 4:
        more["chips_per_host_bounds"] = (*pod.shape, 1)[:3]
    try:
        return list(get_topology_desc(platform="tpu", topology_name=str(pod), **more).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU's compiler does not know {pod}: {str(error).splitlines()[0]}") from None


def has_compiler() -> bool:
    """Whether libtpu is installed."""
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return True


def compile_step(exp: Experiment, phase: config.Phase, devices: list[jax.Device]) -> Any:
    """The compiled train step of a phase, for those devices.

    Raises:
      ValueError: where mesh, sizes and devices do not go together.
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED where it does not fit.
    """
    mesh = sharding.make_mesh(exp.mesh, devices)
    assert exp.encoder is not None
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * exp.optimizer.accumulate
    require(
        phase.batch_size % shards == 0,
        f"a batch of {phase.batch_size} rows cannot be split over {shards} (data x fsdp x accumulate): choose a "
        "multiple, or change --config.mesh",
    )
    with jax.set_mesh(mesh):
        vocabulary = Placeholder(exp.encoder.vocab_size)
        program = Program(exp, vocabulary, max(1, sum(phase.steps for phase in exp.phases)), mesh)
        batch = {
            name: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=program.batch_sharding)
            for name, one in exp.task.spec(phase.batch_size, phase.length, exp.encoder).items()
        }
        return program.step.lower(program.abstract_state(), batch, program.knobs).compile()


def cost_of(
    exp: Experiment, phase: config.Phase, devices: list[jax.Device], compiled: Any, say: Say = lambda _: None
) -> Cost:
    """FLOPs and bytes accessed. The compiler counts a loop's body once: so what a layer costs is the difference of two
    short programs without the loop, of 3 and 2 layers."""
    assert exp.encoder is not None
    layers = exp.encoder.layers
    if not exp.encoder.scan or layers < 4:
        return _cost(compiled)
    short = []
    for few in (2, 3):
        say(f"  and {few} layers of it, to count FLOPs and bytes")
        changed = config.override(exp, {"encoder.layers": few, "encoder.scan": False})
        short.append(_cost(compile_step(changed, phase, devices)))
    pairs = zip(*map(dataclasses.astuple, short), strict=True)
    return Cost(*(two + (layers - 2) * (three - two) for two, three in pairs))


def _cost(compiled: Any) -> Cost:
    analysis = compiled.cost_analysis()
    return Cost(float(analysis["flops"]), float(analysis["bytes accessed"]))


def check_phase(
    exp: Experiment, phase: config.Phase, devices: list[jax.Device], *, cost: bool = True, say: Say = lambda _: None
) -> Phase:
    """Compiles a phase's train step and says what it takes. Without `cost`, a scanned program's FLOPs and
    bytes are not counted: its time is that of the model's FLOPs and the network alone.

    Raises:
      ValueError: as `compile_step`, and at a chip that chips.py does not have.
    """
    chip = chips.find(devices[0].device_kind)
    require(chip, f"chips.py has no row for {devices[0].device_kind!r}: add one")
    assert chip is not None
    assert exp.encoder is not None
    shapes, moments = _state_bytes(exp, devices)
    needs = step_flops(exp, _abstract(exp), phase.length, phase.batch_size) / len(devices)
    facts: dict[str, Any] = {
        "length": phase.length,
        "batch_size": phase.batch_size,
        "steps": phase.steps,
        "available": chip.memory,
        "parameters": shapes,
        "optimizer": moments,
        "model_flops": needs,
    }
    nothing: dict[str, Any] = {"activations": 0.0, "collectives": {}, "compiled": None, "hours": 0.0, "dollars": 0.0}
    nothing |= {"compute_seconds": 0.0, "memory_seconds": 0.0, "network_seconds": 0.0}
    try:
        compiled = compile_step(exp, phase, devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        amounts = re.findall(r"\(([\d.]+)([MGT])\)", str(error))
        units = {"M": 2**20, "G": 2**30, "T": 2**40}
        needed = max((float(value) * units[unit] for value, unit in amounts), default=float("inf"))
        return Phase(fits=False, needed=needed, **facts, **nothing)
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes  # beside the state, whose memory is used again
    counted = cost_of(exp, phase, devices, compiled, say) if cost or not exp.encoder.scan else None
    kinds: dict[str, dict[str, float]] = {}
    for one in collectives.parse(compiled.as_text()):
        kind = kinds.setdefault(one.kind, {"count": 0.0, "bytes": 0.0})
        kind["count"] += one.times
        kind["bytes"] += one.times * one.sent
    seconds = (
        max(needs, counted.flops if counted else 0.0) / chip.flops,
        counted.bytes / chip.bandwidth if counted else 0.0,
        sum(kind["bytes"] for kind in kinds.values()) / chip.interconnect,
    )
    hours = max(seconds) * phase.steps / 3600
    return Phase(
        fits=True,
        needed=float(memory.argument_size_in_bytes + new + memory.temp_size_in_bytes),
        activations=float(memory.temp_size_in_bytes),
        collectives=kinds,
        compiled=counted,
        compute_seconds=seconds[0],
        memory_seconds=seconds[1],
        network_seconds=seconds[2],
        hours=hours,
        dollars=hours * len(devices) / chip.devices * chip.price,
        **facts,
    )


def _abstract(exp: Experiment) -> Any:
    """The shapes of the parameters."""
    assert exp.encoder is not None
    module, vocabulary = exp.task.module(exp.encoder), Placeholder(exp.encoder.vocab_size)
    spec = exp.task.spec(1, exp.phases[0].length, exp.encoder)

    def init() -> Any:
        batch = {name: jax.numpy.zeros(one.shape, one.dtype) for name, one in spec.items()}
        return module.init(jax.random.key(0), exp.task.corrupt(jax.random.key(0), batch, vocabulary), train=False)

    return jax.eval_shape(init)["params"]


def _state_bytes(exp: Experiment, devices: list[jax.Device]) -> tuple[float, float]:
    """Of the parameters, and of Adam's two moments, on one chip."""
    mesh = sharding.make_mesh(exp.mesh, devices)
    params = _abstract(exp)
    specs = sharding.parameter_specs(params)

    def part(leaf: Any, spec: Any) -> float:
        return 4.0 * leaf.size / math.prod(mesh.shape[axis] for axis in spec if axis)

    total = math.fsum(map(part, jax.tree.leaves(params), jax.tree.leaves(specs)))
    return total, 2 * total


def remedies(exp: Experiment, count: int) -> Iterator[dict[str, str]]:
    """Changes that save memory, those that cost least first: none alters the gradient but for rounding and dropout."""
    assert exp.encoder is not None
    order = ("none", "elementwise", "attention", "layer")
    for remat in order[order.index(exp.encoder.remat) + 1 :]:
        yield {"encoder.remat": remat}
    # The parameters' and the optimizer's share; then parts of the batch.
    split = {"mesh.data": "1", "mesh.fsdp": "-1"} if exp.mesh.slices == 1 else {}
    if split and exp.mesh.fsdp == 1:
        yield {"encoder.remat": "elementwise", **split}
        yield {"encoder.remat": "layer", **split}
    for parts in (2, 4, 8, 16):
        if all(phase.batch_size % (count * parts) == 0 for phase in exp.phases):
            yield {"encoder.remat": "layer", "optimizer.accumulate": str(parts), **split}


def check(
    exp: Experiment,
    topology: str,
    *,
    search: bool = True,
    cost: bool = True,
    say: Say = lambda _: None,
) -> Report:
    """Compiles each phase for the pod; where one does not fit and with `search`, finds changes under which all do.

    `say` is told of each compilation before it begins: they take from seconds to minutes.

    Raises:
      ValueError: at an experiment, a topology or a mesh that will not do.
    """
    require(exp.encoder is not None, "the experiment names no encoder: give --config.init_from or --config.encoder...")
    pod = devices(topology, exp.mesh.slices)
    chip = chips.find(pod[0].device_kind)

    def report(exp: Experiment, changes: dict[str, str]) -> Report:
        # The longest first: where that does not fit, the others need not be compiled.
        found: dict[int, Phase] = {}
        for index in sorted(range(len(exp.phases)), key=lambda index: -exp.phases[index].length):
            one = exp.phases[index]
            given = f" with {', '.join(f'{name}={value}' for name, value in changes.items())}" if changes else ""
            say(f"compiling {one.batch_size} x {one.length} for {topology}{given}")
            found[index] = check_phase(exp, one, pod, cost=cost, say=say)
            if not found[index].fits:
                say("  it does not fit")
                break
        phases = tuple(found[index] for index in sorted(found))
        devices = chip.devices if chip else 1
        return Report(exp.name, chip.name if chip else "", len(pod) // devices, devices, changes, phases)

    first = report(exp, {})
    if first.fits or not search:
        return first
    for changes in remedies(exp, len(pod)):
        changed = report(config.override(exp, changes), changes)
        if changed.fits:
            return changed
    return first


def to_dict(report: Report) -> dict[str, Any]:
    """As `--json` prints it."""
    return {**dataclasses.asdict(report), "fits": report.fits}


def show(report: Report, console: rich.console.Console) -> None:
    """A table with a column for each phase, and what to change."""
    halves = f", figures of one of a chip's {report.devices} devices" if report.devices > 1 else ""
    title = f"{report.name} on {report.count} x {report.chip}{halves}"
    table = rich.table.Table(title=title, title_justify="left")
    table.add_column("")
    for phase in report.phases:
        table.add_column(f"{phase.batch_size} x {phase.length}", justify="right")

    def row(name: str, value: Callable[[Phase], str]) -> None:
        table.add_row(name, *(value(phase) for phase in report.phases))

    row("fits", lambda p: "yes" if p.fits else "no")
    row("memory of a chip (GB)", lambda p: f"{p.available / 1e9:.1f}")
    row("  needed", lambda p: f"{p.needed / 1e9:.2f}")
    row("  parameters", lambda p: f"{p.parameters / 1e9:.2f}")
    row("  optimizer", lambda p: f"{p.optimizer / 1e9:.2f}")
    row("  activations and the rest", lambda p: f"{p.activations / 1e9:.2f}" if p.fits else "")
    for kind in collectives.KINDS:
        if any(kind in phase.collectives for phase in report.phases):

            def sent(p: Phase, kind: str = kind) -> str:
                one = p.collectives.get(kind, {"count": 0, "bytes": 0})
                return f"{one['count']:.0f}, {one['bytes'] / 1e6:.1f} MB"

            row(f"{kind}: how many, sent by a chip", sent)
    row("TFLOPs a step and chip: model", lambda p: f"{p.model_flops / 1e12:.3f}")
    row("  as compiled", lambda p: f"{p.compiled.flops / 1e12:.3f}" if p.compiled else "")
    row("GB accessed a step and chip", lambda p: f"{p.compiled.bytes / 1e9:.2f}" if p.compiled else "")
    row("ms a step at least", lambda p: f"{1e3 * p.step_seconds:.1f}" if p.fits else "")
    row("  compute", lambda p: f"{1e3 * p.compute_seconds:.1f}" if p.fits else "")
    row("  memory", lambda p: f"{1e3 * p.memory_seconds:.1f}" if p.fits else "")
    row("  network", lambda p: f"{1e3 * p.network_seconds:.1f}" if p.fits else "")
    row("hours at least", lambda p: f"{p.hours:.1f}" if p.fits and p.steps else "")
    row("dollars at least", lambda p: f"{p.dollars:,.0f}" if p.fits and p.steps else "")
    console.print(table)
    if report.fits:
        hours, dollars = sum(p.hours for p in report.phases), sum(p.dollars for p in report.phases)
        console.print(f"The recipe takes {hours:.1f} hours and {dollars:,.0f} dollars at least (chips.py's prices).")
    if report.changes:
        flags = " ".join(f"--config.{name}={value}" for name, value in report.changes.items())
        console.print(f"As it is, it does not fit. It fits with {flags}", soft_wrap=True)
    elif not report.fits:
        console.print("It does not fit: take more chips, a chip with more memory, or smaller batches.")
