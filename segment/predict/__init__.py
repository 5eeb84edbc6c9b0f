"""From scenes to masks: windows, views, bands, and the command `python -m segment.predict`."""
