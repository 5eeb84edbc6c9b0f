"""Drawn scenes: towns, what stands there, the camera; the command `python -m segment.synthetic`."""
