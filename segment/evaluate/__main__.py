"""`python -m segment.evaluate`."""

from segment.cli import run
from segment.evaluate.command import main

run(main)
