"""Why doesn't a job start? Looks at all that has to be right; says what isn't, and what to do."""

from collections.abc import Iterator, Sequence
from typing import Any

from segment.batch.images import REPOSITORY, image_exists
from segment.batch.jobs import find, machines
from segment.batch.stack import resources
from segment.errors import InputError

SHARE = 0.9  # of a machine's memory is left for jobs; its agent and system take the rest
# EC2's quotas, in vCPUs; a new account has few of the first kinds and none of the last.
QUOTAS = {
    ("SPOT", "cpu"): ("L-34B43A08", "All Standard Spot Instance Requests"),
    ("SPOT", "gpu"): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("EC2", "cpu"): ("L-1216C47A", "Running On-Demand Standard instances"),
    ("EC2", "gpu"): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
}


def examine(aws: Any, stack: str, job: str | None) -> None:
    """Print what is wrong with the stack and, if one is named, with a job; or that nothing is."""
    found = list(_ailments(aws, stack, job))
    for ailment in found:
        print(f"problem: {ailment}")
    if not found:
        print("nothing is wrong that can be seen: machines take some minutes to start")


def _ailments(aws: Any, stack: str, job: str | None) -> Iterator[str]:
    made, batch = resources(aws, stack), aws.client("batch")
    for device in ("cpu", "gpu"):
        queue, definition = made[f"{device.capitalize()}Queue"], made[f"{device.capitalize()}Job"]
        needs, image = _definition(batch, definition)
        yield from _image(aws, image)
        yield from _queue(batch, queue)
        for machine in machines(batch, queue):
            yield from _machines(aws, machine, device, needs)
    if job:
        yield from _job(batch, job)


def _definition(batch: Any, definition: str) -> tuple[dict[str, float], str]:
    found = batch.describe_job_definitions(jobDefinitions=[definition])["jobDefinitions"]
    if not found:
        raise InputError(f"the job definition {definition} is gone: run segment.batch deploy")
    container = found[0]["containerProperties"]
    needs = {need["type"]: float(need["value"]) for need in container["resourceRequirements"]}
    return needs, container["image"]


def _image(aws: Any, image: str) -> Iterator[str]:
    tag = image.rpartition(":")[2]
    if not image_exists(aws.client("ecr"), tag):
        device = tag.rpartition("-")[2]
        yield f"there is no image {REPOSITORY}:{tag}: segment.batch push --device {device}"


def _queue(batch: Any, queue: str) -> Iterator[str]:
    state = batch.describe_job_queues(jobQueues=[queue])["jobQueues"][0]
    if (state["state"], state["status"]) != ("ENABLED", "VALID"):
        yield _state(f"queue {state['jobQueueName']}", state)


def _state(what: str, of: Any) -> str:
    return f"{what} is {of['state']} and {of['status']}: {of.get('statusReason', 'no reason')}"


def _machines(aws: Any, machine: Any, device: str, needs: dict[str, float]) -> Iterator[str]:
    """What keeps a compute environment from starting machines for a job with these needs."""
    name, has = machine["computeEnvironmentName"], machine["computeResources"]
    if (machine["state"], machine["status"]) != ("ENABLED", "VALID"):
        yield _state(f"compute environment {name}", machine)
    if has["type"].startswith("FARGATE"):
        if needs.get("GPU"):
            yield f"{name} is {has['type']}, which has no GPUs: GPU jobs need EC2 or SPOT"
        return
    if has["maxvCpus"] < needs["VCPU"]:
        yield (
            f"{name} may have {has['maxvCpus']} vCPUs, and a job needs {needs['VCPU']:g}: "
            f"deploy --set Max{device.capitalize()}Vcpus=N"
        )
    elif has.get("desiredvCpus", 0) >= has["maxvCpus"]:
        yield f"{name} has all of its {has['maxvCpus']} vCPUs: other jobs must end first"
    if not _fitting(aws.client("ec2"), has["instanceTypes"], needs):
        wanted = ", ".join(f"{kind} {amount:g}" for kind, amount in sorted(needs.items()))
        yield f"none of {', '.join(has['instanceTypes'])} has what a job needs ({wanted})"
    yield from _arrived(aws.client("ecs"), name, machine)
    yield from _quota(aws.client("service-quotas"), has["type"], device, needs["VCPU"])


def _fitting(ec2: Any, types: Sequence[str], needs: dict[str, float]) -> bool:
    """Whether one machine of one of the types (or of all: optimal) can hold the job."""
    patterns = [kind if "." in kind else f"{kind}.*" for kind in types]
    only = [] if "optimal" in types else [{"Name": "instance-type", "Values": patterns}]
    for page in ec2.get_paginator("describe_instance_types").paginate(Filters=only):
        for kind in page["InstanceTypes"]:
            gpus = sum(gpu["Count"] for gpu in kind.get("GpuInfo", {}).get("Gpus", []))
            if (
                kind["VCpuInfo"]["DefaultVCpus"] >= needs["VCPU"]
                and kind["MemoryInfo"]["SizeInMiB"] * SHARE >= needs["MEMORY"]
                and gpus >= needs.get("GPU", 0)
            ):
                return True
    return False


def _arrived(ecs: Any, name: str, machine: Any) -> Iterator[str]:
    """Machines that were started must have told ECS that they are there."""
    cluster = machine.get("ecsClusterArn")
    if not cluster or not machine["computeResources"].get("desiredvCpus"):
        return
    if not ecs.list_container_instances(cluster=cluster)["containerInstanceArns"]:
        yield (
            f"{name} wants machines and none has arrived: if it stays so for ten minutes, there is "
            "no capacity of these types, or the subnets have no way to ECS and ECR"
        )


def _quota(quotas: Any, capacity: str, device: str, vcpus: float) -> Iterator[str]:
    code, title = QUOTAS[capacity, device]
    try:
        quota = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except quotas.exceptions.ClientError as error:
        reason = error.response["Error"]["Message"]
        yield f"the quota {code} ({title}) can't be read: {reason}"
        return
    if quota < vcpus:
        yield (
            f"the account may have {quota:g} vCPUs of '{title}', and a job needs {vcpus:g}: aws "
            f"service-quotas request-service-quota-increase --service-code ec2 --quota-code {code} "
            "--desired-value N"
        )


def _job(batch: Any, job: str) -> Iterator[str]:
    state = find(batch, job)
    if state["status"] in ("PENDING", "FAILED", "RUNNABLE") and state.get("statusReason"):
        yield f"{job} is {state['status']}: {state['statusReason']}"
    for other in state.get("dependsOn", []):
        first = find(batch, other["jobId"])
        if state["status"] == "PENDING":
            yield f"{job} waits for {first['jobId']} {first['jobName']}, which is {first['status']}"
