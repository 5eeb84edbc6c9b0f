"""`python -m segment.merge`."""

from segment.cli import run
from segment.merge.command import main

if __name__ == "__main__":
    run(main)
