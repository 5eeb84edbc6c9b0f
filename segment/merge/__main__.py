"""`python -m segment.merge`."""

from segment.cli import run
from segment.merge.command import main

run(main)
