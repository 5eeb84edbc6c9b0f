"""Container images: built by the engine that is there, named by version and commit, put in ECR."""

import base64
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minicnn
from segment.errors import InputError

REPOSITORY = "minicnn"
ENGINES = ("podman", "buildah", "docker")  # build, login, tag and push are the same in all three
CHECKOUT = Path(__file__).parents[2]


def push(aws: Any, device: str, image: str | None, build_options: Sequence[str]) -> None:
    """Put the image for a device into ECR: the one named, or else one built from this checkout.

    The repository is made where it is missing. An image of this version and commit that is there
    already stays as it is: tags are immutable.
    """
    ecr, tag = aws.client("ecr"), f"{release_tag()}-{device}"
    target = f"{_repository(ecr)}:{tag}"
    if image_exists(ecr, tag):
        print(f"{target} is there already")
        return
    engine = _engine()
    if image is None:
        image = f"minicnn:{tag}"
        _build(engine, device, image, build_options)
    _login(engine, ecr, target)
    _call(engine, "tag", image, target)
    _call(engine, "push", target)
    print(target)


def release_tag() -> str:
    """Version and commit of this checkout, which the images made from it are named by."""
    if not (CHECKOUT / "docker").is_dir():
        raise InputError(f"{CHECKOUT} is no checkout of the project: the commit can't be told")
    if _git("status", "--porcelain"):
        raise InputError("there are uncommitted changes: an image is named by its commit")
    return f"{minicnn.__version__}-{_git('rev-parse', '--short=12', 'HEAD')}"


def has_repository(ecr: Any) -> bool:
    try:
        ecr.describe_repositories(repositoryNames=[REPOSITORY])
    except ecr.exceptions.RepositoryNotFoundException:
        return False
    return True


def image_exists(ecr: Any, tag: str) -> bool:
    try:
        found = ecr.describe_images(repositoryName=REPOSITORY, imageIds=[{"imageTag": tag}])
    except (ecr.exceptions.ImageNotFoundException, ecr.exceptions.RepositoryNotFoundException):
        return False
    return bool(found["imageDetails"])


def _repository(ecr: Any) -> str:
    """The repository's address; the repository is made if there is none."""
    if not has_repository(ecr):
        ecr.create_repository(
            repositoryName=REPOSITORY,
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
    found = ecr.describe_repositories(repositoryNames=[REPOSITORY])["repositories"]
    return str(found[0]["repositoryUri"])


def _engine() -> str:
    for engine in ENGINES:
        if shutil.which(engine):
            return engine
    raise InputError(f"none of {', '.join(ENGINES)} was found: one is needed to push an image")


def _build(engine: str, device: str, image: str, options: Sequence[str]) -> None:
    revision = _git("rev-parse", "HEAD")
    about = [f"--build-arg=VERSION={minicnn.__version__}", f"--build-arg=REVISION={revision}"]
    file = CHECKOUT / "docker" / f"{device}.Dockerfile"
    health = [] if engine == "docker" else ["--format=docker"]  # OCI's own has no health check
    _call(engine, "build", *about, *health, *options, "-f", str(file), "-t", image, str(CHECKOUT))


def _login(engine: str, ecr: Any, target: str) -> None:
    """ECR's password is a token for twelve hours; it goes through a pipe, not the command line."""
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    registry = target.partition("/")[0]
    _call(engine, "login", "--username", user, "--password-stdin", registry, given=password)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _call(*command: str, given: str | None = None) -> None:
    """Run an engine; what it says is shown as it comes."""
    if subprocess.run(command, input=given, text=True, check=False).returncode:
        raise InputError(f"{command[0]} {command[1]} failed: see above")
