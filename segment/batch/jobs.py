"""Jobs: commands of this project, run by AWS Batch in a container, from S3 to S3."""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segment.batch.stack import resources
from segment.errors import InputError

OVER = ("SUCCEEDED", "FAILED")
LARGEST_ARRAY = 10_000  # AWS Batch's limit
REASON = "cancelled with segment.batch cancel"


@dataclass(frozen=True)
class Place:
    """Where jobs of one device go: a queue and a definition, and what a job gets there."""

    queue: str
    definition: str
    needs: Mapping[str, float]  # VCPU, MEMORY in MiB, GPU

    @classmethod
    def of(cls, aws: Any, stack: str, device: str) -> "Place":
        """The stack's queue and job definition for a device; InputError where they can't serve."""
        made, batch = resources(aws, stack), aws.client("batch")
        queue, definition = made[f"{device.capitalize()}Queue"], made[f"{device.capitalize()}Job"]
        found = batch.describe_job_definitions(jobDefinitions=[definition])["jobDefinitions"]
        needs = found[0]["containerProperties"]["resourceRequirements"]
        place = cls(queue, definition, {need["type"]: float(need["value"]) for need in needs})
        if place.needs.get("GPU"):
            _require_ec2(batch, queue)
        return place


def machines(batch: Any, queue: str) -> list[Any]:
    """The compute environments of a queue."""
    order = batch.describe_job_queues(jobQueues=[queue])["jobQueues"][0]["computeEnvironmentOrder"]
    names = [entry["computeEnvironment"] for entry in order]
    found = batch.describe_compute_environments(computeEnvironments=names)
    return list(found["computeEnvironments"])


def _require_ec2(batch: Any, queue: str) -> None:
    for machine in machines(batch, queue):
        kind = machine["computeResources"]["type"]
        if kind.startswith("FARGATE"):
            raise InputError(
                f"{machine['computeEnvironmentName']} is {kind}, which has no GPUs: "
                "GPU jobs need machines of EC2 or SPOT"
            )


def submit(
    aws: Any,
    place: Place,
    command: Sequence[str],
    title: str,
    hours: float,
    shards: int = 0,
    after: str | None = None,
) -> str:
    """Submit a command and return the job's id; a job with the same command that isn't over is it.

    `shards` jobs make an array; each finds its number in AWS_BATCH_JOB_ARRAY_INDEX. The job waits
    for the one `after`, all of it. An attempt that takes more than `hours` is stopped.
    """
    batch, name = aws.client("batch"), job_name(title, command)
    if found := _unfinished(batch, place.queue, name):
        print(f"{found} {name}: submitted already")
        return found
    job = batch.submit_job(
        jobName=name,
        jobQueue=place.queue,
        jobDefinition=place.definition,
        containerOverrides={"command": list(command)},
        timeout={"attemptDurationSeconds": round(hours * 3600)},
        tags={"project": "minicnn"},
        **({"arrayProperties": {"size": shards}} if shards > 1 else {}),
        **({"dependsOn": [{"jobId": after}]} if after else {}),
    )
    print(f"{job['jobId']} {name}")
    return str(job["jobId"])


def job_name(title: str, command: Sequence[str]) -> str:
    """What people recognise, and a digest of the command: the same work has the same name."""
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:100]
    return f"{readable}-{digest}"


def _unfinished(batch: Any, queue: str, name: str) -> str | None:
    named = [{"name": "JOB_NAME", "values": [name]}]
    for page in batch.get_paginator("list_jobs").paginate(jobQueue=queue, filters=named):
        for job in page["jobSummaryList"]:
            if job["status"] not in OVER:
                return str(job["jobId"])
    return None


def find(batch: Any, job: str) -> Any:
    found = batch.describe_jobs(jobs=[job])["jobs"]
    if not found:
        raise InputError(f"no job {job} (Batch forgets jobs a week after their end)")
    return found[0]


def show(aws: Any, stack: str, job: str | None) -> None:
    """Print a line for a job, or for every job of the stack's queues that Batch remembers."""
    batch = aws.client("batch")
    if job:
        print(_line(find(batch, job)))
        return
    made = resources(aws, stack)
    everything = [{"name": "AFTER_CREATED_AT", "values": ["0"]}]  # without it, only running jobs
    pages = batch.get_paginator("list_jobs")
    for queue in (made["CpuQueue"], made["GpuQueue"]):
        for page in pages.paginate(jobQueue=queue, filters=everything):
            if ids := [summary["jobId"] for summary in page["jobSummaryList"]]:  # 100 at most
                for found in batch.describe_jobs(jobs=ids)["jobs"]:
                    print(_line(found))


def _line(job: Any) -> str:
    """Id, name, state; of an array how many are in which state; the reason where there is one."""
    counts = job.get("arrayProperties", {}).get("statusSummary", {})
    shares = " ".join(f"{count} {state}" for state, count in sorted(counts.items()) if count)
    tries = len(job.get("attempts", []))
    parts = [
        f"{job['jobId']} {job['jobName']} {job['status']}",
        f"({shares})" if shares else "",
        f"attempt {tries}" if tries > 1 else "",
        job.get("statusReason", ""),
    ]
    return " ".join(part for part in parts if part)


def show_logs(aws: Any, job: str, follow: bool, seconds: float = 5) -> None:
    """Print what a job has said; with `follow` go on until it is over."""
    batch, logs = aws.client("batch"), aws.client("logs")
    token: dict[str, str] = {}
    stream = None
    while True:
        state = find(batch, job)
        if "size" in state.get("arrayProperties", {}):
            raise InputError(f"{job} is an array: name one of its jobs, as in {job}:0")
        container = state.get("container", {})
        if container.get("logStreamName") not in (None, stream):  # a retry writes into a new one
            stream, token = container["logStreamName"], {}
        if stream:
            options = container.get("logConfiguration", {}).get("options", {})
            group = options.get("awslogs-group", "/aws/batch/job")
            token = _print_events(logs, group, stream, token)
        if state["status"] in OVER or not follow:
            return
        time.sleep(seconds)


def _print_events(logs: Any, group: str, stream: str, token: dict[str, str]) -> dict[str, str]:
    """Print what is new in a stream, and return where to go on."""
    where = {"logGroupName": group, "logStreamName": stream, "startFromHead": True}
    while True:
        try:
            page = logs.get_log_events(**where, **token)
        except logs.exceptions.ResourceNotFoundException:  # nothing has been said yet
            return token
        for event in page["events"]:
            print(event["message"], flush=True)
        if token.get("nextToken") == page["nextForwardToken"]:
            return token
        token = {"nextToken": page["nextForwardToken"]}


def cancel(aws: Any, job: str) -> None:
    """Stop a job, whatever its state; training leaves a checkpoint. One that is over stays so."""
    batch = aws.client("batch")
    state = find(batch, job)
    if state["status"] in OVER:
        print(f"{job}: {state['status']} already")
        return
    batch.terminate_job(jobId=job, reason=REASON)
    print(f"{job}: told to stop")
