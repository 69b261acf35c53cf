"""Every test runs with 8 forced CPU devices, raising rank promotion and a compile cache shared between runs."""

import itertools
import os
import pathlib

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Most programs of the tests run once: without the backend's optimisations they take a third less of the processor.
    + " --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Forget compiled programs now and then: each holds pieces of mapped memory, of which a process may have 65,530."""
    yield
    if next(TESTS) % 150 == 0:
        jax.clear_caches()
