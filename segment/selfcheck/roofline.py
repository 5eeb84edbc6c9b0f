"""How fast the U-Net could run on a GPU, counted from the network.

A kernel that does `flop` operations and moves `nbytes` through memory takes at least
    max(flop / peak, nbytes / bandwidth)
seconds (Williams, Waterman, Patterson 2009, "Roofline"). Every number is float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from minicnn.layers import ConvBlock, ConvTranspose2d, MaxPool2d
from segment.unet import UNet

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Gpu:
    """Peak float32 operations and bytes per second, by the maker's data sheet."""

    name: str
    peak: float
    bandwidth: float


GPUS = (
    Gpu("T4", 8.1e12, 320e9),
    Gpu("A10G", 31.2e12, 600e9),
    Gpu("L4", 30.3e12, 300e9),
    Gpu("L40S", 91.6e12, 864e9),
    Gpu("RTX 4090", 82.6e12, 1.008e12),
    Gpu("RTX 5090", 104.8e12, 1.792e12),
    Gpu("A100", 19.5e12, 1.555e12),
    Gpu("H100", 66.9e12, 3.35e12),
    Gpu("H200", 66.9e12, 4.8e12),
    Gpu("B200", 75e12, 8e12),
)


@dataclass(frozen=True)
class Work:
    """What one kind of kernel does for one layer: operations, and bytes that must move."""

    layer: str
    kernel: str
    flop: float
    nbytes: float

    def seconds(self, gpu: Gpu, of_peak: float = 1.0, of_bandwidth: float = 1.0) -> float:
        return max(self.flop / (gpu.peak * of_peak), self.nbytes / (gpu.bandwidth * of_bandwidth))


def count(net: UNet, size: int = 256, batch: int = 16, training: bool = True) -> list[Work]:
    """The work of one step on a batch of tiles, kernel by kernel."""
    return list(_count(net, size, batch, training))


def _count(net: UNet, size: int, batch: int, training: bool) -> Iterator[Work]:
    shape = (batch, size, size, net.in_channels)
    pixels = batch * size * size
    yield Work("pixels", "normalise", 0, pixels * net.in_channels * (1 + FLOAT))
    seen = pixels * net.in_channels  # numbers in the layer's input
    for name, layer, out in net.stages(shape):
        made = _numbers(out)
        if isinstance(layer, MaxPool2d):
            yield Work(name, "pool", 0, FLOAT * (seen + made) + made)
            if training:  # the skip's gradient is added on the way
                yield Work(name, "pool, backward", 0, FLOAT * (made + 2 * seen) + made)
        else:
            w = layer.params["w"]
            if isinstance(layer, ConvTranspose2d):
                positions = seen // w.shape[3]  # each paints a window
            else:
                positions, seen = _area(out), _area(out) * w.shape[2]  # with the skip
            flop, weights = 2.0 * positions * w.size, w.size
            moved = FLOAT * (seen + made + weights)
            yield Work(name, "convolution", flop, moved)
            if isinstance(layer, ConvBlock) and training:
                yield Work(name, "norm", 0, FLOAT * 2 * made)
            if training:
                if isinstance(layer, ConvBlock):
                    yield Work(name, "norm, backward", 0, FLOAT * (2 + 3) * made)
                if name != "encoder0.0":
                    yield Work(name, "convolution, dx", flop, moved)
                yield Work(name, "convolution, dw", flop, moved)
        seen = made
    if training:
        parameters = sum(p.size for p in net.parameters().values())
        yield Work("loss", "loss", 0, pixels * FLOAT * 14)
        yield Work("parameters", "Adam", 0, FLOAT * 7 * parameters)


def _numbers(shape: tuple[int, ...]) -> int:
    N, H, W, C = shape
    return N * H * W * C


def _area(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] * shape[2]


def seconds(work: list[Work], gpu: Gpu, of_peak: float = 1.0, of_bandwidth: float = 1.0) -> float:
    """The least time for all of `work`, at these shares of the peak and of the bandwidth."""
    return sum(each.seconds(gpu, of_peak, of_bandwidth) for each in work)
