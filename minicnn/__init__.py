"""A convolutional network written by hand: layers, losses and optimisers on NumPy and CuPy arrays."""
