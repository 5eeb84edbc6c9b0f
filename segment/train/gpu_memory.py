"""How much of a GPU's memory a training step takes: counted from the network."""

from math import prod

from minicnn.layers import Conv2d, ConvBlock, ConvTranspose2d
from segment.unet import UNet

FLOAT = 4  # bytes
PARTS = 512 * 128 * 64 * FLOAT  # at most in the parts of sums that blocks share, see convolve.cu
LARGEST_AUTO = 32  # tiles a step; more would not be faster, and learn less per epoch


def training_bytes(net: UNet, batch: int, size: int = 256) -> int:
    """Memory that a training step takes at its peak: parameters, what is kept, what is passing.

    Kept from the forward pass: z and y of every block, what pools and transposed convolutions put
    out. Passing: the gradients around the widest maps.
    """
    kept = batch * size * size * net.in_channels * (FLOAT + 1)
    widest = 0
    for _, layer, out in net.stages((batch, size, size, net.in_channels)):
        numbers = prod(out)
        widest = max(widest, numbers)
        per_number = {ConvBlock: 2 * FLOAT, ConvTranspose2d: FLOAT, Conv2d: 2 * FLOAT}
        kept += numbers * per_number.get(type(layer), FLOAT + 1)  # else a pool, with its winners
    parameters = sum(p.size for p in net.parameters().values())
    own = 5 * FLOAT * parameters  # with gradients, Adam's two averages and that of the weights
    return kept + 4 * FLOAT * widest + own + PARTS


def largest_batch(net: UNet, free: int, size: int = 256) -> int:
    """The most tiles whose training step takes no more than `free` bytes; 0 if not even one."""
    fixed = training_bytes(net, 0, size)
    return max(0, (free - fixed) // (training_bytes(net, 1, size) - fixed))
