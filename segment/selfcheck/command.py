"""Does this machine's GPU compute what NumPy does, and how fast? `python -m segment.selfcheck`.

The kernels were proved without a GPU. Whoever has one runs this and pastes what it prints, or the
JSON it writes, in a report.
"""

import argparse
import platform
import re
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import minicnn
from minicnn import losses, ops
from minicnn.backend import (
    Array,
    array_module,
    describe_device,
    kernels_for,
    precision,
    set_precision,
    synchronize,
    to_device,
    to_host,
)
from minicnn.losses import bce_with_logits
from minicnn.ops import BlockWeights, Statistics, same_pad
from minicnn.optim import Adam
from segment.cli import add_device, chosen_device, parser, whole
from segment.errors import InputError
from segment.selfcheck.roofline import GPUS, count, seconds
from segment.storage.documents import write_json
from segment.unet import UNet

TOLERANCE = 1e-4  # of the largest value: float32 against float64
TF32_TOLERANCE = 2e-3  # the same on tensor cores: 10 bits behind the point
TF32_STEP = 2e-2  # of a whole step on them: rounding opens some ReLUs that were shut
REPEATS = 5
PAD = same_pad(4)

Report = dict[str, Any]


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    device = chosen_device(options)
    report: Report = {
        "minicnn": minicnn.__version__,
        "python": platform.python_version(),
        "device": describe_device(device),
        "kernels": [],
    }
    print(f"{report['device']}, minicnn {report['minicnn']}")
    batch = options.batch or (16 if device == "gpu" else 1)
    for each in _precisions(device, options.precision):
        set_precision(each)
        suffix, checks = IN[each]
        for name, tolerance in checks.items():
            error = CHECKS[name](device, np.random.default_rng(0))
            good = error <= tolerance
            report["kernels"].append({"kernel": name + suffix, "error": error, "good": good})
            print(
                f"  {name + suffix:28} error {error:.1e}  {'ok' if good else 'WRONG'}", flush=True
            )
        report["speed" + suffix] = speed(device, options.size, batch)
        print(*_lines(report["speed" + suffix]), sep="\n")
    if options.json:
        write_json(Path(options.json), report)
    wrong = [row["kernel"] for row in report["kernels"] if not row["good"]]
    if wrong:
        raise InputError(f"kernels that differ from NumPy on this device: {', '.join(wrong)}")


def _precisions(device: str, asked: str | None) -> list[str]:
    """What to check: what was asked for, else float32, and tf32 where the device has it."""
    if asked:
        return [asked]
    set_precision("auto")
    return list(dict.fromkeys(["float32", precision(device)]))


def _parser() -> argparse.ArgumentParser:
    p = parser("selfcheck", "Check and time every kernel on this machine.")
    add_device(p)
    p.add_argument("--size", type=whole(1), default=256, help="pixels along a tile's side")
    p.add_argument("--batch", type=whole(1), help="tiles a step; default: 16, on a CPU 1")
    p.add_argument("--json", metavar="FILE", help="write the report there as well")
    return p


# ---------------------------------------------------------------------------- right or wrong


def _error(mine: tuple[Array | None, ...], exact: tuple[Array | None, ...]) -> float:
    """The largest difference, relative to the largest value of all the arrays."""
    pairs = [(to_host(a), np.asarray(b)) for a, b in zip(mine, exact, strict=True) if a is not None]
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    return max(float(np.abs(a.astype(float) - b).max()) for a, b in pairs) / largest


def _pair(name: str, *shapes: tuple[int, ...], **options: Any) -> Callable[..., float]:
    """A check of op `name` and its backward on arrays of these shapes."""

    def check(device: str, rng: np.random.Generator) -> float:
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        on_device = [to_device(a, device) for a in arrays]
        kernels = kernels_for(on_device[0])
        y, cache = getattr(kernels, name)(*on_device, **options)
        exact, kept = getattr(ops, name)(*(a.astype(float) for a in arrays), **options)
        dy = rng.standard_normal(exact.shape).astype(np.float32)
        back = getattr(kernels, f"{name}_backward")(to_device(dy, device), cache)
        theirs = getattr(ops, f"{name}_backward")(dy.astype(float), kept)
        if not isinstance(back, tuple):
            back, theirs = (back,), (theirs,)
        return _error((y, *back), (exact, *theirs))

    return check


def _block(C: int, D: int, F: int, training: bool = True) -> Callable[..., float]:
    """A check of the fused block, with a skip of D channels."""

    def check(device: str, rng: np.random.Generator) -> float:
        shapes = ((2, 32, 32, C), (2, 32, 32, D), (4, 4, C + D, F), (F,), (F,), (F,))
        x, skip, *rest = (rng.standard_normal(s).astype(np.float32) for s in shapes)
        given = None if training else Statistics(rest[1], rest[2] ** 2 + np.float32(0.5))

        def called(f: Any, convert: Callable[[Any], Any]) -> Any:
            weights = BlockWeights(*map(convert, rest))
            statistics = given and Statistics(*map(convert, given))
            return f(convert(x), convert(skip) if D else None, weights, statistics, PAD)

        def moved(a: Any) -> Any:
            return to_device(a, device)

        kernels = kernels_for(moved(x))
        y, cache = called(kernels.conv_bn_relu, moved)
        exact, kept = called(ops.conv_bn_relu, lambda a: a.astype(float))
        dy = rng.standard_normal(exact.shape).astype(np.float32)
        *back, gradients = kernels.conv_bn_relu_backward(moved(dy), cache)
        *theirs, exactly = ops.conv_bn_relu_backward(dy.astype(float), kept)
        return _error((y, *back, *gradients), (exact, *theirs, *exactly))

    return check


def _loss(f: losses.Loss) -> Callable[..., float]:
    def check(device: str, rng: np.random.Generator) -> float:
        logits = rng.standard_normal((2, 64, 64, 1)).astype(np.float32)
        labels = (rng.random(logits.shape) < 0.3).astype(np.float32)
        loss, slope = f(to_device(logits, device), to_device(labels, device))
        exact, gradient = f(logits.astype(float), labels.astype(float))
        size = logits.size  # the gradient of a mean over so many
        return _error((np.float64(loss), slope * size), (np.float64(exact), gradient * size))

    return check


def _step(device: str, rng: np.random.Generator) -> float:
    """All gradients of a small net, by their length, and its parameters after a step of Adam."""
    x = rng.standard_normal((2, 32, 32, 3))
    y = (rng.random((2, 32, 32, 1)) < 0.3).astype(float)
    gradients, parameters = [], []
    for dtype, place in ((np.float32, device), (np.float64, "cpu")):
        net = UNet(widths=(8, 16, 24))
        net.astype(dtype).to(place)
        images, labels = (to_device(a.astype(dtype), place) for a in (x, y))
        net.backward(bce_with_logits(net.forward(images, training=True), labels)[1])
        gradients.append(np.concatenate([to_host(g).ravel() for g in net.gradients().values()]))
        Adam(net, 1e-6).step()
        parameters.append(tuple(map(to_host, net.parameters().values())))
    mine, exact = gradients
    off = float(np.linalg.norm(mine - exact) / np.linalg.norm(exact))
    return max(off, _error(*parameters))


CHECKS: dict[str, Callable[..., float]] = {
    "convolution, 3 -> 16": _pair(
        "conv2d", (2, 33, 31, 3), (4, 4, 3, 16), (16,), stride=1, pad=PAD
    ),
    "convolution, 16 -> 1": _pair("conv2d", (2, 32, 32, 16), (1, 1, 16, 1), (1,)),
    "convolution, 64 -> 128": _pair(
        "conv2d", (2, 16, 16, 64), (4, 4, 64, 128), (128,), stride=1, pad=PAD
    ),
    "convolution, stride 2": _pair("conv2d", (2, 17, 19, 8), (3, 3, 8, 12), (12,), stride=2, pad=1),
    "transposed convolution": _pair(
        "conv_transpose2d", (2, 16, 16, 32), (4, 4, 16, 32), (16,), stride=2, crop=1
    ),
    "batch norm": _pair("batch_norm", (2, 31, 33, 20), (20,), (20,)),
    "ReLU": _pair("relu", (2, 31, 33, 5)),
    "max-pool": _pair("max_pool2d", (2, 32, 32, 16)),
    "block": _block(16, 0, 32),
    "block with skip": _block(16, 16, 16),
    "block, inference": _block(16, 0, 32, training=False),
    "cross-entropy": _loss(losses.bce_with_logits),
    "Dice": _loss(losses.soft_dice),
    "Jaccard": _loss(losses.soft_jaccard),
    "training step": _step,
}
IN: dict[str, tuple[str, dict[str, float]]] = {  # what to write behind a check, its tolerance
    "float32": ("", dict.fromkeys(CHECKS, TOLERANCE)),
    "tf32": (
        ", TF32",
        {
            "convolution, 64 -> 128": TF32_TOLERANCE,
            "convolution, stride 2": TF32_TOLERANCE,
            "transposed convolution": TF32_TOLERANCE,
            "training step": TF32_STEP,
        },
    ),
}


# ---------------------------------------------------------------------------- fast or slow


def speed(device: str, size: int, batch: int) -> Report:
    """Tiles per second of training steps and of inference; on a known GPU, their share of what the
    roofline allows."""
    net = UNet()
    net.to(device)
    x = to_device(np.zeros((batch, size, size, 3), np.float32), device)
    labels = array_module(x).zeros((batch, size, size, 1), np.float32)
    optimizer = Adam(net)

    def predict() -> None:
        net.predict(x)

    def train() -> None:
        _, dlogits = bce_with_logits(net.forward(x, training=True), labels)
        net.backward(dlogits)
        optimizer.step()

    name = describe_device(device)
    gpu = next((g for g in GPUS if re.search(rf"\b{g.name}\b", name)), None)
    rows = []
    for what, step, training in (("training", train, True), ("inference", predict, False)):
        median = _median_seconds(step, device)
        work = count(net, size, batch, training)
        row = {
            "what": what,
            "seconds": median,
            "tiles_per_second": batch / median,
            "gflops": sum(w.flop for w in work) / median / 1e9,
        }
        if gpu is not None:
            row["share_of_roofline"] = seconds(work, gpu) / median
        rows.append(row)
    return {"size": size, "batch": batch, "rows": rows, "kernels": _profile(train, device)}


def _median_seconds(step: Callable[[], Any], device: str) -> float:
    times = []
    for _ in range(1 + REPEATS):  # the first compiles the kernels
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def _profile(step: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds in each kernel of one step, the slowest first; the GPU is waited for after each."""
    if device == "cpu":
        return {}
    launches: Any = import_module("minicnn.kernels.gpu.launches")
    spent: dict[str, float] = {}
    launches.profile = spent
    try:
        step()
    finally:
        launches.profile = None
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _lines(report: Report) -> list[str]:
    lines = [f"batches of {report['batch']} tiles of {report['size']} px:"]
    for row in report["rows"]:
        share = row.get("share_of_roofline")
        of = "" if share is None else f", {share:.0%} of the float32 roofline"
        rate = f"{row['tiles_per_second']:.1f} tiles/s, {row['gflops']:.0f} GFLOP/s"
        lines.append(f"  {row['what']:10} {row['seconds'] * 1e3:.1f} ms, {rate}{of}")
    total = sum(report["kernels"].values())
    for name, spent in report["kernels"].items():
        lines.append(
            f"    {name:20} {spent * 1e3:8.2f} ms  {spent / total:4.0%} of a training step"
        )
    return lines
