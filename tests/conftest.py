"""What every test shares: eight fake CPU devices, strict shapes, and the one door to the real data."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_jax.experiment import Experiment

os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same small programs, in this process and in those they start.
_compiled = tempfile.TemporaryDirectory(prefix="bert_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# No test finds what another run kept.
_kept = tempfile.TemporaryDirectory(prefix="bert_jax_tests_")
os.environ["BERT_JAX_CACHE"] = _kept.name
# Eight devices on two busy cores may keep each other waiting for long: that is no deadlock.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import hypothesis  # noqa: E402
import jax  # noqa: E402 - after the environment that it reads
import pytest  # noqa: E402

from tests import fake_bucket  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("suite", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("suite")

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets that lies beside a developer's checkout; tests that need it are skipped without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data beside this checkout")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small corpus of made-up documents, as scripts/build_corpus.py would build it; returns its directory."""
    import random

    from bert_jax.corpus import building
    from bert_jax.text import vocabularies

    rng = random.Random(0)
    words = [rng.choice("bcdfglmnprst") + rng.choice("aeiou") + rng.choice("bdklmnrst") for _ in range(200)]
    topics = [rng.sample(words, 30) for _ in range(8)]

    def document() -> str:
        topic = rng.choice(topics)
        return "\n".join(" ".join(rng.choices(topic, k=rng.randint(4, 12))) + "." for _ in range(rng.randint(4, 12)))

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("\n\n".join(document() for _ in range(120)))
    vocabulary = vocabularies.train_wordpiece(iter([*words, "."]), 300)
    building.build([str(folder / "text.txt")], vocabulary, folder / "built", workers=1)
    return str(folder / "built")


@pytest.fixture(scope="session")
def served() -> Iterator[fake_bucket.Bucket]:
    """gs://bucket, for this process and for those that it starts."""
    with fake_bucket.serve() as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", found.url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", found.url)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks Google what kind of bucket it is
        yield found


@pytest.fixture
def bucket(served: fake_bucket.Bucket, request: pytest.FixtureRequest) -> str:
    """A folder of its own in a bucket: gs://..."""
    return f"gs://{fake_bucket.NAME}/{re.sub('[^A-Za-z0-9]+', '-', request.node.name)}"


@pytest.fixture(scope="module")
def few_devices() -> Iterator[None]:
    """Meshes take as many of the eight devices as they name, not all."""
    from bert_jax import config
    from bert_jax.training import sharding

    everything = sharding.make_mesh

    def make_mesh(shape: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
        return everything(shape, devices or jax.devices()[: abs(shape.data) * shape.fsdp * shape.model])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", make_mesh)
        yield


@pytest.fixture(scope="session")
def tiny(corpus: str) -> Experiment:
    """A pre-training run of seconds on that corpus, in two phases."""
    from bert_jax import config
    from bert_jax.experiment import Experiment
    from bert_jax.tasks.pretrain import Pretrain

    return Experiment(
        name="tiny",
        encoder=config.Encoder(layers=2, hidden=16, heads=2, vocab_size=320, max_positions=32, scan=True),
        task=Pretrain(corpus=corpus, dupe_factor=2, heldout=0.1),
        optimizer=config.Optimizer(learning_rate=1e-3, warmup=2),
        phases=(config.Phase(length=16, batch_size=8, steps=5), config.Phase(length=32, batch_size=8, steps=5)),
        mesh=config.Mesh(data=1),
        every=config.Every(log=2, evaluate=0, checkpoint=3),
    )


def command(exp: Experiment, folder: pathlib.Path, workdir: pathlib.Path, *flags: str, more: str = "") -> list[str]:
    """The command line that runs `exp`, which it writes to a file first. `more` is Python that stands there too."""
    from bert_jax import config

    file = folder / "experiment.py"
    file.write_text(
        "import json\nfrom bert_jax import config, experiment\n"
        f"EXPERIMENT = config.from_dict(json.loads({json.dumps(config.to_dict(exp))!r}), experiment.kinds())\n{more}"
    )
    return [sys.executable, "-m", "bert_jax", f"--config={file}", f"--workdir={workdir}", *flags]


def environment(devices: int = 1) -> dict[str, str]:
    """Of such a command: not that of the tests."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(REPOSITORY),
    }


def flip(file: pathlib.Path, place: int) -> None:
    """Changes a byte of a file, as a bad disk or copy would."""
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # clocks of file systems are coarse
