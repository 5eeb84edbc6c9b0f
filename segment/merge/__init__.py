"""One map of the masks of many processes, and the command `python -m segment.merge`."""
