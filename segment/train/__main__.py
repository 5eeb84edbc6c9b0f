"""`python -m segment.train`."""

from segment.cli import run
from segment.train.launch import main

run(main)
