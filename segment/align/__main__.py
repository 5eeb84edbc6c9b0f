"""`python -m segment.align`."""

from segment.align.command import main
from segment.cli import run

run(main)
