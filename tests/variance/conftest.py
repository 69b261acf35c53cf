"""Exact moments need float64: modules say `pytestmark = pytest.mark.usefixtures("float64")`."""

import jax
import pytest


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
