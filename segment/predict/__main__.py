"""`python -m segment.predict`."""

from segment.cli import run
from segment.predict.command import main

if __name__ == "__main__":
    run(main)
