"""What a network learns from and is asked about: rasters, labels, scenes, tiles, their splits."""
