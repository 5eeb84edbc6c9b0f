"""`python -m segment.evaluate`."""

from segment.cli import run
from segment.evaluate.command import main

if __name__ == "__main__":
    run(main)
