"""A convolutional network written by hand, layer by layer, on NumPy and CuPy arrays."""

from minicnn import checkpoint, gradcheck, losses, naive, ops, optim, summary
from minicnn.backend import (
    array_module,
    choose_device,
    kernels_for,
    set_precision,
    to_device,
    to_host,
)
from minicnn.kernels.cpu.threads import num_threads, set_num_threads
from minicnn.layers import (
    BatchNorm2d,
    Conv2d,
    ConvBlock,
    ConvTranspose2d,
    Layer,
    MaxPool2d,
    ReLU,
    Sequential,
)

__version__ = "0.1.0"

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvBlock",
    "ConvTranspose2d",
    "Layer",
    "MaxPool2d",
    "ReLU",
    "Sequential",
    "array_module",
    "checkpoint",
    "choose_device",
    "gradcheck",
    "kernels_for",
    "losses",
    "naive",
    "num_threads",
    "ops",
    "optim",
    "set_num_threads",
    "set_precision",
    "summary",
    "to_device",
    "to_host",
]
