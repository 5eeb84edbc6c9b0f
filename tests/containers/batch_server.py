"""AWS Batch as moto plays it on an engine, nearer to AWS: run as a process of its own, with a port.

moto 5 runs a job's container, and leaves out what our jobs rest on: an array's jobs are told their
number, the root file system is read-only, /work and /tmp are volumes of the job's own, and a job is
stopped by SIGTERM. Jobs also get the address and credentials of this server, which is their S3.
"""

import os
import sys

from docker.models.containers import Container, ContainerCollection
from moto.batch.models import Job
from moto.server import main

read, run, kill = Job._get_container_property, ContainerCollection.run, Container.kill
PORT = sys.argv[1]
SURROUNDINGS = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    **{name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
}


def get_container_property(job, name, default):
    if name == "mountPoints":  # volumes without a folder on the host, which moto doesn't know
        return []
    if name != "environment":
        return read(job, name, default)
    found = job.job_definition.container_properties.get(name, [])
    given = {"AWS_BATCH_JOB_ID": job.job_id, **SURROUNDINGS}
    if "index" in job.array_properties:
        given["AWS_BATCH_JOB_ARRAY_INDEX"] = str(job.array_properties["index"])
    return [*found, *({"name": name, "value": value} for name, value in given.items())]


Job._get_container_property = get_container_property
ContainerCollection.run = lambda self, image, **options: run(
    self, image, **options, read_only=True, volumes=["/work", "/tmp"]
)
Container.kill = lambda self: self.stop(timeout=30)
main(["-H", "127.0.0.1", "-p", PORT])
