"""How fast the U-Net would train on GPUs that nobody here has: `python -m benchmarks.gpu_model`.

A computation, not a measurement. It counts, for a step on 16 tiles of 256 px, what each convolution
costs a multiprocessor: multiplications, and traffic through its shared memory; how many blocks fill
how many multiprocessors; and what all else moves through memory. What it takes for granted is in
capitals below. PyTorch is put through the same mill.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from minicnn.layers import ConvBlock, ConvTranspose2d, MaxPool2d
from segment.selfcheck.roofline import GPUS, Gpu, count
from segment.unet import UNet

BATCH, SIZE = 16, 256
KEPT = 0.65  # of a multiprocessor's rate, after barriers, addresses and waiting
THEIRS = {"likely": (0.3, 0.18), "at best": (0.5, 0.35)}  # of the TF32 peak in cuDNN; on Hopper
BANDWIDTH = 0.8  # of the data sheet's, at best
LATENCY = 700e-9  # seconds from asking memory for a number to having it, under load
LAUNCH = 9e-6  # seconds of the host for a launch through CuPy
ROWS, SLICE, FLOAT = 128, 16, 4  # as in minicnn/kernels/cuda/tile.cu


@dataclass(frozen=True)
class Card:
    """What the data sheets add to `segment.selfcheck.roofline`; of a multiprocessor the
    multiplications in float32 at a clock, and the threads. `clock`: how much of the boost clock
    lasts."""

    name: str
    multiprocessors: int
    lanes: int
    threads: int
    tf32: float
    clock: float

    @property
    def gpu(self) -> Gpu:
        return next(gpu for gpu in GPUS if gpu.name == self.name)


CARDS = (
    Card("A10G", 80, 128, 1536, 35e12, 0.75),
    Card("L4", 58, 128, 1536, 60e12, 0.65),
    Card("A100", 108, 64, 2048, 156e12, 0.95),
    Card("H100", 132, 128, 2048, 494e12, 0.85),
    Card("H200", 132, 128, 2048, 494e12, 0.85),
)


@dataclass(frozen=True)
class Build:
    """What the kernels can do: the steps of the ladder."""

    tf32: bool = True
    muon: bool = True  # all kernels in 19 launches, not 1,492
    fours: bool = True  # norm and pool read four channels at a time
    shares: bool = True  # split sums in the deep levels, blocks by the number of multiprocessors
    banks: bool = True  # the float32 tile reads b without bank conflicts


NOW = Build()
LADDER = (
    ("before", Build(tf32=False, muon=False, fours=False, shares=False, banks=False)),
    ("TF32", Build(muon=False, fours=False, shares=False, banks=False)),
    ("Muon in 19 launches", Build(fours=False, shares=False, banks=False)),
    ("four channels at a time", Build(shares=False, banks=False)),
    ("shared sums", Build(banks=False)),
    ("b in other banks", NOW),
    ("the same in float32", Build(tf32=False)),
    ("... and b in the same banks", Build(tf32=False, banks=False)),
)


@dataclass(frozen=True)
class Product:
    """A convolution as (M, K) times (K, N); `whole`: its channels come in fours."""

    M: int
    N: int
    K: int
    nbytes: float
    gradient: bool = False  # of the weights: K is long and always shared out
    whole: bool = True
    phases: int = 1

    @property
    def columns(self) -> int:
        return 16 if not self.whole or self.N <= 16 else 32 if self.N <= 32 else 64


RESIDENT = {16: 8, 32: 4, 64: 3}  # blocks at once on a multiprocessor, as in minicnn/kernels/gpu


def products(net: UNet) -> Iterator[Product]:
    """The matrix products of a training step."""
    moved = {w.layer: w.nbytes for w in count(net, SIZE, BATCH) if w.kernel == "convolution"}
    seen = (BATCH, SIZE, SIZE, net.in_channels)
    for name, layer, out in net.stages(seen):
        if not isinstance(layer, MaxPool2d):
            w, nbytes = layer.params["w"], moved[name]
            pixels, K = math.prod(out[:3]), w.shape[0]
            if isinstance(layer, ConvTranspose2d):
                F, C = w.shape[2], w.shape[3]
                yield Product(pixels // 4, F, 4 * C, nbytes, phases=4)
                yield Product(pixels // 4, C, 16 * F, nbytes)
                yield Product(16 * F, C, pixels // 4, nbytes, gradient=True)
            else:
                C, F = w.shape[2], w.shape[3]
                whole = C % 4 == 0 and F % 4 == 0
                yield Product(pixels, F, K * K * C, nbytes, whole=whole)
                if name != "encoder0.0":
                    skip = isinstance(layer, ConvBlock) and C == 2 * seen[3]
                    half = Product(pixels, C // (1 + skip), K * K * F, nbytes / (1 + skip))
                    yield from [replace(half, whole=whole)] * (1 + skip)
                yield Product(K * K * C, F, pixels, nbytes, gradient=True, whole=whole)
        seen = out


def slice_clocks(card: Card, product: Product, build: Build) -> float:
    """Clocks of a multiprocessor for a slice of 16 terms of one block: those of multiplications, or
    of traffic through shared memory at 128 bytes a clock, whichever are more."""
    tensor, cols = build.tf32 and product.whole, product.columns
    lanes = card.lanes * (card.tf32 / card.gpu.peak if tensor else 1)
    multiply = ROWS * cols * SLICE / lanes
    brought = (ROWS + cols) * SLICE * FLOAT / 128  # from memory, and again into shared memory
    if tensor:  # per 8 terms a warp reads TM pairs of a and TN / 2 of b, 2 clocks each
        warps = 2 if cols == 16 else 4
        read = warps * SLICE / 8 * 2 * (ROWS / warps / 8 + cols / 8)
    else:  # per term a warp reads 2 fours of a and TN / 4 of b, 4 clocks each
        each = 8 if cols == 64 else 4
        conflict = 2 if each == 8 and not build.banks else 1
        read = ROWS / 8 * cols / each / 32 * SLICE * 4 * (2 + each / 4 * conflict)
    return max(multiply, 2 * brought + read)


def product_seconds(card: Card, product: Product, build: Build) -> float:
    """Seconds of one product: waves of blocks, the last of which fills the GPU only in part."""
    resident = RESIDENT[product.columns]
    slots = card.multiprocessors * resident
    tiles = product.phases * -(-product.M // ROWS) * -(-product.N // product.columns)
    slices, shares = -(-product.K // SLICE), 1
    if product.gradient:
        shares = max(1, (slots if build.shares else 512) // tiles)
    elif build.shares and product.whole and 2 * tiles <= slots:
        shares = -(-slices // max(16, -(-slices // (slots // tiles))))
    full, rest = divmod(tiles * shares, slots)
    last = -(-rest // card.multiprocessors)  # blocks that share a multiprocessor at the end
    units = full * resident + math.sqrt(last * resident)  # few hide less of their waiting
    rate = card.gpu.peak / (2 * card.lanes * card.multiprocessors) * card.clock * KEPT
    seconds = units * slices / shares * slice_clocks(card, product, build) / rate
    parts = 2 * FLOAT * shares * product.phases * product.M * product.N if shares > 1 else 0
    return max(seconds, (product.nbytes + parts) / (card.gpu.bandwidth * BANDWIDTH))


def memory_seconds(card: Card, net: UNet, build: Build) -> float:
    """Seconds of all that moves through memory beside the products. Bandwidth is what is under way
    by the latency: a thread has one number of each array it reads under way, or four."""
    arrays = {"norm": 1, "norm, backward": 2, "pool": 4, "pool, backward": 2}
    total = 0.0
    for work in count(net, SIZE, BATCH):
        if not work.kernel.startswith("convolution"):
            fours = build.fours or work.kernel not in arrays
            under_way = card.threads * FLOAT * arrays.get(work.kernel, 2) * (4 if fours else 1)
            reached = card.multiprocessors * under_way / LATENCY
            total += work.nbytes / min(card.gpu.bandwidth * BANDWIDTH, reached)
    return total


def tiles_per_second(card: Card, build: Build = NOW) -> float:
    """Training tiles a second: the GPU's time, or the host's for the launches if that is more."""
    net = UNet()
    gpu = sum(product_seconds(card, p, build) for p in products(net))
    gpu += memory_seconds(card, net, build)
    launches = 277 if build.muon else 277 - 19 + 1_492
    return BATCH / max(gpu, launches * LAUNCH)


def pytorch(card: Card, cudnn: str = "likely") -> float:
    """The same of PyTorch's default: TF32, every op a pass of its own; Adam.

    In its favour: no layout is turned, from 32 channels on no tile is filled in part, nothing waits
    for the host. Passes over a map: batch norm 3 and 5, ReLU 2 and 3, concatenation 2 and 2,
    pooling 1 and 2 with indices of 8 bytes, the sum of a skip's gradients 3.
    """
    net, seconds = UNet(), 0.0
    for p in products(net):
        wasted = max(p.N, 32) / p.N if p.N > 1 else 1
        flop = 2 * p.phases * p.M * p.N * p.K * wasted
        peak = card.tf32 * card.clock * THEIRS[cudnn][card.name in ("H100", "H200")]
        seconds += max(flop / peak, p.nbytes / (card.gpu.bandwidth * BANDWIDTH))
    moved, seen = 0.0, 0
    for _, layer, out in net.stages((BATCH, SIZE, SIZE, net.in_channels)):
        made = math.prod(out)
        if isinstance(layer, ConvBlock):
            moved += 13 * FLOAT * made
        elif isinstance(layer, MaxPool2d):
            moved += FLOAT * (3 * seen + 3 * made) + 16 * made + 3 * FLOAT * seen
        elif isinstance(layer, ConvTranspose2d):
            moved += 4 * FLOAT * 2 * made
        seen = made
    moved += sum(w.nbytes for w in count(net, SIZE, BATCH) if w.kernel in ("loss", "Adam"))
    return BATCH / (seconds + moved / (card.gpu.bandwidth * BANDWIDTH))


AIM = ["GPU", "float32", "TF32", "PyTorch", "ours over it", "PyTorch at best", "ours over it"]


def aim_rows() -> list[list[str]]:
    """A row a card: tiles a second in float32 and TF32, PyTorch's, and ours over theirs."""
    rows = []
    for card in CARDS:
        float32, tf32 = (tiles_per_second(card, Build(tf32=t)) for t in (False, True))
        row = [card.name, f"{float32:,.0f}", f"{tf32:,.0f}"]
        for cudnn in THEIRS:
            theirs = pytorch(card, cudnn)
            row += [f"{theirs:,.0f}", f"{tf32 / theirs:.2f}"]
        rows.append(row)
    return rows


def ladder_rows() -> list[list[str]]:
    """A row a step of the ladder: tiles a second on each card with all steps so far."""
    return [
        [name, *(f"{tiles_per_second(card, build):,.0f}" for card in CARDS)]
        for name, build in LADDER
    ]


if __name__ == "__main__":
    for row in (AIM, *aim_rows()):
        print("".join(f"{cell:>16}" for cell in row))
    for row in (["", *(card.name for card in CARDS)], *ladder_rows()):
        print(f"{row[0]:28}", "".join(f"{cell:>9}" for cell in row[1:]))
