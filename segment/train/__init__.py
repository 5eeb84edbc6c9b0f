"""How a model is trained, by one process or many, and the command `python -m segment.train`."""
