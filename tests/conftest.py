"""What the whole suite shares: array modules, random numbers, and the oracles it may ask."""

import os
from importlib import import_module

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

# Derandomised: a failure is there for everyone, on every run, until it is mended.
settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
# For planted bugs, where that a test fails is enough and the smallest example not needed.
settings.register_profile("no-shrinking", settings.get_profile("suite"), phases=[Phase.generate])
settings.load_profile("suite")


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The array module: every test that takes it runs on the CPU, and on a GPU where there is one.

    With MINICNN_REQUIRE_GPU set, a missing GPU fails instead of skipping.
    """
    if request.param == "numpy":
        return np
    cupy = _optional("cupy", "MINICNN_REQUIRE_GPU")
    if not cupy.is_available() and not os.environ.get("MINICNN_REQUIRE_GPU"):
        pytest.skip("no GPU")
    return cupy


@pytest.fixture
def rng():
    """Random numbers, the same on every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def oracle():
    """`oracle("torch")`: a library to compare with; the test is skipped where it is missing.

    With MINICNN_REQUIRE_ORACLES set, a missing one fails instead.
    """
    return lambda name: _optional(name, "MINICNN_REQUIRE_ORACLES")


@pytest.fixture(scope="session")
def torch(oracle):
    return oracle("torch")


def _optional(name, required_by):
    return import_module(name) if os.environ.get(required_by) else pytest.importorskip(name)
