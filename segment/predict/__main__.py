"""`python -m segment.predict`."""

from segment.cli import run
from segment.predict.command import main

run(main)
