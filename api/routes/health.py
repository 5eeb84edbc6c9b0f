"""/healthz, /readyz, /metrics: what a load balancer and a monitoring system ask."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress

from flask import Blueprint, Response, request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api import access
from api.errors import Problem, disk_is_full
from api.files import scratch_path, total_bytes
from api.routes.responses import json_answer
from api.service import Service, service

blueprint = Blueprint("health", __name__)

REQUESTS = Counter("minicnn_requests", "Requests answered", ["method", "route", "status"])
SECONDS = Histogram(
    "minicnn_request_seconds",
    "Time to an answer",
    ["method", "route"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
UNDER_WAY = Gauge(
    "minicnn_requests_under_way", "Requests being answered", multiprocess_mode="livesum"
)


def count(status: int, seconds: float) -> None:
    """Add one request to the metrics; routes are counted, not addresses, and known methods."""
    route = str(request.url_rule or "none")
    method = request.method if request.method in METHODS else "OTHER"
    REQUESTS.labels(method, route, status).inc()
    SECONDS.labels(method, route).observe(seconds)


METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}


@blueprint.get("/healthz")
def alive() -> Response:
    return json_answer({"status": "alive"})


@blueprint.get("/readyz")
def ready() -> Response:
    if not service().predictor.ready:
        raise Problem(503, "The model is not loaded yet.", {"Retry-After": "2"})
    try:
        with scratch_path(service().settings) as probe:
            probe.write_bytes(bytes(4096))
    except OSError as error:
        why = "is full" if disk_is_full(error) else "can't be written"
        raise Problem(503, f"The disk of this service {why}.", {"Retry-After": "30"}) from error
    return json_answer({"status": "ready"})


@blueprint.get("/metrics")
def metrics() -> Response:
    """Under several workers each writes its numbers into files, which are added up here."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    now = CollectorRegistry()
    now.register(Now(service()))
    text = generate_latest(registry) + generate_latest(now)
    return Response(text, content_type=CONTENT_TYPE_LATEST)


class Now(Collector):
    """What is so at this moment, over all workers of this machine."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        gate, jobs, cache = self.service.gate, self.service.jobs, self.service.predictor.folder
        yield GaugeMetricFamily("minicnn_waiting", "Predictions that wait", gate.waiting())
        yield GaugeMetricFamily("minicnn_slots_taken", "Predictions under way", gate.slots.taken())
        counted = GaugeMetricFamily("minicnn_jobs", "Jobs that are kept", labels=["status"])
        for status, count in jobs.count().items():
            counted.add_metric([status], count)
        yield counted
        spent = GaugeMetricFamily("minicnn_pixels_today", "Pixels sent by a key", labels=["key"])
        for key in access.read_keys(self.service.settings.keys).values():
            with suppress(FileNotFoundError):
                text = access.spent(self.service.settings, key, time.time()).read_text()
                spent.add_metric([key.name], int(text or 0))
        yield spent
        size = total_bytes(cache.glob("*.tif"))
        yield GaugeMetricFamily("minicnn_cache_bytes", "Kept predictions", size)
