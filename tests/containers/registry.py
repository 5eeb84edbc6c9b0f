"""ECR as ministack plays it, with addresses that can be reached: run as a process of its own.

A repository's address is AWS's own in ministack; here it is the server's, so that an engine finds
it. Everything else is ministack's: tokens, the push itself, tags that can't be overwritten.
"""

import os

from ministack.app import main
from ministack.services import ecr

ecr._repo_uri = lambda name: f"127.0.0.1:{os.environ['GATEWAY_PORT']}/{name}"
main()
