"""`python -m segment.synthetic`."""

from segment.cli import run
from segment.synthetic.command import main

run(main)
