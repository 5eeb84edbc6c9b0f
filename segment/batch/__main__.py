"""`python -m segment.batch`."""

from segment.batch.command import main
from segment.cli import run

if __name__ == "__main__":
    run(main)
