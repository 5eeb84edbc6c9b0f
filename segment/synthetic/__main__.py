"""`python -m segment.synthetic`."""

from segment.cli import run
from segment.synthetic.command import main

if __name__ == "__main__":
    run(main)
