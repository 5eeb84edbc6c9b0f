"""Is the container well? The service must answer; a job is well as long as it runs."""

import os
import sys
from http.client import HTTPConnection

if os.path.exists("/tmp/gunicorn.pid"):
    port = os.environ["MINICNN_BIND"].rpartition(":")[2]
    service = HTTPConnection("127.0.0.1", int(port), timeout=5)
    service.request("GET", "/healthz")
    sys.exit(service.getresponse().status != 200)
