"""Training and prediction in AWS, and the command `python -m segment.batch`."""
