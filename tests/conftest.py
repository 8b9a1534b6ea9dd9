"""What every test shares: eight fake CPU devices, strict shapes, and the one door to the real data."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets that lies beside a developer's checkout; tests that need it are skipped without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data beside this checkout")
    return folder
