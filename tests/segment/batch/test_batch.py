"""`segment.batch` against moto: what is asked of AWS, and that asking twice changes nothing."""

import json
import re
import time
from fnmatch import fnmatch

import boto3
import pytest
import yaml
from aws import CREDENTIALS, TAG, template_for_moto
from moto import mock_aws

import minicnn
from segment.batch import command as batch
from segment.batch import doctor, images, jobs, stack
from segment.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:moto", "ignore::UserWarning")
TRAIN = ["train", "--", "--data", "s3://b/inria", "--out", "s3://b/runs/1"]
PREDICT = ["s3://b/scenes", "--out", "s3://b/masks", "--threshold", "0.6"]


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """An account with nothing in it but the stack, in eu-central-1; the stack's resources."""
    patch = pytest.MonkeyPatch()
    for name, value in CREDENTIALS.items():
        patch.setenv(name, value)
    template = tmp_path_factory.mktemp("moto") / "template.yaml"
    template.write_text(template_for_moto())
    patch.setattr(stack, "TEMPLATE", template)
    with mock_aws(config={"batch": {"use_docker": False}}):
        batch.main(["deploy", "--tag", TAG])
        yield stack.resources(boto3.Session(), "minicnn")
    patch.undo()


@pytest.fixture
def aws(account):
    return boto3.Session()


@pytest.fixture
def elsewhere(account, monkeypatch):
    """The account in a region where it has nothing."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    return boto3.Session()


@pytest.fixture
def submitted(aws):
    """What the test submits, by the first word of its name; of arrays the parent."""

    def jobs():
        found = aws.client("batch").describe_jobs(jobs=[])["jobs"]
        return {job["jobId"]: job for job in found if ":" not in job["jobId"]}

    before = jobs()
    return lambda: {
        job["jobName"].partition("-")[0]: job for id, job in jobs().items() if id not in before
    }


# ---------------------------------------------------------------- deploy


def test_a_dry_run_prints_what_would_be_made_and_makes_nothing(elsewhere, capsys):
    batch.main(["deploy", "--tag", TAG, "--dry-run"])
    planned = capsys.readouterr().out
    for name in ("Bucket", "Repository", "CpuMachines", "GpuQueue", "CpuJob", "JobRole"):
        assert f" {name}\n" in planned
    assert elsewhere.client("cloudformation").describe_stacks()["Stacks"] == []
    assert elsewhere.client("ecr").describe_repositories()["repositories"] == []


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine that knows no account and no region, where any call of AWS is a failure."""
    for name in (*CREDENTIALS, "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def called(self, operation, arguments):
        raise AssertionError(f"AWS was asked for {operation}")

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", called)


@pytest.mark.parametrize("region", [None, "eu-central-1"])
def test_a_dry_run_needs_no_account(nowhere, monkeypatch, capsys, region):
    if region:
        monkeypatch.setenv("AWS_REGION", region)
    batch.main(["deploy", "--tag", TAG, "--dry-run"])
    first, *listed = capsys.readouterr().out.splitlines()
    assert first == "no AWS account is at hand: this is what a new stack has"
    template = yaml.load(stack.TEMPLATE.read_text(), CloudFormation)["Resources"]
    assert {tuple(line.split()[1:3]) for line in listed} == {
        (made["Type"], name) for name, made in template.items()
    }
    conditional = {line.split()[2] for line in listed if "(if " in line}
    assert conditional == {name for name, made in template.items() if "Condition" in made}
    batch.main(["train", "--dry-run", *TRAIN[1:]])
    said = capsys.readouterr().out
    assert said.startswith("train --data s3://b/inria --out s3://b/runs/1 --resume --device cpu\n")
    assert "at most 48.0 machine hours an attempt" in said
    batch.main(["predict", "--dry-run", "--shards", "3", "--", *PREDICT])
    assert "at most 18.0 machine hours an attempt" in capsys.readouterr().out


def test_without_an_account_nothing_but_a_dry_run_goes(nowhere):
    with pytest.raises(InputError, match="AWS: "):
        batch.main(["deploy", "--tag", TAG])


class CloudFormation(yaml.SafeLoader):
    """Another reader of the template; what it computes (!Ref, !Sub) is not looked at."""


CloudFormation.add_multi_constructor("!", lambda loader, suffix, node: None)


def test_deploying_twice_changes_nothing(aws, account, capsys):
    batch.main(["deploy", "--tag", TAG])
    assert "nothing to change" in capsys.readouterr().out
    assert stack.resources(aws, "minicnn") == account


def test_an_update_keeps_what_is_not_named(aws):
    made = stack._find(aws.client("cloudformation"), "minicnn")
    given = {each.pop("ParameterKey"): each for each in stack._changed(made, {"ImageTag": "2"})}
    assert given["ImageTag"] == {"ParameterValue": "2"}
    assert given["Vpc"] == given["Subnets"] == {"UsePreviousValue": True}


def test_a_repository_that_is_there_already_is_left_alone(elsewhere):
    def created():
        parameters = stack._first(elsewhere, {"Vpc": "vpc-1", "Subnets": "subnet-1"})
        return {each["ParameterKey"]: each["ParameterValue"] for each in parameters}

    assert created()["CreateRepository"] == "true"
    elsewhere.client("ecr").create_repository(repositoryName="minicnn")
    assert created()["CreateRepository"] == "false"
    elsewhere.client("ecr").delete_repository(repositoryName="minicnn")


def test_without_a_default_network_one_must_be_named():
    class Ec2:
        def describe_vpcs(self, Filters):
            return {"Vpcs": []}

    with pytest.raises(InputError, match="no default VPC: name a network with --set Vpc"):
        stack._default_network(Ec2())


# ---------------------------------------------------------------- train, predict


def test_train_resumes_and_is_submitted_once(account, submitted, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "OVER", ())  # moto's jobs succeed at once
    batch.main(TRAIN)
    batch.main(TRAIN)
    assert "submitted already" in capsys.readouterr().out
    (job,) = submitted().values()
    command = "train --data s3://b/inria --out s3://b/runs/1 --resume --device cpu"
    assert job["container"]["command"] == command.split()
    assert job["timeout"] == {"attemptDurationSeconds": 48 * 3600}
    assert job["jobQueue"] == account["CpuQueue"]
    assert job["jobDefinition"] == account["CpuJob"]


def test_predict_is_a_plan_an_array_and_a_merge_that_wait_for_one_another(submitted):
    batch.main(["predict", "--shards", "3", "--", *PREDICT, "--", "--cog"])
    made = submitted()
    plan, array, merge = made["plan"], made["predict"], made["merge"]
    assert plan["container"]["command"] == array["container"]["command"]
    assert "arrayProperties" not in plan
    assert array["dependsOn"] == [{"jobId": plan["jobId"]}]
    assert array["arrayProperties"]["size"] == 3
    assert array["container"]["command"] == [
        "predict", *PREDICT, "--shards", "3", "--device", "cpu",
    ]  # fmt: skip
    assert merge["dependsOn"] == [{"jobId": array["jobId"]}]
    assert merge["container"]["command"] == ["merge", "s3://b/masks", "--cog"]


def test_one_shard_is_no_array_since_those_have_two_jobs_at_least(submitted):
    batch.main(["predict", "--shards", "1", "--", *PREDICT])
    job = submitted()["predict"]
    assert "arrayProperties" not in job and "plan" not in submitted()
    assert job["container"]["command"][-6:-2] == ["--shards", "1", "--shard", "0"]


def test_gpu_jobs_go_to_the_gpu_queue_and_merge_to_the_cpu(account, submitted):
    batch.main(["predict", "--shards", "2", "--device", "gpu", "--", *PREDICT])
    made = submitted()
    assert made["predict"]["jobQueue"] == account["GpuQueue"]
    assert made["merge"]["jobQueue"] == account["CpuQueue"]


def test_gpu_jobs_are_refused_on_fargate(aws, account, submitted, monkeypatch):
    client, ec2 = aws.client("batch"), aws.client("ec2")
    client.create_compute_environment(
        computeEnvironmentName="serverless",
        type="MANAGED",
        serviceRole=aws.client("iam").list_roles()["Roles"][0]["Arn"],
        computeResources={
            "type": "FARGATE",
            "maxvCpus": 4,
            "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
            "securityGroupIds": [account["SecurityGroup"]],
        },
    )
    queue = client.create_job_queue(
        jobQueueName="serverless",
        state="ENABLED",
        priority=1,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "serverless"}],
    )["jobQueueArn"]
    monkeypatch.setattr(jobs, "resources", lambda *_: account | {"GpuQueue": queue})
    with pytest.raises(InputError, match="serverless is FARGATE, which has no GPUs"):
        batch.main(["train", "--device", "gpu", *TRAIN[1:]])
    assert submitted() == {}


def test_a_dry_run_submits_nothing_and_tells_the_most_it_takes(submitted, capsys):
    batch.main(["train", "--dry-run", *TRAIN[1:]])
    assert "at most 192.0 vCPU hours an attempt" in capsys.readouterr().out  # 48 h on 4 vCPUs
    batch.main(["predict", "--dry-run", "--shards", "3", "--", *PREDICT])
    assert "at most 72.0 vCPU hours an attempt" in capsys.readouterr().out  # 6 h each
    assert submitted() == {}


# ---------------------------------------------------------------- status, logs, cancel


def test_status_logs_and_cancel(submitted, capsys):
    batch.main(TRAIN)
    (job,) = submitted().values()
    capsys.readouterr()
    batch.main(["status"])
    assert f"{job['jobId']} {job['jobName']} SUCCEEDED" in capsys.readouterr().out
    batch.main(["cancel", job["jobId"]])
    assert "SUCCEEDED already" in capsys.readouterr().out
    with pytest.raises(InputError, match="no job nothing"):
        batch.main(["logs", "nothing"])


def test_logs_are_printed_once_and_to_their_end(aws, capsys):
    logs = aws.client("logs")
    logs.create_log_group(logGroupName="g")
    logs.create_log_stream(logGroupName="g", logStreamName="s")

    def say(*lines):
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line} for line in lines]
        logs.put_log_events(logGroupName="g", logStreamName="s", logEvents=events)

    say("epoch 1", "epoch 2")
    token = jobs._print_events(logs, "g", "s", {})
    assert capsys.readouterr().out == "epoch 1\nepoch 2\n"
    say("epoch 3")
    jobs._print_events(logs, "g", "s", token)
    assert capsys.readouterr().out == "epoch 3\n"
    assert jobs._print_events(logs, "g", "none yet", {}) == {}


# ---------------------------------------------------------------- push


@pytest.fixture
def engine(monkeypatch):
    """An engine that only remembers what it was told; a clean checkout."""
    told = []
    monkeypatch.setattr(images, "_engine", lambda: "podman")
    monkeypatch.setattr(images, "release_tag", lambda: TAG)
    monkeypatch.setattr(images, "_call", lambda *command, given=None: told.append((command, given)))
    return told


def put_image(aws, tag):
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    aws.client("ecr").put_image(
        repositoryName="minicnn",
        imageManifest=json.dumps({"schemaVersion": 2, "mediaType": kind, "about": tag}),
        imageTag=tag,
    )


def test_push_makes_the_repository_and_names_the_commit(elsewhere, engine):
    batch.main(["push", "--device", "gpu"])
    build, login, tag, push = (command for command, _ in engine)
    repository = elsewhere.client("ecr").describe_repositories()["repositories"][0]
    assert repository["imageTagMutability"] == "IMMUTABLE"
    target = f"{repository['repositoryUri']}:{TAG}-gpu"
    assert str(images.CHECKOUT / "docker/gpu.Dockerfile") in build
    assert push == ("podman", "push", target) and tag[-1] == target
    assert login[-1] == repository["repositoryUri"].partition("/")[0]
    password = engine[1][1]
    assert password and not any(password in part for part in login)
    elsewhere.client("ecr").delete_repository(repositoryName="minicnn")


def test_what_was_pushed_is_not_pushed_again(elsewhere, engine, capsys):
    elsewhere.client("ecr").create_repository(repositoryName="minicnn")
    put_image(elsewhere, f"{TAG}-cpu")
    batch.main(["push"])
    assert engine == [] and "is there already" in capsys.readouterr().out
    elsewhere.client("ecr").delete_repository(repositoryName="minicnn", force=True)


def test_an_image_of_uncommitted_code_is_refused(monkeypatch):
    monkeypatch.setattr(images, "_git", lambda *_: " M segment/unet.py")
    with pytest.raises(InputError, match="uncommitted changes"):
        images.release_tag()
    monkeypatch.setattr(images, "_git", lambda command, *_: "" if command == "status" else "abc")
    assert images.release_tag() == f"{minicnn.__version__}-abc"


# ---------------------------------------------------------------- doctor

MACHINE = {"computeEnvironmentName": "cpu", "state": "ENABLED", "status": "VALID"}
HAS = {"type": "SPOT", "maxvCpus": 8, "desiredvCpus": 0, "instanceTypes": ["c6i"]}
NEEDS = {"VCPU": 4.0, "MEMORY": 7000.0}
TYPES = {"c6i.xlarge": (4, 8192, 0), "g4dn.xlarge": (4, 16384, 1), "m6i.large": (2, 8192, 0)}


class Service:
    """EC2, ECS and the quotas as AWS answers them, where it has `vcpus` and TYPES."""

    def __init__(self, vcpus):
        self.vcpus = vcpus

    def client(self, name):
        return self

    def get_service_quota(self, ServiceCode, QuotaCode):
        return {"Quota": {"Value": self.vcpus}}

    def list_container_instances(self, cluster):
        return {"containerInstanceArns": []}

    def get_paginator(self, operation):
        return self

    def paginate(self, Filters):
        patterns = Filters[0]["Values"] if Filters else ["*"]
        for name, (vcpus, memory, gpus) in TYPES.items():
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield {
                    "InstanceTypes": [
                        {
                            "VCpuInfo": {"DefaultVCpus": vcpus},
                            "MemoryInfo": {"SizeInMiB": memory},
                            **({"GpuInfo": {"Gpus": [{"Count": gpus}]}} if gpus else {}),
                        }
                    ]
                }


@pytest.mark.parametrize(
    ("has", "needs", "vcpus", "diagnosis"),
    [
        ({}, {}, 64, None),
        ({"maxvCpus": 2}, {}, 64, "may have 2 vCPUs, and a job needs 4: deploy --set MaxCpuVcpus"),
        ({"desiredvCpus": 8}, {}, 64, "has all of its 8 vCPUs"),
        ({}, {"MEMORY": 8000.0}, 64, "none of c6i has what a job needs"),
        ({"instanceTypes": ["m6i"]}, {}, 64, "none of m6i has what a job needs"),
        ({}, {"GPU": 1.0}, 64, "none of c6i has what a job needs"),
        ({"instanceTypes": ["g4dn.xlarge"]}, {"GPU": 1.0}, 64, None),
        ({"instanceTypes": ["optimal"]}, {}, 64, None),
        ({"type": "FARGATE"}, {"GPU": 1.0}, 64, "GPU jobs need EC2 or SPOT"),
        ({}, {}, 2, "--quota-code L-34B43A08"),
        ({"type": "EC2"}, {}, 2, "--quota-code L-1216C47A"),
        ({"desiredvCpus": 4}, {}, 64, "wants machines and none has arrived"),
    ],
)
def test_the_doctor_knows_machines(has, needs, vcpus, diagnosis):
    machine = {**MACHINE, "ecsClusterArn": "cluster", "computeResources": HAS | has}
    found = list(doctor._machines(Service(vcpus), machine, "cpu", NEEDS | needs))
    assert any(diagnosis in each for each in found) if diagnosis else not found, found


def test_the_doctor_knows_images_and_queues(aws, account, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_quota", lambda *_: ())  # moto has none for EC2
    client = aws.client("batch")
    batch.main(["doctor"])
    said = capsys.readouterr().out
    assert f"problem: there is no image minicnn:{TAG}-gpu: segment.batch push --device gpu" in said
    put_image(aws, f"{TAG}-cpu")
    put_image(aws, f"{TAG}-gpu")
    batch.main(["doctor"])
    assert capsys.readouterr().out.startswith("nothing is wrong that can be seen")
    client.update_job_queue(jobQueue=account["CpuQueue"], state="DISABLED")
    batch.main(["doctor"])
    assert re.search("^problem: queue .* is DISABLED and VALID", capsys.readouterr().out)
    client.update_job_queue(jobQueue=account["CpuQueue"], state="ENABLED")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "--out among them"),
        (["status", "--stack", "mine"], "no stack mine in eu-central-1"),
        (
            ["train", "--", "--data", "s3://b/d", "--out", "runs/1"],
            "runs/1: s3://bucket/key was expected",
        ),
        (["train", "--", "--data", "here", "--out", "s3://b/1"], "here: s3://"),
        (["predict", "--shards", "2", "--", "a.tif", "--out", "s3://b/1"], "a.tif: s3://"),
        (["predict", "--shards", "10001", "--", *PREDICT], "10,000 jobs at most"),
        (["status", "--", "x"], "status takes nothing after --"),
    ],
)
def test_bad_input_is_one_sentence(aws, arguments, sentence):
    with pytest.raises(InputError) as raised:
        batch.main(arguments)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["push", "--device", "tpu"],
        ["deploy", "--set", "MaxCpuVcpus"],
        ["train", "--", "--epochs", "none", "--out", "s3://b/1"],
        ["predict", "--shards", "0", "--", *PREDICT],
        ["fly"],
        [],
    ],
)
def test_bad_arguments_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        batch.main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_aws_refuses_is_one_sentence(monkeypatch, tmp_path):
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match=r"^AWS: .*region"):
        batch.main(["status"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with pytest.raises(InputError, match=r"^AWS: .*credentials"):
        batch.main(["status"])
