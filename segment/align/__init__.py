"""Labels moved to where a model sees the buildings, and the command `python -m segment.align`."""
