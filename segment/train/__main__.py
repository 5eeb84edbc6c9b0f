"""`python -m segment.train`."""

from segment.cli import run
from segment.train.command import main

run(main)
