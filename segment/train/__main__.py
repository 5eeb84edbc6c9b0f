"""`python -m segment.train`."""

from segment.cli import run
from segment.train.command import main

if __name__ == "__main__":
    run(main)
