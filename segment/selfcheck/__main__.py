"""`python -m segment.selfcheck`."""

from segment.cli import run
from segment.selfcheck.command import main

if __name__ == "__main__":
    run(main)
