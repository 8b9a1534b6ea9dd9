"""Preflight: what a pod would run, counted right; clear errors; and the real compiler where libtpu is installed."""

import dataclasses
import io
import json
import math
import re
import types

import jax
import pytest
import rich.console

from bert_jax import chips, config, experiment
from bert_jax.config import override
from bert_jax.experiment import Experiment
from bert_jax.model import flops
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tpu import collectives, preflight, topologies
from tests.conftest import REPOSITORY

SMALL = Experiment(
    name="small",
    encoder=config.Encoder(layers=2, hidden=128, heads=2, dtype="bfloat16", vocab_size=1024, scan=False),
    task=Pretrain(),
    phases=(config.Phase(length=128, batch_size=32, steps=1000),),
)

needs_compiler = pytest.mark.skipif(not preflight.has_compiler(), reason="libtpu is not installed (extra tpu)")


def test_collectives_by_hand() -> None:
    """A loop of 11 rounds, a tuple, an asynchronous gather, and one operation that was spread over two fusions."""
    text = """HloModule step
%body (p: (f32[4])) -> (f32[4]) {
  %a = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, op_name="in/loop"
}
%fusion.1 (p: f32[4]) -> f32[4] {
  %g.1 = bf16[8,16]{1,0} all-gather(%x), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}
}
%fusion.2 (p: f32[4]) -> f32[4] {
  %g.2 = bf16[8,16]{1,0} all-gather(%x), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (f32[4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"11"}}
  %f1 = f32[4] fusion(%p), kind=kCustom, calls=%fusion.1
  %f2 = f32[4] fusion(%p), kind=kCustom, calls=%fusion.2
  %r = (f32[4]{0}, f32[]) all-reduce(%x, %y), channel_id=2, replica_groups=[2,4]<=[8]
  %s = (f32[2,4], f32[8,4]) all-gather-start(%x), channel_id=3, replica_groups=[1,8]<=[8]
}
"""
    found = {one.source or one.shapes: one for one in collectives.parse(text)}
    assert len(found) == 4
    loop = found["in/loop"]
    assert (loop.kind, loop.times, loop.group, loop.bytes, loop.sent) == ("all-reduce", 11, 2, 16384, 16384.0)
    assert found[("bf16[8,16]",)][2:4] == (4, 1)
    assert found[("bf16[8,16]",)].sent == 256 * 3 / 4
    assert found[("f32[4]", "f32[]")].sent == 20 * 2 * 3 / 4
    assert found[("f32[8,4]",)].group == 8


def test_flops_by_hand() -> None:
    """One layer of width 2, two tokens, one prediction; then what a second layer adds."""
    encoder = config.Encoder(layers=1, hidden=2, heads=1, feed_forward=3, vocab_size=5, max_positions=2)
    params = preflight._abstract(override(SMALL, {"encoder": encoder, "phases.0.length": 2}))
    last = 4 * 4 * 2 + 2 * (8 + 12) * 2 + 4 * 2 * 2 * 2  # keys and values of both; the rest where read: [CLS] and one
    heads = 2 * 4 + 2 * 4 + 2 * (4 + 5 * 2)  # pooler, next sentence, masked LM
    assert flops.of_step(encoder, params, 7, 2, 1) == 3 * 7 * (last + heads)
    deeper = dataclasses.replace(encoder, layers=2)
    assert flops.of_step(deeper, params, 7, 2, 1) == 3 * 7 * (last + heads + 2 * (16 + 12) * 2 + 4 * 4 * 2)


@pytest.mark.parametrize("task", [Pretrain(), Classify("train.tsv", ("dev.tsv",), labels=("a", "b"))])
def test_the_formula_is_near_what_a_compiler_counts(task: object) -> None:
    """The compiler also counts what the formula leaves out: elementwise work, queries that nobody reads."""
    exp = override(
        dataclasses.replace(SMALL, task=task),
        {"encoder.layers": 3, "encoder.hidden": 256, "encoder.heads": 4, "encoder.dtype": "float32"}
        | {"encoder.dropout": 0.0, "encoder.attention_dropout": 0.0, "phases.0.batch_size": 4},
    )
    phase = exp.phases[0]
    counted = preflight.compile_step(exp, phase, jax.devices()[:1]).cost_analysis()["flops"]
    needed = flops.of_step(exp.encoder, preflight._abstract(exp), phase.batch_size, phase.length, 20)
    assert 0.8 * counted < needed < counted


def test_chips_are_found_by_their_longest_name() -> None:
    found = [chips.find(kind) for kind in ("TPU v5 lite", "TPU v5", "TPU7x", "NVIDIA H100 80GB HBM3", "cpu")]
    assert [chip and chip.name for chip in found] == ["v5e", "v5p", "tpu7x", "h100", None]


def test_every_tpu_that_is_sold_has_its_row() -> None:
    assert {chip.name for chip in chips.CHIPS if chip.kind.startswith("TPU")} == set(topologies.GENERATIONS)


def test_topologies_that_are_sold() -> None:
    """By shape or accelerator type; the most compact where there are several."""
    named = {"v5litepod-16": "v5e:4x4", "v4-32": "v4:2x2x4", "v5p-16": "v5p:2x2x2", "v6e-64": "v6e:8x8"}
    named |= {"v4-512": "v4:4x8x8", "v5litepod:4x8": "v5e:4x8", "tpu7x-8": "tpu7x:2x2x1", "v5p-12288": "v5p:16x16x24"}
    assert {name: str(topologies.parse(name)) for name in named} == named
    assert topologies.parse("v4:4x4x16").accelerator == "v4-512"
    assert [topologies.parse(name).exact for name in ("v4:4x4x16", "v4:4x8x8", "v4:2x4x4", "v5e:4x4")] == [
        False
    ] * 2 + [True] * 2
    for name in topologies.GENERATIONS:
        for shape in topologies.shapes(name):
            text = f"{name}:{'x'.join(map(str, shape))}"
            assert str(topologies.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("v4:4x4", "v4:2x2x4 (v4-32)"),
        ("v4:4x4x2", "v4:2x4x4 (v4-64)"),  # sizes rise from axis to axis
        ("v5e:3x5", "v5e:4x4 (v5litepod-16)"),
        ("v5e:100x100", "v5e:16x16 (v5litepod-256)"),
        ("v5litepod-17", "v5e:4x4 (v5litepod-16)"),
        ("v5e:0x4", "v5e:1x1 (v5litepod-1)"),
        ("v5p:16x16x28", "v5p:16x16x24 (v5p-12288)"),
    ],
)
def test_what_nobody_sells_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"nobody sells {text}: the nearest are {nearest}")):
        preflight.devices(text)


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = override(SMALL, {"optimizer.accumulate": 16})
    with pytest.raises(ValueError, match=r"32 rows cannot be split over 64 \(data x fsdp x accumulate\)"):
        preflight.compile_step(exp, exp.phases[0], jax.devices()[:4])
    monkeypatch.setattr(preflight, "has_compiler", lambda: True)
    for name in ("v9:2x2", "v5e", "v5e:", "nonsense", ""):
        with pytest.raises(ValueError, match=r"a topology is like v5e:4x4, v4:2x2x4 or v5litepod-16, not"):
            preflight.devices(name)
    monkeypatch.setattr(preflight, "has_compiler", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'bert_jax\[tpu\]'"):
        preflight.devices("v5e:2x2")


def test_remedies_go_from_cheap_to_dear() -> None:
    exp = override(SMALL, {"phases.0.batch_size": 64})
    names = list(preflight.remedies(exp, 4))
    assert names[0] == {"encoder.remat": "elementwise"}
    assert names[-1] == {
        "encoder.remat": "layer",
        "optimizer.accumulate": "16",
        "mesh.data": "1",
        "mesh.fsdp": "-1",
    }
    assert next(preflight.remedies(override(exp, {"encoder.remat": "attention"}), 4)) == {"encoder.remat": "layer"}
    for changes in names:
        override(exp, changes)


def test_a_phase_that_does_not_fit_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that fits whole layers' remat only; the report says so, and the flags to set."""

    def phase(exp: Experiment, one: config.Phase, pod: list, **_: object) -> preflight.Phase:
        fits = exp.encoder is not None and exp.encoder.remat == "layer"
        zeros = {field.name: 0.0 for field in dataclasses.fields(preflight.Phase)}
        more = {"length": one.length, "batch_size": one.batch_size, "steps": one.steps, "collectives": {}}
        return preflight.Phase(**{**zeros, **more, "fits": fits, "compiled": None})

    monkeypatch.setattr(preflight, "check_phase", phase)
    monkeypatch.setattr(preflight, "devices", lambda topology, slices: jax.devices()[:4])
    found = preflight.check(SMALL, "v5e:2x2")
    assert found.fits
    assert found.changes == {"encoder.remat": "layer"}
    text = io.StringIO()
    preflight.show(found, rich.console.Console(file=text, width=100))
    assert "It fits with --config.encoder.remat=layer" in text.getvalue()
    assert not preflight.check(SMALL, "v5e:2x2", search=False).fits
    assert json.loads(json.dumps(preflight.to_dict(found)))["fits"]


@needs_compiler
def test_the_tpu_compiler_on_two_slices() -> None:
    """Data parallelism between slices, fsdp within: the report has all its figures."""
    exp = override(SMALL, {"mesh": config.Mesh(data=2, fsdp=4, slices=2)})
    found = preflight.check(exp, "v5e:2x2")
    assert (found.fits, found.count, found.chip, found.changes) == (True, 8, "v5e", {})
    (phase,) = found.phases
    assert phase.optimizer == 2 * phase.parameters
    assert 0 < phase.needed < phase.available
    assert phase.compiled
    assert 0 < phase.model_flops < phase.compiled.flops
    assert phase.collectives["all-gather"]["count"] >= 8
    assert phase.dollars == pytest.approx(8 * 1.2 * phase.step_seconds * 1000 / 3600)


@needs_compiler
def test_every_generation_is_known_to_the_compiler() -> None:
    """The smallest and the next slice; TPU7x has two devices a chip, whose memory and price are a chip's together."""
    old = jax.__version_info__ < (0, 12)
    for name in sorted(topologies.GENERATIONS.keys() - ({"tpu7x"} if old else set())):
        for shape in topologies.shapes(name)[:2]:
            pod = preflight.devices(f"{name}:{'x'.join(map(str, shape))}")
            chip = chips.find(pod[0].device_kind)
            assert chip
            assert (chip.name, len(pod)) == (name, chip.devices * math.prod(shape))
    if old:
        with pytest.raises(ValueError, match=r"crashes on programs for tpu7x: take Python 3\.12"):
            preflight.devices("tpu7x:2x2x1")
        return
    found = preflight.check(SMALL, "tpu7x-8", cost=False)
    assert (found.count, found.devices, found.chip) == (4, 2, "tpu7x")
    assert found.phases[0].dollars == pytest.approx(4 * 12 * found.phases[0].step_seconds * 1000 / 3600)
    assert found.phases[0].available == 96 * 2**30


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "topology"), [("bert_base", "v5e:4x4"), ("bert_large", "v5e:8x8")])
def test_the_paper_s_recipes_fit(name: str, topology: str) -> None:
    exp = experiment.load(str(REPOSITORY / "experiments" / f"{name}.py"))
    found = preflight.check(exp, topology, cost=False)
    assert found.fits
    assert found.changes == {}
    assert [phase.length for phase in found.phases] == [128, 512]
    for phase in found.phases:  # one pass of gradients, of at most float32
        assert set(phase.collectives) == {"all-reduce"}
        assert phase.collectives["all-reduce"]["bytes"] < 2 * 1.3 * phase.parameters


def test_a_remedy_s_parts_divide_the_batch_of_every_phase() -> None:
    """24 rows over 4 devices have no four equal parts, though 16 have."""
    phases = (config.Phase(length=128, batch_size=16, steps=1), config.Phase(length=64, batch_size=24, steps=1))
    exp = Experiment(encoder=config.Encoder(layers=2, hidden=16, heads=2), phases=phases)
    parts = [found["optimizer.accumulate"] for found in preflight.remedies(exp, 4) if "optimizer.accumulate" in found]
    assert parts == ["2"]


def test_each_compilation_is_said_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a scanned program there are two more, which count what a layer costs."""
    said: list[str] = []
    heard: list[str] = []
    memory = dict.fromkeys(("output", "alias", "argument", "temp"), 8)
    compiled = types.SimpleNamespace(
        memory_analysis=lambda: types.SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in memory.items()}),
        cost_analysis=lambda: {"flops": 1.0, "bytes accessed": 1.0},
        as_text=lambda: "",
    )
    monkeypatch.setattr(preflight, "compile_step", lambda *_: heard.append(said[-1]) or compiled)
    monkeypatch.setattr(preflight, "devices", lambda topology, slices: jax.devices()[:4])
    monkeypatch.setattr(chips, "find", lambda kind: chips.CHIPS[0])
    preflight.check(override(SMALL, {"encoder.layers": 4, "encoder.scan": True}), "v5e:2x2", say=said.append)
    assert heard == said
    assert heard[0] == "compiling 32 x 128 for v5e:2x2"
    assert len(set(heard)) == 3
