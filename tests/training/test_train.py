"""The loop: exact resume, one result on every mesh and every number of hosts, and what happens when things go wrong."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import claims, config, experiment, files, trees
from bert_jax.config import override
from bert_jax.corpus import building
from bert_jax.experiment import Experiment
from bert_jax.text import tokenizer, vocabularies
from bert_jax.training import hosts, metrics, planning, sharding, train
from bert_jax.training.lane import Lane
from bert_jax.training.program import Program, means
from bert_jax.weights import checkpoint
from tests.conftest import command, environment
from tests.test_claims import holding


def params(workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    tree = checkpoint.read_params(str(workdir), step)
    return trees.leaves(tree)


TIMED = ("seconds", "tokens_per_second", "goodput", "device", "began", "ended")


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMED}


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
    """Bit for bit: the weights, every line of the log, and the result."""
    one, two = params(a), params(b)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)
    for split in ("train", "validation"):
        lines = [[untimed(line) for line in metrics.read(str(folder), split)] for folder in (a, b)]
        assert lines[0] == lines[1]
    results = [untimed(json.loads((folder / "result.json").read_text())) for folder in (a, b)]
    assert results[0] == results[1]


def test_what_waits_has_a_time_limit(tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data (d), a step and its figures (s); with patience (p) where a host may compile, write or score longer."""
    limits = []

    @contextlib.contextmanager
    def within(seconds: float) -> Iterator[None]:
        limits.append({hosts.OWN: "d", hosts.PATIENT: "p"}.get(seconds, "s"))
        assert seconds >= hosts.OWN
        yield

    monkeypatch.setattr(hosts, "within", within)
    train.run(override(tiny, {"every.log": 1}), str(tmp_path), quiet=True)  # a checkpoint after each third step
    evaluation = "(dp)+p"
    # A step's figures are fetched after the next one is under way, or before an evaluation and a checkpoint.
    first, second = "dpp dpp dsss dp dpps", "dppp dp dpp dsss dpp"
    assert re.fullmatch(f"{first}{evaluation}{second}{evaluation}".replace(" ", ""), "".join(limits))


pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.fixture(scope="module")
def whole(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tiny run, never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    train.run(tiny, str(workdir), quiet=True)
    return workdir


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_stopped_and_resumed_is_never_having_stopped(
    tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path, stop: int
) -> None:
    first = train.run(tiny, str(tmp_path), stop_at=stop, quiet=True)
    assert first == {"step": stop, "done": False}
    result = train.run(tiny, str(tmp_path), quiet=True)
    assert result["done"]
    assert_same(whole, tmp_path)


def test_a_kill_costs_nothing_but_the_steps_since_the_checkpoint(
    tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """kill -9 in mid-run, then the same command: the result is that of a run that was left alone."""
    line = command(tiny, tmp_path, tmp_path / "run")
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())):
        assert process.poll() is None or (tmp_path / "run" / "result.json").exists(), "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "split": "tr')  # what a kill in mid-write leaves
    subprocess.run(line, env=environment(), check=True, stderr=subprocess.DEVNULL)
    assert_same(whole, tmp_path / "run")


def test_a_signal_saves_and_says_so(tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """SIGTERM: a checkpoint after the step in hand, exit code 128 + 15, and the same command goes on."""
    exp = override(tiny, {"phases.0.steps": 2000, "every.checkpoint": 0})
    line = command(exp, tmp_path, tmp_path / "run")
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)
    while not metrics.read(str(tmp_path / "run"), "train"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in said
    saved = checkpoint.Checkpoints(str(tmp_path / "run")).latest()
    assert saved is not None
    assert f"at step {saved}" in said


class Killed(BaseException):
    """What kill -9 is to a process, it is to what runs in this one: nothing that handles errors sees it."""


def at(function: Callable[..., Any], what: Callable[[], None], when: Callable[..., bool]) -> Callable[..., Any]:
    """`function`, before which something happens at the first call for which `when` holds."""
    happened: list[bool] = []

    def wrapped(*given: Any, **named: Any) -> Any:
        if not happened and when(*given):
            happened.append(True)
            what()
        return function(*given, **named)

    return wrapped


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def last_save(_: object, step: int, *__: object) -> bool:
    return step == 10


def result_json(path: Any, *_: object) -> bool:
    return str(path).endswith("result.json")


MOMENTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "evaluation": (Lane, "evaluate", lambda _, __, step, *___: step == 10),
    "save": (checkpoint.Checkpoints, "save", last_save),
    "wait": (checkpoint.Checkpoints, "wait", lambda *_: True),
    "finish": (Lane, "finish", lambda *_: True),
    "result": (files, "write", result_json),
}


@pytest.mark.parametrize("signalled", [kill, terminate])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_end_of_a_run_is_cut_off_and_resumed(
    tiny: Experiment,
    whole: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    signalled: Callable[[], None],
) -> None:
    """The result of a run of two phases is that of the last, however often its end is tried."""
    owner, name, when = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at(getattr(owner, name), signalled, when))
        if signalled is kill:
            with pytest.raises(Killed):
                train.run(tiny, str(tmp_path), quiet=True)
        elif moment == "evaluation":
            with pytest.raises(train.Stopped, match="SIGTERM"):
                train.run(tiny, str(tmp_path), quiet=True)
            assert checkpoint.Checkpoints(str(tmp_path)).latest() == 10, "the steps since the last checkpoint are lost"
        else:  # too late to stop anything
            train.run(tiny, str(tmp_path), quiet=True)
    train.run(tiny, str(tmp_path), quiet=True)
    assert_same(whole, tmp_path)


@pytest.mark.slow
def test_the_end_of_a_run_at_random_moments(tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Real signals and kills, ten of them, from the last evaluation to the result: through the front door."""
    rng = random.Random(0)
    line = command(tiny, tmp_path, tmp_path / "run")
    for trial in range(10):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        process = subprocess.Popen(line, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not any(line["step"] == 10 for line in metrics.read(str(tmp_path / "run"), "train")):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL if trial % 2 else signal.SIGTERM)
        process.wait()
        subprocess.run(line, env=environment(), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert_same(whole, tmp_path / "run")


def test_predictions_of_a_finished_run_do_not_change_its_result(
    tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The result was once overwritten with that of the first phase."""
    shutil.copytree(whole, tmp_path / "run")
    for _ in range(2):
        result = train.run(override(tiny, {"predict": True}), str(tmp_path / "run"), quiet=True)
        assert result.pop("predictions") == []
        assert untimed(result) == untimed(json.loads((whole / "result.json").read_text()))
    assert metrics.read(str(whole), "validation") == metrics.read(str(tmp_path / "run"), "validation")


def test_a_signal_in_an_evaluation_stops_it(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved, and the evaluation is made when the run goes on: before the first step and between others."""
    exp = override(tiny, {"every.evaluate": 4})
    train.run(exp, str(tmp_path / "whole"), quiet=True)
    for step in (0, 4):
        batches: list[int] = []
        with monkeypatch.context() as patch:
            started = at(Lane.evaluate, terminate, lambda _, __, number, *___: number == step)  # noqa: B023
            patch.setattr(Lane, "evaluate", started)
            evaluate = Program.evaluate
            patch.setattr(Program, "evaluate", lambda *given: (evaluate(*given), batches.append(1))[0])  # noqa: B023
            with pytest.raises(train.Stopped, match=f"at step {step};"):
                train.run(exp, str(tmp_path / f"run{step}"), quiet=True)
        assert len(batches) == (step > 0), "it was evaluated to its end"
        assert checkpoint.Checkpoints(str(tmp_path / f"run{step}")).latest() == step
        train.run(exp, str(tmp_path / f"run{step}"), quiet=True)
        assert_same(tmp_path / "whole", tmp_path / f"run{step}")


@pytest.mark.parametrize(("owner", "name"), [(planning, "stretches"), (claims, "acquire_or_wait")])
def test_a_signal_before_the_steps_stops_at_once(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """While data is read, and while another process may still have the workdir, there is nothing to save."""
    monkeypatch.setattr(owner, name, at(getattr(owner, name), terminate, lambda *_: True))
    with pytest.raises(train.Stopped, match="stopped by SIGTERM before the next step"):
        train.run(tiny, str(tmp_path / "run"), quiet=True)
    assert not list((tmp_path / "run").glob("*"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_workdir_is_one_process_s(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    other = holding(tmp_path, "run.lock")
    with pytest.raises(ValueError, match=f"another process works on {tmp_path}: .*process {other.pid}. Stop it"):
        train.run(tiny, str(tmp_path), quiet=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock"], "something was written"
    other.kill()
    other.wait()
    assert train.run(tiny, str(tmp_path), stop_at=1, quiet=True) == {"step": 1, "done": False}
    assert not (tmp_path / "run.lock").exists()


def test_a_run_ends_once_another_process_has_its_workdir(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims.Claim, "lost", True)
    with pytest.raises(ValueError, match="another process has taken over"):
        train.run(tiny, str(tmp_path), quiet=True)
    assert checkpoint.Checkpoints(str(tmp_path)).latest() is None


def test_a_restart_writes_nothing_anew_that_is_there(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """A full disk would else take what stood before."""
    train.run(tiny, str(tmp_path), stop_at=4, quiet=True)
    paths = ["config.json", *(f"tokenizer/{file.name}" for file in (tmp_path / "tokenizer").iterdir())]
    before = {path: (tmp_path / path).stat().st_ino for path in paths}
    log = (tmp_path / "metrics.jsonl").read_text()
    train.run(tiny, str(tmp_path), stop_at=6, quiet=True)
    assert {path: (tmp_path / path).stat().st_ino for path in paths} == before
    assert (tmp_path / "metrics.jsonl").read_text().startswith(log)


def test_a_step_sends_nothing_to_the_devices_but_its_batch(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are sent by a thread of their own, ahead of the steps; what is logged, scored and saved is apart."""

    def under(guard: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*given: Any) -> Any:
            with jax.transfer_guard(guard):
                return function(*given)

        return guarded

    for name, guard in {"train": "disallow", "after": "allow", "evaluate": "allow"}.items():
        monkeypatch.setattr(train._Loop, name, under(guard, getattr(train._Loop, name)))
    monkeypatch.setattr(Program, "on_devices", under("allow", Program.on_devices))  # once, before the steps
    assert train.run(tiny, str(tmp_path), quiet=True)["done"]


def test_figures_are_fetched_while_the_next_step_runs(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = override(tiny, {"every": config.Every(log=2, evaluate=0, checkpoint=0), "phases.0.steps": 6})
    happened: list[str] = []
    count, write = train._Loop.count, Lane.write
    monkeypatch.setattr(train._Loop, "count", lambda *given: (happened.append("step"), count(*given))[1])
    monkeypatch.setattr(
        Lane, "write", lambda lane, *given: (happened.append(f"{given[1]} {given[0]}"), write(lane, *given))[1]
    )
    train.run(exp, str(tmp_path), stop_at=6, quiet=True)
    assert happened == [
        *["step", "step", "train 1", "step", "train 2", "step", "step", "train 4", "step", "train 6", "validation 6"]
    ]


MESHES = [config.Mesh(1, 1), config.Mesh(8, 1), config.Mesh(4, 2), config.Mesh(2, 2, 2)]


@pytest.fixture(scope="module")
def losses_by_mesh(tiny: Experiment, corpus: str) -> dict[config.Mesh, list[float]]:
    """Four steps of training, dropout on, on each mesh."""
    found = {}
    for shape in MESHES:
        exp = dataclasses.replace(tiny, mesh=shape)
        mesh = sharding.make_mesh(shape, jax.devices()[: shape.data * shape.fsdp * shape.model])
        vocabulary = planning.find_tokenizer(exp)
        context = train.Context(vocabulary)
        plan = planning.stretches(exp, context, sharding.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            program = Program(exp, vocabulary, plan[-1].stop, mesh)
            state, losses = program.init(), []
            for n in range(4):
                state, figures = program.step(state, plan[0].batches[n], program.knobs)
                losses.append(means(jax.device_get(figures))["loss"])
            assert program.step._cache_size() == 1, "the step was compiled again"
        found[shape] = losses
    return found


@pytest.mark.parametrize("shape", MESHES[1:])
def test_the_mesh_does_not_change_the_run(losses_by_mesh: dict[config.Mesh, list[float]], shape: config.Mesh) -> None:
    np.testing.assert_allclose(losses_by_mesh[shape], losses_by_mesh[MESHES[0]], rtol=2e-6)


def test_dropout_is_on_in_those_steps(tiny: Experiment, losses_by_mesh: dict[config.Mesh, list[float]]) -> None:
    exp = override(tiny, {"encoder.dropout": 0.0, "encoder.attention_dropout": 0.0})
    vocabulary = planning.find_tokenizer(exp)
    mesh = sharding.make_mesh(config.Mesh(1))
    plan = planning.stretches(exp, train.Context(vocabulary), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        program = Program(exp, vocabulary, plan[-1].stop, mesh)
        _, figures = program.step(program.init(), plan[0].batches[0], program.knobs)
    assert means(jax.device_get(figures))["loss"] != losses_by_mesh[MESHES[0]][0]


def test_dropout_differs_from_step_to_step(tiny: Experiment) -> None:
    """The same batch and weights at step 0 and at step 1 drop other elements."""
    vocabulary = planning.find_tokenizer(tiny)
    mesh = sharding.make_mesh(config.Mesh(1))
    batches = planning.stretches(tiny, train.Context(vocabulary), sharding.batch_sharding(mesh))[0].batches
    losses = []
    with jax.set_mesh(mesh):
        program = Program(tiny, vocabulary, 10, mesh)
        for step in (0, 1, 1):
            state = program.init()._replace(step=jax.device_put(jnp.int32(step), program.shardings.step))
            losses.append(means(jax.device_get(program.step(state, batches[0], program.knobs)[1]))["loss"])
    assert losses[0] != losses[1]
    assert losses[1] == losses[2]


def test_a_checkpoint_goes_on_on_another_mesh(tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    train.run(tiny, str(tmp_path), stop_at=5, quiet=True)
    train.run(dataclasses.replace(tiny, mesh=config.Mesh(2, 2)), str(tmp_path), quiet=True)
    moved = params(tmp_path)
    for path, leaf in params(whole).items():
        np.testing.assert_allclose(leaf, moved[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    exp = override(tiny, {"optimizer.learning_rate": 1e38, "optimizer.warmup": 4, "every.checkpoint": 1})
    with pytest.raises(
        FloatingPointError, match=r"NaN or infinite at step \d.*last good checkpoint is that of step \d"
    ):
        train.run(exp, str(tmp_path), quiet=True)
    assert all(np.isfinite(leaf).all() for leaf in params(tmp_path).values())


def test_a_last_step_that_makes_nan_weights_is_not_saved(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Its own loss is finite: what it did is seen by the evaluation."""
    phases = (config.Phase(length=16, batch_size=8, steps=1),)
    optimizer = config.Optimizer(learning_rate=1e38, warmup=0, schedule="constant")
    with pytest.raises(FloatingPointError, match=r"on validation data is NaN or infinite at step 1. There is no check"):
        train.run(dataclasses.replace(tiny, phases=phases, optimizer=optimizer), str(tmp_path), quiet=True)
    assert checkpoint.Checkpoints(str(tmp_path)).latest() is None


def test_another_experiment_in_the_same_workdir_is_refused(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    train.run(tiny, str(tmp_path), stop_at=1, quiet=True)
    with pytest.raises(ValueError, match=r"another experiment(.|\n)*optimizer.learning_rate: 0.001, and 0.002"):
        train.run(override(tiny, {"optimizer.learning_rate": 0.002}), str(tmp_path), quiet=True)
    train.run(override(tiny, {"every.log": 1, "encoder.scan": False}), str(tmp_path), stop_at=2, quiet=True)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"the embedding only 100: set --config.encoder.vocab_size="):
        train.run(override(tiny, {"encoder.vocab_size": 100}), str(tmp_path), quiet=True)


def test_a_corpus_of_another_vocabulary_is_refused(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    with pytest.raises(ValueError, match="vocabularies of vocab and the task's corpus differ"):
        train.run(dataclasses.replace(tiny, vocab=str(other)), str(tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists(), "nothing is written before the check"


def test_a_missing_corpus_is_said(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="build one with scripts/build_corpus"):
        train.run(override(tiny, {"task.corpus": ""}), str(tmp_path), quiet=True)


def test_a_damaged_checkpoint_is_said(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    train.run(tiny, str(tmp_path), stop_at=1, quiet=True)
    for file in (tmp_path / "checkpoints" / "1" / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot restore .*delete that directory"):
        train.run(tiny, str(tmp_path), quiet=True)


def test_a_full_disk_is_said_and_the_last_checkpoint_stands(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the one that a full file system gave, shortened; it comes out while a checkpoint is written."""
    train.run(tiny, str(tmp_path), stop_at=3, quiet=True)

    def full(*_: object, **__: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 3067904 bytes to file 30: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "wait_until_finished", full)
        with pytest.raises(OSError, match="is full; the checkpoint of step 3 stands"):
            train.run(tiny, str(tmp_path), stop_at=4, quiet=True)
    assert train.run(tiny, str(tmp_path), quiet=True)["done"]


def test_clipping_by_shard_clips_each_part_by_itself(tiny: Experiment) -> None:
    """Two shards whose gradients are clipped to norm c and averaged: what the two halves give alone, averaged."""
    still = {"encoder.dropout": 0.0, "encoder.attention_dropout": 0.0, "optimizer.clip_norm": 0.01}
    exp = override(tiny, {**still, "optimizer.clip_shards": 2})
    vocabulary = planning.find_tokenizer(exp)
    mesh = sharding.make_mesh(config.Mesh(1))
    plan = planning.stretches(exp, train.Context(vocabulary), sharding.batch_sharding(mesh))
    batch = plan[0].batches[0]
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        program = Program(exp, vocabulary, 10, mesh)
        state = program.init()
        batch = program._corrupt(batch, "train", 0)
        both, _ = program._gradients(state.params, batch, key)
        whole_batch = Program(override(exp, {"optimizer.clip_shards": 1}), vocabulary, 10, mesh)
        halves = []
        for part in (slice(0, 4), slice(4, 8)):
            gradients, _ = whole_batch._gradients(state.params, {k: v[part] for k, v in batch.items()}, key)
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
            assert norm > 0.01
            halves.append(jax.tree.map(lambda g, n=norm: g * 0.01 / n, gradients))
    wanted = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), both, wanted)


@pytest.mark.parametrize("mesh", [config.Mesh(1), config.Mesh(2)])
def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny: Experiment, mesh: config.Mesh) -> None:
    """Though the parts predict unlike numbers of tokens, and one row counts for nothing."""
    exp = override(tiny, {"encoder.dropout": 0.0, "encoder.attention_dropout": 0.0})
    vocabulary = planning.find_tokenizer(exp)
    placed = sharding.make_mesh(mesh, jax.devices()[: mesh.data])
    batch = planning.stretches(exp, train.Context(vocabulary), sharding.batch_sharding(placed))[0].batches[0]
    batch = {**batch, "mask": batch["mask"].at[0, 5:].set(False), "weight": batch["weight"].at[1].set(0.0)}

    def gradients(parts: int) -> tuple:
        with jax.set_mesh(placed):
            program = Program(override(exp, {"optimizer.accumulate": parts}), vocabulary, 10, placed)
            make = jax.jit(lambda p, b: program._gradients(p, program._corrupt(b, "train", 0), jax.random.key(0)))
            return make(program.init().params, batch)

    whole, figures = gradients(1)
    parts, same = gradients(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts, whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), same, figures)
    with pytest.raises(ValueError, match="cannot both exceed 1"):
        override(exp, {"optimizer.accumulate": 2, "optimizer.clip_shards": 2})


@pytest.mark.parametrize("name", ["clip_shards", "accumulate"])
def test_parts_that_do_not_divide_a_batch_are_refused(tiny: Experiment, name: str) -> None:
    """Where the experiment is made, whatever phase it is."""
    message = rf"phases\.1\.batch_size=6 cannot be split into optimizer\.{name}=4 equal parts: choose a multiple of 4"
    with pytest.raises(ValueError, match=message):
        override(tiny, {"phases.1.batch_size": 6, f"optimizer.{name}": 4})
    with pytest.raises(ValueError, match=r"phases\.0\.batch_size=8 cannot be split into"):
        override(tiny, {f"optimizer.{name}": "3"})
    assert override(tiny, {"phases.1.batch_size": 12, f"optimizer.{name}": 4}).phases[1].batch_size == 12


def test_the_encoder_comes_from_init_from_unless_named(tiny: Experiment, whole: pathlib.Path) -> None:
    exp = dataclasses.replace(tiny, encoder=None, init_from=str(whole))
    assert planning.resolve(exp).encoder == tiny.encoder
    other = override(tiny, {"encoder.layers": 3, "init_from": str(whole)})
    with pytest.raises(ValueError, match=r"differs from init_from.*layers: 2, and 3"):
        planning.resolve(other)
    with pytest.raises(ValueError, match="names no encoder"):
        planning.resolve(dataclasses.replace(tiny, encoder=None))


def test_a_change_of_an_encoder_that_is_not_named_is_one_of_the_source_s(
    tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    exp = dataclasses.replace(tiny, encoder=None)
    changes = {"init_from": str(whole), "encoder.dtype": "bfloat16", "seed": "3"}
    assert tiny.encoder is not None
    wanted = dataclasses.replace(tiny.encoder, dtype="bfloat16")
    found = planning.configured(exp, changes, str(tmp_path))
    assert (found.encoder, found.seed) == (wanted, 3)
    assert planning.resolve(found).encoder == wanted
    # What makes another model of it is refused, and without a source there is nothing but the defaults to change.
    with pytest.raises(ValueError, match="layers: 2, and 3"):
        planning.resolve(planning.configured(exp, {**changes, "encoder.layers": 3}))
    assert planning.configured(exp, {"encoder.layers": 3}).encoder == config.Encoder(layers=3)


def test_a_run_goes_on_without_its_source(tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A run that took its encoder from another is resumed from its own workdir's record."""
    exp = dataclasses.replace(tiny, encoder=None, init_from=str(whole))
    train.run(exp, str(tmp_path), stop_at=1, quiet=True)
    assert experiment.read_config(str(tmp_path)).encoder == tiny.encoder
    train.run(exp, str(tmp_path), stop_at=2, quiet=True)


def test_a_run_knows_the_length_of_a_source_that_is_gone(
    tiny: Experiment, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(whole, tmp_path / "source")
    short = (config.Phase(length=16, batch_size=8, steps=2),)
    exp = dataclasses.replace(tiny, init_from=str(tmp_path / "source"), phases=short)
    train.run(exp, str(tmp_path / "run"), stop_at=1, quiet=True)
    shutil.rmtree(tmp_path / "source")
    assert bert_jax.load(str(tmp_path / "run")).length == 32


def test_a_finished_run_is_left_as_it_is(tiny: Experiment, whole: pathlib.Path) -> None:
    before = (whole / "metrics.jsonl").read_text(), (whole / "result.json").read_text()
    assert train.run(tiny, str(whole), quiet=True) == json.loads(before[1])
    assert ((whole / "metrics.jsonl").read_text(), (whole / "result.json").read_text()) == before


def test_each_phase_is_scored_at_its_end(whole: pathlib.Path) -> None:
    lines = metrics.read(str(whole), "validation")
    assert [line["step"] for line in lines] == [5, 10]
    assert lines[0]["unigram_entropy"] == lines[1]["unigram_entropy"]
    assert lines[0]["nsp_majority"] != lines[1]["nsp_majority"], "another length has other pairs"


def test_the_result_says_where_the_time_went(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Of both calls of a run that went on, and of what lies between them."""
    train.run(tiny, str(tmp_path), stop_at=7, quiet=True)
    lines = metrics.read(str(tmp_path), "goodput")
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert lines[-1]["restarts"] == 0
    assert all(lines[-1][place] > 0 for place in ("steps", "compile", "evaluation", "checkpoints", "start"))
    goodput = train.run(tiny, str(tmp_path), quiet=True)["goodput"]
    assert goodput == json.loads((tmp_path / "result.json").read_text())["goodput"]
    assert goodput["restarts"] > 0
    assert sum(share for place, share in goodput.items() if place != "seconds") == pytest.approx(1, abs=1e-3)
    after = metrics.read(str(tmp_path), "goodput")
    assert after[:3] == lines
    assert [line["step"] for line in after[3:]] == [9, 10]
    assert all(after[-1][place] >= lines[-1][place] for place in metrics.Goodput.PLACES)


@pytest.mark.parametrize(
    ("steps", "message"), [((0, 3), "counted from 1"), ((4, 3), "4 to 3"), ((9, 11), "ends at 10")]
)
def test_steps_that_cannot_be_profiled_are_said(
    tiny: Experiment, tmp_path: pathlib.Path, steps: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(tiny, str(tmp_path / "run"), profile=steps, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_profile_has_the_steps_that_were_asked_for(
    tiny: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those that an earlier call made, none; a call that stops in their midst writes what it has."""
    did: list[object] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: did.append(pathlib.Path(folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: did.append("stop"))
    marked: list[int] = []
    annotation = jax.profiler.StepTraceAnnotation
    monkeypatch.setattr(
        jax.profiler,
        "StepTraceAnnotation",
        lambda name, step_num: (marked.append(step_num), annotation(name, step_num=step_num))[1],
    )
    before = Program.__init__

    def init(self: Program, *arguments: object) -> None:
        before(self, *arguments)
        compiled = self.step
        self.step = lambda *inputs: (did.append(int(inputs[0].step) + 1), compiled(*inputs))[1]

    monkeypatch.setattr(Program, "__init__", init)
    nan = override(tiny, {"optimizer.learning_rate": 1e38, "optimizer.warmup": 4})
    with pytest.raises(FloatingPointError):
        train.run(nan, str(tmp_path / "nan"), profile=(1, 10), quiet=True)
    assert (did[0], did[-1]) == (tmp_path / "nan" / "profile", "stop")
    did.clear()
    train.run(tiny, str(tmp_path / "run"), stop_at=3, profile=(2, 3), quiet=True)
    folder = tmp_path / "run" / "profile"
    assert did == [1, folder, 2, 3, "stop"]
    assert marked[-2:] == [2, 3]
    did.clear()
    train.run(tiny, str(tmp_path / "run"), profile=(2, 4), quiet=True)
    assert did == [folder, 4, "stop", 5, 6, 7, 8, 9, 10]
    assert marked[-2:] == [3, 4]


def test_a_sentencepiece_model_stands_in_for_the_vocabulary(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """In corpus, training (of whole words) and prediction alike."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefg"), 4)) for _ in range(60)]
    documents = [[" ".join(rng.choice(words, 8)) for _ in range(6)] for _ in range(30)]
    (tmp_path / "text.txt").write_text("\n\n".join("\n".join(document) for document in documents))
    sentences = (sentence for document in documents for sentence in document)
    vocabulary = vocabularies.train_sentencepiece(sentences, 60, kind="unigram")
    vocabulary.save(tmp_path / "model")
    building.build([str(tmp_path / "text.txt")], tokenizer.load(tmp_path / "model"), tmp_path / "corpus", workers=1)
    changes = {
        "task.corpus": str(tmp_path / "corpus"),
        "task.masking.whole_word": True,
        "vocab": str(tmp_path / "model"),
    }
    result = train.run(override(tiny, changes), str(tmp_path / "run"), quiet=True)
    assert result["mlm_loss"] < np.log(320) + 0.2
    model = bert_jax.load(str(tmp_path / "run"))
    assert model.tokenizer.fingerprint == vocabulary.fingerprint
    fillings = model.fill_mask(f"{words[0]} [MASK] {words[1]}", top=3)
    assert all(one.text.startswith(words[0]) and one.text.endswith(words[1]) for one in fillings)


@pytest.mark.slow
def test_runs_in_one_program_end_as_each_by_itself(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    """Another seed, another learning rate, dropout on, on a mesh, stopped and resumed: weights, figures and scores."""
    tiny = override(tiny, {"mesh": config.Mesh(2, 2)})
    exps = [override(tiny, {"seed": seed, "optimizer.learning_rate": rate}) for seed, rate in ((0, 1e-3), (3, 3e-3))]
    alone, together = ([str(tmp_path / f"{name}{n}") for n in range(2)] for name in ("alone", "together"))
    expected = [train.run(exp, workdir, quiet=True) for exp, workdir in zip(exps, alone, strict=True)]
    cut = train.run_together(exps, together, stop_at=7, quiet=True)
    assert cut == [{"step": 7, "done": False}] * 2
    found = train.run_together(exps, together, quiet=True)
    assert train.run_together(exps, together, quiet=True) == found  # what is done is not done again
    for one, other, a, b in zip(expected, found, alone, together, strict=True):
        assert other.pop("device") == one.pop("device")
        assert other.pop("data") == one.pop("data")
        for timed in ("seconds", "goodput"):
            assert other.pop(timed) != one.pop(timed)
        for made in ("began", "ended"):
            assert other.pop(made).keys() == one.pop(made).keys()
        assert other == pytest.approx(one, rel=1e-4)
        assert experiment.read_config(a) == experiment.read_config(b)
        here, there = params(pathlib.Path(a)), params(pathlib.Path(b))
        for path, leaf in here.items():
            np.testing.assert_allclose(leaf, there[path], rtol=1e-3, atol=1e-5, err_msg=path)
        lines = [metrics.read(w, "train") for w in (a, b)]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
        assert lines[1][-1]["loss"] == pytest.approx(lines[0][-1]["loss"], rel=1e-4)
    assert found[0]["loss"] != found[1]["loss"]


def test_runs_of_one_program_differ_in_seed_and_rate_alone(tiny: Experiment, tmp_path: pathlib.Path) -> None:
    other = override(tiny, {"optimizer.weight_decay": 0.0, "seed": 1})
    with pytest.raises(ValueError, match=r"may differ in seed and .* alone: optimizer.weight_decay: 0.01, and 0.0"):
        train.run_together([tiny, other], [str(tmp_path / "a"), str(tmp_path / "b")], quiet=True)
    assert not (tmp_path / "a").exists()
