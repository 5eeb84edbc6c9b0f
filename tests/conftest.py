"""What the whole suite shares: array modules, random numbers, and the oracles it may ask."""

import os
import secrets
import shutil
import signal
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import buckets
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from kernel_cases import forget_kernels

from minicnn import backend
from segment.storage import s3

# Derandomised: a failure is there for everyone, on every run, until it is mended.
settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For planted bugs, where that a test fails is enough and the smallest example not needed.
settings.register_profile("no-shrinking", settings.get_profile("suite"), phases=[Phase.generate])
settings.load_profile("suite")


# A job in the background inherits that Ctrl-C is ignored; the processes that tests start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def environment():
    """The environment variables as they were: the service sets some of GDAL's for its process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=["numpy", "stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The array module: every test that takes it runs on NumPy, on the strict stand-in for CuPy
    of tests/gpu, and on CuPy itself where there is a GPU."""
    if request.param == "numpy":
        return np
    if request.param == "stand-in":
        return request.getfixturevalue("stand_in").module
    return request.getfixturevalue("cupy")


@pytest.fixture
def cupy(request):
    """CuPy itself, where there is a GPU; only for tests marked `gpu`.

    With MINICNN_REQUIRE_GPU set, a missing GPU fails instead of skipping.
    """
    if not request.node.get_closest_marker("gpu"):
        pytest.fail("this test needs a GPU and is not marked so: pytest.mark.gpu")
    cupy = _optional("cupy", "MINICNN_REQUIRE_GPU")
    if not cupy.is_available() and not os.environ.get("MINICNN_REQUIRE_GPU"):
        pytest.skip("no GPU")
    forget_kernels()  # they may be bound to the stand-in
    request.getfixturevalue("float32")
    return cupy


@pytest.fixture
def float32(monkeypatch):
    """GPUs multiply in float32, unless a test says otherwise, and do so again after it."""
    monkeypatch.setattr(backend, "_wanted", "float32")


@pytest.fixture
def stand_in(monkeypatch, float32):
    """The stand-in for CuPy in CuPy's place, its counters at zero."""
    import strict_cupy

    strict_cupy.reset()
    forget_kernels()  # they may be bound to CuPy
    monkeypatch.setitem(sys.modules, "cupy", strict_cupy.module)
    yield strict_cupy
    forget_kernels()  # bound to the stand-in


@pytest.fixture(scope="session")
def moto():
    with buckets.moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    with buckets.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture(params=["moto", pytest.param("seaweedfs", marks=pytest.mark.slow)])
def bucket(request, environment, tmp_path):
    """An empty bucket, on a stand-in and on a real server, to which the AWS variables point."""
    endpoint = request.getfixturevalue(request.param)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    cache = str(tmp_path / "users-cache")
    os.environ.update({**buckets.KEYS, "AWS_ENDPOINT_URL": endpoint, "XDG_CACHE_HOME": cache})
    s3._connection.cache_clear()
    name = f"b{secrets.token_hex(8)}"
    client = buckets.client(endpoint)
    client.create_bucket(Bucket=name)
    yield s3.S3Path(name, "")
    s3._connection.cache_clear()
    buckets.remove(client, name)


@pytest.fixture
def faults(bucket):
    """What goes wrong between storage and the bucket's server: see `buckets.Faults`."""
    with buckets.Faults(os.environ["AWS_ENDPOINT_URL"]) as faults:
        os.environ["AWS_ENDPOINT_URL"] = faults.endpoint
        s3._connection.cache_clear()
        yield faults


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


@pytest.fixture(scope="session")
def photographs():
    """The folder of real photographs; the test is skipped where MINICNN_PHOTOGRAPHS names none."""
    if "MINICNN_PHOTOGRAPHS" not in os.environ:
        pytest.skip("no photographs: MINICNN_PHOTOGRAPHS names no folder")
    folder = Path(os.environ["MINICNN_PHOTOGRAPHS"])
    if not folder.is_dir():
        pytest.fail(f"MINICNN_PHOTOGRAPHS: {folder} is no folder")
    return folder


def pytest_collection_modifyitems(items):
    """Who takes `photographs` or `torch` is marked so, and can be chosen by `pytest -m`."""
    for item in items:
        for name in {"photographs", "torch"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(name)


def pytest_terminal_summary(terminalreporter):
    """How many tests were skipped, by reason: a suite that skips much must say so."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = Counter(
        said[2].removeprefix("Skipped: ") if isinstance(said, tuple) else str(said)
        for said in skipped
    )
    if reasons:
        terminalreporter.section("skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5} {reason}")


@pytest.fixture(scope="session")
def program():
    """`program("curl")`: a program's path; the test is skipped where it is missing.

    With MINICNN_REQUIRE_ORACLES set, a missing one fails instead (.ci/apt-packages brings them).
    """

    def find(name):
        path = shutil.which(name)
        if not path and os.environ.get("MINICNN_REQUIRE_ORACLES"):
            pytest.fail(f"{name} is not installed")
        return path or pytest.skip(f"no {name}")

    return find


def _optional(name, required_by):
    return import_module(name) if os.environ.get(required_by) else pytest.importorskip(name)
