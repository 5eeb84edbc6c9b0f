"""The container files: hadolint, rules of our own, and an entry point that passes signals on."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
FILES = {device: (DOCKER / f"{device}.Dockerfile").read_text() for device in ("cpu", "gpu")}
HADOLINT = Path(sys.executable).parent / "hadolint"


def hadolint(text):
    done = subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def by_our_rules(text):
    """A base that can be exchanged, two stages, a user without rights, a health check, labels."""
    lines = text.splitlines()
    rules = {
        "the base can be exchanged": "ARG BASE_IMAGE=python:3.12-slim-bookworm" in lines,
        "two stages": len(re.findall(r"^FROM \$\{BASE_IMAGE\}", text, re.M)) == 2,
        "the user has no rights": "USER 10001:10001" in lines,
        "pins are all": text.count("pip install")
        == text.count("--no-deps --requirement") + text.count("--no-index"),
        "GDAL finds libexpat": "libexpat1" in text,
        "signals reach the command": 'ENTRYPOINT ["/opt/minicnn/entrypoint.sh"]' in lines,
        "a health check": "HEALTHCHECK " in text,
        "labels": text.count("org.opencontainers.image.") == 5,
        "no settings of one machine": not re.search(r"PIP_|certs|proxy|index-url", text),
    }
    return [name for name, kept in rules.items() if not kept]


@pytest.mark.parametrize("device", FILES)
def test_the_files_are_right(device):
    assert not hadolint(FILES[device])
    assert not by_our_rules(FILES[device])


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        ("${BASE_IMAGE} AS build", "python AS build", hadolint),
        ("--no-install-recommends ", "", hadolint),
        ("WORKDIR /src", "WORKDIR src", hadolint),
        ('ENTRYPOINT ["/opt/minicnn/entrypoint.sh"]', "ENTRYPOINT entrypoint.sh", hadolint),
        ("ARG BASE_IMAGE=python:3.12-slim-bookworm", "ARG BASE_IMAGE=python", by_our_rules),
        ("USER 10001:10001", "USER root", by_our_rules),
        ("--no-deps --requirement", "--requirement", by_our_rules),
        ("install --yes --no-install-recommends libexpat1", "install --yes curl", by_our_rules),
        ("ENV PATH", "ENV PIP_CERT=/etc/ssl/certs PATH", by_our_rules),
    ],
)
def test_a_planted_error_is_found(right, wrong, check):
    assert right in FILES["cpu"]
    assert check(FILES["cpu"].replace(right, wrong))


def test_the_gpu_file_differs_in_what_a_gpu_needs_only():
    lines = {device: set(text.splitlines()) for device, text in FILES.items()}
    new = [line for line in lines["gpu"] - lines["cpu"] if not line.startswith("#")]
    assert len(new) == 7, new
    assert all(re.search("gpu|GPU|CUPY|NVIDIA|DEVICE", line) for line in new)


def pins(name):
    lines = (DOCKER / name).read_text().splitlines()
    return dict(
        line.lower().replace("_", "-").split("==")
        for line in lines
        if not line.startswith(("#", "-"))
    )


def test_the_pins_are_exact_and_satisfy_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    known = pins("requirements.txt") | pins("requirements-gpu.txt")
    asked = [setup["options"]["install_requires"], extras["api"], extras["aws"], extras["gpu"]]
    for line in filter(None, "\n".join(asked).splitlines()):
        wanted = Requirement(line)
        assert wanted.specifier.contains(known[wanted.name.lower().replace("_", "-")]), line


@pytest.fixture
def entry(tmp_path):
    """The entry point, with a python and a gunicorn that say who they are and what they got."""
    for name in ("python", "gunicorn"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$$ ${0##*/} $*"\n')
        (tmp_path / name).chmod(0o755)

    def start(*arguments):
        return subprocess.Popen(
            ["sh", DOCKER / "entrypoint.sh", *arguments],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize(
    ("arguments", "becomes"),
    [
        ([], "gunicorn --config /opt/minicnn/gunicorn.conf.py --pid /tmp/gunicorn.pid "),
        (["train", "--out", "a b"], "python -m segment.train --out a b"),
        (["merge", "s3://b/masks"], "python -m segment.merge s3://b/masks"),
    ],
)
def test_the_entry_point_becomes_the_command(entry, arguments, becomes):
    process = entry(*arguments)
    assert process.communicate()[0].strip() == f"{process.pid} {becomes}".strip()


def test_the_entry_point_refuses_other_words(entry):
    process = entry("trian")
    said = process.communicate()[1]
    assert (
        process.returncode == 2
        and said.startswith("error: trian: expected")
        and said.count("\n") == 1
    )


def test_compose_is_as_careful_as_production():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"api", "job"}
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]


def test_only_what_the_image_is_built_from_is_sent():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*" and "!tests" not in rules and "!docs" not in rules
