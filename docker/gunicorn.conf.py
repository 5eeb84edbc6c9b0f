"""How the mask service is run; docs/api.md explains each choice.

gunicorn -c docker/gunicorn.conf.py "api:create_app()"
"""

import logging
import os
import shutil
import tempfile

# A container may be given fewer cores than the machine has.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
WORKER_MEMORY = 2e9  # bytes: what one worker takes at most, with a scene of the default limits
GPU = os.environ.get("MINICNN_DEVICE", "cpu") != "cpu"
SLOTS = int(os.environ.setdefault("MINICNN_SLOTS", "1" if GPU else "2"))
QUEUE = int(os.environ.get("MINICNN_QUEUE") or 16)

bind = os.environ.get("MINICNN_BIND", "127.0.0.1:8000")
wsgi_app = "api:create_app()"
worker_class = "api.worker.Worker"  # gthread, but a stalled client holds no thread
# At least two: one answers while another is started again. Each has one prediction in hand at most,
# and SLOTS bounds them over all; on a GPU each worker holds a model there.
_room = int(min(4, CORES // 2, MEMORY // WORKER_MEMORY))
workers = int(os.environ.get("MINICNN_WORKERS") or max(2, _room, SLOTS))
# Every seat of the queue and every stream of events may be taken in one worker, and /healthz must
# still find a thread there.
threads = int(os.environ.get("MINICNN_WORKER_THREADS") or SLOTS + QUEUE + 16)
# On the CPU the model is loaded once and its pages are shared. CUDA must not see a fork.
preload_app = not GPU
timeout = 60  # of a worker whose main thread hangs; requests have MINICNN_TIMEOUT
graceful_timeout = int(float(os.environ.get("MINICNN_TIMEOUT") or 120)) + 10
keepalive = 5
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
limit_request_line = 4094
limit_request_fields = 50
accesslog = None  # the service logs each request itself
control_socket_disable = True
forwarded_allow_ips = ""

# Workers count into files of this folder; it starts empty.
_metrics = tempfile.mkdtemp(prefix="minicnn-metrics-")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _metrics

from api.logs import JsonFormatter  # noqa: E402

logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},  # Python's warnings, too
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
        "rasterio": {"level": "CRITICAL"},  # what GDAL says of broken uploads is in the answer
        "api": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
    },
}
logging.captureWarnings(True)  # as text they would break a log of JSON


def post_worker_init(worker):
    """In the worker, after the fork: load the model where it isn't yet, then work on jobs."""
    service = worker.wsgi.extensions["minicnn"]
    service.predictor.model  # noqa: B018
    service.jobs.start()


def worker_exit(server, worker):
    """Put down the job in hand: another worker or the next start goes on with it."""
    if hasattr(worker, "wsgi"):
        worker.wsgi.extensions["minicnn"].jobs.stop()


def child_exit(server, worker):
    """Forget a dead worker's gauges; its counters count on."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def on_exit(server):
    shutil.rmtree(_metrics, ignore_errors=True)
