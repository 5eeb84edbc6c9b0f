"""Whether a machine's GPU computes what NumPy does, and how fast: `python -m segment.selfcheck`."""
