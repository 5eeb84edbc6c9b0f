"""`python -m segment.selfcheck`."""

from segment.cli import run
from segment.selfcheck.command import main

run(main)
