"""`python -m segment.align`."""

from segment.align.command import main
from segment.cli import run

if __name__ == "__main__":
    run(main)
