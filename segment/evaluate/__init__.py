"""How good a model is: scores, faults, the report; the command `python -m segment.evaluate`."""
