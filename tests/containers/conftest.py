"""Images that are really built, and engines and servers that run them; all on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from segment.batch import images

# What is needed, and the Debian package that has it.
TOOLS = {
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}
# No registry of images is needed: the base is Debian's Python, in place of python:3.12-slim.
SUITE, BASE = "trixie", "localhost/minicnn-base:trixie"
LIMITS = ["nofile=1024:1024", "nproc=4096:4096"]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


def call(*command, **options):
    """Run a command to its end; what it printed. A failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def engines(tmp_path_factory):
    """The environment of podman and buildah, and what they need where few rights are given."""
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        raise RuntimeError(f"these tests need: apt-get install {' '.join(missing)}")
    folder = tmp_path_factory.mktemp("engines")
    limits = ", ".join(f'"{limit}"' for limit in LIMITS)
    (folder / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = [{limits}]\nnetns = "host"\n[engine]\nruntime = "runc"\n'
    )
    (folder / "registries.conf").write_text(
        '[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n'
    )
    (folder / "auth.json").write_text("{}")
    patch = pytest.MonkeyPatch()
    patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
    patch.setenv("REGISTRY_AUTH_FILE", str(folder / "auth.json"))
    patch.setenv("CONTAINERS_REGISTRIES_CONF", str(folder / "registries.conf"))
    yield dict(os.environ)
    patch.undo()


@pytest.fixture(autouse=True)
def surroundings(environment, engines):
    """Each test has the engines' variables; what it sets itself is forgotten after it."""
    os.environ.update(engines)


@pytest.fixture(scope="session")
def base(engines, tmp_path_factory):
    """A small Debian with Python; kept in the engines' storage from one run to the next."""
    if subprocess.run(["podman", "image", "exists", BASE], env=engines, check=False).returncode:
        folder = tmp_path_factory.mktemp("base")
        included = "--include=ca-certificates,python3,python3-venv"
        call("mmdebstrap", "--variant=minbase", included, SUITE, folder / "rootfs.tar")
        (folder / "Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        call("buildah", "build", "--isolation", "chroot", "-t", BASE, folder, env=engines)
    return BASE


@pytest.fixture(scope="session")
def build(base, engines, tmp_path_factory):
    """`build("cpu")` builds the image as `segment.batch push` does, and returns its name."""
    options = ["--isolation=chroot", "--network=host", f"--build-arg=BASE_IMAGE={base}"]
    if certificates := os.environ.get("PIP_CERT"):  # this machine's way to the packages
        settings = tmp_path_factory.mktemp("pip") / "pip.conf"
        settings.write_text(f"[global]\ncert = {certificates}\n")
        options += [f"--volume={settings}:/etc/pip.conf:ro"]
        options += [f"--volume={Path(certificates).parent}:{Path(certificates).parent}:ro"]

    def build(device):
        name = f"localhost/minicnn:{device}"
        images._build("podman", device, name, options)
        return name

    return build


@pytest.fixture(scope="session")
def image(build):
    return build("cpu")


@pytest.fixture
def container(image):
    """`container(*options, command=[...])` runs the image as production does, to its end."""

    def run(*options, command, image=image):
        return subprocess.run(
            ["podman", "run", "--rm", "--read-only", *options, image, *command],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def answers(address):
    try:
        urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def eventually(done, minutes=20):
    """Wait until something is so; not for ever."""
    end = time.monotonic() + 60 * minutes
    while not done():
        assert time.monotonic() < end, f"not so after {minutes} minutes"
        time.sleep(0.5)


@contextmanager
def serving(command, port, path, environment, log):
    """A server as a process; ready once it answers, stopped at the end."""
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        eventually(lambda: server.poll() or answers(f"http://127.0.0.1:{port}{path}"))
        assert server.poll() is None, log.read_text()[-2000:]
        yield
    finally:
        server.terminate()
        server.wait(30)


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def registry(engines, tmp_path_factory):
    """An ECR to push to."""
    port, log = free_port(), tmp_path_factory.mktemp("registry") / "log"
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0"}
    command = [sys.executable, Path(__file__).with_name("registry.py")]
    with serving(command, port, "/_ministack/health", {**engines, **settings}, log):
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


@pytest.fixture(scope="session")
def batch_server(engines, tmp_path_factory):
    """AWS Batch, whose jobs are containers, and S3; the variables that lead there."""
    folder = tmp_path_factory.mktemp("batch")
    socket_file, port = folder / "podman.sock", free_port()
    podman = subprocess.Popen(
        ["podman", "system", "service", "--time=0", f"unix://{socket_file}"], env=engines
    )
    try:
        eventually(socket_file.exists)
        settings = {"DOCKER_HOST": f"unix://{socket_file}", "MOTO_DOCKER_NETWORK_MODE": "host"}
        command = [sys.executable, Path(__file__).with_name("batch_server.py"), str(port)]
        environment = {**engines, **CREDENTIALS, **settings}
        with serving(command, port, "/moto-api/", environment, folder / "log"):
            yield {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        podman.terminate()
        podman.wait(30)
