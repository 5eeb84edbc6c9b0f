"""`python -m segment.batch`."""

from segment.batch.command import main
from segment.cli import run

run(main)
