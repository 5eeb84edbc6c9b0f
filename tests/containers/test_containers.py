"""The images as they run: read-only, as a user without rights, as a service, as jobs of AWS Batch.

`make test-containers` runs these on demand; docs/cloud.md says what they need, and what in them is
a stand-in.
"""

import json
import re
import shlex
import subprocess
import time
from pathlib import Path

import boto3
import numpy as np
import pytest
import rasterio
from conftest import answers, call, eventually, free_port

import minicnn
from segment.batch import command as batch
from segment.batch import images, jobs
from segment.synthetic.scenes import write_scenes

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Five drawn cities of four scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, scenes_per_city=4, size=256)
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)  # the container's user is another
    return folder


def about(image):
    return json.loads(call("podman", "image", "inspect", image))[0]


# ---------------------------------------------------------------- the image


def test_the_image_says_what_it_is_and_brings_nothing_else(image, container):
    found = about(image)
    labels = found["Labels"]
    assert labels["org.opencontainers.image.version"] == minicnn.__version__
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert found["Config"]["User"] == "10001:10001"
    assert found["HealthCheck" if "HealthCheck" in found else "Healthcheck"]["Test"]
    assert not [name for name in found["Config"]["Env"] if name.startswith(("PIP_", "AWS_"))]
    look = "cat /etc/pip.conf; ls /src /root/.cache; python -m pip --version; id -u"
    looked = container("--entrypoint", "sh", command=["-c", look])
    assert looked.stdout == "10001\n"  # the rest is not there, or empty: a mount point of the build


def test_nothing_but_the_work_and_temporary_folders_can_be_written(container):
    write = "touch /work/x /tmp/x && for d in / /opt /opt/venv /usr /etc; do touch $d/x; done"
    done = container("--entrypoint", "sh", command=["-c", write])
    assert done.returncode == 1
    assert done.stderr.count("Read-only file system") == 5


def test_commands_run_and_a_wrong_one_is_one_line(container):
    assert "3,842,241 parameters" in container(command=["summary"]).stdout
    wrong = container(command=["trian"])
    assert wrong.returncode == 2
    assert "error: trian: expected api, train, evaluate, predict" in wrong.stderr


def test_training_stopped_in_a_container_goes_on_in_the_next(image, scenes, container, tmp_path):
    work = f"work-{tmp_path.name}-{time.time_ns()}"
    options = ["--volume", f"{work}:/work", "--volume", f"{scenes}:/data:ro"]
    command = ["train", "--data", "/data", "--split", "random", "--epochs", "8", "--out", "run"]
    try:
        call("podman", "run", "--detach", "--read-only", "--name", work, *options, image, *command)
        history = ["podman", "exec", work, "cat", "/work/run/history.csv"]
        eventually(lambda: not subprocess.run(history, capture_output=True, check=False).returncode)
        call("podman", "stop", "--time", "60", work)
        assert json.loads(call("podman", "inspect", work))[0]["State"]["ExitCode"] == 143
        resumed = container(*options, command=[*command, "--resume"])
        assert resumed.returncode == 0, resumed.stderr
        assert "model: run/best.safetensors" in resumed.stdout
        rows = container(*options, "--entrypoint", "cat", command=["run/history.csv"]).stdout
        assert [row.split(",")[0] for row in rows.split()[1:]] == [str(n) for n in range(1, 9)]
    finally:
        call("podman", "rm", "--force", "--volumes", work)
        call("podman", "volume", "rm", "--force", work)


def test_the_service_answers_the_published_request(image, scenes, tmp_path):
    (published,) = [
        line.strip()
        for line in (ROOT / "docs/api.md").read_text().splitlines()
        if line.startswith("    curl -X POST")
    ]
    port, name = free_port(), f"api-{time.time_ns()}"
    bound = f"127.0.0.1:{port}"
    options = [f"--env=MINICNN_BIND={bound}"]
    (tmp_path / "austin8_up_right.tif").write_bytes((scenes / "images/ashford1.tif").read_bytes())
    try:
        call("podman", "run", "--detach", "--read-only", "--name", name, *options, image)
        eventually(lambda: answers(f"http://{bound}/readyz"))
        request = published.replace("localhost:8000", bound)
        call(*shlex.split(request), "--fail", "--silent", cwd=tmp_path)
        with (
            rasterio.open(tmp_path / "mask.tif") as mask,
            rasterio.open(scenes / "images/ashford1.tif") as scene,
        ):
            assert mask.shape == scene.shape and mask.transform == scene.transform
            assert set(np.unique(mask.read(1))) <= {0, 255}
        call("podman", "exec", name, "python", "/opt/minicnn/healthcheck.py")
        call("podman", "stop", "--time", "60", name)
        assert json.loads(call("podman", "inspect", name))[0]["State"]["ExitCode"] == 0
    finally:
        call("podman", "rm", "--force", "--volumes", name)


def test_the_gpu_image_brings_cupy_and_misses_only_the_gpu(build, container):
    image = build("gpu")
    version = ["-c", "import cupy; print(cupy.__version__)"]
    assert container("--entrypoint", "python", command=version, image=image).stdout
    checked = container(command=["selfcheck", "--device", "gpu"], image=image)
    assert checked.returncode == 2 and "CuPy finds none" in checked.stderr


# ---------------------------------------------------------------- the registry


def test_push_puts_the_image_into_ecr_once(image, registry, monkeypatch, capfd):
    for name, value in registry.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(images, "release_tag", lambda: "0.1.0-test")
    batch.main(["push", "--image", image])
    (pushed,) = boto3.client("ecr").describe_images(repositoryName="minicnn")["imageDetails"]
    assert pushed["imageTags"] == ["0.1.0-test-cpu"]
    capfd.readouterr()
    batch.main(["push", "--image", image])
    assert "is there already" in capfd.readouterr().out


# ---------------------------------------------------------------- AWS Batch


@pytest.fixture
def cloud(batch_server, image, scenes, monkeypatch):
    """A Batch whose queue and definition are the stack's own; scenes in its bucket."""
    for name, value in batch_server.items():
        monkeypatch.setenv(name, value)
    place = jobs.Place("queue", "minicnn", {"VCPU": 2.0, "MEMORY": 4096.0})
    monkeypatch.setattr(jobs.Place, "of", lambda *_: place)
    made = {"CpuQueue": place.queue, "GpuQueue": place.queue}
    monkeypatch.setattr(jobs, "resources", lambda *_: made)
    client = boto3.client("batch")
    if not client.describe_job_queues()["jobQueues"]:
        _set_up(client, place, image)
        s3 = boto3.client("s3")
        s3.create_bucket(
            Bucket="area", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        for file in scenes.rglob("*.*"):
            s3.upload_file(str(file), "area", f"scenes/{file.relative_to(scenes)}")
    return client


def _set_up(client, place, image):
    role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument="{}")
    environment = client.create_compute_environment(
        computeEnvironmentName="machines",
        type="UNMANAGED",
        serviceRole=role["Role"]["Arn"],
    )
    client.create_job_queue(
        jobQueueName=place.queue,
        state="ENABLED",
        priority=1,
        computeEnvironmentOrder=[
            {"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]}
        ],
    )
    client.register_job_definition(
        jobDefinitionName=place.definition,
        type="container",
        containerProperties={
            "image": image,
            "resourceRequirements": [
                {"type": kind, "value": f"{amount:g}"} for kind, amount in place.needs.items()
            ],
            "environment": [{"name": "MINICNN_NUM_THREADS", "value": "2"}],
            "readonlyRootFilesystem": True,
        },
    )


def finished(client, job):
    """The job once it is over."""
    eventually(lambda: jobs.find(client, job)["status"] in jobs.OVER)
    return jobs.find(client, job)


def submitted(capsys):
    """The ids that a command has printed."""
    return re.findall("^([0-9a-f-]{36}) ", capsys.readouterr().out, re.MULTILINE)


def keys():
    found = boto3.client("s3").list_objects_v2(Bucket="area")["Contents"]
    return {each["Key"] for each in found}


def test_a_training_from_s3_to_s3_and_a_map_by_an_array_of_jobs(cloud, capsys):
    train = ["--data", "s3://area/scenes", "--split", "random", "--epochs", "2"]
    batch.main(["train", "--", *train, "--out", "s3://area/runs/1"])
    (job,) = submitted(capsys)
    state = finished(cloud, job)
    batch.main(["logs", job])
    said = capsys.readouterr().out
    assert state["status"] == "SUCCEEDED", said
    assert "best.safetensors" in said
    assert {"runs/1/best.safetensors", "runs/1/metrics.json"} <= keys()

    predict = ["s3://area/scenes/images", "--model", "s3://area/runs/1", "--out", "s3://area/map"]
    batch.main(["predict", "--shards", "3", "--", *predict])
    plan, array, merge = submitted(capsys)
    finished(cloud, array)  # moto sees that an array is over when it is asked
    state = finished(cloud, merge)
    for each in (plan, f"{array}:0", f"{array}:1", f"{array}:2", merge):
        batch.main(["logs", each])
    said = capsys.readouterr().out
    assert state["status"] == "SUCCEEDED", said
    assert jobs.find(cloud, array)["arrayProperties"]["statusSummary"]["SUCCEEDED"] == 3
    assert {"map/manifest.json", "map/footprints.parquet"} <= keys()
    assert any(key.startswith("map/mosaic") for key in keys())
    assert len([key for key in keys() if key.startswith("map/masks/")]) == 20


def test_a_failing_job_says_why_and_what_waits_for_it_does_not_run(cloud, capsys):
    predict = ["s3://area/nothing", "--out", "s3://area/nowhere"]
    batch.main(["predict", "--shards", "2", "--", *predict])
    plan, array, merge = submitted(capsys)
    assert finished(cloud, plan)["status"] == "FAILED"
    assert finished(cloud, f"{array}:0")["status"] == "FAILED"
    assert jobs.find(cloud, merge)["status"] == "PENDING"  # for ever in moto; in AWS it fails, too
    batch.main(["cancel", merge])
    capsys.readouterr()
    batch.main(["logs", plan])
    assert re.search("^error: s3://area/nothing", capsys.readouterr().out, re.MULTILINE)
    assert not [key for key in keys() if key.startswith("nowhere/mosaic")]


def test_a_cancelled_training_leaves_a_checkpoint_and_goes_on(cloud, capsys):
    train = ["--data", "s3://area/scenes", "--split", "random", "--epochs", "6"]
    command = ["train", "--", *train, "--out", "s3://area/runs/2"]
    batch.main(command)
    (job,) = submitted(capsys)
    eventually(lambda: "runs/2/last.safetensors" in keys())
    batch.main(["cancel", job])
    state = finished(cloud, job)
    assert state["status"] == "FAILED" and state["container"].get("exitCode", 143) == 143
    capsys.readouterr()
    batch.main(command)
    (again,) = submitted(capsys)
    assert finished(cloud, again)["status"] == "SUCCEEDED"
