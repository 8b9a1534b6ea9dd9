"""How fast a training step is on this machine, beside the libraries one would otherwise take.

    python scripts/benchmark.py --size=tiny --batch=32 --against=torch,flax
    python scripts/benchmark.py --size=base --batch=8 --rounds=10

A step is all of it: dropout, masked LM and next sentence, backward pass, clipping, Adam with decay; ours also makes the
masks. The contenders, each in a process of its own, take turns round by round, so that whatever else the machine does
hits all of them; the medians count. `--against` needs the Hugging Face packages: pip install torch "transformers<5".
"""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from bert_jax import config, startup
from bert_jax.experiment import Experiment
from bert_jax.tasks.base import Context
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.text import parallel
from bert_jax.training import data, sharding
from bert_jax.training.program import Program

# Layers and hidden size; heads are 64 wide (paper, section 3, and the miniatures).
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("corpus", "", "a corpus's directory: the input pipeline, from index to device, takes turns too")
flags.DEFINE_enum("size", "base", list(SIZES), "the model")
flags.DEFINE_integer("batch", 8, "sequences per step", lower_bound=1, upper_bound=1 << 20)
flags.DEFINE_integer("length", 128, "tokens per sequence", lower_bound=8, upper_bound=1 << 16)
flags.DEFINE_integer("rounds", 7, "how often each contender has its turn", lower_bound=1, upper_bound=10_000)
flags.DEFINE_float(
    "seconds", 10.0, "how long a turn lasts at least: a first step finds its memory cold", 1e-6, 86_400.0
)
flags.DEFINE_list("against", [], "torch, flax: Hugging Face's BertForPreTraining in PyTorch, in Flax")
flags.DEFINE_multi_string("set", [], "a field of our encoder to change, such as --set=scan=true")

Step = Callable[[], object]  # runs one training step to its end


def ours(size: config.Encoder, batch: dict[str, np.ndarray]) -> Step:
    """The step that `python -m bert_jax` runs, on all of this machine's devices: masking, and all figures, included."""
    rows, length = batch["tokens"].shape
    exp = Experiment(
        encoder=size, task=Pretrain(), phases=(config.Phase(length=length, batch_size=rows, steps=1_000_000),)
    )
    # Of a vocabulary, masking asks no more than this.
    vocabulary: Any = types.SimpleNamespace(mask=103, cls=101, sep=102, vocab_size=size.vocab_size)
    mesh = sharding.make_mesh(exp.mesh)
    with jax.set_mesh(mesh):
        program = Program(exp, vocabulary, 1_000_000, mesh)
        state = program.init()
    placed = jax.device_put(batch, program.batch_sharding)

    def run() -> object:
        nonlocal state
        with jax.set_mesh(mesh):
            state, figures = program.step(state, placed, program.knobs)
        return jax.block_until_ready(figures)

    return run


def pipeline(corpus: str, _: config.Encoder, batch: dict[str, np.ndarray]) -> Step:
    """A batch of the corpus, as large as `batch`, from its number to arrays on the device: another one each time."""
    rows, length = batch["tokens"].shape
    task = Pretrain(corpus=corpus, dupe_factor=1)
    source = task.source("train", length, Context(task.tokenizer()))
    batches = data.Batches(source, rows, sharding.batch_sharding(sharding.make_mesh(config.Mesh())))
    numbers = itertools.count()
    return lambda: jax.block_until_ready(batches[next(numbers)])


def hugging_face_torch(size: config.Encoder, batch: dict[str, np.ndarray]) -> Step:
    """Hugging Face's PyTorch model with the fused AdamW, which is what its Trainer takes."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.BertForPreTraining(hugging_face_config(size, attn_implementation="sdpa")).to(device).train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    inputs = {name: torch.from_numpy(np.asarray(x, np.int64)).to(device) for name, x in _masked(batch).items()}

    def run():
        loss = model(
            input_ids=inputs["tokens"],
            token_type_ids=inputs["segments"],
            attention_mask=inputs["mask"],
            labels=inputs["labels"],
            next_sentence_label=inputs["next_sentence"],
        ).loss
        return torch_update(model, adam, loss)

    return run


def torch_update(model: Any, adam: Any, loss: Any) -> float:
    """Backward pass, clipping to a global norm of 1, the optimizer's step; gives the loss, once all is done."""
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return loss.item()


def hugging_face_flax(size: config.Encoder, batch: dict[str, np.ndarray]) -> Step:
    """Hugging Face's Flax model, jitted with its buffers donated, with optax's AdamW."""
    import transformers

    model = transformers.FlaxBertForPreTraining(hugging_face_config(size), input_shape=(1, batch["tokens"].shape[1]))
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, eps=1e-6, weight_decay=0.01))

    def loss_of(params, inputs, key):
        outputs = model(
            inputs["tokens"], inputs["mask"], inputs["segments"], params=params, dropout_rng=key, train=True
        )
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        weights = inputs["labels"] >= 0
        masked = cross_entropy(outputs.prediction_logits, jnp.where(weights, inputs["labels"], 0)) * weights
        following = cross_entropy(outputs.seq_relationship_logits, inputs["next_sentence"])
        return masked.sum() / weights.sum() + following.mean()

    def step(params, state, inputs, key):
        key, dropout = jax.random.split(key)
        loss, gradients = jax.value_and_grad(loss_of)(params, inputs, dropout)
        updates, state = adam.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, key, loss

    held: list[Any] = [model.params, jax.jit(adam.init)(model.params), jax.random.key(1)]
    inputs = jax.device_put({name: np.asarray(x, np.int32) for name, x in _masked(batch).items()})
    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run():
        params, state, key, loss = compiled(held[0], held[1], inputs, held[2])
        held[:] = params, state, key
        return jax.block_until_ready(loss)

    return run


CONTENDERS = {"torch": hugging_face_torch, "flax": hugging_face_flax}


def hugging_face_config(size: config.Encoder, **more):
    import transformers

    return transformers.BertConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.feed_forward,
        **more,
    )


def _masked(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with `labels` [B, T], -100 where nothing is predicted."""
    chosen = np.random.default_rng(1).random(batch["tokens"].shape) < 0.15
    return batch | {"labels": np.where(chosen, batch["tokens"], -100)}


def random_batch(batch: int, length: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Sequences without padding, [CLS] A [SEP] B [SEP]."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, vocab_size, (batch, length)).astype(np.int32)
    tokens[:, 0], tokens[:, length // 2], tokens[:, -1] = 101, 102, 102
    return {
        "tokens": tokens,
        "segments": np.broadcast_to((np.arange(length) > length // 2).astype(np.int32), tokens.shape),
        "mask": np.ones(tokens.shape, bool),
        "next_sentence": rng.integers(0, 2, batch).astype(np.int32),
        "id": np.arange(batch, dtype=np.int32),
        "visit": np.zeros(batch, np.int32),
        "weight": np.ones(batch, np.float32),
    }


def on_random_batch(
    make: Callable[[config.Encoder, dict[str, np.ndarray]], Step],
    name: str,
    batch: int,
    length: int,
    changes: dict[str, str],
) -> Step:
    """A contender at the size of that name, on sequences without padding."""
    size = encoder_of(name, changes)
    return make(size, random_batch(batch, length, size.vocab_size))


def encoder_of(name: str, changes: dict[str, str]) -> config.Encoder:
    layers, hidden = SIZES[name]
    size = config.Encoder(layers=layers, hidden=hidden, heads=hidden // 64, scan=jax.default_backend() == "tpu")
    return config.override(size, changes)


def changes_of(given: list[str]) -> dict[str, str]:
    """What `--set=FIELD=VALUE` asks for.

    Raises:
      app.UsageError: where one is of another form.
    """
    for change in given:
        if "=" not in change:
            raise app.UsageError(f"--set={change}: expected --set=FIELD=VALUE")
    return dict(change.split("=", 1) for change in given)


def serve(connection: multiprocessing.connection.Connection, make: Callable[[], Step], warm_up: int) -> None:
    """A contender's process: sends the device's name, then answers the length of a turn with the seconds per step."""
    parallel.end_with_parent()
    try:
        step = make()
        for _ in range(warm_up):
            step()
    except ImportError as error:
        connection.send(error)
        return
    except (ValueError, OSError, MemoryError) as error:
        connection.send(ValueError(str(error)))
        return
    connection.send(jax.devices()[0].device_kind)
    while seconds := connection.recv():
        start, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - start < seconds:
            step()
            steps += 1
        connection.send((time.perf_counter() - start) / steps)


def take_turns(
    contenders: dict[str, Callable[[], Step]], rounds: int, seconds: float, warm_up: int = 2
) -> tuple[str, dict[str, list[float]]]:
    """The device's name, and seconds per step of each contender, a number per round.

    This process itself holds no device: on a TPU, no other could have it then.

    Raises:
      ValueError: where a contender cannot run, or its process ends.
    """
    context = multiprocessing.get_context("spawn")
    connections, device = {}, ""

    def answer(name: str, connection: multiprocessing.connection.Connection) -> Any:
        try:
            value = connection.recv()
        except EOFError:
            raise ValueError(f"{name}: its process has ended; what it said stands above") from None
        if isinstance(value, ValueError):
            raise ValueError(f"{name}: {value}")
        return value

    for name, make in contenders.items():
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, make, warm_up), daemon=True).start()
        there.close()
        first = answer(name, here)
        if isinstance(first, ImportError):
            print(f'{name} is left out ({first}): pip install torch "transformers<5"')
        else:
            connections[name], device = here, first
    times: dict[str, list[float]] = {name: [] for name in connections}
    for _ in range(rounds):
        for name, connection in connections.items():
            connection.send(seconds)
            times[name].append(answer(name, connection))
    for connection in connections.values():
        connection.send(0)
    return device, times


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Every argument is a flag; --help lists them")
    unknown = set(FLAGS.against) - set(CONTENDERS)
    if unknown:
        raise app.UsageError(f"--against knows {', '.join(CONTENDERS)}, not {', '.join(sorted(unknown))}")
    try:  # before any process starts
        config.override(config.Encoder(*SIZES[FLAGS.size], SIZES[FLAGS.size][1] // 64), changes_of(FLAGS.set))
        config.Phase(length=FLAGS.length, batch_size=FLAGS.batch, steps=1)
    except ValueError as error:
        sys.exit(f"error: {error}")
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # for all, as python -m bert_jax has it
    contenders = {"bert_jax": ours, **{name: CONTENDERS[name] for name in FLAGS.against}}
    if FLAGS.corpus:
        contenders["pipeline"] = functools.partial(pipeline, FLAGS.corpus)
    asked = (FLAGS.size, FLAGS.batch, FLAGS.length, changes_of(FLAGS.set))
    processes: dict[str, Callable[[], Step]] = {
        name: functools.partial(on_random_batch, make, *asked) for name, make in contenders.items()
    }
    if not math.isfinite(FLAGS.seconds):
        raise app.UsageError(f"--seconds={FLAGS.seconds} must be a number")
    try:
        device, times = take_turns(processes, FLAGS.rounds, FLAGS.seconds)
    except ValueError as error:
        sys.exit(f"error: {error}")

    tokens = FLAGS.batch * FLAGS.length
    print(f"{FLAGS.size}, {FLAGS.batch} x {FLAGS.length} on {device}, {FLAGS.rounds} rounds")
    ours_median = statistics.median(times["bert_jax"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"  {name:10} {tokens / median:10,.0f} tokens/s   {1000 * median:8.1f} ms a step "
            f"({1000 * min(seconds):.1f} to {1000 * max(seconds):.1f})"
            + ("" if name == "bert_jax" else f"   we are {median / ours_median:.2f} times as fast")
        )


if __name__ == "__main__":
    startup.run(main)
